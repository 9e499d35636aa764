"""VFs are removed side by side before the driver is unloaded: quicker, and as well as without."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.lab import PCI, PF1, PF2, Nodeagent, State
from tests.support.sweep import everything

FIRMWARE = 10.0
"""Seconds for the probe of a VF, and for its removal."""


def phases(nodeagent: Nodeagent) -> dict[str, float]:
    """Seconds of each phase of the last run, and of the time without VFs (`window`)."""
    told = nodeagent.call("timeline", "--last", "1", "--output", "json").output()
    (run,) = json.loads(told)
    (window,) = run["windows"]
    return {phase["name"]: phase["seconds"] for phase in run["phases"]} | {
        "window": window["seconds"]
    }


def numvfs_at_the_unload() -> Path:
    """The file that has how many VFs each PF has when openibd begins to unload: `2 0`."""
    there = lab.RUN / "vfs"
    counts = " ".join(f"{PCI}/{pf}/sriov_numvfs" for pf in (PF1, PF2))
    lab.hook("pre-stop", f"cat {counts} | xargs >{there}")
    return there


def check_all_but_the_one_on_vfio(before: State) -> None:
    """All is as before, with VF 1 of the first PF on vfio-pci."""
    now = lab.read()
    assert now[PF2] == before[PF2]
    assert now[PF1]["vfs"][0] == before[PF1]["vfs"][0]
    assert lab.driver(lab.vf(PF1, 1)) == "vfio-pci"


@pytest.mark.parametrize("parallel", [16, 1])
def test_the_window_is_as_short_as_firmware_lets_it_be(
    nodeagent: Nodeagent, no_vfs: None, parallel: int
) -> None:
    """Four VFs; firmware that serves one at a time takes as long as without a quiesce."""
    each = int(FIRMWARE * 1000)
    found = {}
    with lab.firmware(vf_probe_ms=each, vf_remove_ms=each, fw_parallel=parallel):
        lab.make_vfs(PF1, 2)
        lab.make_vfs(PF2, 2)
        before = lab.read()
        for setting in ("off", "auto"):
            lab.put_other_build_on_disk()
            nodeagent.call("reload", QUIESCE=setting)
            assert lab.read() == before
            found[setting] = phases(nodeagent)
    serial = 4 * FIRMWARE
    assert "quiesce" not in found["off"]
    assert found["off"]["restart"] > serial
    quiesce = found["auto"]["quiesce"]
    sys.stdout.write(f"firmware serves {parallel}: {found}\n")
    if parallel == 1:
        assert serial < quiesce < serial + FIRMWARE
    else:
        assert FIRMWARE < quiesce < 2 * FIRMWARE
        assert found["auto"]["window"] < found["off"]["window"] - serial + 2 * FIRMWARE


def test_a_pf_with_a_vf_that_is_open_keeps_its_vfs_until_the_unload(
    nodeagent: Nodeagent, no_vfs: None, tmp_path: Path
) -> None:
    """One that is opened after the preflight, which would have refused the reload."""
    lab.make_vfs(PF1, 2)
    lab.make_vfs(PF2, 2)
    before = lab.read()
    held = lab.vf(PF1, 1)
    lab.give_to("vfio-pci", held)
    there = numvfs_at_the_unload()
    lab.put_other_build_on_disk()
    nodeagent.call("reload")  # the first one makes files that are there afterwards
    lab.put_other_build_on_disk()
    nodeagent.call("reload", TRACE_POINTS=tmp_path)
    assert there.read_text() == "0 0\n"
    points = (tmp_path / "points").read_text().splitlines()
    (tmp_path / "points").unlink()
    first = next(at for at, point in enumerate(points, 1) if "/unbind" in point)
    (tmp_path / "end").write_text(f"STOP {first - 1}")  # the step is on record by then
    lab.put_other_build_on_disk()
    run = nodeagent.start("reload", TRACE_POINTS=tmp_path)
    lab.eventually(lambda: lab.is_stopped(run.process.pid), "held before the quiesce")
    group = (PCI / held / "iommu_group").resolve().name  # another number each time it is made
    with open(f"/dev/vfio/{group}", "rb+", 0) as file:
        holder = subprocess.Popen(["sleep", "600"], stdin=file)
    try:
        os.kill(run.process.pid, signal.SIGCONT)
        assert run.wait() == 0, run.log
    finally:
        holder.kill()
        holder.wait()
    assert f"pci/{PF1} keeps its VFs until the unload: {held}: sleep (pid {holder.pid}" in run.log
    assert there.read_text() == "2 0\n"
    check_all_but_the_one_on_vfio(before)


def test_a_pf_with_a_vf_that_may_be_open_keeps_its_vfs_until_the_unload(
    nodeagent: Nodeagent, no_vfs: None
) -> None:
    """Without the host's processes nobody knows who has a VF of vfio-pci open."""
    lab.make_vfs(PF1, 2)
    lab.make_vfs(PF2, 2)
    before = lab.read()
    passed_through = lab.vf(PF1, 1)
    lab.give_to("vfio-pci", passed_through)
    there = numvfs_at_the_unload()
    lab.put_other_build_on_disk()
    alone = ("unshare", "--pid", "--fork", "--mount-proc", "nodeagent", "reload")
    run = nodeagent.start_command(*alone, POD_LOSSES="accept")
    assert run.wait() == 0, run.log
    said = f"pci/{PF1} keeps its VFs until the unload: {passed_through} is bound to vfio-pci"
    assert said in run.log
    assert there.read_text() == "2 0\n"
    check_all_but_the_one_on_vfio(before)


@pytest.fixture
def bonded(three_vfs: State) -> Iterator[None]:
    """Both PFs in a bond, with an address and a route."""
    lab.ip(
        "link add bond7 type bond mode active-backup miimon 100",
        *(f"link set {lab.name(pf)} down" for pf in (PF1, PF2)),
        *(f"link set {lab.name(pf)} master bond7" for pf in (PF1, PF2)),
        "link set bond7 up",
        "addr add 192.0.2.7/24 dev bond7",
        "route add 198.51.100.0/24 via 192.0.2.1 dev bond7",
    )
    yield
    lab.ip("link delete bond7", *(f"link set {lab.name(pf)} down" for pf in (PF1, PF2)))


def with_bond() -> State:
    """The devices, the bond's ports, and addresses and routes."""
    ports = json.loads(lab.sh("ip -j link show master bond7"))
    return {**everything(), "ports": sorted(port["ifname"] for port in ports)}


@pytest.mark.parametrize("switch", ["fail=refuse", "nothing=1", "fail=unload"])
def test_all_comes_back_where_openibd_does_not_unload(
    switch: str, nodeagent: Nodeagent, bonded: None
) -> None:
    """VFs and PFs, on the driver that runs; the next start takes the same way again."""
    before = with_bond()
    assert len(before["ports"]) == 2
    old = lab.loaded()
    wanted = lab.put_other_build_on_disk()
    lab.SWITCHES.write_text(f"{switch}\n")
    failed = nodeagent.call("reload", status=71)
    assert "openibd restart did not bring in the installed driver" in failed.log
    assert (lab.loaded(), with_bond()) == (old, before)
    found = phases(nodeagent)
    assert found["quiesce"] > 0
    assert found["unbind"] > 0
    assert not nodeagent.ready.exists()
    assert nodeagent.open_snapshot.exists()
    lab.SWITCHES.unlink()
    nodeagent.call("reload")
    assert (lab.loaded(), with_bond()) == (wanted, before)
    assert nodeagent.ready.exists()
