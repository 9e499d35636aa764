"""Durable files: a reader sees the whole file or none, even after a crash in the middle of a write.

A new file is written under a random name in the target directory (O_EXCL, O_NOFOLLOW), synced, and
renamed with rename(2) or link(2); then the directory is synced. rename(2) is atomic, but only
fsync(2) of the directory makes it durable. Modes are set with fchmod(2), because the umask of a
container is unknown.

The paths are on the host, where other users may write: no link in them is followed
(nodeagent/hostpath.py). The file that is opened must be a regular one with one name, owned by root
or by this process's user. Owner and mode are set, whatever the directory would make it inherit.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import (
    EACCES,
    EDQUOT,
    EFBIG,
    EINVAL,
    EIO,
    EISDIR,
    ELOOP,
    EMFILE,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    ENXIO,
    EPERM,
    EROFS,
)
from pathlib import Path
from typing import Final, TypeVar

from nodeagent.errors import AgentError, DataError, NoInputError, PermissionDenied, StorageError
from nodeagent.hostpath import MAX_FILE_BYTES, directory, lstat, open_file
from nodeagent.trace import point

T = TypeVar("T")


def replace(path: Path, data: bytes, mode: int) -> None:
    """Write or replace `path`; a reader sees the old content or the new. StorageError."""
    with storage(f"cannot write {path}"):
        facts = lstat(path)
        if facts is not None:
            _check_replaceable(path, facts)
        _write(path, data, mode, _take_its_name)


def create(path: Path, data: bytes, mode: int) -> bool:
    """Write `path` unless it exists, even as a dangling link. False if it does. StorageError."""
    with storage(f"cannot write {path}"):
        return _write(path, data, mode, _take_its_name_if_free)


def rename(path: Path, to: Path) -> None:
    """Rename within one directory, durably."""
    with storage(f"cannot rename {path} to {to}"), directory(path.parent) as at:
        point("rename", path)
        os.rename(path.name, to.name, src_dir_fd=at, dst_dir_fd=at)
        _sync(at, path.parent)


def remove(path: Path) -> bool:
    """Remove the file or link `path`, durably. False if there was none.

    StorageError for anything else: a setting may name /dev/null.
    """
    with storage(f"cannot remove {path}"):
        try:
            with directory(path.parent) as at:
                # unlink(2) finds that a file system is read-only before it looks for the file
                _check_replaceable(path, os.stat(path.name, dir_fd=at, follow_symlinks=False))
                point("remove", path)
                os.unlink(path.name, dir_fd=at)
                _sync(at, path.parent)
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


def remove_unfinished(path: Path) -> None:
    """Remove temporary files of killed writers of `path`. Call it only while there is no writer."""
    with storage(f"cannot tidy up beside {path}"):
        try:
            with directory(path.parent) as at:
                for name in _names(at):
                    if name.startswith(f".{path.name}.") and name.endswith(".tmp"):
                        with suppress(IsADirectoryError):  # not from a writer
                            os.unlink(name, dir_fd=at)
        except (FileNotFoundError, NotADirectoryError):
            return


def remove_directory(path: Path) -> bool:
    """Remove an empty directory; False if it could not be removed."""
    try:
        with directory(path.parent) as at:
            point("remove", path)
            os.rmdir(path.name, dir_fd=at)
            _sync(at, path.parent)
    except OSError:
        return False
    return True


def link(path: Path, to: Path) -> None:
    """Create the symbolic link `path` durably. StorageError if `path` exists."""
    with storage(f"cannot make the link {path}"), directory(path.parent) as at:
        point("link", path)
        os.symlink(to, path.name, dir_fd=at)
        _sync(at, path.parent)


def exists(path: Path) -> bool:
    """Whether `path` exists, even as a dangling link. PermissionDenied if it cannot be reached."""
    return _facts(path) is not None


def is_flag(path: Path) -> bool:
    """Whether the flag file `path` exists. Raises as flag()."""
    return flag(path) is not None


def flag(path: Path) -> int | None:
    """The inode of the flag file `path`; None if there is none.

    DataError if `path` is not a regular file. Raises as exists().
    """
    facts = _facts(path)
    if facts is not None and not stat.S_ISREG(facts.st_mode):
        raise DataError(
            f"{path} is not a regular file, so nodeagent does not accept it as a flag",
            hint="find out what created it, and move it away",
        )
    return None if facts is None else facts.st_ino


@contextmanager
def held_flag(path: Path) -> Iterator[int | None]:
    """The inode of the flag file `path`; None if there is none.

    No other file gets that inode while the block lasts, although ext4 reuses the number of a
    removed file: it is held open. So a flag that is removed and created again is another one. The
    times of a flag do not tell, because touch(1) creates a file before it sets them. Raises as
    exists().
    """
    try:
        with directory(path.parent) as at:
            fd = os.open(path.name, os.O_PATH | os.O_NOFOLLOW, dir_fd=at)
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        yield os.fstat(fd).st_ino
    finally:
        os.close(fd)


def _facts(path: Path) -> os.stat_result | None:
    try:
        return lstat(path)
    except OSError as error:
        raise unreadable(path, error) from error


def read_own(path: Path) -> bytes | None:
    """The content of a file that only root or this process's user can write; None if there is none.

    DataError for a link, a device, or a file that other users may write.
    """
    try:
        with os.fdopen(open_own(path, MAX_FILE_BYTES), "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error) from error


def open_own(path: Path, max_bytes: int) -> int:
    """Open such a file, of at most `max_bytes` bytes, for reading. DataError, OSError."""
    try:
        fd = open_file(path, max_bytes)
    except OSError as error:
        if error.errno != EINVAL:
            raise
        raise DataError(
            f"{path} is not a file that nodeagent wrote", hint="move it away"
        ) from error
    try:
        _check_own(path, os.fstat(fd))
    except DataError:
        os.close(fd)
        raise
    return fd


def open_plain(path: Path, flags: int, mode: int) -> int:
    """Open a file that is written in place (a lock, a log); create it with `mode` if necessary.

    Never with O_TRUNC, which would empty it before its owner is checked.
    OSError as from open(2). StorageError for a symbolic link, a file with several hard links, a
    device, a FIFO, or a file of another user.
    """
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with directory(path.parent) as at:
        try:
            fd = os.open(path.name, flags, dir_fd=at)
        except FileNotFoundError:
            point("make", path)
            fd = os.open(path.name, flags | os.O_CREAT, mode, dir_fd=at)
    try:
        _check_plain(path, os.fstat(fd))
        _give_mode(fd, mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_plain(path: Path, facts: os.stat_result) -> None:
    what = None
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
        what = "is not a regular file with one name"
    elif facts.st_uid not in {0, os.geteuid()}:
        what = f"belongs to user {facts.st_uid}"
    if what is not None:
        raise StorageError(
            f"{path} {what}, so nodeagent does not write to it",
            hint="find out what created it, and move it away",
        )


def _give_mode(fd: int, mode: int) -> None:
    """Set the mode of a file of our own, whatever the umask."""
    facts = os.fstat(fd)
    if facts.st_uid == os.geteuid() and stat.S_IMODE(facts.st_mode) != mode:
        os.fchmod(fd, mode)


def _check_replaceable(path: Path, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode) and not stat.S_ISLNK(facts.st_mode):
        raise StorageError(
            f"{path} is neither a file nor a link, so nodeagent does not remove or replace it",
            hint="find out what created it and move it away, or choose another path",
        )


def unreadable(path: Path, error: OSError) -> AgentError:
    """The error to raise if `path` could not be read, by errno."""
    what = f"cannot read {path}: {error.strerror}"
    if error.errno in {EACCES, EPERM}:
        return PermissionDenied(what, hint="run it as root")
    if error.errno in {ENOENT, ENOTDIR, EISDIR}:
        return NoInputError(what)
    if error.errno == ELOOP:
        link = error.filename if str(error.filename).startswith("/") else path
        return DataError(
            f"{link} is a symbolic link; nodeagent does not follow it", hint="move it away"
        )
    return StorageError(what)


def append(path: Path, line: bytes, *, sync: bool) -> int:
    """Append one line with one write(2); return the new size. Raises as `open_plain` does.

    If the last line has no newline, because its writer was killed, one is added before.
    """
    fd = open_plain(path, os.O_RDWR | os.O_APPEND, 0o600)
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
    """Create `path` with `mode` unless it exists, and its parents with 0755. StorageError."""
    with storage(f"cannot make the directory {path}"):
        _make(path, mode)


def make_private_directory(path: Path) -> None:
    """Create `path` with mode 0700; if it exists, take write permission from group and others.

    StorageError if it belongs to another user. A directory with the sticky bit (/tmp) stays as it
    is: users cannot remove or rename each other's files there.
    """
    make_directory(path, 0o700)
    with storage(f"cannot restrict access to {path}"), directory(path) as there:
        facts = os.fstat(there)
        if facts.st_uid not in {0, os.geteuid()}:
            raise StorageError(
                f"{path} belongs to user {facts.st_uid}, who could remove the files in it",
                hint="look at its content; then run chown root on it, or move it away",
            )
        open_to_all = stat.S_IWGRP | stat.S_IWOTH
        if facts.st_mode & open_to_all and not facts.st_mode & stat.S_ISVTX:
            os.fchmod(there, stat.S_IMODE(facts.st_mode) & ~open_to_all)


def _make(path: Path, mode: int) -> None:
    try:
        with directory(path) as there:
            if _is_unfinished(there):
                os.fchmod(there, mode)
            return
    except FileNotFoundError:
        if path.parent != path:
            _make(path.parent, 0o755)
    except NotADirectoryError:
        raise StorageError(
            f"{path} is not a directory", hint="move it away, or choose another path"
        ) from None
    with directory(path.parent) as at:
        with suppress(FileExistsError):
            os.mkdir(path.name, 0o700, dir_fd=at)
            point("made directory", path)
        with directory(path) as there:
            os.fchown(there, os.geteuid(), os.getegid())
            os.fchmod(there, mode)
        _sync(at, path.parent)


def _is_unfinished(fd: int) -> bool:
    """Whether a run that was killed created the directory and did not set its mode yet."""
    facts = os.fstat(fd)
    bare = stat.S_IMODE(facts.st_mode) == 0o700 and facts.st_uid == os.geteuid()
    return bare and not _names(fd)


def _names(fd: int) -> list[str]:
    with os.scandir(fd) as entries:
        return [entry.name for entry in entries]


def _sync(fd: int, path: Path) -> None:
    """fsync(2) of a directory makes creations, renames and removals in it durable."""
    point("fsync directory", path)
    os.fsync(fd)


def _check_own(path: Path, facts: os.stat_result) -> None:
    if facts.st_uid not in {0, os.geteuid()} or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DataError(
            f"{path} belongs to user {facts.st_uid} and has mode {facts.st_mode & 0o7777:04o}: "
            "another user than root can have written it",
            hint="check its content; if it is right, run chown root and chmod 600 on it",
        )
    if facts.st_nlink > 1:
        raise DataError(
            f"{path} has {facts.st_nlink} hard links: another user than root can have created one",
            hint="check its content; if it is right, replace it with a copy",
        )


def _write(path: Path, data: bytes, mode: int, give_name: Callable[[int, str, Path], T]) -> T:
    temporary = f".{path.name}.{os.urandom(8).hex()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with directory(path.parent) as at:
        point("create", path)
        fd = os.open(temporary, flags, 0o600, dir_fd=at)
        try:
            with os.fdopen(fd, "wb", buffering=0) as file:
                left = memoryview(data)
                while left:
                    point("write", path)
                    left = left[file.write(left) :]
                os.fchown(fd, os.geteuid(), os.getegid())
                os.fchmod(fd, mode)
                point("fsync", path)
                os.fsync(fd)
            point("name", path)
            named = give_name(at, temporary, path)
            _sync(at, path.parent)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=at)
            raise
    return named


def _take_its_name(at: int, temporary: str, path: Path) -> None:
    os.rename(temporary, path.name, src_dir_fd=at, dst_dir_fd=at)


def _take_its_name_if_free(at: int, temporary: str, path: Path) -> bool:
    try:
        os.link(temporary, path.name, src_dir_fd=at, dst_dir_fd=at, follow_symlinks=False)
    except FileExistsError:
        os.unlink(temporary, dir_fd=at)
        return False
    point("named", path)
    os.unlink(temporary, dir_fd=at)
    return True


@contextmanager
def storage(what: str) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError: `what`, the reason, and a hint."""
    try:
        yield
    except OSError as error:
        why = error.strerror
        if error.errno == ELOOP:
            link = error.filename if str(error.filename).startswith("/") else "it"
            why = f"{link} is a symbolic link, which nodeagent does not follow"
        raise StorageError(f"{what}: {why}", hint=_HINTS.get(error.errno or 0)) from error


_HINTS: Final = {
    EACCES: "run it as root",
    EPERM: "run it as root; check for an immutable flag (lsattr) and for denials of SELinux",
    ENOENT: "create its directory first",
    EFBIG: "raise the limit on the size of files (ulimit -f)",
    EISDIR: "find out what created it, and move it away",
    EMFILE: "raise the limit on open files (ulimit -n)",
    ENXIO: "find out what created it, and move it away",
    EDQUOT: "root's quota on that file system is used up (see repquota)",
    EIO: "the disk is failing: see dmesg",
    ELOOP: "use the real path of the directory (see readlink -f), or move the link away",
    ENOSPC: "make room on that file system (see df)",
    EROFS: "mount that file system writable, or choose another path",
}
