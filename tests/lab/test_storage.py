"""STATE_DIR on a real disk that is full, fails, is read-only, or has a quota that is used up.

The disk is an ext4 in a sparse file on a small tmpfs. With that tmpfs full, its unwritten blocks
can't be written: the loop device fails them, and fsync(2) on the ext4 returns a real EIO.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.lab import Nodeagent, State

WITHOUT_CAP_SYS_RESOURCE = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 24, 0, 0, 0); os.execvp(sys.argv[1], "
    "sys.argv[1:])"
)
"""PR_CAPBSET_DROP: whoever has that capability is above quotas (fs/quota/dquot.c)."""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tmpfs with `disk`, an ext4 below it that is mounted."""
    pool = tmp_path_factory.mktemp("pool")
    lab.sh(
        f"mount -t tmpfs -o size=12m,mode=755 tmpfs {pool} && cd {pool} && mkdir disk && "
        "truncate -s 8m image && mkfs.ext4 -q -m 0 -E lazy_journal_init=0,lazy_itable_init=0 image"
        " && mount -o loop,nodiscard image disk"
    )
    yield pool
    lab.sh(f"umount {pool}/disk; umount -l {pool}")


@contextmanager
def full(directory: Path) -> Iterator[None]:
    ballast = directory / "ballast"
    lab.sh(
        f"dd if=/dev/zero of={ballast} bs=64k 2>/dev/null; dd if=/dev/zero of={ballast} bs=1 "
        "oflag=append conv=notrunc count=70000 2>/dev/null; sync; true"
    )
    yield
    ballast.unlink()
    lab.sh("sync")


def full_disk(pool: Path) -> Iterator[Path]:
    with full(pool / "disk"):
        yield pool / "disk"


def failing_disk(pool: Path) -> Iterator[Path]:
    with full(pool):
        yield pool / "disk"


def read_only_disk(pool: Path) -> Iterator[Path]:
    lab.sh(f"mount -o remount,ro {pool}/disk")
    yield pool / "disk"
    lab.sh(f"mount -o remount,rw {pool}/disk")


def quota(pool: Path) -> Iterator[Path]:
    """A tmpfs of which root may have 16 KiB: less than one snapshot."""
    place = pool / "quota"
    place.mkdir(exist_ok=True)
    options = "size=1m,mode=700,usrquota,usrquota_block_hardlimit=16k"
    lab.sh(f"mount -t tmpfs -o {options} tmpfs {place}")
    yield place
    lab.sh(f"umount {place}")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (full_disk, "No space left on device"),
        (failing_disk, "Input/output error"),
        (read_only_disk, "Read-only file system"),
        (quota, "Disk quota exceeded"),
    ],
)
def test_nothing_is_touched_without_a_snapshot_on_disk(
    nodeagent: Nodeagent,
    three_vfs: State,
    pool: Path,
    fault: Callable[[Path], Iterator[Path]],
    said: str,
) -> None:
    lab.put_other_build_on_disk()
    with contextmanager(fault)(pool) as disk:
        command: tuple[str, ...] = ("nodeagent", "run", "precompiled")
        if fault is quota:
            command = ("python3", "-c", WITHOUT_CAP_SYS_RESOURCE, *command)
        run = nodeagent.start_command(*command, STATE_DIR=disk / "state")
        assert run.wait() == 74, run.log
        left = [path.name for path in (disk / "state").glob("*")]
    assert said in run.log
    assert f"{disk}/state" in run.log
    assert "Traceback" not in run.log
    assert {*left} <= {"journal.jsonl"}
    assert lab.restarts() == []
    assert lab.read() == three_vfs
    assert not nodeagent.ready.exists()


def test_a_disk_that_becomes_full_and_read_only_in_the_middle(
    nodeagent: Nodeagent, three_vfs: State, pool: Path
) -> None:
    """The node is restored, and not ready before the snapshot could be closed."""
    lab.put_other_build_on_disk()
    state = pool / "disk/state"
    lab.hook(
        "pre-start", f"dd if=/dev/zero of={pool}/disk/ballast; mount -o remount,ro {pool}/disk"
    )
    failed = nodeagent.start("run", "precompiled", STATE_DIR=state)
    assert failed.wait() == 74, failed.log
    assert "no more records of this run" in failed.log
    assert f"{state}/open-snapshot.json" in failed.log
    assert "Read-only file system" in failed.log
    assert not nodeagent.ready.exists()
    assert (state / "open-snapshot.json").exists()
    assert lab.read() == three_vfs

    lab.sh(f"mount -o remount,rw {pool}/disk")
    (pool / "disk/ballast").unlink()
    run = nodeagent.start("run", "precompiled", STATE_DIR=state)
    run.wait_for("ready: ")
    assert run.stop() == 0
    assert not (state / "open-snapshot.json").exists()
    assert (state / "last-snapshot.json").exists()
    assert lab.read() == three_vfs
    assert lab.restarts() == ["begin", "end"]
    assert not [path for path in state.iterdir() if path.name.endswith(".tmp")]
