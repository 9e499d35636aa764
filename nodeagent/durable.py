"""Files that are whole or not there, whatever happens in the middle of writing them.

A new file is written under an unpredictable name in its own directory (O_EXCL, O_NOFOLLOW), synced,
given its name by rename(2) or link(2), and the directory is synced after it: rename(2) is atomic,
but only fsync(2) of the directory makes it last. Links are never followed: rename replaces a link,
link fails on one, everything else opens with O_NOFOLLOW. Modes are set with fchmod(2), because the
umask of a container is anybody's guess.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import EACCES, EEXIST, EISDIR, ELOOP, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS
from pathlib import Path
from typing import Final

from nodeagent.errors import AgentError, DataError, NoInputError, PermissionDenied, StorageError
from nodeagent.trace import point

LARGEST: Final = 64 * 1024 * 1024
"""Bytes: no file of ours comes near it; one that does is not ours."""


def replace(path: Path, data: bytes, mode: int) -> None:
    """Write `path` anew; a reader sees the old content or the new. StorageError otherwise."""
    with _storage(f"cannot write {path}"):
        _write(path, data, mode, lambda temporary: temporary.rename(path))


def create(path: Path, data: bytes, mode: int) -> bool:
    """Write `path` if nothing has that name, not even a dead link; False when something has."""

    def give_name(temporary: Path) -> None:
        os.link(temporary, path, follow_symlinks=False)
        point("named", path)
        temporary.unlink()

    with _storage(f"cannot write {path}"):
        try:
            _write(path, data, mode, give_name)
        except FileExistsError as error:
            if error.errno == EEXIST and error.filename2 == str(path):
                return False
            raise
    return True


def rename(path: Path, to: Path) -> None:
    """Rename within one directory, and make it last."""
    with _storage(f"cannot rename {path} to {to}"):
        point("rename", path)
        path.rename(to)
        sync_directory(path.parent)


def remove(path: Path) -> bool:
    """Remove `path`, and make it last; False when there was none."""
    with _storage(f"cannot remove {path}"):
        try:
            point("remove", path)
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return False
        sync_directory(path.parent)
    return True


def remove_unfinished(path: Path) -> None:
    """Remove what writers of `path` left when they were killed. Only while no other can write."""
    with _storage(f"cannot tidy up beside {path}"):
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            left.unlink(missing_ok=True)


def exists(path: Path) -> bool:
    """Something has that name, be it a dead link. PermissionDenied when it cannot be told."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(path, error) from error
    return True


def read_own(path: Path) -> bytes | None:
    """The content of a file that only we (or root) can have written; None when there is none.

    DataError for a link, a device, a file that others may write: it could tell us what to do.
    """
    try:
        # O_NONBLOCK: opening a FIFO would wait for a writer
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        _check_own(path, os.fstat(fd))
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        os.close(fd)


def unreadable(path: Path, error: OSError) -> AgentError:
    """What to raise when `path` could not be read, by errno."""
    what = f"cannot read {path}: {error.strerror}"
    if error.errno in {EACCES, EPERM}:
        return PermissionDenied(what, hint="run it as root")
    if error.errno in {ENOENT, ENOTDIR, EISDIR}:
        return NoInputError(what)
    if error.errno == ELOOP:
        return DataError(f"{path} is a link; nodeagent follows none", hint="move it away")
    return StorageError(what)


def append(path: Path, line: bytes, *, sync: bool) -> int:
    """Append one line in one write(2); the file's size after it. OSError is the caller's.

    A line that an earlier writer could not finish is ended first, so that it spoils only itself.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        point("append to", path)
        written = os.write(fd, b"\n" * torn + line)
        if sync:
            point("fsync", path)
            os.fsync(fd)
    finally:
        os.close(fd)
    return size + written


def make_directory(path: Path, mode: int) -> None:
    """Make `path` with `mode` if nothing is there, its parents with 0755, or StorageError."""
    with _storage(f"cannot make the directory {path}"):
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            point("made directory", path)
            path.chmod(mode)
            sync_directory(path.parent)
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise StorageError(f"{path} is not a directory", hint="move it away, or use another")


def sync_directory(path: Path) -> None:
    """fsync(2) of a directory: what was created, renamed or removed in it lasts."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        point("fsync directory", path)
        os.fsync(fd)
    finally:
        os.close(fd)


def _check_own(path: Path, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST:
        raise DataError(f"{path} is not a file of nodeagent", hint="move it away")
    if facts.st_uid not in {0, os.geteuid()} or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DataError(
            f"{path} belongs to user {facts.st_uid} with mode {facts.st_mode & 0o7777:04o}: "
            "another than root can have written it",
            hint="look at what it says; if it is right, chown root and chmod 600 it",
        )


def _write(path: Path, data: bytes, mode: int, give_name: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    point("create", path)
    fd = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(fd, "wb", buffering=0) as file:
            left = memoryview(data)
            while left:
                point("write", path)
                left = left[file.write(left) :]
            os.fchmod(fd, mode)
            point("fsync", path)
            os.fsync(fd)
        point("name", path)
        give_name(temporary)
        sync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _storage(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{what}: {error.strerror}", hint=_HINTS.get(error.errno or 0)
        ) from error


_HINTS: Final = {
    EACCES: "run it as root",
    EPERM: "run it as root; look for an immutable flag (lsattr) or a security module's log",
    ENOENT: "make its directory first",
    ENOSPC: "make room on that file system (df shows it)",
    EROFS: "mount that file system writable, or choose another place",
}
