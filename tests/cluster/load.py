"""How much an API server has to bear when many nodes reload together.

    python -m tests.cluster.load --nodes 1000

Every node does what the agent's processes do around a reload: record, announce, restart, wait. One
thread plays the kubelets and the DaemonSet controller of all of them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from nodeagent.cluster import after_reload, allocatable, kinds
from nodeagent.cluster.access import Access
from nodeagent.cluster.client import Client, Objects
from nodeagent.journal import Journal
from nodeagent.settings import Settings
from nodeagent.sriov.model import NodeState, Snapshot
from tests.cluster.kubelet import Plugin
from tests.cluster.server import ADMIN_TOKEN, Server, running

VFS = "openshift.io/vfs"
AT_ONCE = 32


@dataclass(frozen=True)
class Cost:
    """What one node's reload cost: requests, bytes of the answers, seconds."""

    requests: int
    received: int
    seconds: float


def measure(server: Server, directory: Path, nodes: int) -> list[Cost]:
    """Reload that many simulated nodes, AT_ONCE at a time."""
    credentials = directory / "serviceaccount"
    credentials.mkdir()
    (credentials / "ca.crt").write_bytes(server.certificate.read_bytes())
    (credentials / "token").write_text(ADMIN_TOKEN)
    access = Access(f"https://127.0.0.1:{server.port}", credentials)
    run = uuid.uuid4().hex[:6]
    namespace = f"load-{run}"
    server.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    plugins = {f"n{number}-{run}": Plugin(server, namespace, "") for number in range(nodes)}
    for name, plugin in plugins.items():
        plugin.node, plugin.delay = name, 0.0
        plugin.dip, plugin.report = {VFS: "0"}, {VFS: "8"}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(_make, [server] * nodes, plugins.values()))
        stop = threading.Event()
        kubelets = threading.Thread(target=_play, args=(Client(access), namespace, plugins, stop))
        kubelets.start()
        settings = replace(Settings(), device_plugin_namespaces=(namespace,))
        folders = [replace(settings, state_dir=directory / name) for name in plugins]
        try:
            return list(pool.map(_reload, [access] * nodes, folders, plugins))
        finally:
            stop.set()
            kubelets.join()


def lines(costs: Sequence[Cost]) -> list[str]:
    """The figures for people."""
    requests = [each.requests for each in costs]
    received = [each.received for each in costs]
    seconds = [each.seconds for each in costs]
    return [
        f"{len(costs)} nodes, {AT_ONCE} at a time",
        f"requests a reload: median {statistics.median(requests):g}, most {max(requests)}",
        f"bytes a reload: median {statistics.median(received):g}, most {max(received)}",
        f"seconds a reload: median {statistics.median(seconds):.1f}, most {max(seconds):.1f}",
    ]


def _make(server: Server, plugin: Plugin) -> None:
    server.create("/api/v1/nodes", {"metadata": {"name": plugin.node}})
    status = {"status": {"capacity": {VFS: "8"}, "allocatable": {VFS: "8"}}}
    server.merge(f"/api/v1/nodes/{plugin.node}/status", status)
    plugin.make()


def _play(
    client: Client, namespace: str, plugins: dict[str, Plugin], stop: threading.Event
) -> None:
    """Kubelets: whatever is to go goes, and its successor comes."""
    with ThreadPoolExecutor(4) as pool:
        begun: set[str] = set()

        def look(pods: Objects) -> float:
            for uid, pod in pods.items():
                if pod["metadata"].get("deletionTimestamp") and uid not in begun:
                    begun.add(uid)
                    plugin = plugins[pod["spec"]["nodeName"]]
                    pool.submit(plugin.replace, pod["metadata"]["name"])
            return 0.0 if stop.is_set() else 1.0

        client.follow(kinds.POD, look, namespace=namespace, timeout=math.inf)


def _reload(access: Access, settings: Settings, node: str) -> Cost:
    """What the processes around one reload do, in their order, each with a client of its own."""
    journal = Journal(settings)
    began = time.monotonic()
    before = Client(access)
    allocatable.save(before, node, settings.state_dir, in_flight=False)
    state = NodeState("mlx5_core", ())
    journal.save(Snapshot("2026-11-21T03:00:00.000+00:00", "", "b", "k", (), state))
    with journal.step("restart"):
        pass
    journal.close_snapshot()
    journal.note("ready")
    after = Client(access, patience=120)
    if not after_reload.after_reload(after, settings, node, journal):
        raise RuntimeError(f"{node}: see the log")
    requests = before.traffic.requests + after.traffic.requests
    received = before.traffic.received + after.traffic.received
    return Cost(requests, received, time.monotonic() - began)


def main() -> None:
    """Start a server, measure, print."""
    parser = argparse.ArgumentParser(description="Requests and bytes of many reloads at once.")
    parser.add_argument("--nodes", type=int, default=1000)
    nodes = parser.parse_args().nodes
    with tempfile.TemporaryDirectory() as directory, running(Path(directory)) as server:
        print("\n".join(lines(measure(server, Path(directory), nodes))))  # noqa: T201  a command


if __name__ == "__main__":
    main()
