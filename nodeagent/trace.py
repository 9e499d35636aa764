"""Trace points: the places where a process may be interrupted, and a way for tests to do so.

The code calls `point("fsync", path)` before each change of the disk or the kernel. Without
TRACE_POINTS, that is outside tests, a point costs one function call. With it, points are numbered
from 1 and written to a file, and at a chosen number the process sends a signal to itself: SIGKILL
ends it between two instructions, as the end of a container or the OOM killer would; SIGSTOP stops
it there, so that other processes run in between.

The hook is the only global of the package: any module may call it.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from nodeagent.errors import ConfigError

SIGNALS: Final = {"KILL": signal.SIGKILL, "STOP": signal.SIGSTOP, "TERM": signal.SIGTERM}
_ENDING = re.compile(r"(KILL|STOP|TERM) ([1-9][0-9]{0,6})")

_hook: Callable[[str, object], None] | None = None


def point(what: str, on: object = "") -> None:
    """Mark that `what` (one or two words) is about to be done to `on`, or has just been done.

    `on` is a path, a handle or an argument list; it is converted to text only if tracing is on.
    """
    if _hook is not None:
        _hook(what, on)


def arm(directory: Path | None) -> None:
    """Start to number the points and to append them to `directory`/points; None stops it.

    A line is `17 fsync /run/…/open-snapshot.json`; it is written before a signal is sent.
    `directory`/end, if it exists, lists signals and the numbers at which to send them:
    `TERM 17 KILL 20`. It is read here, so that a test can change it before an execve(2).
    ConfigError if its content is not of that form, or `directory` is not a directory.
    """
    global _hook  # noqa: PLW0603  the only global: see above
    if directory is None:
        _hook = None
        return
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        endings = _endings(directory / "end")
        fd = os.open(directory / "points", flags, 0o600)
    except OSError as error:
        raise ConfigError(
            f"cannot write points to {directory}: {error.strerror}",
            hint="TRACE_POINTS is for tests: unset it, or set it to an existing directory",
        ) from error
    numbers = itertools.count(1)  # next() is one bytecode: threads get a number each

    def hook(what: str, on: object) -> None:
        number = next(numbers)
        os.write(fd, f"{number} {what} {_text(on)}\n".encode(errors="backslashreplace"))
        if number in endings:
            os.kill(os.getpid(), endings[number])

    _hook = hook


def _endings(path: Path) -> Mapping[int, signal.Signals]:
    try:
        words = path.read_text(encoding="ascii", errors="replace").split()
    except FileNotFoundError:
        return {}
    pairs = [_ENDING.fullmatch(" ".join(words[at : at + 2])) for at in range(0, len(words), 2)]
    if None in pairs:
        raise ConfigError(
            f"{path} says {' '.join(words)!r}; allowed: KILL, STOP or TERM, and a number"
        )
    return {int(pair[2]): SIGNALS[pair[1]] for pair in pairs if pair is not None}


def _text(on: object) -> str:
    if isinstance(on, (list, tuple)):
        on = " ".join(map(str, on))
    return str(on).replace("\n", " ")
