"""Files that are whole or not there, whatever happens in the middle of writing them.

A new file is written under an unpredictable name in its own directory (O_EXCL, O_NOFOLLOW), synced,
given its name by rename(2) or link(2), and the directory is synced after it: rename(2) is atomic,
but only fsync(2) of the directory makes it last. Modes are set with fchmod(2), because the umask of
a container is anybody's guess.

Paths are the host's, and others may write beside us: they are walked without following a link
(nodeagent/hostpath.py). What is opened at the end is a plain file of root's or ours with one name:
no link, no device, no FIFO. Owner and mode are set, whatever the directory would have it inherit.
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
from nodeagent.hostpath import LARGEST, directory, found, opened
from nodeagent.trace import point

T = TypeVar("T")


def replace(path: Path, data: bytes, mode: int) -> None:
    """Write `path` anew; a reader sees the old content or the new. StorageError otherwise."""
    with storage(f"cannot write {path}"):
        facts = found(path)
        if facts is not None:
            _check_replaceable(path, facts)
        _write(path, data, mode, _take_its_name)


def create(path: Path, data: bytes, mode: int) -> bool:
    """Write `path` if nothing has that name, not even a dead link; False when something has."""

    with storage(f"cannot write {path}"):
        return _write(path, data, mode, _take_its_name_if_free)


def rename(path: Path, to: Path) -> None:
    """Rename within one directory, and make it last."""
    with storage(f"cannot rename {path} to {to}"), directory(path.parent) as at:
        point("rename", path)
        os.rename(path.name, to.name, src_dir_fd=at, dst_dir_fd=at)
        _sync(at, path.parent)


def remove(path: Path) -> bool:
    """Remove `path`, and make it last; False when there was none.

    A file, or a link as such. StorageError for anything else: whoever names /dev/null in a setting
    must not lose it.
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
    """Remove what writers of `path` left when they were killed. Only while no other can write."""
    with storage(f"cannot tidy up beside {path}"):
        try:
            with directory(path.parent) as at:
                for name in _names(at):
                    if name.startswith(f".{path.name}.") and name.endswith(".tmp"):
                        with suppress(IsADirectoryError):  # no writer's: somebody planted it
                            os.unlink(name, dir_fd=at)
        except (FileNotFoundError, NotADirectoryError):
            return


def remove_directory(path: Path) -> bool:
    """Remove an empty directory; False when it is none, is not empty, or is not there."""
    try:
        with directory(path.parent) as at:
            point("remove", path)
            os.rmdir(path.name, dir_fd=at)
            _sync(at, path.parent)
    except OSError:
        return False
    return True


def link(path: Path, to: Path) -> None:
    """Make the symbolic link `path`, and make it last. StorageError when something is there."""
    with storage(f"cannot make the link {path}"), directory(path.parent) as at:
        point("link", path)
        os.symlink(to, path.name, dir_fd=at)
        _sync(at, path.parent)


def exists(path: Path) -> bool:
    """Something has that name, be it a dead link. PermissionDenied when it cannot be told."""
    return _facts(path) is not None


def is_flag(path: Path) -> bool:
    """A plain file has that name: a flag, whose being there is all it says. Raises as flag()."""
    return flag(path) is not None


def flag(path: Path) -> tuple[int, int] | None:
    """Which flag is there, None without one: another inode, or another mtime, is another flag.

    tmpfs gives each file a number of its own, ext4 gives that of a removed one to the next.
    DataError for a link, a device, a directory: whoever made that is not whom we wait for. Raises
    as exists().
    """
    facts = _facts(path)
    if facts is not None and not stat.S_ISREG(facts.st_mode):
        raise DataError(
            f"{path} is no plain file: nodeagent takes it for no flag",
            hint="look who made it, and move it away",
        )
    return None if facts is None else (facts.st_ino, facts.st_mtime_ns)


def _facts(path: Path) -> os.stat_result | None:
    try:
        return found(path)
    except OSError as error:
        raise unreadable(path, error) from error


