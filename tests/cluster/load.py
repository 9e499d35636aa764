"""How much an API server has to bear when many nodes reload at the same instant.

    python -m tests.cluster.load --nodes 1000

Every node does what the agent's processes do around a reload: record, announce, restart, wait; each
with clients of its own, as a ServiceAccount with the rights of manifests/: so the
server's fair queueing holds for them. Threads play the kubelets and the DaemonSet controller.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from nodeagent.cluster import after_reload, allocatable, kinds
from nodeagent.cluster.access import Access
from nodeagent.cluster.client import Client, Objects
from nodeagent.record.journal import Journal, Note, Step
from nodeagent.settings import Settings
from nodeagent.state.model import NodeState, Snapshot
from tests.cluster.commands import ROOT
from tests.cluster.kubelet import Plugin
from tests.cluster.server import ADMIN_TOKEN, Object, Server, running

VFS = "openshift.io/vfs"
NONE, EIGHT = {VFS: "0"}, {VFS: "8"}
RBAC = "/apis/rbac.authorization.k8s.io/v1"
KUBELETS = 4
"""Threads that play them: what all kubelets and the controller do is not what is measured."""


@dataclass(frozen=True)
class Cost:
    """What one node's reload cost: requests, bytes of the answers, seconds.

    `refused` are requests that the server answered with 429 or 5xx; they are counted as requests.
    """

    requests: int
    received: int
    refused: int
    seconds: float


class Counting(Client):
    """A client that tells how often it was sent away."""

    refused = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        wait = self.pause

        def pause(seconds: float) -> None:
            self.refused += 1
            wait(seconds)

        self.pause = pause


def measure(server: Server, directory: Path, nodes: int) -> list[Cost]:
    """Reload that many simulated nodes, all beginning at the same instant."""
    run = uuid.uuid4().hex[:6]
    namespace = f"load-{run}"
    server.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    access = _account(server, directory, namespace)
    plugins = {
        f"n{number}-{run}": Plugin(server, namespace, f"n{number}-{run}", delay=0.0)
        for number in range(nodes)
    }
    with ThreadPoolExecutor(KUBELETS) as kubelets:
        list(kubelets.map(_make, plugins.values()))
        with _playing(kubelets, server, directory, namespace, plugins):
            return _at_once(plugins, partial(_reload, access, directory, namespace))


def lines(costs: Sequence[Cost]) -> Iterator[str]:
    """The figures for people."""
    yield f"{len(costs)} nodes at the same instant"
    for name in ("requests", "received", "refused", "seconds"):
        values = sorted(float(getattr(each, name)) for each in costs)
        title = {"received": "bytes", "refused": "requests refused"}.get(name, name)
        yield (
            f"{title} a reload: median {statistics.median(values):.6g}, "
            f"99 of 100 at most {values[int(len(values) * 0.99) - 1]:.6g}, most {values[-1]:.6g}"
        )
    histogram = Counter(each.requests for each in costs)
    yield "nodes by requests: " + ", ".join(f"{n}: {histogram[n]}" for n in sorted(histogram))


def _at_once(names: Iterable[str], reload: Callable[[str, threading.Barrier], Cost]) -> list[Cost]:
    """A thread a node; all of them wait for the last one before they begin."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    chosen = [*names]
    gate = threading.Barrier(len(chosen))
    with ThreadPoolExecutor(len(chosen)) as pool:
        return list(pool.map(reload, chosen, [gate] * len(chosen)))


def _reload(
    access: Access, directory: Path, namespace: str, node: str, gate: threading.Barrier
) -> Cost:
    """What the processes around one reload do, in their order, each with a client of its own."""
    settings = replace(
        Settings(),
        state_dir=directory / node,
        device_plugin_namespaces=(namespace,),
        device_plugin_timeout=600.0,
    )
    journal = Journal(settings)
    state = NodeState("mlx5_core", ())
    snapshot = Snapshot("2026-11-21T03:00:00.000+00:00", "", "b", "k", (), state)
    before, after = Counting(access, patience=120), Counting(access, patience=7200)
    gate.wait()
    began = time.monotonic()
    allocatable.save(before, node, settings.state_dir, in_flight=False)
    journal.save(snapshot)
    with journal.step(Step.RESTART):
        pass
    journal.close_snapshot()
    journal.note(Note.READY)
    if not after_reload.after_reload(after, settings, node, journal):
        raise RuntimeError(f"{node}: see the log")
    both = (before, after)
    return Cost(
        sum(each.traffic.requests for each in both),
        sum(each.traffic.received for each in both),
        sum(each.refused for each in both),
        time.monotonic() - began,
    )


def _account(server: Server, directory: Path, namespace: str) -> Access:
    """A ServiceAccount that has all that the pods can be given, and its credentials."""
    roles = [
        each
        for part in ("base", "node-status", "device-plugins")
        for each in yaml.safe_load_all((ROOT / f"manifests/{part}/rbac.yaml").read_text())
        if "rules" in each and each["metadata"]["name"] != "nodeagent-operator"
    ]
    role = roles[0] | {"rules": [rule for each in roles for rule in each["rules"]]}
    role["metadata"]["name"] = namespace
    server.create(f"{RBAC}/clusterroles", role)
    subject = {"kind": "ServiceAccount", "name": "nodeagent", "namespace": namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": namespace}
    body = {"metadata": {"name": namespace}, "subjects": [subject], "roleRef": reference}
    server.create(f"{RBAC}/clusterrolebindings", body)
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    server.create(accounts, {"metadata": {"name": "nodeagent"}})
    asked = server.create(f"{accounts}/nodeagent/token", {"spec": {"expirationSeconds": 3600}})
    return _credentials(server, directory / "agents", asked["status"]["token"])


def _credentials(server: Server, directory: Path, token: str) -> Access:
    directory.mkdir()
    (directory / "ca.crt").write_bytes(server.certificate.read_bytes())
    (directory / "token").write_text(token)
    return Access(f"https://127.0.0.1:{server.port}", directory)


def _make(plugin: Plugin) -> None:
    """The node, as its kubelet registers it, and the device plugin on it."""
    status: Object = {"capacity": EIGHT, "allocatable": EIGHT}
    plugin.server.create("/api/v1/nodes", {"metadata": {"name": plugin.node}, "status": status})
    plugin.dip, plugin.report = NONE, EIGHT
    plugin.make()


@contextmanager
def _playing(
    pool: ThreadPoolExecutor,
    server: Server,
    directory: Path,
    namespace: str,
    plugins: dict[str, Plugin],
) -> Iterator[None]:
    """Kubelets: whatever is to go goes, and its successor comes."""
    client = Client(_credentials(server, directory / "kubelets", ADMIN_TOKEN))
    stop = threading.Event()
    begun: set[str] = set()

    def look(pods: Objects) -> float:
        for uid, pod in pods.items():
            if pod["metadata"].get("deletionTimestamp") and uid not in begun:
                begun.add(uid)
                pool.submit(plugins[pod["spec"]["nodeName"]].replace, pod["metadata"]["name"])
        return 0.0 if stop.is_set() else 1.0

    def follow(**how: Any) -> None:
        client.follow(kinds.POD, look, **how)

    how = {"namespace": namespace, "timeout": math.inf}
    thread = threading.Thread(target=follow, kwargs=how)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1000)
    nodes = parser.parse_args().nodes
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "server").mkdir()
        with running(directory / "server") as server:
            print("\n".join(lines(measure(server, directory, nodes))))  # noqa: T201  its purpose


if __name__ == "__main__":
    main()
