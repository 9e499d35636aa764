"""The points at which a process could be cut off, and for tests a way to cut it off there.

Code says `point("fsync", path)` before each thing that changes what the disk or the kernel
remembers; where it comes after one, the one before the next is the same. A step begins and ends
with a line in the journal. Unarmed, which it always is outside tests, a point costs one call. Armed
(TRACE_POINTS), each is numbered from 1 and written to a file, and at a chosen number the process
gets a signal from itself: SIGKILL ends it between two instructions, like a dying container or an
out-of-memory kill would; SIGSTOP holds it there, so that others are at work in between.

The one global of the package: a hook that every room may call cannot be handed to every room.
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
    """Something is about to happen, or has just happened: `what` in a word or two, and on what.

    `on` is only made a string when somebody looks: a path, a handle, an argument list.
    """
    if _hook is not None:
        _hook(what, on)


def arm(directory: Path | None) -> None:
    """From here on, number the points; None: from here on, don't.

    They are appended to `directory`/points, `17 fsync /run/…/open-snapshot.json`, with the name
    only written before the process may end. `directory`/end, where there is one, says at which
    numbers which signal comes: `TERM 17 KILL 20`. It is read here, so that a test may change it
    for the process that this one becomes. ConfigError when it says anything else, or when
    `directory` is none.
    """
    global _hook  # noqa: PLW0603  the one global: see above
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
            hint="TRACE_POINTS is for tests: unset it, or name a directory",
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
