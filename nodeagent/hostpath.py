"""Paths below which others may plant things: walked by descriptors, and never led astray.

nodeagent is privileged, and much of what it opens is the host's. So a path is walked from "/" down,
one directory's descriptor to the next, each opened with O_NOFOLLOW: a symbolic link is refused
wherever it is, and nobody can exchange a directory behind our back. What is opened at the end is a
plain file: no link, no device, no FIFO, whose opening would wait for whoever planted it.

Two links are followed. /proc/PID/root (DRIVER_ROOT of a sidecar) is the kernel's own, and nobody
can plant it. And what a distribution has as links (/lib, /etc/os-release, the sources that an image
has) is first resolved as chroot(2) would, so that an absolute link stays inside, and then walked
like any path. openat2(2) has both in one call, and needs Linux 5.6.
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

LARGEST: Final = 64 * 1024 * 1024
"""Bytes: nothing that we read whole comes near it."""

_KERNELS = re.compile(r"/proc/[0-9]+/root")
_LINKS = 40  # as many as path_resolution(7) follows


@contextmanager
def directory(path: Path) -> Iterator[int]:
    """A descriptor of the directory, for *at(2) calls. No link is followed on the way.

    OSError when it cannot be opened; ELOOP, with the link as its file name, when one is in the way.
    """
    fd = _opened(path)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def anchored(path: Path) -> Iterator[Path]:
    """The same as a path for those who want one: what is above it is what was opened.

    Only for what lies in a directory that nobody else can write to, or for the last step.
    """
    with directory(path) as fd:
        yield Path(f"/proc/self/fd/{fd}")


def opened(path: Path, most: int = LARGEST) -> int:
    """A descriptor of a plain file of at most that many bytes, to read.

    OSError as open(2) has it; ELOOP for a link, EINVAL for any other thing. That is not opened: to
    open a FIFO is to wait for a writer, and with some devices something happens at once.
    """

    def judge(facts: os.stat_result) -> None:
        if stat.S_ISLNK(facts.st_mode):
            raise OSError(ELOOP, os.strerror(ELOOP), str(path))
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > most:
            raise OSError(EINVAL, "it is no plain file, or far too large", str(path))

    return opened_if(path, judge)


def opened_if(path: Path, judge: Callable[[os.stat_result], None]) -> int:
    """A descriptor of whatever has that name, to read, once `judge` let what it is pass."""
    with directory(path.parent) as at:
        pinned = os.open(path.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        judge(os.fstat(pinned))
        return os.open(f"/proc/self/fd/{pinned}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(pinned)


def read_text(path: Path) -> str:
    """The text of a plain file. OSError as opened() raises it."""
    with os.fdopen(opened(path), encoding="utf-8", errors="replace") as file:
        return file.read()


def found(path: Path) -> os.stat_result | None:
    """What has that name, no link followed on the way or at the end; None for nothing. OSError."""
    try:
        with directory(path.parent) as at:
            return os.stat(path.name, dir_fd=at, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_file(path: Path) -> bool:
    """A plain file has that name, and no link leads there. False, too, where it can't be told."""
    try:
        facts = found(path)
    except OSError:
        return False
    return facts is not None and stat.S_ISREG(facts.st_mode)


def is_directory(path: Path) -> bool:
    """A directory that can be read has that name, and no link leads there."""
    try:
        with directory(path):
            return True
    except OSError:
        return False


def within(root: Path, below: Path) -> Path:
    """Where `below` leads in `root`, its links followed as in a chroot.

    For what the distribution has as links. What is not there is taken for no link, and of links in
    a circle one is left: whoever opens that is told ELOOP.
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
            if links > _LINKS:
                return root.joinpath(*done, part)
            done = [] if target.startswith("/") else done
            left += reversed(Path(target).parts)
    return root.joinpath(*done)


def _opened(path: Path) -> int:
    """Step by step; a relative path from the working directory."""
    step = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    *parts, last = path.parts or (".",)
    at, walked = None, Path()
    try:
        for part, flags in (*((part, os.O_PATH) for part in parts), (last, os.O_RDONLY)):
            walked /= part
            try:
                below = os.open(part, flags | step, dir_fd=at)
            except NotADirectoryError:
                # what O_DIRECTORY says of a link, too
                if not stat.S_ISLNK(os.stat(part, dir_fd=at, follow_symlinks=False).st_mode):
                    raise
                if not _KERNELS.fullmatch(str(walked)):
                    raise OSError(ELOOP, os.strerror(ELOOP), str(walked)) from None
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
