"""Firmware that refuses a command in the middle of a restore, and an openibd that gets half way.

A fault is set between the unload and the load. What it costs is named and the snapshot stays open;
without the fault the next start ends as if nothing had happened.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support import connectx, lab
from tests.support.connectx import BAD_PARAM, Card, card
from tests.support.lab import PF1, PF2, Gate, Nodeagent, Started, State

PF, VF1 = 0, 2
"""vports, as commands are sent for: by a PF itself, by its VF 1."""
LOAD = "load"
"""The stage whose fault is set while no driver is loaded."""
STAGES = {
    LOAD: (0, connectx.INIT_HCA, PF, BAD_PARAM),
    "create VFs": (0, connectx.ENABLE_HCA, PF, BAD_PARAM),
    "create VFs, switchdev": (1, connectx.ENABLE_HCA, PF, BAD_PARAM),
    "bind VFs, enable": (0, connectx.ENABLE_HCA, VF1, BAD_PARAM),
    "bind VFs": (0, connectx.INIT_HCA, VF1, BAD_PARAM),
    "bind VFs, the interface": (0, connectx.CREATE_TIR, VF1, BAD_PARAM),
    "set VFs late": (0, connectx.CREATE_SCHEDULING_ELEMENT, PF, BAD_PARAM),
    "set eswitch": (1, connectx.CREATE_FLOW_TABLE, PF, BAD_PARAM),
}
"""A PF, a command of that stage, who sends it, and the status."""
HANGS = {
    LOAD: (0, connectx.INIT_HCA, PF),
    "prepare PFs": (0, connectx.CREATE_SQ, PF),
    "create VFs": (0, connectx.ENABLE_HCA, PF),
    "create VFs, the FDB": (1, connectx.CREATE_FLOW_TABLE, PF),
    "bind VFs": (0, connectx.INIT_HCA, VF1),
}
WAIT = 13
"""Seconds that a driver waits for a command, in the tests of those that hang; 60 by default. That
is enough for nodeagent to say that it waits."""
WAIT_AT_LOAD = 4
"""The same where openibd waits, and nodeagent says nothing: a driver that loads waits in a loop."""


@pytest.fixture
def scene(remembered: dict[str, State]) -> State:
    """Legacy with everything on the first PF, switchdev on the second; as the last test left it."""
    lab.remove_faults()
    lab.put_loaded_build_on_disk()
    if remembered.get("faults") != connectx.read():
        lab.clean()
        lab.make_vfs(PF1, 3, mtu=9000, rates=True)
        lab.create_vfs(PF2, 2)
        lab.ip(*(f"link set {lab.name(PF2)} vf {n} mac 02:00:00:01:01:0{n}" for n in range(2)))
        connectx.switch(PF2)
        lab.settle()
        remembered["faults"] = connectx.read()
    return remembered["faults"]


@pytest.fixture
def its_card() -> Iterator[Card]:
    with card() as held:
        yield held


def reload_with(
    nodeagent: Nodeagent, held: Card, pf: int, opcode: int, *, stage: str = "", **fault: int
) -> Started:
    """A reload whose new driver is loaded, or with LOAD about to be, when the fault is set."""
    return lab.reload_while(nodeagent, lambda: held.fail(pf, opcode, **fault), moment_of(stage))


def moment_of(stage: str) -> str:
    """When the fault of a stage is set: openibd's hook."""
    return "pre-start" if stage == LOAD else "post-start"


def fatal_errors() -> int:
    """How many the driver has noticed (poll_health(), core/health.c)."""
    return lab.sh("dmesg").count("Fatal error")


def seconds(run: Started, stage: str) -> float:
    """How long a stage took, as its line says; the longest of several."""
    found = re.findall(rf"{re.escape(stage)} +elapsed=([0-9.]+)", run.log)
    assert found, f"no {stage!r} in its log"
    return max(map(float, found))


