"""Safe access to paths that other users may write to.

nodeagent is privileged, and opens many files of the host. It therefore opens each directory of a
path in turn, from "/" down, relative to the descriptor of the one before and with O_NOFOLLOW: a
symbolic link anywhere in the path is an error, and a directory that is replaced meanwhile has no
effect. The last component must be a regular file: not a link, not a device, and not a FIFO, whose
open(2) would block until the other end is opened.

Two kinds of link are followed. /proc/PID/root (DRIVER_ROOT of a sidecar) belongs to the kernel, and
no user can create one. Paths that distributions have as links (/lib, /etc/os-release, the driver's
sources) are first resolved as under chroot(2), so that an absolute link stays inside the root, and
then opened like any path. openat2(2) could do both in one call, but needs Linux 5.6.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EINVAL, ELOOP
from pathlib import Path
from typing import Final

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""The default limit for a file that is read whole; real ones are far smaller."""

_KERNELS = re.compile(r"/proc/[0-9]+/root")
_MAX_LINKS = 40  # the limit of path_resolution(7)


@contextmanager
def directory(path: Path) -> Iterator[int]:
    """A descriptor of the directory, for *at(2) calls. No link in the path is followed.

    OSError if it cannot be opened; for a link in the path, ELOOP with the link as its file name.
    """
    fd = _open_directory(path)
    try:
        yield fd
    finally:
        os.close(fd)


def names(path: Path) -> set[str]:
    """What is in the directory. OSError as of `directory`."""
    with directory(path) as fd:
        return set(os.listdir(fd))  # noqa: PTH208 # of a descriptor


@contextmanager
def directory_path(path: Path) -> Iterator[Path]:
    """The same as a path, /proc/self/fd/N, for functions that take no descriptor.

    Below it links are followed again, so use it only to add one component, or in a directory that
    no other user can write to.
    """
    with directory(path) as fd:
        yield Path(f"/proc/self/fd/{fd}")


def open_file(path: Path, max_bytes: int = MAX_FILE_BYTES) -> int:
    """Open a regular file of at most `max_bytes` bytes for reading; its descriptor.

    OSError as from open(2); ELOOP for a link, EINVAL for anything else that is not a regular file.
    Those are not opened: open(2) of a FIFO blocks, and that of some devices has side effects.
    """

    def judge(facts: os.stat_result) -> None:
        if stat.S_ISLNK(facts.st_mode):
            raise OSError(ELOOP, os.strerror(ELOOP), str(path))
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > max_bytes:
            raise OSError(EINVAL, "it is not a regular file, or is too large", str(path))

    return open_if(path, judge)


def open_if(path: Path, judge: Callable[[os.stat_result], None]) -> int:
    """Open `path` for reading if `judge`, given its stat(2) result, does not raise."""
    with directory(path.parent) as at:
        pinned = os.open(path.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        judge(os.fstat(pinned))
        return os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(pinned)


def read_text(path: Path) -> str:
    """The text of a regular file. Raises OSError as open_file() does."""
    with os.fdopen(open_file(path), encoding="utf-8", errors="replace") as file:
        return file.read()


def lstat(path: Path) -> os.stat_result | None:
    """The lstat(2) result of `path`, no link in it followed; None if it does not exist. OSError."""
    try:
        with directory(path.parent) as at:
            return os.stat(path.name, dir_fd=at, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_file(path: Path) -> bool:
    """Whether `path` is a regular file, reached without a link. False if it cannot be reached."""
    try:
        facts = lstat(path)
    except OSError:
        return False
    return facts is not None and stat.S_ISREG(facts.st_mode)


def is_directory(path: Path) -> bool:
    """Whether `path` is a readable directory, reached without a link."""
    try:
        with directory(path):
            return True
    except OSError:
        return False


def resolve_in_root(root: Path, below: Path) -> Path:
    """The path of `below` under `root`, with its links resolved as under chroot(2).

    A component that does not exist is kept as it is. If links form a loop, one of them is kept, and
    opening the result fails with ELOOP.
    """
    done: list[str] = []
    left = [*reversed(below.parts)]
    links = 0
    while left:
        part = left.pop()
        if part == "..":
            done[-1:] = []
        elif part != "/":
            try:
                target = os.readlink(root.joinpath(*done, part))  # noqa: PTH115  a "" is kept
            except OSError:
                done.append(part)
                continue
            links += 1
            if links > _MAX_LINKS:
                return root.joinpath(*done, part)
            done = [] if target.startswith("/") else done
            left += reversed(Path(target).parts)
    return root.joinpath(*done)


def _open_directory(path: Path) -> int:
    """Component by component; a relative path from the working directory."""
    step = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    *parts, last = path.parts or (".",)
    at = None
    steps = (*((part, os.O_PATH) for part in parts), (last, os.O_RDONLY))
    try:
        for number, (part, flags) in enumerate(steps, 1):
            try:
                below = os.open(part, flags | step, dir_fd=at)
            except NotADirectoryError:
                # O_DIRECTORY gives ENOTDIR for a link, too
                if not stat.S_ISLNK(os.stat(part, dir_fd=at, follow_symlinks=False).st_mode):
                    raise
                walked = str(Path(*path.parts[:number]))
                if not _KERNELS.fullmatch(walked):
                    raise OSError(ELOOP, os.strerror(ELOOP), walked) from None
                below = os.open(part, flags | step & ~os.O_NOFOLLOW, dir_fd=at)
            if at is not None:
                os.close(at)
            at = below
    except BaseException:
        if at is not None:
            os.close(at)
        raise
    assert at is not None  # noqa: S101  for mypy: `last` is always there
    return at
