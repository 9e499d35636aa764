"""SR-IOV CNI's records: read as it writes them, and used to hold it off; what a DEL would do."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeagent import durable
from nodeagent.errors import RestoreFailed, Stopped
from nodeagent.kernel import users
from nodeagent.kernel.netns import Namespaces
from nodeagent.node import cni
from nodeagent.node.node import Node
from nodeagent.plan.left_behind import DEFAULTS, vacated, without
from nodeagent.settings import HoldOff, Settings
from nodeagent.state.addresses import Mac
from nodeagent.state.codec import snapshot_from_json, snapshot_to_json
from nodeagent.state.model import (
    CniRecord,
    DeviceHandle,
    Netdev,
    NodeState,
    Pf,
    PodNetdev,
    Snapshot,
    Vf,
)
from nodeagent.state.namespaces import Holder, Namespace
from nodeagent.state.vf import LinkState, VlanProtocol

ADDRESS, OTHER = "0000:01:10.0", "0000:01:10.2"
POD = Namespace(4, 4026532001, "b-1", (Holder(812, 99),), 17)

WAS = {
    "HostIFName": "enp1s0v0",
    "SpoofChk": True,
    "Trust": False,
    "AdminMAC": "00:00:00:00:00:00",
    "EffectiveMAC": "02:11:22:33:44:55",
    "Vlan": 7,
    "VlanQoS": 1,
    "VlanProto": 0x88A8,
    "MinTxRate": 0,
    "MaxTxRate": 100,
    "LinkState": 2,
    "MTU": 1500,
}
FULL = {
    "cniVersion": "1.0.0",
    "type": "sriov",
    "deviceID": ADDRESS,
    "VFID": 0,
    "Master": "enp1s0",
    "MAC": "02:00:00:00:05:00",
    "vlan": 500,
    "vlanQoS": 3,
    "vlanProto": "802.1q",
    "max_tx_rate": 900,
    "min_tx_rate": None,
    "spoofchk": "off",
    "trust": "on",
    "link_state": "enable",
    "OrigVfState": WAS,
}
PLAIN = {"deviceID": ADDRESS, "VFID": 0, "MAC": "", "vlan": None, "OrigVfState": WAS}


def record(plain: dict[str, Any]) -> cni.Record:
    found = cni.parsed("c-net1", plain)
    assert found is not None
    return found


def test_everything_that_a_network_can_set() -> None:
    assert record(FULL) == cni.Record(
        ADDRESS,
        Vf(
            0,
            admin_mac=Mac("02:00:00:00:05:00"),
            vlan=500,
            qos=3,
            vlan_proto=VlanProtocol.Q,
            trust=True,
            spoofchk=False,
            link_state=LinkState.ENABLE,
            min_tx_rate=0,
            max_tx_rate=900,
        ),
        CniRecord("c-net1", BEFORE),
    )


BEFORE = Vf(
    0,
    admin_mac=Mac("00:00:00:00:00:00"),
    vlan=7,
    qos=1,
    vlan_proto=VlanProtocol.AD,
    trust=False,
    spoofchk=True,
    link_state=LinkState.DISABLE,
    min_tx_rate=0,
    max_tx_rate=100,
    netdev=Netdev("enp1s0v0", mac=Mac("02:11:22:33:44:55"), mtu=1500),
)


def test_what_a_network_does_not_set_is_not_put_back() -> None:
    found = record(PLAIN)
    assert found.given == Vf(0)
    assert found.kept.before == Vf(
        0, netdev=Netdev("enp1s0v0", mac=Mac("02:11:22:33:44:55"), mtu=1500)
    )


def test_older_records_have_less() -> None:
    was = {key: WAS[key] for key in WAS if key not in {"Trust", "MTU", "VlanProto"}}
    found = record({**FULL, "vlanProto": None, "OrigVfState": was})
    assert (found.kept.before.trust, found.kept.before.vlan_proto) == (False, "802.1Q")
    assert found.kept.before.netdev is not None
    assert found.kept.before.netdev.mtu is None
    bare = record({**PLAIN, "OrigVfState": {**was, "HostIFName": ""}})
    assert bare.kept.before.netdev is None


@pytest.mark.parametrize(
    "plain",
    [
        {**FULL, "deviceID": "../../etc/passwd"},
        {**FULL, "VFID": -1},
        {**FULL, "OrigVfState": {**WAS, "VlanProto": 1}},
        {**FULL, "OrigVfState": {**WAS, "AdminMAC": "x"}},
        {**FULL, "OrigVfState": {**WAS, "HostIFName": "a/b"}},
        {**FULL, "OrigVfState": []},
        {"OrigVfState": WAS},
    ],
)
def test_what_is_no_record_is_passed_over(tmp_path: Path, plain: dict[str, Any]) -> None:
    (tmp_path / "bad-net1").write_text(json.dumps(plain))
    (tmp_path / "worse-net1").write_text("{")
    (tmp_path / "another-net1").write_text('{"deviceID": "0000:01:10.4"}')
    (tmp_path / "link-net1").symlink_to(tmp_path / "bad-net1")
    (tmp_path / "good-net1").write_text(json.dumps({**FULL, "deviceID": OTHER}))
    assert cni.records(tmp_path).keys() == {OTHER}  # type: ignore[union-attr]


def test_the_newest_counts_and_no_directory_is_none(tmp_path: Path) -> None:
    for number, name in enumerate(("old-net1", "new-net1", "older-net1")):
        path = tmp_path / name
        path.write_text(json.dumps(PLAIN))
        os.utime(path, (0, (1, 2, 0)[number]))
    found = cni.records(tmp_path)
    assert found is not None
    assert found[ADDRESS].kept.name == "new-net1"
    assert cni.records(tmp_path / "missing") is None
    (tmp_path / "file").write_text("")
    assert cni.records(tmp_path / "file") is None


# Held off


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cni_data_dir=tmp_path)


def given_to(settings: Settings, address: str) -> str | None:
    path = settings.cni_data_dir / "pci" / address
    return path.read_text() if path.exists() else None


def is_locked(settings: Settings, address: str) -> bool:
    with (settings.cni_data_dir / "pci" / address).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_free_ones_are_the_nodes_and_used_ones_wait(settings: Settings) -> None:
    pci = settings.cni_data_dir / "pci"
    pci.mkdir()
    (pci / OTHER).write_text("/run/netns/cni-1")
    with cni.held_off(Node(settings), [ADDRESS, OTHER]):
        assert given_to(settings, ADDRESS) == cni.OWN_NAMESPACE
        assert not is_locked(settings, ADDRESS), "ADD is to be refused, not to wait"
        assert given_to(settings, OTHER) == "/run/netns/cni-1"
        assert is_locked(settings, OTHER)
    assert given_to(settings, ADDRESS) is None
    assert given_to(settings, OTHER) == "/run/netns/cni-1"
    assert not is_locked(settings, OTHER)


@pytest.mark.parametrize("error", [RestoreFailed("x", []), Stopped(), KeyboardInterrupt()])
def test_undone_on_every_way_out(settings: Settings, error: BaseException) -> None:
    with pytest.raises(type(error)), cni.held_off(Node(settings), [ADDRESS]):
        raise error
    assert given_to(settings, ADDRESS) is None


def test_what_a_killed_run_left_is_swept(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    pci = settings.cni_data_dir / "pci"
    cni.sweep(settings)  # nothing is there yet
    pci.mkdir()
    (pci / ADDRESS).write_text(cni.OWN_NAMESPACE)
    (pci / OTHER).write_text("/run/netns/cni-1")
    (pci / "notes").write_text(cni.OWN_NAMESPACE)
    cni.sweep(settings)
    assert sorted(path.name for path in pci.iterdir()) == [OTHER, "notes"]
    assert "SR-IOV CNI may give 1 VFs to pods again" in caplog.text
    with cni.held_off(Node(settings), [ADDRESS]):
        pass
    assert given_to(settings, ADDRESS) is None


@pytest.mark.parametrize(
    "settings",
    [
        Settings(hold_off=(HoldOff.CORDON,), cni_data_dir=Path("/")),
        Settings(cni_data_dir=Path("/nonexistent/cni")),
    ],
)
def test_nothing_is_done_where_it_is_not_wanted_or_not_mounted(settings: Settings) -> None:
    with cni.held_off(Node(settings), [ADDRESS]):
        assert given_to(settings, ADDRESS) is None


def test_a_place_that_cannot_be_written_stops_no_reload(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    (settings.cni_data_dir / "pci").write_text("")
    with cni.held_off(Node(settings), [ADDRESS]):
        pass
    assert "SR-IOV CNI is not held off" in caplog.text


@contextmanager
def a_plugin_at_work(path: Path, until: threading.Event) -> Iterator[None]:
    """It has the lock, and then gives the VF to a pod."""
    path.parent.mkdir(exist_ok=True)
    begun = threading.Event()

    def work() -> None:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            begun.set()
            until.wait(10)
            path.write_text("/run/netns/cni-2")

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(10)
    yield
    until.set()
    thread.join()


ADD = """
import fcntl, os, sys, time
path = sys.argv[1]
file = open(path, "a")
fcntl.flock(file, fcntl.LOCK_EX)
os.unlink(path)
print(flush=True)
time.sleep(0.3)
open(path, "w").write("/run/netns/cni-2")
"""


def test_an_add_that_has_removed_what_it_has_locked_is_waited_for(settings: Settings) -> None:
    """As SR-IOV CNI does with the record of a free VF, which is empty."""
    path = settings.cni_data_dir / "pci" / ADDRESS
    path.parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", ADD, path], stdout=subprocess.PIPE) as plugin:
        assert plugin.stdout is not None
        plugin.stdout.readline()
        with cni.held_off(Node(settings), [ADDRESS]):
            assert given_to(settings, ADDRESS) == "/run/netns/cni-2"
            assert is_locked(settings, ADDRESS)


def test_the_record_of_an_add_that_ends_meanwhile_is_kept(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends before ours is written at the latest."""
    path, replace = settings.cni_data_dir / "pci" / ADDRESS, durable.replace
    path.parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", ADD, path], stdout=subprocess.PIPE) as plugin:
        assert plugin.stdout is not None
        plugin.stdout.readline()

        def replace_later(path: Path, content: bytes, mode: int) -> None:
            plugin.wait()
            replace(path, content, mode)

        monkeypatch.setattr(durable, "replace", replace_later)
        with cni.held_off(Node(settings), [ADDRESS]):
            assert given_to(settings, ADDRESS) == "/run/netns/cni-2"
            assert is_locked(settings, ADDRESS), "DEL is to wait"


