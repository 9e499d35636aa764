"""Lied to by a real kernel and a real udevd: floods, silence, somebody else at the same files."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from nodeagent.errors import WaitTimeout
from nodeagent.kernel.events import LinkWatch, wait_until_clear
from tests.support import lab
from tests.support.lab import PCI, PF1, PF2, Nodeagent, State

SO_RCVBUFFORCE = 33


@pytest.fixture
def saved(nodeagent: Nodeagent, three_vfs: State, tmp_path: Path) -> Path:
    """The three VFs as a file, and then none of them."""
    path = tmp_path / "snapshot.json"
    nodeagent.call("snapshot", "--file", str(path))
    (PCI / PF1 / "sriov_numvfs").write_text("0")
    lab.settle()
    return path


def storm() -> None:
    """Some hundred events: two interfaces that change all the time."""
    lines = [f"link set storm{n % 2} mtu {1400 + n % 50}" for n in range(400)]
    lab.ip(*lines)


def test_events_are_lost_in_a_storm_and_nothing_else_is() -> None:
    """A receive buffer of one message: ENOBUFS is real, and the wait still ends when it is so."""
    lab.ip("link add storm0 type dummy", "link add storm1 type dummy")
    lost = 0

    class Counting(LinkWatch):
        def drain(self) -> None:
            nonlocal lost
            pending = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            lost += pending == errno.ENOBUFS
            super().drain()

    with Counting() as watch:
        watch._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1)
        came: list[float] = []

        def come() -> None:
            time.sleep(2)
            lab.ip("link add awaited type dummy")
            came.append(time.monotonic())

        thread = threading.Thread(target=come)
        thread.start()
        with lab.busy(storm):
            wait_until_clear(
                lambda: [] if Path("/sys/class/net/awaited").exists() else ["awaited"],
                watch,
                what="a link in a storm",
                timeout=60,
                resync=60,
            )
            ended = time.monotonic()
        thread.join()
    assert lost > 0
    assert ended - came[0] < 2


def test_a_storm_of_link_changes_during_a_restore(
    nodeagent: Nodeagent, three_vfs: State, saved: Path
) -> None:
    lab.ip("link add storm0 type dummy", "link add storm1 type dummy")
    with lab.busy(storm):
        nodeagent.call("restore", "--snapshot", str(saved))
    assert lab.read() == three_vfs


def test_udevd_is_stopped_in_the_middle_and_goes_on(
    nodeagent: Nodeagent, three_vfs: State, saved: Path
) -> None:
    pid = lab.udevd_pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        run = nodeagent.start("restore", "--snapshot", str(saved))
        run.wait_for("bind VFs")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert run.wait() == 0
    lab.settle()
    assert lab.read() == three_vfs


def test_udevd_is_stopped_for_good_and_each_vf_is_named(
    nodeagent: Nodeagent, three_vfs: State, saved: Path
) -> None:
    pid = lab.udevd_pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        run = nodeagent.call("restore", "--snapshot", str(saved), status=1, VF_TIMEOUT=4)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "udev has not finished with its interface after 4 s" in run.log
    nodeagent.call("restore", "--snapshot", str(saved))
    lab.settle()
    assert lab.read() == three_vfs


def test_udevd_is_stuck_in_a_rule_for_one_vf(
    nodeagent: Nodeagent, three_vfs: State, tmp_path: Path
) -> None:
    """The one is named, the others are as they were; when the rule goes on, the next start ends."""
    path, address = tmp_path / "snapshot.json", lab.vf(PF1, 1)
    nodeagent.call("snapshot", "--file", str(path))
    (PCI / PF1 / "sriov_numvfs").write_text("0")
    lab.settle()
    with lab.Gate("stuck") as gate, lab.program_for(address, gate.script):
        run = nodeagent.call("restore", "--snapshot", str(path), status=1, VF_TIMEOUT=5)
    named = [line for line in run.log.splitlines() if "udev has not finished" in line]
    assert named
    assert all(f"{PF1} vf 1" in line for line in named)
    nodeagent.call("restore", "--snapshot", str(path))
    lab.settle()
    assert lab.read() == three_vfs


def test_udevd_is_killed_and_started_again_in_the_middle(
    nodeagent: Nodeagent, three_vfs: State, saved: Path
) -> None:
    run = nodeagent.start("restore", "--snapshot", str(saved))
    run.wait_for("create VFs")
    lab.kill_udevd()
    lab.start_udevd()
    status = run.wait()
    if status:
        nodeagent.call("restore", "--snapshot", str(saved))
    lab.settle()
    assert lab.read() == three_vfs


def test_an_operators_loop_wants_another_number_of_vfs(
    nodeagent: Nodeagent, three_vfs: State, saved: Path
) -> None:
    """Said, planned once more, then a clear stop. When the loop has ended, the next start mends."""
    numvfs = PCI / PF1 / "sriov_numvfs"

    def enforce() -> None:
        if numvfs.read_text() not in {"0\n", "1\n"}:
            numvfs.write_text("0")
            numvfs.write_text("1")
        time.sleep(0.05)

    with lab.busy(enforce):
        run = nodeagent.call("restore", "--snapshot", str(saved), status=1)
    assert "stops after the second time" in run.log
    assert f"pci/{PF1} numvfs: nodeagent set it to 3, and another program made it" in run.log
    assert len([line for line in run.log.splitlines() if "create VFs" in line]) == 2
    nodeagent.call("restore", "--snapshot", str(saved))
    assert lab.read() == three_vfs


@contextmanager
def instead(attribute: Path, what: Path) -> Iterator[None]:
    """A file in a sysfs attribute's place: one that takes a write and does nothing, or a FIFO."""
    lab.sh(f"mount --bind {what} {attribute}")
    try:
        yield
    finally:
        lab.sh(f"umount {attribute}")


