"""NodeENIs that go take their entries with them, seen or unseen."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass

import pytest

from nodeagent.cluster import device_plugin, nodeeni
from nodeagent.cluster.client import Client
from nodeagent.errors import Stopped
from nodeagent.settings import Settings
from tests.cluster.server import Server

ENIS = "/apis/networking.k8s.aws/v1alpha1/nodeenis"


@pytest.fixture
def make(server: Server, node: str, unique: str) -> object:
    server.merge(f"/api/v1/nodes/{node}", {"metadata": {"labels": {"of": unique}}})

    def make(name: str, address: str, *, of: str = unique) -> str:
        spec = {
            "nodeSelector": {"of": of},
            "dpdkResourceName": f"intel.com/{name}",
            "dpdkPCIAddress": address,
        }
        full = f"{name}-{unique}"
        body = {"apiVersion": "networking.k8s.aws/v1alpha1", "kind": "NodeENI"}
        server.create(ENIS, {**body, "metadata": {"name": full}, "spec": spec})
        return full

    return make


@dataclass
class Restarts:
    """Restarts the device plugin, as far as it takes: counts, and removes what says it is owed."""

    settings: Settings
    count: int = 0

    def __call__(self) -> None:
        self.count += 1
        device_plugin.owed(self.settings.state_dir).unlink()


def _entries(settings: Settings) -> list[str]:
    plain = json.loads(settings.device_plugin_config.read_text())
    return [entry["resourceName"] for entry in plain["resourceList"]]


def _write(settings: Settings, *pairs: tuple[str, str]) -> None:
    entries = [
        {"resourceName": name, "resourcePrefix": "intel.com", "selectors": {"pciAddresses": [at]}}
        for name, at in pairs
    ]
    settings.device_plugin_config.write_text(json.dumps({"resourceList": entries}))


def test_deleted_while_watching(
    client: Client, settings: Settings, node: str, make: object, server: Server
) -> None:
    assert callable(make)
    first = make("a", "0000:00:06.0")
    make("b", "0000:00:07.0")
    make("foreign", "0000:00:09.0", of="another")
    _write(settings, ("a", "0000:00:06.0"), ("b", "0000:00:07.0"), ("c", "0000:00:08.0"))
    restarts = Restarts(settings)
    threading.Timer(0.5, server.delete, (f"{ENIS}/{first}",)).start()
    nodeeni.watch(client, settings, node, restarts, timeout=2)
    assert _entries(settings) == ["b", "c"]
    assert restarts.count == 1


def test_deleted_while_nobody_watched(
    client: Client, settings: Settings, node: str, make: object, server: Server
) -> None:
    assert callable(make)
    only = make("a", "0000:00:06.0")
    _write(settings, ("a", "0000:00:06.0"))
    restarts = Restarts(settings)
    nodeeni.watch(client, settings, node, restarts, timeout=0)
    assert restarts.count == 0
    server.delete(f"{ENIS}/{only}")

    def killed() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        nodeeni.watch(client, settings, node, killed, timeout=0)
    assert _entries(settings) == ["nodeagent_placeholder"]
    nodeeni.watch(client, settings, node, restarts, timeout=0)
    assert restarts.count == 1, "what the killed one left"
    assert _entries(settings) == ["nodeagent_placeholder"]
    nodeeni.watch(client, settings, node, restarts, timeout=0)
    assert restarts.count == 1


def test_what_another_still_owns_stays(
    client: Client, settings: Settings, node: str, make: object, server: Server
) -> None:
    assert callable(make)
    first = make("a", "0000:00:06.0")
    spec = {"dpdkResourceName": "intel.com/a", "dpdkPCIAddress": "0000:00:06.0"}
    body = {"apiVersion": "networking.k8s.aws/v1alpha1", "kind": "NodeENI", "spec": spec}
    server.create(ENIS, {**body, "metadata": {"name": f"twin-{first}"}})
    _write(settings, ("a", "0000:00:06.0"))
    nodeeni.watch(client, settings, node, lambda: None, timeout=0)
    server.delete(f"{ENIS}/{first}")
    nodeeni.watch(client, settings, node, lambda: None, timeout=0)
    assert _entries(settings) == ["a"]
