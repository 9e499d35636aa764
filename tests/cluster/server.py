"""A kube-apiserver and its etcd on loopback: no kubelet, no controllers, nothing that outlives it.

Binaries come from the folder that KUBEBUILDER_ASSETS names, else from $PATH (the envtest
convention). One key serves TLS and signs the ServiceAccounts' tokens.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

ADMIN_TOKEN = "admin-of-the-tests"
START_TIMEOUT = 60.0  # seconds; 4 to 6 on an idle machine
Object = dict[str, Any]


def find(name: str) -> str | None:
    """The path of kube-apiserver or etcd, None when there is none."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    return (shutil.which(name, path=assets) if assets else None) or shutil.which(name)


class ApiError(Exception):
    """The server's refusal: `status` is the HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


@dataclass(frozen=True)
class Server:
    """Where it listens and what is needed to talk to it."""

    port: int
    certificate: Path
    key: Path
    log: Path
    _own: threading.local = field(default_factory=threading.local, compare=False)

    @cached_property
    def context(self) -> ssl.SSLContext:
        """A TLS context that trusts this server only."""
        return ssl.create_default_context(cafile=str(self.certificate))

    def connection(self, timeout: float = 30) -> http.client.HTTPSConnection:
        """A new connection."""
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=self.context, timeout=timeout
        )

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str = ADMIN_TOKEN,
        content_type: str = "application/json",
    ) -> Object:
        """One request, decoded; ApiError for a status of 300 and more.

        Each thread has a connection that it keeps: a handshake costs more than most requests.
        """
        headers = {"Authorization": f"Bearer {token}", "Content-Type": content_type}
        data = None if body is None else json.dumps(body)
        kept: http.client.HTTPSConnection | None = getattr(self._own, "connection", None)
        connection = self._own.connection = kept or self.connection()
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException):
            connection.close()
            self._own.connection = None
            if kept is None:
                raise
            # the server has closed it meanwhile, as it may
            return self.request(method, path, body, token=token, content_type=content_type)
        text = response.read().decode()
        if response.status >= 300:
            raise ApiError(response.status, text)
        return json.loads(text) if text.startswith("{") else {"text": text}

    def get(self, path: str) -> Object:
        """GET."""
        return self.request("GET", path)

    def create(self, path: str, body: object) -> Object:
        """POST to a collection."""
        return self.request("POST", path, body)

    def merge(self, path: str, body: object, manager: str | None = None) -> Object:
        """A JSON merge patch, in the name of `manager`."""
        query = f"?fieldManager={urllib.parse.quote(manager)}" if manager else ""
        return self.request(
            "PATCH", path + query, body, content_type="application/merge-patch+json"
        )

    def delete(self, path: str, *, now: bool = True) -> None:
        """DELETE; at once, as a kubelet would end it, or with the object's own grace."""
        try:
            self.request("DELETE", path, {"gracePeriodSeconds": 0} if now else None)
        except ApiError as error:
            if error.status != 404:
                raise


