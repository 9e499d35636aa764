"""From one driver build to the next with nodeagent as a process: what can go wrong, made to.

State is set up and compared with iproute2 (tests.support.lab), never with nodeagent's own eyes.
"""

from __future__ import annotations

import json

import pytest

from tests.support import lab
from tests.support.lab import PCI, PF1, PF2, Gate, HiddenNamespace, Nodeagent, State

pytestmark = pytest.mark.real_time
"""The restore with udev and the driver at work beside it, on processors of their own."""

HELD = "0000:01:10.2"
"""VF 1 of the first PF."""


def test_every_vf_is_back(nodeagent: Nodeagent, no_vfs: None) -> None:
    lab.make_vfs(PF1, 7, mtu=9000, rates=True)
    lab.make_vfs(PF2, 3)
    before = lab.read()
    wanted = lab.put_other_build_on_disk()
    nodeagent.call("reload")
    assert lab.loaded() == wanted
    assert lab.read() == before
    assert nodeagent.ready.exists()
    assert not nodeagent.open_snapshot.exists()
    assert lab.restarts() == ["begin", "end"]


def test_each_vfs_gap_is_on_record(nodeagent: Nodeagent, no_vfs: None) -> None:
    lab.make_vfs(PF1, 7, mtu=9000, rates=True)
    lab.make_vfs(PF2, 3)
    lab.put_other_build_on_disk()
    nodeagent.call("reload")
    (run,) = json.loads(nodeagent.call("timeline", "-o", "json").output())
    (window,) = run["windows"]
    assert len(window["vfs"]) == 10
    for vf in window["vfs"]:
        assert 0 <= vf["gone"] < vf["bound"] <= vf["settled"] <= window["seconds"], vf
        assert vf["bound"] - vf["gone"] < vf["seconds"] <= window["seconds"], vf
    found = window["gaps"]
    assert 0 < found["median"] <= found["p95"] <= found["worst"] <= window["seconds"]
    assert found["vf"] in [vf["vf"] for vf in window["vfs"]]


def test_what_restore_first_names_is_bound_first(nodeagent: Nodeagent, no_vfs: None) -> None:
    with lab.firmware(vf_probe_ms=100, fw_parallel=4):
        lab.create_vfs(PF1, 7)
        lab.create_vfs(PF2, 7)
        lab.put_other_build_on_disk()
        nodeagent.call("reload", RESTORE_FIRST=lab.vfs(PF2)[6])
    (run,) = json.loads(nodeagent.call("timeline", "-o", "json").output())
    (window,) = run["windows"]
    bound = {vf["vf"]: vf["bound"] for vf in window["vfs"]}
    assert len(bound) == 14
    # one of the four that firmware serves at first, or the next; by its index it would be the last
    assert f"pci/{PF2} vf 6" in sorted(bound, key=lambda vf: bound[vf])[:8]
    gaps = {vf["vf"]: vf["seconds"] for vf in window["vfs"]}
    assert min(gaps, key=lambda vf: gaps[vf]) == f"pci/{PF2} vf 6"


@pytest.mark.wide
def test_one_start_from_build_a_to_ready_with_56_vfs(nodeagent: Nodeagent, no_vfs: None) -> None:
    """No restart of the process: the toolkit's flag, the reload, eight PFs with seven VFs each."""
    lab.clean("A")
    lab.on_each_pf(lambda pf: lab.make_vfs(pf, 7, mtu=9000))
    before = lab.read()
    assert sum(len(pf["vfs"]) for pf in before.values()) == 56
    wanted = lab.put_other_build_on_disk()
    run = nodeagent.start("run", "sources")
    run.wait_for("waiting for the driver toolkit's done flag")
    nodeagent.finish_build()
    run.wait_for("ready: ")
    assert nodeagent.ready.exists()
    assert lab.loaded() == wanted
    assert lab.read() == before
    assert run.stop() == 0
    assert lab.read() == before


# The two failures of the field report


