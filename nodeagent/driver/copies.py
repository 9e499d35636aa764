"""Atomic copies of source trees, packages and module trees.

A copy is written next to its target under a temporary name, synced file by file, and then renamed
(rename(2)). The next copy removes what a killed one has left. No link is followed
(nodeagent/hostpath.py): regular files are copied, and links are copied as links.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from nodeagent import durable, hostpath
from nodeagent.errors import DataError, NoInputError, StorageError
from nodeagent.kernel.events import StopSignal
from nodeagent.trace import point

SPARE_BYTES: Final = 16 << 20
"""The space that must stay free after a copy, for directories and other writers."""

_CHUNK_BYTES: Final = 1 << 20
MAX_FILE_BYTES: Final = 1 << 40


def tree(
    source: Path,
    target: Path,
    stop: StopSignal | None = None,
    *,
    prepare: Callable[[Path], None] = lambda _copy: None,
) -> None:
    """Copy a directory recursively, links as links; it replaces `target`.

    `prepare` is called with the copy before it is renamed.
    Raises NoInputError, StorageError (free space is checked first, and no partial copy is left),
    DataError if a file changes while it is read, and Stopped.
    """
    entries = [*_walk(source)]
    with _whole(target, sum(facts.st_size for _, facts in entries)) as temporary:
        for path, facts in entries:
            if stop is not None:
                stop.drain()
            copy = temporary / path.relative_to(source)
            if stat.S_ISLNK(facts.st_mode):
                copy.symlink_to(path.readlink())
            elif stat.S_ISDIR(facts.st_mode):
                _make(copy)
            elif stat.S_ISREG(facts.st_mode):
                _file(path, copy, 0o755 if facts.st_mode & 0o111 else 0o644)
        prepare(temporary)
        _sync_directories(temporary)


def files(sources: Iterable[Path], target: Path, stop: StopSignal | None = None) -> None:
    """Replace the directory `target` with one that has a copy of each file. Raises as tree()."""
    found = [(path, _facts(path)) for path in sources]
    with _whole(target, sum(facts.st_size for _, facts in found)) as temporary:
        for path, _ in found:
            if stop is not None:
                stop.drain()
            _file(path, temporary / path.name, 0o644)
        _sync_directories(temporary)


def sweep(target: Path) -> None:
    """Remove what killed copies to `target` left. Call it only while no copy is in progress."""
    what = f"cannot remove unfinished copies of {target}"
    with (
        durable.storage(what),
        suppress(FileNotFoundError),
        hostpath.directory_path(target.parent) as parent,
    ):
        for left in parent.glob(f".{target.name}.*.tmp"):
            _remove(left)


def remove(directory: Path) -> None:
    """Remove a directory recursively, or the file or link of that name, if it exists."""
    what = f"cannot remove {directory}"
    with (
        durable.storage(what),
        suppress(FileNotFoundError),
        hostpath.directory_path(directory.parent) as parent,
    ):
        _remove(parent / directory.name)


def _remove(path: Path) -> None:
    """Remove `path`, in an open directory; shutil.rmtree() itself works by descriptors."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):  # unlink(2) fails on a read-only file system even without a file
        path.unlink(missing_ok=True)


def _require_room(parent: Path, directory: Path, needed: int) -> None:
    """StorageError if the file system of `directory`, open as `parent`, has too little space."""
    facts = os.statvfs(parent)
    free = facts.f_bavail * facts.f_frsize
    if free < needed + SPARE_BYTES:
        raise StorageError(
            f"not enough room in {directory}: {needed >> 20} MiB are needed and "
            f"{SPARE_BYTES >> 20} MiB must stay free, but only {free >> 20} MiB are free",
            hint=f"make room on that file system (see df {directory})",
        )


@contextmanager
def _whole(target: Path, size: int) -> Iterator[Path]:
    """A directory to fill, which replaces `target` if the block succeeds."""
    durable.make_directory(target.parent, 0o755)
    sweep(target)
    what = f"cannot copy to {target}"
    with durable.storage(what), hostpath.directory_path(target.parent) as parent:
        _require_room(parent, target.parent, size)
        temporary, old = (parent / f".{target.name}.{word()}.tmp" for word in (_new, _old))
        try:
            _make(temporary)
            yield temporary
            if os.path.lexists(parent / target.name):
                point("rename", target)
                (parent / target.name).rename(old)
            point("name", target)
            temporary.rename(parent / target.name)
            _sync(parent)
        finally:
            for left in (temporary, old):
                _remove(left)


def _make(directory: Path) -> None:
    """Create a directory with mode 0755 and our own user and group."""
    directory.mkdir(mode=0o700)
    os.chown(directory, os.geteuid(), os.getegid())
    directory.chmod(0o755)


def _sync(directory: Path) -> None:
    """fsync(2) of a directory makes creations, renames and removals in it durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _new() -> str:
    return os.urandom(8).hex()


def _old() -> str:
    return f"old-{_new()}"


def _file(source: Path, target: Path, mode: int) -> None:
    """Copy one file. DataError if it changed meanwhile."""
    point("copy", source)
    try:
        fd = hostpath.open_file(source, MAX_FILE_BYTES)
    except OSError as error:
        raise durable.unreadable(source, error) from error
    with os.fdopen(fd, "rb") as reader, target.open("xb") as writer:
        before = os.fstat(fd)
        shutil.copyfileobj(reader, writer, _CHUNK_BYTES)
        after = os.fstat(fd)
        writer.flush()
        os.fchown(writer.fileno(), os.geteuid(), os.getegid())
        os.fchmod(writer.fileno(), mode)
        os.fsync(writer.fileno())
        size = writer.tell()
    if (before.st_size, before.st_mtime_ns) != (size, after.st_mtime_ns):
        raise DataError(
            f"{source} changed while it was copied: another process is still writing it",
            hint="start again when it is complete",
        )


def _facts(path: Path) -> os.stat_result:
    try:
        facts = path.lstat()
    except OSError as error:
        raise durable.unreadable(path, error) from error
    if not stat.S_ISREG(facts.st_mode):
        raise DataError(f"{path} is not a regular file", hint="find out what created it")
    return facts


def _walk(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below `directory`, each directory before its content."""
    failed: list[OSError] = []
    for parent, names, others in os.walk(directory, onerror=failed.append):
        for name in sorted((*names, *others)):
            path = Path(parent, name)
            yield path, path.lstat()
    for error in failed:
        raise NoInputError(f"cannot read {error.filename}: {error.strerror}") from error


def _sync_directories(top: Path) -> None:
    for parent, _, _ in os.walk(top):
        _sync(Path(parent))