@pytest.mark.parametrize("stage", STAGES)
def test_a_command_fails(nodeagent: Nodeagent, scene: State, its_card: Card, stage: str) -> None:
    """Once: mended within the same start, or named, and by the next one."""
    pf, opcode, vport, status = STAGES[stage]
    before = connectx.LOG.stat().st_size
    reload = reload_with(nodeagent, its_card, pf, opcode, stage=stage, status=status, vport=vport)
    said = connectx.LOG.read_text(errors="replace")[before:].splitlines()
    assert [line for line in said if "BAD_PARAM" in line.split()], "the fault was not met"
    its_card.mend()
    if reload.process.returncode:
        assert not nodeagent.ready.exists()
        assert nodeagent.open_snapshot.exists()
        assert f"pci/0000:01:00.{pf}" in reload.log.partition("error: ")[2]
        nodeagent.call("reload")
    assert connectx.read() == scene
    assert nodeagent.ready.exists()
    assert not nodeagent.open_snapshot.exists()


@pytest.mark.parametrize("stage", HANGS)
def test_a_command_hangs(nodeagent: Nodeagent, scene: State, its_card: Card, stage: str) -> None:
    """Once, for longer than the driver waits: said meanwhile, and mended within the same start."""
    pf, opcode, vport = HANGS[stage]
    before = connectx.LOG.stat().st_size
    wait = WAIT_AT_LOAD if stage == LOAD else WAIT
    its_card.set(pf, "command-timeout-s", wait)
    hang = partial(its_card.hang, pf, opcode, vport=vport)
    reload = lab.reload_while(nodeagent, hang, moment_of(stage))
    its_card.mend()
    assert "HELD" in {each.status for each in connectx.asked(before)}, "the fault was not met"
    if stage == LOAD:
        assert seconds(reload, "restart done  step=restart") > wait
    elif stage == "prepare PFs":  # a PF that is set up
        assert seconds(reload, "prepare PFs: 2 actions") > WAIT
    else:
        assert re.search(f"waiting for the kernel, 1[01] s so far.*pci/0000:01:00.{pf}", reload.log)
    assert reload.process.returncode == 0
    assert connectx.read() == scene


def test_a_vf_that_is_never_enabled(nodeagent: Nodeagent, scene: State, its_card: Card) -> None:
    """All of its PF are made again once; then it is named, and what mends it.

    It is the only one of its PF: its driver looks every 2 ms for 120 s, which costs the emulator
    half a minute of a processor for each VF each time (wait_fw_init()).
    """
    lab.create_vfs(PF1, 0)
    lab.make_vfs(PF1, 1, mtu=9000)
    lab.settle()
    before = connectx.read()
    reload = reload_with(nodeagent, its_card, 0, connectx.ENABLE_HCA, status=BAD_PARAM, count=1000)
    assert reload.process.returncode == 1
    assert reload.log.count("are removed and created again") == 1
    named = reload.log.partition("error: ")[2]
    assert f"pci/{PF1} vf 0: the firmware of {lab.vf(PF1, 0)} does not start" in named
    assert seconds(reload, "bind VFs: 1 actions, 1 FAILED") < 130
    assert connectx.read()["devices"][PF2] == scene["devices"][PF2]
    its_card.mend()

    # it is the earlier start's: this one says so and leaves it
    again = nodeagent.start("reload")
    assert again.wait(lab.PATIENCE * 2) == 1
    assert "are removed and created again" not in again.log
    assert f"echo 0 >/sys/bus/pci/devices/{PF1}/sriov_numvfs" in again.log.partition("error: ")[2]
    (lab.PCI / PF1 / "sriov_numvfs").write_text("0")
    nodeagent.call("reload")
    assert connectx.read() == before