def test_vf_still_called_eth0_is_waited_for(nodeagent: Nodeagent, three_vfs: State) -> None:
    """udev is held in the middle of naming one VF, and let go while nodeagent waits."""
    lab.put_other_build_on_disk()
    with Gate("rename") as gate, lab.program_for(HELD, gate.script):
        reload = nodeagent.start("reload")
        gate.wait()
        assert lab.name(HELD).startswith("eth")
        reload.wait_for("bind VFs")
        held = lab.read()[PF1]["vfs"][1]["interface"]
        assert held["ifname"].startswith("eth")
        assert not held["up"]
        assert not nodeagent.ready.exists()
        gate.open()
        assert reload.wait() == 0
    assert lab.read() == three_vfs


def test_vf_without_netdev_is_waited_for(nodeagent: Nodeagent, three_vfs: State) -> None:
    """Its net/ is empty: udev puts the interface away before it has named it."""
    lab.put_other_build_on_disk()
    with Gate("away") as gate:
        with HiddenNamespace() as hidden:
            with lab.program_for(HELD, f"{hidden.put_away}; {gate.script}"):
                reload = nodeagent.start("reload")
                gate.wait()
                reload.wait_for("bind VFs")
                assert not list((PCI / HELD / "net").iterdir())
            gate.open()
            lab.settle()
            assert not list((PCI / HELD / "net").iterdir())
            assert reload.process.poll() is None
            assert not nodeagent.ready.exists()
        assert reload.wait() == 0
    assert lab.read() == three_vfs


def test_vf_that_never_gets_its_netdev(nodeagent: Nodeagent, three_vfs: State) -> None:
    """The time-out names it and nothing else; with its cause gone the next start is quick."""
    lab.put_other_build_on_disk()
    with HiddenNamespace() as hidden:
        with lab.program_for(HELD, hidden.put_away):
            failed = nodeagent.call("reload", status=1, VF_TIMEOUT=5)
        assert f"pci/{PF1} vf 1 ({HELD}): no network interface after 5 s" in failed.log
        assert "vf 0" not in failed.log
        assert "vf 2" not in failed.log
        assert not nodeagent.ready.exists()
        assert nodeagent.open_snapshot.exists()
        left = lab.read()
        assert left[PF1]["vfs"][1]["interface"] is None
        left[PF1]["vfs"][1]["interface"] = three_vfs[PF1]["vfs"][1]["interface"]
        assert left == three_vfs
    lab.eventually(lambda: list((PCI / HELD / "net").iterdir()), "the interface came home")
    nodeagent.call("reload")
    assert lab.read() == three_vfs
    assert nodeagent.ready.exists()
    assert lab.restarts() == ["begin", "end"]


# udev


def test_without_udevd_nodeagent_gives_the_names(nodeagent: Nodeagent, three_vfs: State) -> None:
    lab.put_other_build_on_disk()
    lab.kill_udevd()
    reload = nodeagent.call("reload")
    assert "udevd is not running" in reload.log
    assert lab.read() == three_vfs


def test_name_is_taken(nodeagent: Nodeagent, three_vfs: State) -> None:
    """A dummy has the name of VF 1 when the VFs come back: said, and everything else is right."""
    lab.put_other_build_on_disk()
    taken = three_vfs[PF1]["vfs"][1]["interface"]["ifname"]
    lab.hook("post-stop", f"ip link add {taken} type dummy")
    failed = nodeagent.call("reload", status=1)
    assert f"pci/{PF1} vf 1: cannot set its name" in failed.log
    assert f"vf 1 name: want {taken}, have eth" in failed.log
    assert not nodeagent.ready.exists()
    assert nodeagent.open_snapshot.exists()
    left = lab.read()
    assert left[PF1]["vfs"][1]["interface"]["ifname"].startswith("eth")
    left[PF1]["vfs"][1]["interface"]["ifname"] = taken
    assert left == three_vfs

    lab.ip(f"link delete {taken}")
    nodeagent.call("reload")
    assert lab.read() == three_vfs
    assert nodeagent.ready.exists()
    assert lab.restarts() == ["begin", "end"]