@pytest.mark.parametrize("rounds", [1, 3])
def test_an_add_that_ends_before_it_is_searched_for_is_noticed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """It has written to our record, and has closed the file by which it would have been found."""
    path = settings.cni_data_dir / "pci" / ADDRESS

    def ends(pci: Path, proc: Path) -> dict[str, int]:
        if path.read_text() == cni.OWN_NAMESPACE:
            path.write_text("/run/netns/cni-2")
        return {}

    monkeypatch.setattr(cni, "MAX_ROUNDS", rounds)
    monkeypatch.setattr(users, "open_removed_files", ends)
    with cni.held_off(Node(settings), [ADDRESS]):
        assert given_to(settings, ADDRESS) == "/run/netns/cni-2"
        assert is_locked(settings, ADDRESS), "DEL is to wait"


def test_an_add_after_a_del_in_between_is_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DEL removes the file between our open and our lock; the next ADD has locked another one."""
    path, until = settings.cni_data_dir / "pci" / ADDRESS, threading.Event()
    path.parent.mkdir()
    path.write_text("/run/netns/cni-1")
    lock_at_once = cni._is_locked_at_once
    with ExitStack() as plugin:

        def after_a_del(fd: int) -> bool:
            if path.exists() and path.read_text() == "/run/netns/cni-1":
                path.unlink()
                plugin.enter_context(a_plugin_at_work(path, until))
                threading.Timer(0.2, until.set).start()
            return lock_at_once(fd)

        monkeypatch.setattr(cni, "_is_locked_at_once", after_a_del)
        with cni.held_off(Node(settings), [ADDRESS]):
            assert until.is_set()
            assert given_to(settings, ADDRESS) == "/run/netns/cni-2"
            assert is_locked(settings, ADDRESS)


@pytest.mark.parametrize(
    "wait",
    [
        lambda settings: cni.await_idle(Node(settings), [ADDRESS]),
        lambda settings: cni.held_off(Node(settings), [ADDRESS]).__enter__(),
    ],
)
def test_an_add_that_is_under_way_is_waited_for(
    settings: Settings, wait: Callable[[Settings], object]
) -> None:
    until = threading.Event()
    with a_plugin_at_work(settings.cni_data_dir / "pci" / ADDRESS, until):
        threading.Timer(0.2, until.set).start()
        held = wait(settings)
        assert until.is_set()
    assert given_to(settings, ADDRESS) == "/run/netns/cni-2"
    del held


def test_one_that_hangs_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cni, "PLUGIN_TIMEOUT", 0.1)
    with a_plugin_at_work(settings.cni_data_dir / "pci" / ADDRESS, threading.Event()):
        cni.await_idle(Node(settings), [ADDRESS, OTHER])
    assert ADDRESS in caplog.text
    assert OTHER not in caplog.text


# Where a VF was given to


def test_a_namespace_by_the_path_that_the_host_has(tmp_path: Path) -> None:
    (tmp_path / "812/ns").mkdir(parents=True)
    (tmp_path / "812/ns/net").symlink_to("net:[17]")
    (tmp_path / "self").mkdir()
    line = "40 30 0:4 net:[18] {} rw shared:1 - nsfs nsfs rw"
    (tmp_path / "self/mountinfo").write_text(line.format("/run/netns/ours"))
    (tmp_path / "1").mkdir()
    (tmp_path / "1/mountinfo").write_text(line.replace("18", "19").format("/run/netns/cni-1"))
    spaces = Namespaces(tmp_path)
    assert spaces.at("/proc/812/ns/net") == 17
    assert spaces.at("/proc/813/ns/net") is None
    assert spaces.at("/run/netns/ours") == 18
    assert spaces.at("/var/run/netns/cni-1") == 19
    assert spaces.at("/run/netns/cni-2") is None
    assert spaces.at("/etc/passwd") is None


# What becomes of a VF whose pod is gone

SPENT = Vf(
    0,
    ADDRESS,
    "mlx5_core",
    "",
    admin_mac=Mac("02:00:00:00:05:00"),
    vlan=500,
    qos=3,
    vlan_proto=VlanProtocol.Q,
    trust=True,
    spoofchk=False,
    link_state=LinkState.ENABLE,
    max_tx_rate=900,
    inside=PodNetdev(POD.inode, Netdev("net1")),
)


def test_as_its_record_says() -> None:
    """Of what the network has set; the rest is the node's own, and stays."""
    before = record({**PLAIN, "vlan": 500}).kept.before
    now = vacated(dataclasses.replace(SPENT, inside=None), before)
    assert (now.vlan, now.qos, now.vlan_proto) == (7, 1, "802.1ad")
    assert (now.trust, now.spoofchk, now.admin_mac) == (True, False, SPENT.admin_mac)
    assert now.netdev == before.netdev
    assert now.min_tx_rate is None, "its PF holds no such thing"


