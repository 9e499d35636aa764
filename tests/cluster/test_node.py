"""What the cluster is told of a node, once and in order, and what the node is waited for."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from nodeagent.cluster import announce, gates
from nodeagent.cluster.client import Client
from nodeagent.cluster.failures import NotFound, Unreachable
from nodeagent.errors import WaitTimeout
from nodeagent.record.journal import Note, Record, RecordKind
from nodeagent.settings import Settings
from tests.cluster.proxy import Proxy
from tests.cluster.server import Object, Server

EVENTS = "/api/v1/namespaces/default/events"


def record(seconds: float, kind: str, name: str, *, run: str = "r1", **facts: str) -> Record:
    at = datetime.now(UTC) - timedelta(hours=1) + timedelta(seconds=seconds)
    stamp = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Record(stamp, seconds, "boot", run, 1, RecordKind(kind), name, facts)


STORY = (
    record(0, "note", "run", mode="sources"),
    record(1, "note", "srcversion", checkpoint="loaded", mlx5_core="OLD"),
    record(2, "start", "restart"),
    record(30, "done", "restart"),
    record(31, "note", "srcversion", checkpoint="loaded", mlx5_core="NEW"),
    record(32, "failed", "verify", message="pci/0000:01:00.0 vf 3 admin_mac: want a, have b"),
    record(40, "start", "restart", run="r2"),
    record(50, "note", "ready", run="r2"),
)


def events(server: Server, node: str) -> list[Object]:
    found = server.get(f"{EVENTS}?fieldSelector=involvedObject.name={node}")["items"]
    return sorted(found, key=lambda each: str(each["lastTimestamp"]))


def test_reasons_in_order_and_once(
    client: Client, settings: Settings, node: str, server: Server, proxy: Proxy
) -> None:
    assert announce.announce(client, settings, node, STORY) == 4
    found = events(server, node)
    assert [(e["reason"], e["count"], e["type"]) for e in found] == [
        ("VFRestoreFailed", 1, "Warning"),
        ("DriverReloadStarted", 2, "Normal"),
        ("DriverReady", 1, "Normal"),
    ]
    assert "vf 3 admin_mac: want a, have b" in found[0]["message"]
    seen = proxy.count()
    assert announce.announce(client, settings, node, STORY) == 0
    assert proxy.count() == seen


def test_what_could_not_be_said_is_said_later(
    client: Client, settings: Settings, node: str, server: Server, proxy: Proxy
) -> None:
    client.patience = 0.3
    proxy.fail(method="POST", cut=True, times=99)
    proxy.faults[-1].times = 99
    for _ in range(2):
        with pytest.raises(Unreachable):
            announce.announce(client, settings, node, STORY)
    proxy.faults.clear()
    client.patience = 5  # a busy machine answers slowly
    announce.announce(client, settings, node, STORY)
    assert [e["reason"] for e in events(server, node)] == [
        "VFRestoreFailed",
        "DriverReloadStarted",
        "DriverReady",
    ]


def test_crash_between_saying_and_remembering_counts_once(
    client: Client, settings: Settings, node: str, server: Server
) -> None:
    announce.announce(client, settings, node, STORY[:4])
    (settings.state_dir / "said.json").unlink()
    announce.announce(client, settings, node, STORY[:4])
    assert [e["count"] for e in events(server, node)] == [1]


def test_a_pod_that_lost_an_interface_is_told(
    client: Client, settings: Settings, node: str, server: Server, namespace: str
) -> None:
    """In its namespace and once; a pod that went with its namespace stops nothing."""
    dying = f"{namespace}-dying"
    server.create("/api/v1/namespaces", {"metadata": {"name": dying}})
    server.delete(f"/api/v1/namespaces/{dying}")

    def lost(namespace: str, uid: str) -> Record:
        facts = {"namespace": namespace, "pod": "web", "uid": uid}
        return record(
            45, "note", Note.POD_INTERFACE_LOST, run="r2", message="net1 is gone", **facts
        )

    told = [*STORY[:7], lost(f"no-{namespace}", ""), lost(dying, ""), lost(namespace, "u-1")]
    told.append(STORY[7])
    wanted = replace(settings, node_condition=True)
    for _ in range(2):
        announce.announce(client, wanted, node, told)
        (settings.state_dir / "said.json").unlink()
    (event,) = server.get(f"/api/v1/namespaces/{namespace}/events")["items"]
    assert (event["reason"], event["type"]) == ("PodInterfaceLost", "Warning")
    assert (event["message"], event["count"]) == ("net1 is gone", 1)
    about = {"kind": "Pod", "namespace": namespace, "name": "web", "uid": "u-1"}
    assert event["involvedObject"].items() >= about.items()
    assert "PodInterfaceLost" not in {each["reason"] for each in events(server, node)}
    (shown,) = [
        each
        for each in server.get(f"/api/v1/nodes/{node}")["status"]["conditions"]
        if each["type"] == "NicDriverReady"
    ]
    assert shown["reason"] == "DriverReady"


def test_a_pod_that_is_known_by_its_uid_is_told(
    client: Client, settings: Settings, node: str, server: Server, namespace: str
) -> None:
    """A cgroup tells no more than that. One that is gone stops nothing."""
    spec = {"nodeName": node, "containers": [{"name": "web", "image": "web"}]}
    pod = {"metadata": {"name": "web"}, "spec": spec}
    uid = server.create(f"/api/v1/namespaces/{namespace}/pods", pod)["metadata"]["uid"]
    lost = [
        record(45 + n, "note", Note.POD_INTERFACE_LOST, uid=each, message="net1 is gone")
        for n, each in enumerate((f"{uid}0", uid))
    ]
    announce.announce(client, settings, node, lost)
    (event,) = server.get(f"/api/v1/namespaces/{namespace}/events")["items"]
    about = {"kind": "Pod", "namespace": namespace, "name": "web", "uid": uid}
    assert event["involvedObject"].items() >= about.items()


def test_old_news_is_no_news(client: Client, settings: Settings, node: str, server: Server) -> None:
    old = [replace(each, at="2020-01-01T00:00:00.000Z") for each in STORY]
    assert announce.announce(client, settings, node, old) == 0


def test_nothing_is_written_unless_wanted(
    client: Client, settings: Settings, node: str, proxy: Proxy
) -> None:
    announce.announce(client, replace(settings, node_events=False), node, STORY)
    assert proxy.count() == 0


def test_condition_and_annotations(
    client: Client, settings: Settings, node: str, server: Server, proxy: Proxy
) -> None:
    wanted = replace(settings, node_events=False, node_condition=True, node_annotations=True)
    announce.announce(client, wanted, node, STORY[:6])
    shown = server.get(f"/api/v1/nodes/{node}")
    conditions = {each["type"]: each for each in shown["status"]["conditions"]}
    assert conditions["NicDriverReady"]["status"] == "False"
    assert conditions["NicDriverReady"]["reason"] == "VFRestoreFailed"
    announce.announce(client, wanted, node, STORY)
    shown = server.get(f"/api/v1/nodes/{node}")
    conditions = {each["type"]: each for each in shown["status"]["conditions"]}
    assert conditions["NicDriverReady"]["status"] == "True"
    assert shown["metadata"]["annotations"] == {
        "nodeagent/srcversion": "NEW",
        "nodeagent/last-reload": STORY[-1].at,
        "nodeagent/last-reload-seconds": "48.0",
    }
    seen = proxy.count()
    announce.announce(client, wanted, node, STORY)
    assert proxy.count() == seen


def _annotate(server: Server, node: str, value: str | None) -> None:
    server.merge(f"/api/v1/nodes/{node}", {"metadata": {"annotations": {gates.SAFE_LOAD: value}}})


def test_safe_load_is_awaited_by_one_watch(
    client: Client, node: str, server: Server, proxy: Proxy
) -> None:
    gates.wait_for_safe_load(client, node, timeout=1)
    _annotate(server, node, "true")
    with pytest.raises(WaitTimeout, match="safe-load"):
        gates.wait_for_safe_load(client, node, timeout=1)
    seen = proxy.count()
    threading.Timer(1, _annotate, (server, node, None)).start()
    began = time.monotonic()
    gates.wait_for_safe_load(client, node, timeout=20)
    assert 0.5 < time.monotonic() - began < 3
    assert proxy.count(seen) == 2


def test_mofed_wait(client: Client, node: str, server: Server) -> None:
    def label(value: str) -> None:
        body = {"metadata": {"labels": {gates.MOFED_WAIT: value}}}
        server.merge(f"/api/v1/nodes/{node}", body)

    label("true")
    with pytest.raises(WaitTimeout, match=r"mofed.wait=true"):
        gates.wait_for_driver(client, node, timeout=1)
    threading.Timer(0.5, label, ("false",)).start()
    gates.wait_for_driver(client, node, timeout=10)
    with pytest.raises(NotFound, match="has no node"):
        gates.wait_for_driver(client, "nowhere", timeout=1)