@contextmanager
def running(directory: Path) -> Iterator[Server]:
    """Start both, yield when the server says it is ready, end both."""
    etcd, apiserver = find("etcd"), find("kube-apiserver")
    if etcd is None or apiserver is None:
        raise FileNotFoundError("kube-apiserver or etcd")
    certificate, key = _certificate(directory)
    tokens = directory / "tokens.csv"
    tokens.write_text(f'{ADMIN_TOKEN},admin,admin,"system:masters"\n')
    with (
        ports(3) as (client, peer, port),
        (directory / "etcd.log").open("wb") as etcd_log,
        (directory / "api.log").open("wb") as log,
    ):
        store = f"http://127.0.0.1:{client}"
        etcd_process = subprocess.Popen(
            [etcd, "--unsafe-no-fsync", "--data-dir", str(directory / "etcd"),
             "--listen-client-urls", store, "--advertise-client-urls", store,
             "--listen-peer-urls", f"http://127.0.0.1:{peer}"],
            stdout=etcd_log, stderr=etcd_log, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
        api_process = subprocess.Popen(
            [apiserver, "--etcd-servers", store, "--cert-dir", str(directory / "certs"),
             "--bind-address=127.0.0.1", f"--secure-port={port}",
             f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}",
             "--service-cluster-ip-range=10.0.0.0/24", "--authorization-mode=Node,RBAC",
             f"--token-auth-file={tokens}", "--service-account-issuer=https://tests",
             f"--service-account-key-file={certificate}",
             f"--service-account-signing-key-file={key}",
             "--api-audiences=https://tests", "--disable-admission-plugins=ServiceAccount",
             "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
             "--endpoint-reconciler-type=none"],
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            server = Server(port, certificate, key, directory / "api.log")
            _wait_until_ready(server, api_process)
            yield server
        finally:
            # nothing of theirs is kept: a graceful end would take 10 s
            for process in (api_process, etcd_process):
                process.kill()
                process.wait()


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            server.get("/readyz")
            server.get("/api/v1/namespaces/default")
        except (OSError, ApiError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = server.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"kube-apiserver did not start: {error}\n{tail}") from error
            time.sleep(0.2)
        else:
            return


def _certificate(directory: Path) -> tuple[Path, Path]:
    certificate, key = directory / "server.crt", directory / "server.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1,IP:::1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@contextmanager
def ports(count: int) -> Iterator[list[int]]:
    """Ports that nobody else is given while this lasts, though servers start beside each other.

    A socket with SO_REUSEADDR that does not listen leaves its port to a listener that asks for it
    by number with SO_REUSEADDR, as Go's do; bind(2) to port 0 and connect(2) pass it over.
    """
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        yield [each.getsockname()[1] for each in sockets]


def custom_resources() -> tuple[Mapping[str, Any], ...]:
    """CRDs as the operators ship them in shape; schemas are open, since nothing here reads them."""
    return tuple(
        _crd(group, version, kind, plural, namespaced)
        for group, version, kind, plural, namespaced in (
            ("k8s.cni.cncf.io", "v1", "NetworkAttachmentDefinition",
             "network-attachment-definitions", True),
            ("sriovnetwork.openshift.io", "v1", "SriovNetwork", "sriovnetworks", True),
            ("sriovnetwork.openshift.io", "v1", "SriovNetworkNodePolicy",
             "sriovnetworknodepolicies", True),
            ("sriovnetwork.openshift.io", "v1", "SriovNetworkPoolConfig",
             "sriovnetworkpoolconfigs", True),
            ("sriovnetwork.openshift.io", "v1", "SriovIBNetwork", "sriovibnetworks", True),
            ("sriovnetwork.openshift.io", "v1", "OVSNetwork", "ovsnetworks", True),
            ("sriovnetwork.openshift.io", "v1", "SriovOperatorConfig",
             "sriovoperatorconfigs", True),
            ("operators.coreos.com", "v1alpha1", "Subscription", "subscriptions", True),
            ("operators.coreos.com", "v1", "OperatorGroup", "operatorgroups", True),
            ("operators.coreos.com", "v1alpha1", "CatalogSource", "catalogsources", True),
            ("config.openshift.io", "v1", "ImageDigestMirrorSet", "imagedigestmirrorsets", False),
            ("operator.openshift.io", "v1alpha1", "ImageContentSourcePolicy",
             "imagecontentsourcepolicies", False),
            ("networking.k8s.aws", "v1alpha1", "NodeENI", "nodeenis", False),
        )
    )  # fmt: skip


def _crd(group: str, version: str, kind: str, plural: str, namespaced: bool) -> Mapping[str, Any]:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    meta: Object = {"name": f"{plural}.{group}"}
    if group.endswith("k8s.aws"):
        meta["annotations"] = {"api-approved.kubernetes.io": "unapproved, a test"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": meta,
        "spec": {
            "group": group,
            "scope": "Namespaced" if namespaced else "Cluster",
            "names": {
                "kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List",
            },
            "versions": [
                {
                    "name": version, "served": True, "storage": True,
                    "subresources": {"status": {}},
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {"spec": schema, "status": schema},
                        },
                    },
                },
            ],
        },
    }  # fmt: skip
