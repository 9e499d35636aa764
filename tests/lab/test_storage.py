"""STATE_DIR on a real disk, an ext4, that is full, read-only, or fails.

One that fails is a loop device on a memfd that takes no more writes (F_SEAL_FUTURE_WRITE): the
kernel's own "I/O error, dev loop0". Quotas do not hold for root (CAP_SYS_RESOURCE) on this kernel's
file systems: EDQUOT is tests/unit/test_durable.py's.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.lab import Nodeagent, State

SIZE = 40 << 20  # bytes
F_ADD_SEALS, F_SEAL_FUTURE_WRITE = 1033, 0x10  # linux/fcntl.h; Python has no name for the second


@contextmanager
def mounted(place: Path, image: Path | str) -> Iterator[Path]:
    place.mkdir()
    lab.sh(
        f"modprobe loop && mkfs.ext4 -q -m 0 -E lazy_journal_init=0,lazy_itable_init=0 {image} && "
        f"mount -o loop {image} {place}"
    )
    try:
        yield place
    finally:
        lab.sh(f"umount -l {place}")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """40 MiB that work, while nobody does anything to them: preflight asks for 16."""
    directory = tmp_path_factory.mktemp("storage")
    (directory / "image").touch()
    os.truncate(directory / "image", SIZE)
    with mounted(directory / "disk", directory / "image") as place:
        yield place


@contextmanager
def full(disk: Path) -> Iterator[Path]:
    ballast = disk / "ballast"
    lab.sh(f"dd if=/dev/zero of={ballast} bs=64k || sync")
    yield disk
    ballast.unlink()


@contextmanager
def read_only(disk: Path) -> Iterator[Path]:
    lab.sh(f"mount -o remount,ro {disk}")
    yield disk
    lab.sh(f"mount -o remount,rw {disk}")


@contextmanager
def overcommitted(disk: Path) -> Iterator[Path]:
    """One that has room by its own account, on a store that has none: found out by fsync(2)."""
    store = disk.with_name("store")
    store.mkdir()
    lab.sh(f"mount -t tmpfs -o size=16m tmpfs {store} && truncate -s {SIZE} {store}/image")
    with mounted(disk.with_name("overcommitted"), store / "image") as place:
        (place / "state").mkdir(mode=0o700)
        lab.sh(f"sync; dd if=/dev/zero of={store}/ballast bs=64k || true")
        yield place
    lab.sh(f"umount -l {store}")


@contextmanager
def failing(disk: Path) -> Iterator[Path]:
    """Another one: nothing makes it good again."""
    fd = os.memfd_create("disk", os.MFD_ALLOW_SEALING)
    os.truncate(fd, SIZE)
    with mounted(disk.with_name("failing"), f"/proc/{os.getpid()}/fd/{fd}") as place:
        (place / "state").mkdir(mode=0o700)
        os.sync()
        fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)
        yield place
    os.close(fd)


Fault = Callable[[Path], AbstractContextManager[Path]]
SAID: Mapping[Fault, tuple[int, str]] = {
    full: (1, "needed are 16777216 bytes"),  # by preflight
    overcommitted: (74, "No space left on device"),
    failing: (74, "Input/output error"),
    read_only: (74, "Read-only file system"),
}
"""Exit status, and why."""


@pytest.mark.parametrize("fault", SAID)
def test_nothing_is_touched_without_a_snapshot_on_disk(
    nodeagent: Nodeagent,
    three_vfs: State,
    disk: Path,
    fault: Fault,
) -> None:
    status, said = SAID[fault]
    lab.put_other_build_on_disk()
    with fault(disk) as place:
        run = nodeagent.call("reload", status=status, STATE_DIR=place / "state")
        left = {path.name for path in (place / "state").glob("*")}
    assert f"{place}/state" in run.log
    assert said in run.log
    assert "Traceback" not in run.log
    assert left <= {"journal.jsonl"}
    assert lab.restarts() == []
    assert lab.read() == three_vfs
    assert not nodeagent.ready.exists()


def test_a_disk_that_becomes_full_and_read_only_in_the_middle(
    nodeagent: Nodeagent, three_vfs: State, disk: Path
) -> None:
    """The node is restored, and not ready before the snapshot could be closed."""
    lab.put_other_build_on_disk()
    state = disk / "state"
    lab.hook("pre-start", f"dd if=/dev/zero of={disk}/ballast bs=64k; mount -o remount,ro {disk}")
    failed = nodeagent.start("run", "precompiled", STATE_DIR=state)
    assert failed.wait() == 1, failed.log  # as `run` says of any failure
    assert "no more records of this run" in failed.log
    assert f"{state}/open-snapshot.json" in failed.log
    assert "Read-only file system" in failed.log
    assert not nodeagent.ready.exists()
    assert (state / "open-snapshot.json").exists()
    assert lab.read() == three_vfs

    lab.sh(f"mount -o remount,rw {disk}")
    (disk / "ballast").unlink()
    run = nodeagent.start("run", "precompiled", STATE_DIR=state)
    run.wait_for("ready: ")
    assert run.stop() == 0
    assert not (state / "open-snapshot.json").exists()
    assert (state / "last-snapshot.json").exists()
    assert lab.read() == three_vfs
    assert lab.restarts() == ["begin", "end"]
    assert not [path for path in state.iterdir() if path.name.endswith(".tmp")]