def test_a_device_that_does_not_answer_is_named_and_the_others_go_on(
    nodeagent: Nodeagent, three_vfs: State, tmp_path: Path
) -> None:
    """Its lock is held in the kernel: whoever reads or writes its numvfs waits for ever.

    A FIFO does the same to whoever opens it. And what a bind does not do is found, and named.
    """
    lab.create_vfs(PF2, 1)
    before, path, numvfs = lab.read(), tmp_path / "both.json", PCI / PF1 / "sriov_numvfs"
    nodeagent.call("snapshot", "--file", str(path))
    for pf in (PF1, PF2):
        (PCI / pf / "sriov_numvfs").write_text("0")
    lab.settle()
    os.mkfifo(tmp_path / "never")
    with instead(numvfs, tmp_path / "never"):
        run = nodeagent.call("restore", "--snapshot", str(path), status=1, VF_TIMEOUT=4)
        saving = nodeagent.start("snapshot", VF_TIMEOUT=60)
        lab.eventually(lambda: len(_threads(saving.process.pid)) > 1, "the thread that reads")
        assert saving.stop() == 143
    assert f"pci/{PF1}: the kernel has not reported its state for 4 s" in run.log
    assert f"pci/{PF1} numvfs: want 3, have unknown" in run.log
    assert lab.read()[PF2] == before[PF2]
    (tmp_path / "ignored").touch()
    with instead(Path("/sys/bus/pci/drivers/mlx5_core/bind"), tmp_path / "ignored"):
        run = nodeagent.call("restore", "--snapshot", str(path), status=1)
    assert f"bind of {lab.vf(PF1, 2)} to mlx5_core left it bound to none" in run.log
    nodeagent.call("restore", "--snapshot", str(path))
    (PCI / PF2 / "sriov_numvfs").write_text("0")
    lab.settle()
    assert lab.read()[PF1] == three_vfs[PF1]


