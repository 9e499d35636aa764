"""Lock files: of the driver container, of work on devices, and of a companion."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nodeagent import durable, hostpath
from nodeagent.errors import BusyError, StorageError
from nodeagent.trace import point


@contextmanager
def lock(path: Path) -> Iterator[int]:
    """Hold the lock file; yields its descriptor. BusyError if another process holds it.

    The flock(2) belongs to the open file description. It survives execve(2), and the kernel
    releases it when the last process closes the file; that can be a child of the process that
    locked it. The file itself is not removed. StorageError if the file cannot be locked.
    """
    durable.make_directory(path.parent, 0o755)
    point("lock", path)
    with durable.storage(f"cannot open the lock file {path}"):
        fd = durable.open_plain(path, os.O_RDWR, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _check_named(fd, path)
    except BlockingIOError:
        os.close(fd)
        raise _busy(path) from None
    except OSError as error:
        os.close(fd)
        raise StorageError(
            f"cannot lock {path}: {error.strerror}",
            hint="the file system may not support locks: set LOCK_FILE_PATH to a local one",
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _check_named(fd: int, path: Path) -> None:
    """BlockingIOError if `path` is another file by now: another process can lock that one."""
    facts = hostpath.lstat(path)
    if facts is None or not os.path.samestat(facts, os.fstat(fd)):
        raise BlockingIOError


@contextmanager
def adopted(fd: int, path: Path) -> Iterator[int]:
    """Keep the lock file locked by a descriptor that was inherited through execve(2).

    BusyError if the descriptor is not that of the lock file.
    """
    try:
        ours, theirs = os.fstat(fd), path.lstat()
        is_lock = os.path.samestat(ours, theirs)
        if is_lock:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, OverflowError):  # a number too large for a descriptor
        is_lock = False
    if not is_lock:
        raise _busy(path)
    os.set_inheritable(fd, False)
    try:
        yield fd
    finally:
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file, also one in a PID namespace that /proc/locks hides.

    It is locked for a moment, shared, to find out. A file that cannot be opened is not locked.
    """
    try:
        fd = hostpath.open_file(path)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def lock_holders(path: Path, proc: Path = Path("/proc")) -> tuple[int, ...]:
    """The processes that hold a flock on `path`; 0 for one in another PID namespace.

    /proc/locks (fs/locks.c, lock_get_status()): `1: FLOCK  ADVISORY  WRITE 812 00:18:1345 0 EOF`,
    device in hexadecimal, inode in decimal. The PID is that of the process that took the lock. If
    it has exited, a child has the file open, and is found in /proc/PID/fd (proc_pid_fd(5)).
    The lock is not taken.
    """
    try:
        facts = path.lstat()
        lines = (proc / "locks").read_text().splitlines()
    except OSError:
        return ()
    wanted = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    fields = [line.split() for line in lines if "->" not in line]
    pids = tuple(int(f[4]) for f in fields if f[1] == "FLOCK" and f[5] == wanted)
    if any(pid and not (proc / str(pid)).exists() for pid in pids):
        return tuple(_with_open(facts, proc)) or pids
    return pids


def _with_open(wanted: os.stat_result, proc: Path) -> Iterator[int]:
    """The processes, other than this one, that have this file open."""
    for directory in proc.glob("[0-9]*/fd"):
        pid = int(directory.parent.name)
        if pid != os.getpid() and _has_open(directory, wanted):
            yield pid


def _has_open(directory: Path, wanted: os.stat_result) -> bool:
    try:
        entries = [*directory.iterdir()]
    except OSError:
        return False  # the process has exited, or belongs to another user
    for each in entries:
        with suppress(OSError):  # closed meanwhile
            if os.path.samestat(each.stat(), wanted):
                return True
    return False


def _busy(path: Path) -> BusyError:
    pids = [pid for pid in lock_holders(path) if pid > 0]
    by = f"process {pids[0]}" if pids else "a process in another container"
    return BusyError(
        f"{path} is locked by {by}: another agent runs on this node",
        hint="see `nodeagent status`; to end an agent in a pod, delete the pod",
    )
