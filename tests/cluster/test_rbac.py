"""manifests/rbac.yaml: every command runs with it, and nothing in it can be spared."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import yaml

from nodeagent.journal import Journal
from nodeagent.settings import Settings
from tests.cluster.commands import ROOT, Pod
from tests.cluster.conftest import eventually
from tests.cluster.kubelet import Plugin
from tests.cluster.operator import CNI, NADS, Operator, attachment, network
from tests.cluster.proxy import Proxy, Seen
from tests.cluster.server import Object, Server

RBAC = "/apis/rbac.authorization.k8s.io/v1"


class Access(NamedTuple):
    """One thing that was asked for; `namespace` is "" for all or none."""

    verb: str
    group: str
    resource: str
    namespace: str


class Roles(NamedTuple):
    """The roles as the test installed them."""

    user: str
    cluster: Object
    local: Object
    cluster_path: str
    local_path: str


@pytest.fixture
def roles(server: Server, namespace: str, credentials: Path, unique: str) -> Roles:
    """The manifest under names of this test's own, bound to the ServiceAccount of the pod."""
    text = (ROOT / "manifests/rbac.yaml").read_text()
    cluster, local = yaml.safe_load_all(text)
    name = cluster["metadata"]["name"] = local["metadata"]["name"] = f"nodeagent-{unique}"
    local["metadata"]["namespace"] = namespace
    path = f"{RBAC}/namespaces/{namespace}"
    server.create(f"{RBAC}/clusterroles", cluster)
    server.create(f"{path}/roles", local)
    subject = {"kind": "ServiceAccount", "name": "nodeagent", "namespace": namespace}
    api_group = "rbac.authorization.k8s.io"
    for where, kind in (
        (f"{RBAC}/clusterrolebindings", "ClusterRole"),
        (f"{path}/rolebindings", "Role"),
    ):
        reference = {"apiGroup": api_group, "kind": kind, "name": name}
        body = {"metadata": {"name": name}, "subjects": [subject], "roleRef": reference}
        server.create(where, body)
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    server.create(accounts, {"metadata": {"name": "nodeagent"}})
    asked = server.create(f"{accounts}/nodeagent/token", {"spec": {"expirationSeconds": 3600}})
    (credentials / "token").write_text(asked["status"]["token"])
    return Roles(
        f"system:serviceaccount:{namespace}:nodeagent",
        cluster,
        local,
        f"{RBAC}/clusterroles/{name}",
        f"{path}/roles/{name}",
    )