def _threads(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


def test_two_others_at_the_same_vfs_are_named_and_not_fought(
    nodeagent: Nodeagent, three_vfs: State, saved: Path
) -> None:
    """One renames an interface, one changes a VLAN: said, planned once more, then a clear stop."""

    def rename() -> None:
        for path in PCI.glob(f"{PF1}/virtfn1/net/enp1s0v1"):
            lab.sh(f"ip link set {path.name} name stolen || true")

    def retag() -> None:
        lab.sh(f"ip link set {lab.name(PF1)} vf 2 vlan 999 || true")

    with lab.busy(rename), lab.busy(retag):
        run = nodeagent.call("restore", "--snapshot", str(saved), status=1)
    assert "stops after the second time" in run.log
    # who of the two comes in time depends on the machine: one is enough to end it
    name = f"pci/{PF1} vf 1 name: nodeagent set it to enp1s0v1, and now it is stolen"
    vlan = f"pci/{PF1} vf 2 vlan: nodeagent set it to 102, and now it is 999"
    assert name in run.log or vlan in run.log
    assert len([line for line in run.log.splitlines() if "restoring it once more" in line]) <= 4
    assert len([line for line in run.log.splitlines() if "set VFs:" in line]) <= 2
    nodeagent.call("restore", "--snapshot", str(saved))
    lab.settle()
    assert lab.read() == three_vfs


def test_a_vf_that_another_gives_to_vfio_is_named_and_left_to_him(
    nodeagent: Nodeagent, three_vfs: State, saved: Path
) -> None:
    """It makes no interface there, so nobody waits for one."""
    lab.sh("modprobe vfio-pci")
    override, taken = PCI / PF1 / "virtfn1" / "driver_override", threading.Event()

    def take() -> None:
        with suppress(OSError):
            address = lab.vf(PF1, 1)
            if lab.driver(address) == "mlx5_core":
                lab.give_to("vfio-pci", address)
                taken.set()

    with lab.busy(take):
        run = nodeagent.call("restore", "--snapshot", str(saved), VF_TIMEOUT=100)
    assert taken.is_set()
    assert "after 100 s" not in run.log
    assert f"pci/{PF1} vf 1: taken since the snapshot (bound to vfio-pci)" in run.log
    assert override.read_text() == "vfio-pci\n"
    assert lab.driver(lab.vf(PF1, 1)) == "vfio-pci"
    lab.unbind(lab.vf(PF1, 1))
    nodeagent.call("restore", "--snapshot", str(saved))
    lab.settle()
    assert lab.read() == three_vfs


def test_a_vf_that_a_virtual_machine_opens_is_named_and_left_to_it(
    nodeagent: Nodeagent, three_vfs: State, tmp_path: Path
) -> None:
    """It was on vfio-pci all along; nobody had it open."""
    saved, group = tmp_path / "snapshot.json", tmp_path / "none"
    lab.give_to("vfio-pci", lab.vf(PF1, 1))
    before = lab.read()
    nodeagent.call("snapshot", "--file", str(saved))
    (PCI / PF1 / "sriov_numvfs").write_text("0")
    lab.settle()

    with ExitStack() as machine:

        def open_it() -> None:
            nonlocal group
            with suppress(OSError):
                address = lab.vf(PF1, 1)
                if group.exists() or lab.driver(address) != "vfio-pci":
                    return
                own = Path("/dev/vfio") / (PCI / address / "iommu_group").resolve().name
                machine.enter_context(own.open("rb+", 0))
                lab.ip(f"link set {lab.name(PF1)} vf 1 vlan 77")
                group = own

        with lab.busy(open_it):
            run = nodeagent.call("restore", "--snapshot", str(saved))
        told = f"pci/{PF1} vf 1: taken since the snapshot (python3 (pid {os.getpid()}"
        assert told in run.log
        assert f"holds {group}): left alone" in run.log
        assert "vlan 77" in lab.sh(f"ip link show {lab.name(PF1)}")
        again = nodeagent.call("verify", "--snapshot", str(saved))
        assert told in again.log
        assert "nothing differs" in again.output()
        assert nodeagent.call("plan", "--snapshot", str(saved)).output().startswith("# nothing")
    nodeagent.call("verify", "--snapshot", str(saved), status=1)
    nodeagent.call("restore", "--snapshot", str(saved))
    lab.settle()
    assert lab.read() == before


def test_a_pf_that_is_taken_out_and_found_again_in_the_middle(
    nodeagent: Nodeagent, three_vfs: State, saved: Path
) -> None:
    run = nodeagent.start("restore", "--snapshot", str(saved))
    run.wait_for("create VFs")
    (PCI / PF1 / "remove").write_text("1")
    Path("/sys/bus/pci/rescan").write_text("1")
    assert run.wait() in {0, 1}
    assert "and another program made it" in run.log
    nodeagent.call("restore", "--snapshot", str(saved))
    lab.settle()
    assert lab.read() == three_vfs


def test_drift_is_reported_and_nothing_is_touched(nodeagent: Nodeagent, three_vfs: State) -> None:
    run = nodeagent.start("run", "precompiled", WATCH_DRIFT="true")
    run.wait_for("watching for drift")
    lab.ip(f"link set {lab.name(PF1)} vf 1 vlan 999")
    run.wait_for(rf"drift: pci/{PF1} vf 1 vlan: want 101, have 999")
    drifted = lab.read()
    assert nodeagent.ready.exists()
    lab.ip(f"link set {lab.name(PF1)} vf 1 vlan 101 qos 1")
    run.wait_for(rf"drift over: pci/{PF1} vf 1 vlan is 101 again")
    assert drifted != three_vfs
    assert lab.read() == three_vfs
    assert run.stop() == 0
    assert not nodeagent.ready.exists()
    timeline = nodeagent.call("timeline").output()
    assert f"pci/{PF1} vf 1 vlan: was 101, is 999" in timeline


def test_a_wait_that_nothing_ends_says_what_is_missing() -> None:
    with LinkWatch() as watch, pytest.raises(WaitTimeout, match="the moon"):
        wait_until_clear(lambda: ["the moon"], watch, what="it", timeout=0.2)
