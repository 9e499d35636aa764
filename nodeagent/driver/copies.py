"""Copies that are whole or not there: of source trees, packages, module trees.

A copy is made beside its target under another name, synced file by file, and renamed when it is
complete (rename(2)). A killed one leaves a name that the next one sweeps away. No link is followed
(nodeagent/hostpath.py): what is copied are plain files, and links as links.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Final

from nodeagent import durable, hostpath
from nodeagent.errors import DataError, NoInputError, StorageError
from nodeagent.kernel.events import StopSignal
from nodeagent.trace import point

SPARE_BYTES: Final = 16 << 20
"""Bytes that must stay free beside a copy: directories, and what others write meanwhile."""

_CHUNK_BYTES: Final = 1 << 20
_MAX_FILE_BYTES: Final = 1 << 40


def tree(
    source: Path,
    target: Path,
    stop: StopSignal | None = None,
    *,
    prepare: Callable[[Path], None] = lambda _copy: None,
) -> None:
    """Copy a directory with all below it, links as links, in the place of what `target` was.

    `prepare` is called with the copy before it gets its name.
    Raises NoInputError, StorageError (too little room is found out first, and nothing is half
    left), DataError when a file changes while it is read, and Stopped.
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
    """Make the directory `target` anew with a copy of each file. Raises as tree() does."""
    found = [(path, _facts(path)) for path in sources]
    with _whole(target, sum(facts.st_size for _, facts in found)) as temporary:
        for path, _ in found:
            if stop is not None:
                stop.drain()
            _file(path, temporary / path.name, 0o644)
        _sync_directories(temporary)


def sweep(target: Path) -> None:
    """Remove what killed copies to `target` left. Only while nobody else can be copying there."""
    what = f"cannot tidy up beside {target}"
    with (
        _storage(what),
        suppress(FileNotFoundError),
        hostpath.directory_path(target.parent) as parent,
    ):
        for left in parent.glob(f".{target.name}.*.tmp"):
            _remove(left)


def remove(directory: Path) -> None:
    """Remove a directory, or whatever has that name, with all below it; nothing is no error."""
    what = f"cannot remove {directory}"
    with (
        _storage(what),
        suppress(FileNotFoundError),
        hostpath.directory_path(directory.parent) as parent,
    ):
        _remove(parent / directory.name)


def _remove(path: Path) -> None:
    """`path` below a directory that is open; shutil.rmtree() goes down by descriptors itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):  # unlink(2) finds that a file system is read-only before it looks
        path.unlink(missing_ok=True)


def _require_room(parent: Path, directory: Path, needed: int) -> None:
    """StorageError when the file system of `directory`, open as `parent`, has no room for more."""
    facts = os.statvfs(parent)
    free = facts.f_bavail * facts.f_frsize
    if free < needed + SPARE_BYTES:
        raise StorageError(
            f"not enough room in {directory}: {needed >> 20} MiB are to be copied there, "
            f"{free >> 20} MiB are free, and {SPARE_BYTES >> 20} MiB must stay",
            hint=f"make room there: df {directory} shows the file system",
        )


@contextmanager
def _whole(target: Path, size: int) -> Iterator[Path]:
    """A directory to fill, which becomes `target` when the block went well."""
    durable.make_directory(target.parent, 0o755)
    sweep(target)
    with _storage(f"cannot copy to {target}"), hostpath.directory_path(target.parent) as parent:
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
    """Whatever the umask, and whatever group the one above would have it inherit."""
    directory.mkdir(mode=0o700)
    os.chown(directory, os.geteuid(), os.getegid())
    directory.chmod(0o755)


def _sync(directory: Path) -> None:
    """fsync(2) of a directory: what was made, renamed or removed in it lasts."""
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
    """Copy one file and see to it that it was the same from beginning to end."""
    point("copy", source)
    try:
        fd = hostpath.open_file(source, _MAX_FILE_BYTES)
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
            f"{source} changed while it was copied: somebody is still writing it",
            hint="start again when that has ended",
        )


def _facts(path: Path) -> os.stat_result:
    try:
        facts = path.lstat()
    except OSError as error:
        raise durable.unreadable(path, error) from error
    if not stat.S_ISREG(facts.st_mode):
        raise DataError(f"{path} is no regular file", hint="look at what it is, and who made it")
    return facts


def _walk(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below, each directory before what is in it."""
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


@contextmanager
def _storage(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in {ENOSPC, EDQUOT}
        raise StorageError(
            f"{what}: {error.strerror}",
            hint="make room on that file system (df shows it)" if full else None,
        ) from error
