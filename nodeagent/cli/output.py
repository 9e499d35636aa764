"""stdout, and only stdout: where data goes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from nodeagent.errors import ExitCode, StorageError
from nodeagent.render import Screen
from nodeagent.settings import Settings


def write(text: str) -> None:
    """Write to stdout, now. StorageError when it takes no more (a full disk behind a `>`)."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes stdout once more at exit, and would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.BROKEN_PIPE)
    except OSError as error:
        raise StorageError(f"cannot write to stdout: {error.strerror}") from error


def write_lines(lines: Iterable[str]) -> None:
    """Each with a newline."""
    write("".join(f"{line}\n" for line in lines))


def write_json(plain: object) -> None:
    """Indented, with a final newline. What JSON has no type for is written as text."""
    write(json.dumps(plain, indent=2, default=str) + "\n")


def output_path(target: str) -> Path:
    """A file to write that somebody named by hand: links on the way to it are theirs, and followed.

    (On an immutable host even /root is one.) A link of that very name is replaced all the same.
    """
    path = Path(target)
    return path.parent.resolve() / path.name


def screen(settings: Settings) -> Screen:
    """What stdout is: a terminal with a width and, if welcome, colour; or neither."""
    return Screen.of(sys.stdout, colour=not settings.no_color)