def read_own(path: Path) -> bytes | None:
    """The content of a file that only we (or root) can have written; None when there is none.

    DataError for a link, a device, a file that others may write: it could tell us what to do.
    """
    try:
        with os.fdopen(open_own(path, LARGEST), "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise unreadable(path, error) from error


def open_own(path: Path, most: int) -> int:
    """A descriptor of such a file of at most that many bytes, to read. DataError, OSError."""
    try:
        fd = opened(path, most)
    except OSError as error:
        if error.errno != EINVAL:
            raise
        raise DataError(f"{path} is not a file of nodeagent", hint="move it away") from error
    try:
        _check_own(path, os.fstat(fd))
    except DataError:
        os.close(fd)
        raise
    return fd


def open_plain(path: Path, flags: int, mode: int) -> int:
    """Open a file that is written in place (a lock, a log), made with `mode` if it is not there.

    Never with O_TRUNC, which would empty it before it is known whose it is.
    OSError as open(2) has it. StorageError for a link of either kind, a device, a FIFO, or a file
    of another user: whoever planted it would have it written, or wait for us to read it.
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
        what = "is not a plain file with one name"
    elif facts.st_uid not in {0, os.geteuid()}:
        what = f"belongs to user {facts.st_uid}"
    if what is not None:
        raise StorageError(
            f"{path} {what}: nodeagent does not write to it",
            hint="look who made it, and move it away",
        )


def _give_mode(fd: int, mode: int) -> None:
    """Ours has the mode it should have, whatever the umask; root's is root's."""
    facts = os.fstat(fd)
    if facts.st_uid == os.geteuid() and stat.S_IMODE(facts.st_mode) != mode:
        os.fchmod(fd, mode)


def _check_replaceable(path: Path, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode) and not stat.S_ISLNK(facts.st_mode):
        raise StorageError(
            f"{path} is neither a file nor a link: nodeagent does not remove or replace it",
            hint="look who made it and move it away, or name another place",
        )


def unreadable(path: Path, error: OSError) -> AgentError:
    """What to raise when `path` could not be read, by errno."""
    what = f"cannot read {path}: {error.strerror}"
    if error.errno in {EACCES, EPERM}:
        return PermissionDenied(what, hint="run it as root")
    if error.errno in {ENOENT, ENOTDIR, EISDIR}:
        return NoInputError(what)
    if error.errno == ELOOP:
        link = error.filename if str(error.filename).startswith("/") else path
        return DataError(f"{link} is a link; nodeagent follows none", hint="move it away")
    return StorageError(what)


def append(path: Path, line: bytes, *, sync: bool) -> int:
    """Append one line in one write(2); the file's size after it. Raises as `open_plain` does.

    A line that an earlier writer could not finish is ended first, so that it spoils only itself.
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
    """Make `path` with `mode` if nothing is there, its parents with 0755, or StorageError."""
    with storage(f"cannot make the directory {path}"):
        _make(path, mode)


def make_private_directory(path: Path) -> None:
    """The same with 0700; who else could take files out of one that is there no longer can.

    StorageError when it is another user's. One with a sticky bit (/tmp) stays as it is: there,
    nobody can remove or rename another's files.
    """
    make_directory(path, 0o700)
    with storage(f"cannot keep others out of {path}"), directory(path) as there:
        facts = os.fstat(there)
        if facts.st_uid not in {0, os.geteuid()}:
            raise StorageError(
                f"{path} belongs to user {facts.st_uid}, who could take away what is kept there",
                hint="look at what is in it; then chown root it, or move it away",
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
            f"{path} is not a directory", hint="move it away, or use another"
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
    """Made by a run that was killed before it gave the directory its mode: ours, bare, empty."""
    facts = os.fstat(fd)
    bare = stat.S_IMODE(facts.st_mode) == 0o700 and facts.st_uid == os.geteuid()
    return bare and not _names(fd)


def _names(fd: int) -> list[str]:
    with os.scandir(fd) as entries:
        return [entry.name for entry in entries]


def _sync(fd: int, path: Path) -> None:
    """fsync(2) of a directory: what was created, renamed or removed in it lasts."""
    point("fsync directory", path)
    os.fsync(fd)


def _check_own(path: Path, facts: os.stat_result) -> None:
    if facts.st_uid not in {0, os.geteuid()} or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DataError(
            f"{path} belongs to user {facts.st_uid} with mode {facts.st_mode & 0o7777:04o}: "
            "another than root can have written it",
            hint="look at what it says; if it is right, chown root and chmod 600 it",
        )
    if facts.st_nlink > 1:
        raise DataError(
            f"{path} has {facts.st_nlink} names: another than root can have planted it (a hard "
            "link)",
            hint="look at what it says; if it is right, put a copy in its place",
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
    """StorageError that says `what`, why, and what to do, for an OSError of the block."""
    try:
        yield
    except OSError as error:
        why = error.strerror
        if error.errno == ELOOP:
            link = error.filename if str(error.filename).startswith("/") else "it"
            why = f"{link} is a symbolic link, and nodeagent follows none"
        raise StorageError(f"{what}: {why}", hint=_HINTS.get(error.errno or 0)) from error


_HINTS: Final = {
    EACCES: "run it as root",
    EPERM: "run it as root; look for an immutable flag (lsattr) or a security module's log",
    ENOENT: "make its directory first",
    EFBIG: "this process may not write files that large (ulimit -f)",
    EISDIR: "look who made it, and move it away",
    EMFILE: "this process may not open that many files (ulimit -n)",
    ENXIO: "look who made it, and move it away",
    EDQUOT: "root's quota on that file system is used up (repquota shows it)",
    EIO: "that disk fails: the kernel's log says how",
    ELOOP: "name the directory by its real path (readlink -f shows it), or move the link away",
    ENOSPC: "make room on that file system (df shows it)",
    EROFS: "mount that file system writable, or choose another place",
}
