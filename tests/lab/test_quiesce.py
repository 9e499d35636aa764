"""VFs are removed side by side before the driver is unloaded: quicker, and as well as without."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support import lab
from tests.support.lab import PCI, PF1, PF2, Nodeagent, State

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
    nodeagent: Nodeagent, no_vfs: None
) -> None:
    lab.make_vfs(PF1, 2)
    lab.make_vfs(PF2, 2)
    before = lab.read()
    held = lab.vf(PF1, 1)
    lab.give_to("vfio-pci", held)
    group = (PCI / held / "iommu_group").resolve().name
    there = lab.RUN / "vfs"
    counts = " ".join(f"{PCI}/{pf}/sriov_numvfs" for pf in (PF1, PF2))
    lab.hook("pre-stop", f"cat {counts} | xargs >{there}")
    lab.put_other_build_on_disk()
    with open(f"/dev/vfio/{group}", "rb+", 0) as file:
        holder = subprocess.Popen(["sleep", "600"], stdin=file)
    try:
        run = nodeagent.call("reload", POD_LOSSES="accept")
    finally:
        holder.kill()
        holder.wait()
    assert f"pci/{PF1} keeps its VFs until the unload: {held}: sleep (pid {holder.pid}" in run.log
    assert there.read_text() == "2 0\n"
    now = lab.read()
    assert now[PF2] == before[PF2]
    assert now[PF1]["vfs"][0] == before[PF1]["vfs"][0]
    assert lab.driver(lab.vf(PF1, 1)) == "vfio-pci"


@pytest.mark.parametrize("switch", ["fail=refuse", "nothing=1", "fail=unload"])
def test_vfs_come_back_where_openibd_does_not_unload(
    switch: str, nodeagent: Nodeagent, three_vfs: State
) -> None:
    """On the driver that runs; the next start takes the same way again."""
    old = lab.loaded()
    wanted = lab.put_other_build_on_disk()
    lab.SWITCHES.write_text(f"{switch}\n")
    failed = nodeagent.call("reload", status=71)
    assert "openibd restart did not bring in the installed driver" in failed.log
    assert (lab.loaded(), lab.read()) == (old, three_vfs)
    assert phases(nodeagent)["quiesce"] > 0
    assert not nodeagent.ready.exists()
    assert nodeagent.open_snapshot.exists()
    lab.SWITCHES.unlink()
    nodeagent.call("reload")
    assert (lab.loaded(), lab.read()) == (wanted, three_vfs)
    assert nodeagent.ready.exists()
