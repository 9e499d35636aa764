"""What the emulated node promises to the tests that run in it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import lab

PCI = Path("/sys/bus/pci/devices")
PFS = [pf for bus in range(1, 9) if (pf := PCI / f"0000:{bus:02x}:00.0").exists()]
LOADED = Path("/sys/module/mlx5_core/srcversion")
OPENIBD = "/etc/init.d/openibd"
LAB = Path("/run/lab")
SWITCHES = LAB / "openibd.switches"
HANGING = LAB / "openibd.hanging"
LOG = LAB / "openibd.log"
OK = "[  \033[1;32mOK\033[0;39m  ]\r\n"
FAILED = "[\033[1;31mFAILED\033[0;39m]\r\n"


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="strict",
        timeout=60,
        check=False,
    )


def openibd(verb: str, *switches: str, **environment: str) -> tuple[int, str]:
    """Exit status and output, bytes as they were: subprocess's text mode would eat its \\r."""
    if switches:
        SWITCHES.write_text("".join(f"{line}\n" for line in switches))
    done = subprocess.run(
        [OPENIBD, verb],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.decode()


def srcversion_on_disk() -> str:
    return run("modinfo", "-F", "srcversion", "mlx5_core").stdout.strip()


def wait_for(path: Path, *, there: bool = True) -> None:
    deadline = time.monotonic() + 30
    while path.exists() != there:
        assert time.monotonic() < deadline, f"{path} is still {'not ' if there else ''}there"
        time.sleep(0.05)


def netdevs(device: Path) -> list[str]:
    return sorted(path.name for path in (device / "net").glob("*"))


def bus(pf: Path) -> int:
    return int(pf.name.split(":")[1], 16)


@pytest.fixture
def node() -> Iterator[None]:
    """The node as it was: no switches, build A on disk and loaded, no VFs."""
    a = LOADED.read_text()
    yield
    SWITCHES.unlink(missing_ok=True)
    HANGING.unlink(missing_ok=True)
    if srcversion_on_disk() != a.strip():
        run("lab-driver", "A")
    if not LOADED.exists():
        run("modprobe", "mlx5_core")
    elif LOADED.read_text() != a or any(netdevs(pf / "virtfn0") for pf in PFS):
        run("lab-driver", "A", "--load")
    run("udevadm", "settle")
    assert LOADED.read_text() == a


def test_every_pf_is_on_build_a_without_vfs() -> None:
    assert PFS
    for pf in PFS:
        assert (pf / "driver").resolve().name == "mlx5_core"
        assert (pf / "sriov_numvfs").read_text() == "0\n"
        assert (pf / "sriov_totalvfs").read_text() == "7\n"
        assert netdevs(pf) == [f"enp{bus(pf)}s0"]


def test_an_interrupt_that_the_emulator_loses_is_ended() -> None:
    assert "lab_eoi " in Path("/proc/modules").read_text()


@pytest.mark.wide
def test_a_wide_node_has_eight_pfs() -> None:
    assert len(PFS) == 8


def test_seven_vfs_on_each_pf_named_by_udev(node: None) -> None:
    for pf in PFS:
        (pf / "sriov_numvfs").write_text("7")
    run("udevadm", "settle", "--timeout=60")
    for pf in PFS:
        for index in range(7):
            vf = pf / f"virtfn{index}"
            assert (vf / "driver").resolve().name == "mlx5_core"
            assert (vf / "physfn").resolve() == pf.resolve()
            assert netdevs(vf) == [f"enp{bus(pf)}s0v{index}"]


def test_builds_differ_in_srcversion_and_a_reload_is_an_upgrade(node: None) -> None:
    a = LOADED.read_text().strip()
    assert a == srcversion_on_disk()
    assert run("lab-driver", "B").returncode == 0
    b = srcversion_on_disk()
    assert b != a
    assert LOADED.read_text().strip() == a
    assert run("lab-driver", "B", "--load").returncode == 0
    assert LOADED.read_text().strip() == b
    assert [netdevs(pf) for pf in PFS] == [[f"enp{bus(pf)}s0"] for pf in PFS]


FIRMWARE_SECONDS = 2.0
VFS_IN_TURN = "for vf in {vfs}; do echo $vf >/sys/bus/pci/drivers/mlx5_core/{do}; done"
VFS_AT_ONCE = "for vf in {vfs}; do echo $vf >/sys/bus/pci/drivers/mlx5_core/{do} & done; wait"


@pytest.mark.parametrize("parallel", [1, 2, 0], ids=["one", "two", "any"])
def test_firmware_serves_as_many_functions_at_once_as_it_can(node: None, parallel: int) -> None:
    each = int(FIRMWARE_SECONDS * 1000)
    with lab.firmware(vf_probe_ms=each, vf_remove_ms=each, fw_parallel=parallel):
        vfs = unbound_vfs(PFS[0], 4)
        for command, rounds in ((VFS_IN_TURN, 4), (VFS_AT_ONCE, 4 // (parallel or 4))):
            for do in ("bind", "unbind"):
                began = time.monotonic()
                done = run("bash", "-euc", command.format(vfs=" ".join(vfs), do=do))
                took = (time.monotonic() - began) / FIRMWARE_SECONDS
                assert done.returncode == 0, done.stdout
                assert rounds <= took < rounds + 1
        (PFS[0] / "sriov_numvfs").write_text("0")


def unbound_vfs(pf: Path, count: int) -> list[str]:
    (pf / "sriov_drivers_autoprobe").write_text("0")
    (pf / "sriov_numvfs").write_text(str(count))
    (pf / "sriov_drivers_autoprobe").write_text("1")
    return [(pf / f"virtfn{index}").resolve().name for index in range(count)]


def test_a_pf_and_its_eswitch_wait_for_firmware_too(node: None) -> None:
    with lab.firmware(pf_load_ms=3000, eswitch_ms=2000):
        began = time.monotonic()
        (PFS[0] / "sriov_numvfs").write_text("1")
        assert 2 <= time.monotonic() - began < 3
        lab.unload_driver()
        began = time.monotonic()
        assert run("modprobe", "mlx5_core").returncode == 0
        assert 3 * len(PFS) <= time.monotonic() - began < 3 * len(PFS) + 2


def test_netdevsim_with_fifty_vfs() -> None:
    assert run("modprobe", "netdevsim").returncode == 0
    device = Path("/sys/bus/netdevsim/devices/netdevsim7")
    try:
        Path("/sys/bus/netdevsim/new_device").write_text("7 1")
        Path("/sys/kernel/debug/netdevsim/netdevsim7/max_vfs").write_text("64")
        (device / "sriov_numvfs").write_text("50")
        run("udevadm", "settle")
        [netdev] = netdevs(device)
        shown = run("ip", "link", "show", "dev", netdev).stdout
        assert shown.count(" vf ") == 50
        assert run("ip", "link", "set", netdev, "vf", "49", "vlan", "100").returncode == 0
    finally:
        assert run("modprobe", "-r", "netdevsim").returncode == 0


def test_the_working_tree_and_its_packages_are_importable() -> None:
    packages = "nodeagent, click, psutil, pytest, pyudev"
    done = run("python3", "-c", f"import {packages}; print(nodeagent.__file__)")
    assert done.stdout == "/opt/nodeagent/nodeagent/__init__.py\n"


def test_the_share_is_writable() -> None:
    marker = Path("/host/out/marker")
    marker.write_text("here")
    assert marker.read_text() == "here"
    marker.unlink()


class TestOpenibd:
    """The stand-in ends and prints as the real one does."""

    @pytest.fixture(autouse=True)
    def as_before(self, node: None) -> None:
        LOG.unlink(missing_ok=True)

    def test_restart_loads_what_is_on_disk(self) -> None:
        run("lab-driver", "B")
        status, said = openibd("restart")
        assert status == 0
        assert said == (
            f"Unloading HCA driver:\033[60G{OK}Loading HCA driver and Access Layer:\033[60G{OK}"
        )
        assert LOADED.read_text().strip() == srcversion_on_disk()

    def test_no_colours_on_request(self) -> None:
        assert openibd("stop", BOOTUP="serial") == (0, "Unloading HCA driver:[  OK  ]\r\n")

    def test_refused_stop_leaves_the_driver(self) -> None:
        before = LOADED.read_text()
        (PFS[0] / "sriov_numvfs").write_text("1")
        status, said = openibd("restart", "fail=refuse")
        assert status == 1
        assert (
            "Error: Cannot unload the Infiniband driver stack due to the above issue(s)!\n" in said
        )
        assert said.startswith("Please stop")
        assert LOADED.read_text() == before
        assert (PFS[0] / "sriov_numvfs").read_text() == "1\n"

    def test_a_forced_restart_is_not_refused(self) -> None:
        status, _ = openibd("force-restart", "fail=refuse")
        assert status == 0

    def test_refused_stop_because_of_a_user_of_a_device(self) -> None:
        run("modprobe", "-a", "ib_uverbs", "rdma_rxe")
        try:
            run("rdma", "link", "add", "rxe0", "type", "rxe", "netdev", netdevs(PFS[0])[0])
            run("udevadm", "settle")
            with Path("/dev/infiniband/uverbs0").open("rb"):
                status, said = openibd("stop")
            assert status == 1
            assert f"{os.getpid()} " in said
        finally:
            run("modprobe", "-r", "rdma_rxe")

    def test_failed_unload(self) -> None:
        status, said = openibd("restart", "fail=unload")
        assert status == 1
        assert said == (
            f"Unloading mlx5_core\033[60G{FAILED}rmmod: ERROR: Module mlx5_core is in use\n"
        )
        assert LOADED.exists()

    def test_failed_load_leaves_no_driver(self) -> None:
        status, said = openibd("restart", "fail=load")
        assert status == 1
        assert "Failed loading kernel module mlx5_core: \n" in said
        assert said.endswith(f"Loading HCA driver and Access Layer:\033[60G{FAILED}")
        assert not LOADED.exists()
        assert not (PFS[0] / "driver").exists()

    def test_nothing_done(self) -> None:
        before = netdevs(PFS[0])
        assert openibd("restart", "nothing=1") == (0, "No InfiniBand configuration found\n")
        assert netdevs(PFS[0]) == before

    def test_nothing_done_without_its_configuration(self, tmp_path: Path) -> None:
        configuration = Path("/etc/infiniband/openib.conf")
        text = configuration.read_text()
        configuration.unlink()
        try:
            assert openibd("restart") == (0, "No InfiniBand configuration found\n")
        finally:
            configuration.write_text(text)

    def test_automatic_mode_obeys_onboot(self, tmp_path: Path) -> None:
        configuration = Path("/etc/infiniband/openib.conf")
        text = configuration.read_text()
        link = tmp_path / "S09openibd"
        link.symlink_to(OPENIBD)
        configuration.write_text("ONBOOT=no\n")
        try:
            done = run(str(link), "stop")
        finally:
            configuration.write_text(text)
        assert (done.returncode, done.stdout) == (0, "")
        assert LOADED.exists()

    def test_slow(self) -> None:
        start = time.monotonic()
        status, _ = openibd("stop", "slow-stop=2")
        assert status == 0
        assert time.monotonic() - start >= 2

    def test_once(self) -> None:
        assert openibd("stop", "fail=refuse", "once")[0] == 1
        assert not SWITCHES.exists()
        assert openibd("stop")[0] == 0

    def test_hang_ends_with_its_switches(self) -> None:
        SWITCHES.write_text("hang=start\n")
        with subprocess.Popen([OPENIBD, "restart"]) as hanging:
            wait_for(HANGING)
            assert not LOADED.exists()
            SWITCHES.unlink()
            assert hanging.wait(30) == 0
        assert LOADED.exists()

    def test_sigterm_does_not_end_it_and_sigkill_does(self) -> None:
        SWITCHES.write_text("hang=stop\nonce\n")
        with subprocess.Popen([OPENIBD, "stop"], stdout=subprocess.PIPE) as hanging:
            wait_for(HANGING)
            hanging.send_signal(signal.SIGTERM)
            assert hanging.stdout
            assert hanging.stdout.readline() == b"Please wait ...\n"
            assert hanging.poll() is None
            hanging.kill()
            assert hanging.wait(30) == -signal.SIGKILL
        assert LOADED.exists()

    def test_sigterm_is_survived_to_the_end(self) -> None:
        SWITCHES.write_text("slow-stop=2\n")
        with subprocess.Popen([OPENIBD, "restart"], stdout=subprocess.DEVNULL) as restarting:
            wait_for(LOG)
            restarting.send_signal(signal.SIGTERM)
            assert restarting.wait(60) == 0
        assert LOADED.exists()

    def test_hooks(self, tmp_path: Path) -> None:
        names = [f"{when}-{verb}" for verb in ("stop", "start") for when in ("pre", "post")]
        hooks = [Path(f"/etc/infiniband/{name}-hook.sh") for name in names]
        trace = tmp_path / "trace"
        try:
            for hook, name in zip(hooks, names, strict=True):
                hook.write_text(f"#!/bin/sh\necho {name} >>{trace}\n")
                hook.chmod(0o755)
            assert openibd("restart")[0] == 0
        finally:
            for hook in hooks:
                hook.unlink()
        assert trace.read_text().split() == names

    def test_status(self) -> None:
        assert openibd("status")[0] == 0
        openibd("stop")
        assert openibd("status")[0] == 3

    def test_log(self) -> None:
        openibd("stop", "fail=refuse")
        begin, end = (line.split() for line in LOG.read_text().splitlines())
        assert (begin[0], begin[3:]) == ("begin", ["stop"])
        assert (end[0], end[3:]) == ("end", ["stop", "1"])
        assert float(begin[1]) <= float(end[1])