def test_without_a_record_the_drivers_defaults() -> None:
    now = vacated(dataclasses.replace(SPENT, inside=None), None)
    assert (now.vlan, now.qos, now.trust, now.link_state) == (0, 0, False, "auto")
    assert (now.admin_mac, now.spoofchk, now.min_tx_rate) == (None, None, None)
    assert DEFAULTS["max_tx_rate"] == now.max_tx_rate == 0


def node(*vfs: Vf) -> NodeState:
    pf = Pf(DeviceHandle("pci", "0000:01:00.0"), len(vfs), vfs=vfs)
    return NodeState("mlx5_core", (pf,), namespaces=(POD,))


def test_which_of_both_is_told() -> None:
    kept = dataclasses.replace(SPENT, cni=record(FULL).kept)
    other = dataclasses.replace(SPENT, index=1, address=OTHER)
    state, left = without(node(kept, other), {POD.inode: "nobody holds it any more"})
    assert [vf.vlan for vf in state.pfs[0].vfs] == [7, 0]
    assert [vf.inside for vf in state.pfs[0].vfs] == [None, None]
    assert str(left[0]).endswith(
        "nobody holds it any more; its PF holds what SR-IOV CNI has recorded from before that pod"
    )
    assert str(left[1]).endswith("it holds the driver's defaults")


