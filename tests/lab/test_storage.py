"""STATE_DIR on a real disk, an ext4, that is full, read-only, fails, or has a quota; and no locks.

One that fails is a loop device on a memfd that takes no more writes (F_SEAL_FUTURE_WRITE): the
kernel's own "I/O error, dev loop0". A quota holds for root, too, but not for CAP_SYS_RESOURCE
(fs/quota/dquot.c, ignore_hardlimit()), which a container need not have: nodeagent runs without it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.support import fuse, lab
from tests.support.lab import Nodeagent, State

SIZE = 40 << 20  # bytes
F_ADD_SEALS, F_SEAL_FUTURE_WRITE = 1033, 0x10  # linux/fcntl.h; Python has no name for the second
LIMITED = ("setpriv", "--bounding-set=-sys_resource", "--")

QUOTACTL_FD = 443  # its number on x86-64; linux/quota.h has the others
Q_GETQUOTA, Q_SETQUOTA, QIF_BLIMITS = 0x800007, 0x800008, 1
DQBLK = "<QQQQQQQQI4x"


@contextmanager
def mounted(place: Path, image: Path | str) -> Iterator[Path]:
    place.mkdir()
    lab.sh(
        "modprobe -a loop quota_v2 && mkfs.ext4 -q -m 0 -O quota "
        f"-E lazy_journal_init=0,lazy_itable_init=0 {image} && "
        f"mount -o loop,usrquota {image} {place}"
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


def limit(disk: Path, *, left: int | None) -> None:
    """Give root that many KiB more than it has there; None: no limit."""
    block = ctypes.create_string_buffer(struct.calcsize(DQBLK))
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(disk, os.O_RDONLY)
    try:
        for command in (Q_GETQUOTA, Q_SETQUOTA):
            # of users, that of root
            failed = libc.syscall(QUOTACTL_FD, fd, ctypes.c_uint(command << 8), 0, block)
            assert not failed, os.strerror(ctypes.get_errno())
            used = struct.unpack(DQBLK, block)[2]  # bytes
            most = 0 if left is None else -(-used // 1024) + left
            struct.pack_into(DQBLK, block, 0, most, 0, 0, 0, 0, 0, 0, 0, QIF_BLIMITS)
    finally:
        os.close(fd)


@contextmanager
def over_quota(disk: Path) -> Iterator[Path]:
    """One block is left: the journal's first lines fit."""
    (disk / "state").mkdir(mode=0o700, exist_ok=True)
    os.sync()
    limit(disk, left=4)
    yield disk
    limit(disk, left=None)


Fault = Callable[[Path], AbstractContextManager[Path]]
SAID: Mapping[Fault, tuple[int, str]] = {
    full: (1, "but 16777216 bytes"),  # by preflight
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
    lab.put_other_build_on_disk()
    refused(nodeagent, disk, fault, *SAID[fault])
    assert lab.read() == three_vfs


def refused(nodeagent: Nodeagent, disk: Path, fault: Fault, status: int, said: str) -> None:
    with fault(disk) as place:
        run = nodeagent.start_command(*LIMITED, "nodeagent", "reload", STATE_DIR=place / "state")
        assert run.wait() == status, run.log
        left = {path.name for path in (place / "state").glob("*")}
    assert f"{place}/state" in run.log
    assert said in run.log
    assert "Traceback" not in run.log
    assert left <= {"journal.jsonl"}
    assert lab.restarts() == []
    assert not nodeagent.ready.exists()


def test_a_quota_and_when_it_is_lifted_a_disk_that_becomes_full_and_read_only_in_the_middle(
    nodeagent: Nodeagent, three_vfs: State, disk: Path
) -> None:
    """First nothing is touched; then the node is restored, and not ready before the snapshot could
    be closed."""
    lab.put_other_build_on_disk()
    state = disk / "state"
    refused(nodeagent, disk, over_quota, 74, "open-snapshot.json: Disk quota exceeded")
    assert lab.read() == three_vfs

    lab.hook("pre-start", f"dd if=/dev/zero of={disk}/ballast bs=64k; mount -o remount,ro {disk}")
    failed = nodeagent.start("run", "precompiled", STATE_DIR=state)
    assert failed.wait() == 1, failed.log  # as `run` says of any failure
    assert "journal.jsonl, recording stops" in failed.log
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


def test_a_lock_file_where_there_are_no_locks(
    nodeagent: Nodeagent, three_vfs: State, tmp_path: Path
) -> None:
    lab.put_other_build_on_disk()
    with fuse.without_locks(tmp_path / "remote", errno.ENOLCK) as server:
        path = tmp_path / "remote" / "lock"
        run = nodeagent.call("reload", status=74, LOCK_FILE_PATH=path)
    assert fuse.SETLK in server.asked
    assert f"cannot lock {path}: {os.strerror(errno.ENOLCK)}" in run.log
    assert "set LOCK_FILE_PATH to a local one" in run.log
    assert "Traceback" not in run.log
    assert not nodeagent.state_dir.exists()
    assert not nodeagent.ready.exists()
    assert lab.restarts() == []
    assert lab.read() == three_vfs
