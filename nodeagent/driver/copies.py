"""Copies that are whole or not there: of source trees, packages, module trees.

A copy is made beside its target under another name, synced file by file, and renamed when it is
complete (rename(2)). A killed one leaves a name that the next one sweeps away. What has the
target's name is never followed; directories on the way may be links, as /lib is.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Final

from nodeagent import durable
from nodeagent.errors import DataError, NoInputError, StorageError
from nodeagent.kernel.events import StopSignal
from nodeagent.trace import point

SPARE: Final = 16 << 20
"""Bytes that must stay free beside a copy: directories, and what others write meanwhile."""

_AT_ONCE: Final = 1 << 20


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
                copy.mkdir(mode=0o755)
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
    for left in target.parent.glob(f".{target.name}.*.tmp"):
        remove(left)


def remove(directory: Path) -> None:
    """Remove a directory, or whatever has that name, with all below it; nothing is no error."""
    with _storage(f"cannot remove {directory}"):
        if directory.is_dir() and not directory.is_symlink():
            shutil.rmtree(directory)
        else:
            directory.unlink(missing_ok=True)


def sync(directory: Path) -> None:
    """fsync(2) of a directory: what was made, renamed or removed in it lasts."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def require_room(directory: Path, needed: int) -> None:
    """StorageError when the file system of `directory` has no room for that many bytes more."""
    place = next(each for each in (directory, *directory.parents) if each.is_dir())
    facts = os.statvfs(place)
    free = facts.f_bavail * facts.f_frsize
    if free < needed + SPARE:
        raise StorageError(
            f"not enough room in {directory}: {needed >> 20} MiB are to be copied there, "
            f"{free >> 20} MiB are free, and {SPARE >> 20} MiB must stay",
            hint=f"make room there: df {place} shows the file system",
        )


@contextmanager
def _whole(target: Path, size: int) -> Iterator[Path]:
    """A directory to fill, which becomes `target` when the block went well."""
    with _storage(f"cannot make the directory {target.parent}"):
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    sweep(target)
    require_room(target.parent, size)
    temporary, old = (target.with_name(f".{target.name}.{word()}.tmp") for word in (_new, _old))
    with _storage(f"cannot copy to {target}"):
        try:
            temporary.mkdir(mode=0o755)
            yield temporary
            if os.path.lexists(target):
                point("rename", target)
                target.rename(old)
            point("rename", temporary)
            temporary.rename(target)
            sync(target.parent)
        finally:
            for left in (temporary, old):
                remove(left)


def _new() -> str:
    return os.urandom(8).hex()


def _old() -> str:
    return f"old-{_new()}"


def _file(source: Path, target: Path, mode: int) -> None:
    """Copy one file and see to it that it was the same from beginning to end."""
    point("copy", source)
    before = _facts(source)
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, _AT_ONCE)
        writer.flush()
        os.fchmod(writer.fileno(), mode)
        os.fsync(writer.fileno())
        size = writer.tell()
    after = _facts(source)
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
        sync(Path(parent))


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
