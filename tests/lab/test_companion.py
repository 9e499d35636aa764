"""The companion, as the node has it: flags of a driver container that reloads by itself.

The driver container is played: it takes its flag away, reloads, restores half of the VFs, as
NVIDIA's entrypoint would, or nothing, and sets its flag. Both as containers are in test_image.py.
"""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.lab import PF1, Nodeagent, Started, State


class DriverContainer:
    """Its flag, and what it does between two of them."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def goes(self) -> None:
        self.flag.unlink()

    def reloads(self) -> None:
        lab.reload_by_hand()

    def restores_half(self) -> None:
        """One VF of three, with a MAC of its own choice, up."""
        lab.create_vfs(PF1, 1)
        lab.ip(f"link set {lab.name(PF1)} vf 0 mac 02:00:00:00:00:99")

    def is_back(self) -> None:
        self.flag.touch()


@pytest.fixture
def container(nodeagent: Nodeagent) -> Iterator[DriverContainer]:
    """A driver container that holds its lock and has no flag."""
    directory = nodeagent.ready.parent
    directory.mkdir(parents=True)
    nodeagent.environment["DRIVER_CONTAINER_READY_PATH"] = str(directory / "driver-ready")
    nodeagent.environment["DRIVER_CONTAINER_LOCK_PATH"] = str(directory / "driver-lock")
    with (directory / "driver-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield DriverContainer(directory / "driver-ready")


def proven(companion: Started, nodeagent: Nodeagent, number: int) -> None:
    """It has been ready for the n-th time of its life."""
    lab.eventually(
        lambda: companion.log.count("ready: ") == number and nodeagent.ready.exists(),
        f"ready {number} times: {companion.log}",
    )


def test_reloads_of_a_driver_container(
    nodeagent: Nodeagent, three_vfs: State, container: DriverContainer
) -> None:
    container.is_back()
    companion = nodeagent.start("sidecar")
    proven(companion, nodeagent, 1)

    def gone_and_saved() -> None:
        before = companion.log.count("snapshot: ")
        container.goes()
        lab.eventually(lambda: companion.log.count("snapshot: ") > before, "a snapshot")

    # it loses everything; it restores half; it reloads at once (the end of a pod with
    # RESTORE_DRIVER_ON_POD_TERMINATION); it was here again before it was seen to go
    lives: tuple[tuple[Callable[[], None], ...], ...] = (
        (gone_and_saved, container.reloads),
        (gone_and_saved, container.reloads, container.restores_half),
        (container.goes, container.reloads),
        (container.goes,),
    )
    for number, life in enumerate(lives, 2):
        for does in life:
            does()
        assert lab.read() != three_vfs or life == (container.goes,)
        container.is_back()
        proven(companion, nodeagent, number)
        assert lab.read() == three_vfs
        assert not nodeagent.open_snapshot.exists()

    # killed when the flag goes, before it has saved anything
    companion.process.send_signal(signal.SIGSTOP)
    container.goes()
    companion.kill_all()
    container.reloads()
    container.restores_half()
    companion = nodeagent.start("sidecar")
    companion.wait_for("is being reloaded, unobserved")
    assert lab.read() != three_vfs  # nothing is touched before the flag is there
    container.is_back()
    proven(companion, nodeagent, 1)
    assert lab.read() == three_vfs
    assert companion.stop() == 0


def test_a_first_start_in_the_middle_of_a_reload(
    nodeagent: Nodeagent, three_vfs: State, container: DriverContainer
) -> None:
    """Half of what was there is no truth: it stays as the driver container leaves it."""
    container.reloads()
    container.restores_half()
    companion = nodeagent.start("sidecar")
    companion.wait_for("nothing was verified before")
    lab.create_vfs(PF1, 0)
    lab.create_vfs(PF1, 3)
    theirs = lab.read()
    container.is_back()
    proven(companion, nodeagent, 1)
    assert lab.read() == theirs
    assert companion.stop() == 0
