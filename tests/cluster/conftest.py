"""One API server a session, one proxy and one folder of credentials a test."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nodeagent.cluster.access import Access
from nodeagent.cluster.client import Client
from nodeagent.settings import Settings
from tests.cluster import proxy as proxies
from tests.cluster.commands import Pod
from tests.cluster.definitions import ALL as OTHERS
from tests.cluster.field import Story, playing
from tests.cluster.proxy import Proxy
from tests.cluster.server import ADMIN_TOKEN, ApiError, Object, Server, custom_resources, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server with the operators' CRDs; without binaries the tests are skipped, in CI failed."""
    directory = tmp_path_factory.mktemp("api")
    try:
        with running(directory) as started:
            _install(started)
            yield started
    except FileNotFoundError as error:
        reason = f"no {error}: set KUBEBUILDER_ASSETS or install them on $PATH"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def other_kinds(server: Server) -> None:
    """Kinds of other projects that manifests/ has objects of are served."""
    _serve(server, OTHERS)


@pytest.fixture(scope="session")
def field_cases(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Story]]]:
    """What the cases that take half a minute came to."""
    with playing(server, tmp_path_factory.mktemp("field")) as started:
        yield started


@pytest.fixture(scope="session", autouse=True)
def _field_first(request: pytest.FixtureRequest) -> None:
    """They begin before all others, if anybody asks for them, and run beside them."""
    if any("field_cases" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("field_cases")


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A proxy in front of the server."""
    with proxies.in_front_of(server) as started:
        yield started


@pytest.fixture
def credentials(tmp_path: Path, server: Server) -> Path:
    """A ServiceAccount's directory as the kubelet mounts it, with the admin's token."""
    directory = tmp_path / "serviceaccount"
    directory.mkdir()
    (directory / "ca.crt").write_bytes(server.certificate.read_bytes())
    (directory / "token").write_text(ADMIN_TOKEN)
    return directory


@pytest.fixture
def client(proxy: Proxy, credentials: Path) -> Client:
    """A client that talks through the proxy, and gives up after 5 s."""
    return Client(Access(f"https://127.0.0.1:{proxy.port}", credentials), patience=5)


@pytest.fixture
def unique() -> str:
    """A suffix that no other test has."""
    return uuid.uuid4().hex[:8]


@pytest.fixture
def namespace(server: Server, unique: str) -> str:
    """A namespace of this test's own."""
    name = f"ns-{unique}"
    server.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return name


@pytest.fixture
def node(server: Server, unique: str) -> str:
    """A Node object with 8 VFs to give."""
    name = f"node-{unique}"
    server.create("/api/v1/nodes", {"metadata": {"name": name}})
    allocatable(server, name, {"openshift.io/vfs": "8"})
    return name


@pytest.fixture
def settings(
    node: str, namespace: str, proxy: Proxy, credentials: Path, tmp_path: Path
) -> Settings:
    """Settings of a pod on that node; its folders are this test's."""
    return replace(
        Settings(),
        node_name=node,
        api_host="127.0.0.1",
        api_port=proxy.port,
        service_account_dir=credentials,
        api_timeout=5.0,
        device_plugin_namespaces=(namespace,),
        device_plugin_timeout=10.0,
        allocatable_settle=1.0,
        operator_namespaces=(namespace,),
        state_dir=tmp_path / "state",
        device_plugin_config=tmp_path / "pcidp.json",
    )


@pytest.fixture
def pod(settings: Settings) -> Pod:
    """A process in a pod with those settings."""
    return Pod(
        {
            "NODE_NAME": str(settings.node_name),
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(settings.api_port),
            "SERVICE_ACCOUNT_DIR": str(settings.service_account_dir),
            "API_TIMEOUT": "2",
            "DEVICE_PLUGIN_NAMESPACES": ",".join(settings.device_plugin_namespaces),
            "DEVICE_PLUGIN_TIMEOUT": "10",
            "ALLOCATABLE_SETTLE": "1",
            "OPERATOR_NAMESPACES": ",".join(settings.operator_namespaces),
            "STATE_DIR": str(settings.state_dir),
            "DEVICE_PLUGIN_CONFIG": str(settings.device_plugin_config),
        }
    )


def allocatable(server: Server, node: str, resources: dict[str, str]) -> None:
    """Play the kubelet: report what the node can give."""
    status = {"status": {"capacity": resources, "allocatable": resources}}
    server.merge(f"/api/v1/nodes/{node}/status", status)


def eventually(check: Callable[[], bool], seconds: float = 10.0) -> None:
    """Poll, as tests may."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def _install(server: Server) -> None:
    """Create the operators' CRDs and wait until each is served."""
    _serve(server, custom_resources())


def _serve(server: Server, crds: Sequence[Mapping[str, Any]]) -> None:
    for each in crds:
        server.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", each)
    for each in crds:
        spec: Object = each["spec"]
        path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
        eventually(lambda path=path: _served(server, path), 30)  # type: ignore[misc] # its default


def _served(server: Server, path: str) -> bool:
    try:
        server.get(path)
    except ApiError:
        return False
    return True