def test_a_fatal_error_in_a_restore(nodeagent: Nodeagent, scene: State, its_card: Card) -> None:
    """Until the driver has recovered it answers as if all were done, and then makes all anew.

    It tries once by itself, which fails here: the next start has it try again.
    """

    def fail() -> None:
        seen = fatal_errors()
        its_card.set(0, "health", 1)
        # the driver looks every 2 s, in which a restore may have ended
        lab.eventually(lambda: fatal_errors() > seen, "the driver's notice of it")

    reload = lab.reload_while(nodeagent, fail)
    assert reload.process.returncode == 1
    assert f"pci/{PF1}: the firmware has had a fatal error" in reload.log.partition("error: ")[2]
    assert not nodeagent.ready.exists()
    assert nodeagent.open_snapshot.exists()
    its_card.mend()
    nodeagent.call("reload")
    assert connectx.fatal(PF1) == "healthy"
    assert connectx.read() == scene
    assert nodeagent.ready.exists()


def test_a_pf_in_a_fatal_error_is_neither_saved_nor_ready(
    nodeagent: Nodeagent, scene: State, its_card: Card
) -> None:
    """What its driver tells of its VFs is not what they had; `restore` puts back what they had."""
    lab.put_other_build_on_disk()
    nodeagent.call("reload")  # leaves a last snapshot
    its_card.set(0, "health", 1)
    connectx.await_failed_recovery(f"pci/{PF1}")
    its_card.mend()
    for loaded in ("the installed driver", "another one"):
        failed = nodeagent.call("reload", status=69)
        assert f"pci/{PF1}: the firmware has had a fatal error" in failed.log, loaded
        assert not nodeagent.ready.exists()
        assert not nodeagent.open_snapshot.exists()
        lab.put_other_build_on_disk()
    # its VFs, which saw the error later, are still in it: named at once, and recovered by the next
    began = time.monotonic()
    assert nodeagent.start("restore").wait() in {0, 1}
    assert time.monotonic() - began < 90
    nodeagent.call("restore")
    assert connectx.read() == scene


def test_refused_half_way(nodeagent: Nodeagent, scene: State) -> None:
    """mlx5_ib is gone and mlx5_core cannot be unloaded: the old driver has all that it had.

    Also the RDMA device of the PF in switchdev mode: its VFs were removed, so that its eswitch has
    been in legacy mode since mlx5_ib was loaded.
    """
    running = lab.loaded()
    lab.put_other_build_on_disk()
    lab.SWITCHES.write_text("fail=unload\nonce\n")
    before = time.monotonic()
    failed = nodeagent.call("reload", status=71)
    assert time.monotonic() - before < 60
    assert "rmmod: ERROR: Module mlx5_core is in use" in failed.log
    assert lab.loaded() == running
    assert connectx.read() == scene
    assert nodeagent.open_snapshot.exists()
    nodeagent.call("reload")
    assert lab.loaded() != running
    assert connectx.read() == scene


def test_a_pf_that_is_refused_for_good(nodeagent: Nodeagent, scene: State, its_card: Card) -> None:
    """It is probed again twice, and named; the other PF is as before, and nothing is waited for."""
    began = time.monotonic()
    reload = reload_with(
        nodeagent,
        its_card,
        0,
        connectx.INIT_HCA,
        stage=LOAD,
        status=BAD_PARAM,
        vport=PF,
        count=1000,
    )
    assert reload.process.returncode == 1
    assert time.monotonic() - began < 60
    named = reload.log.partition("error: ")[2].splitlines()
    assert named[1:-1] == [
        f"  pci/{PF1}: the probe by mlx5_core failed; dmesg says why",
        f"  pci/{PF1} driver: want mlx5_core, have not bound, or no such device",
    ]
    assert lab.read()[PF2] == scene["devices"][PF2]
    its_card.mend()
    nodeagent.call("reload")
    assert connectx.read() == scene


def test_a_pf_that_is_off_the_bus_is_named_at_once(nodeagent: Nodeagent, scene: State) -> None:
    """Nothing waits for it: the VFs of the other PF are back before it is named."""
    reload = lab.reload_while(nodeagent, lambda: (lab.PCI / PF2 / "remove").write_text("1"))
    assert reload.process.returncode == 1
    assert f"pci/{PF2}: is not on the bus any more" in reload.log.partition("error: ")[2]
    assert "waiting for PFs" not in reload.log
    assert lab.read()[PF1] == scene["devices"][PF1]
    Path("/sys/bus/pci/rescan").write_text("1")
    lab.settle()
    nodeagent.call("reload")
    assert connectx.read() == scene