def test_a_pod_that_was_deleted_may_leave_its_namespace() -> None:
    kept = dataclasses.replace(SPENT, cni=record(FULL).kept)
    other = dataclasses.replace(SPENT, index=1, address=OTHER)
    state, left = without(node(kept, other), {}, deleted={ADDRESS, OTHER})
    assert [vf.vlan for vf in state.pfs[0].vfs] == [7, 500]
    assert [each.target.port for each in left] == [0]
    assert ": its pod was deleted; " in str(left[0])
    bound = dataclasses.replace(kept, driver="vfio-pci", inside=None)
    _, (only,) = without(node(bound), {}, deleted={ADDRESS})
    assert "vf 0: was a pod's, and stays here: its pod was deleted" in str(only)


def test_pods_that_are_only_reported_keep_what_they_had() -> None:
    kept = dataclasses.replace(SPENT, cni=record(FULL).kept)
    state, (left,) = without(node(kept), {POD.inode: "report"}, are_there=True)
    assert state.pfs[0].vfs[0].vlan == 500
    assert str(left).endswith("stays here: report")


def test_a_record_in_a_snapshot() -> None:
    state = node(dataclasses.replace(SPENT, cni=record(FULL).kept))
    text = snapshot_to_json(Snapshot("2026", "m", "b", "k", (), state))
    read = snapshot_from_json(text, "it")
    assert read.state.pfs[0].vfs[0].cni == state.pfs[0].vfs[0].cni
    with pytest.raises(ValueError, match="not the name of a record of SR-IOV CNI"):
        CniRecord("a/b", Vf(0))