def _objects(server: Server, namespace: str, unique: str) -> None:
    """One of each kind that is captured."""
    for path, version, kind in (
        ("/apis/operators.coreos.com/v1alpha1", "subscriptions", "Subscription"),
        ("/apis/operators.coreos.com/v1", "operatorgroups", "OperatorGroup"),
        ("/apis/operators.coreos.com/v1alpha1", "catalogsources", "CatalogSource"),
        ("/apis/sriovnetwork.openshift.io/v1", "sriovoperatorconfigs", "SriovOperatorConfig"),
        ("/apis/sriovnetwork.openshift.io/v1", "sriovnetworkpoolconfigs", "SriovNetworkPoolConfig"),
        ("/apis/sriovnetwork.openshift.io/v1", "sriovibnetworks", "SriovIBNetwork"),
        ("/apis/sriovnetwork.openshift.io/v1", "ovsnetworks", "OVSNetwork"),
        (
            "/apis/sriovnetwork.openshift.io/v1",
            "sriovnetworknodepolicies",
            "SriovNetworkNodePolicy",
        ),
    ):
        body: Object = {"apiVersion": path.removeprefix("/apis/"), "kind": kind}
        full = f"{path}/namespaces/{namespace}/{version}"
        server.create(full, {**body, "metadata": {"name": unique}, "spec": {"a": 1}})
    for group, plural, kind in (
        ("config.openshift.io/v1", "imagedigestmirrorsets", "ImageDigestMirrorSet"),
        (
            "operator.openshift.io/v1alpha1",
            "imagecontentsourcepolicies",
            "ImageContentSourcePolicy",
        ),
    ):
        body = {"apiVersion": group, "kind": kind}
        full = f"/apis/{group}/{plural}"
        server.create(full, {**body, "metadata": {"name": unique}, "spec": {"a": 1}})
    service = {"namespace": namespace, "name": "webhook"}
    hook = {
        "name": "a.b.c",
        "clientConfig": {"service": service},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    hooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    server.create(hooks, {"metadata": {"name": unique}, "webhooks": [hook]})
    server.create(f"{CNI}/namespaces/{namespace}/{NADS}", attachment("net", "openshift.io/vfs"))
    network(server, namespace, "net", "vfs", namespace)


def _story(settings: Settings, message: str) -> None:
    journal = Journal(settings)
    with pytest.raises(ZeroDivisionError), journal.step("restart"):
        raise ZeroDivisionError(message)
    journal.note("ready")


def _every_command(
    pod: Pod, settings: Settings, server: Server, tmp_path: Path
) -> Iterator[tuple[str, ...]]:
    """Every command that asks the API server, each on a good and where it matters a bad path."""
    namespace, node = settings.operator_namespaces[0], str(settings.node_name)
    file = str(tmp_path / "operator.json")
    pod.environment |= {"NODE_CONDITION": "true", "NODE_ANNOTATIONS": "true"}
    for _ in range(2):  # the second time the same Events are counted up
        _story(settings, "boom")
        yield "node", "announce"
    yield "node", "wait-safe-load", "--timeout", "1"
    server.merge(f"/api/v1/nodes/{node}", {"metadata": {"labels": {
        "network.nvidia.com/operator.mofed.wait": "true"}}})  # fmt: skip
    yield "node", "wait-mofed", "--timeout", "1"
    yield "node", "report"
    yield "device-plugin", "record"
    plugin = Plugin(server, namespace, node, dip={"openshift.io/vfs": "0"})
    plugin.report = {"openshift.io/vfs": "8"}
    plugin.make()
    with plugin.playing():
        yield "device-plugin", "restart", "--wait"
    yield "network", "check"
    yield "network", "wait", "net", "-n", namespace
    yield "network", "wait", "other", "-n", namespace, "--timeout", "1"
    yield "operator", "check"
    yield "operator", "capture", "-o", file
    yield "operator", "restore", file, "--dry-run"
    plain = json.loads(Path(file).read_text())
    for each in plain["items"]:
        each["metadata"]["name"] += "-new"
        if each["kind"] == "Namespace":
            continue
    Path(file).write_text(json.dumps(plain))
    yield "operator", "restore", file


def _asked(seen: Seen) -> Iterator[Access]:
    """The request as RBAC sees it; an apply that creates needs `create` as well."""
    url = urlsplit(seen.path)
    parts = url.path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource = "/".join([rest[0], *rest[2:]])
    collection = "watch" if "watch=true" in url.query else "list"
    verb = {
        "GET": "get" if len(rest) > 1 else collection,
        "POST": "create",
        "PATCH": "patch",
        "DELETE": "delete",
    }[seen.method]
    yield Access(verb, group, resource, namespace)
    if seen.method == "PATCH" and seen.status == 201:
        yield Access("create", group, resource, namespace)


def _may(server: Server, user: str, access: Access) -> bool:
    resource, _, subresource = access.resource.partition("/")
    attributes = {
        "verb": access.verb,
        "group": access.group,
        "resource": resource,
        "subresource": subresource,
        "namespace": access.namespace,
    }
    groups = ["system:serviceaccounts", "system:authenticated"]
    answer = server.create(
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        {"spec": {"user": user, "groups": groups, "resourceAttributes": attributes}},
    )
    return bool(answer["status"]["allowed"])


def _granted(role: Object) -> set[tuple[str, str, str]]:
    return {
        (verb, group, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_every_command_runs_and_no_rule_can_be_spared(
    roles: Roles,
    pod: Pod,
    settings: Settings,
    proxy: Proxy,
    tmp_path: Path,
) -> None:
    server, namespace = proxy.server, settings.operator_namespaces[0]
    _objects(server, namespace, namespace.removeprefix("ns-"))
    Operator(server, proxy, namespace).make_pod()
    eventually(lambda: _may(server, roles.user, Access("list", "", "pods", "")))
    for arguments in _every_command(pod, settings, server, tmp_path):
        done = pod.run(*arguments)
        assert done.returncode in {0, 1, 75}, (arguments, done.stderr)
        assert "forbidden" not in done.stdout + done.stderr, (arguments, done.stdout, done.stderr)
    settings.device_plugin_config.write_text('{"resourceList": []}')
    watching = pod.start("device-plugin", "prune", "--watch-nodeeni")
    eventually(lambda: any("nodeenis?watch=true" in each.path or
                           ("nodeenis" in each.path and "watch=true" in each.path)
                           for each in proxy.seen))  # fmt: skip
    watching.terminate()
    watching.wait(10)
    assert {each.path for each in proxy.seen if each.status == 403} == set()

    asked = {access for each in proxy.seen for access in _asked(each)}
    everywhere = {(a.verb, a.group, a.resource) for a in asked}
    within = {(a.verb, a.group, a.resource) for a in asked if a.namespace == namespace}
    assert _granted(roles.cluster) - everywhere == set(), "the ClusterRole has what nobody asks for"
    assert _granted(roles.local) - within == set(), "the Role has what nobody asks for"
    for role, path in ((roles.cluster, roles.cluster_path), (roles.local, roles.local_path)):
        for number, rule in enumerate(role["rules"]):
            left = [each for at, each in enumerate(role["rules"]) if at != number]
            server.merge(path, {"rules": left})
            concerned = [
                a for a in asked if a.resource in rule["resources"] and a.group in rule["apiGroups"]
            ]
            assert _breaks(server, roles.user, concerned), f"{rule} can be spared"
        server.merge(path, {"rules": role["rules"]})


def _breaks(server: Server, user: str, asked: list[Access]) -> Any:
    """Some of it is denied now; the authorizer learns of a change within moments."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not all(_may(server, user, access) for access in asked):
            return True
        time.sleep(0.05)
    return False