def test_another_program_sets_legacy_mode(nodeagent: Nodeagent, scene: State) -> None:
    """While udev is at a representor, which goes: it is not waited for, and made once more."""
    lab.put_other_build_on_disk()
    with Gate("representor") as gate:
        rule = lab.RULES / "00-lab.rules"
        lab.RULES.mkdir(exist_ok=True)
        port = 'SUBSYSTEM=="net", ACTION=="add", ATTR{phys_port_name}=="pf1vf1"'
        rule.write_text(f"{port}, PROGRAM=\"/bin/sh -c '{gate.script}'\"\n")
        lab.sh("udevadm control --reload")
        reload = nodeagent.start("reload")
        reload.wait_for("set VF netdevs: ")
        gate.wait()
        rule.unlink()
        lab.sh(f"udevadm control --reload; devlink dev eswitch set pci/{PF2} mode legacy")
        gate.open()
        assert reload.wait() == 0
    assert "waiting for network interfaces" not in reload.log
    assert connectx.read() == scene


def test_a_vf_that_is_refused_for_good(nodeagent: Nodeagent, scene: State, its_card: Card) -> None:
    """The others are as before; it is named, and mended when firmware takes it."""
    reload = reload_with(
        nodeagent, its_card, 0, connectx.INIT_HCA, status=BAD_PARAM, vport=VF1, count=1000
    )
    assert reload.process.returncode == 1
    assert f"pci/{PF1} vf 1" in reload.log.partition("error: ")[2]
    now = connectx.read()["devices"]
    before = scene["devices"]
    assert now[PF2] == before[PF2]
    assert now[PF1]["vfs"][0] == before[PF1]["vfs"][0]
    assert now[PF1]["vfs"][2] == before[PF1]["vfs"][2]
    its_card.mend()
    nodeagent.call("reload")
    assert connectx.read() == scene


def test_a_vf_without_its_interface_is_not_waited_for(
    nodeagent: Nodeagent, scene: State, its_card: Card
) -> None:
    """It is bound, and the driver of its auxiliary device cannot be."""
    began = time.monotonic()
    reload = reload_with(
        nodeagent, its_card, 0, connectx.CREATE_TIR, status=BAD_PARAM, vport=VF1, count=1000
    )
    assert reload.process.returncode == 1
    assert time.monotonic() - began < 30
    named = reload.log.partition("error: ")[2]
    assert re.search(rf"pci/{PF1} vf 1: .* the probe of mlx5_core\.eth\.\d+ failed twice", named)
    now = connectx.read()["devices"]
    for number in (0, 2):
        assert now[PF1]["vfs"][number] == scene["devices"][PF1]["vfs"][number]
    its_card.mend()
    nodeagent.call("reload")
    assert connectx.read() == scene


def test_vfs_have_as_long_as_they_keep_coming(
    nodeagent: Nodeagent, scene: State, its_card: Card
) -> None:
    """30 VFs that firmware begins, and ends, one after the other: 30 s, longer than VF_TIMEOUT.

    16 are unbound side by side, so that the first is back after 16 s.
    """
    lab.clean()
    lab.create_vfs(PF1, 30)
    lab.settle()
    before = connectx.read()
    lab.put_other_build_on_disk()
    its_card.set(0, "fw-vf-ms", 1000)
    its_card.set(0, "fw-parallel", 1)
    try:
        began = time.monotonic()
        nodeagent.call("reload", VF_TIMEOUT=22)
        assert time.monotonic() - began > 60
    finally:
        its_card.set(0, "fw-vf-ms", 0)
        its_card.set(0, "fw-parallel", 0)
    assert connectx.read() == before
