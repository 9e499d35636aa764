"""Output to stdout, which has data and nothing else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING

from nodeagent.errors import ExitCode, StorageError
from nodeagent.render import Screen

if TYPE_CHECKING:
    from pathlib import Path

    from nodeagent.settings import Settings


class Output(StrEnum):
    """The formats of a command's output; not every command has all of them."""

    TEXT = "text"
    JSON = "json"
    MARKDOWN = "markdown"
    SVG = "svg"


def write(text: str) -> None:
    """Write to stdout and flush it. StorageError if that fails, such as on a full disk."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        # otherwise the interpreter flushes stdout at exit, and prints an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.BROKEN_PIPE)
    except OSError as error:
        raise StorageError(f"cannot write to stdout: {error.strerror}") from error


def write_lines(lines: Iterable[str]) -> None:
    """Write the lines, each with a newline."""
    write("".join(f"{line}\n" for line in lines))


def write_json(plain: object) -> None:
    """Write JSON, indented. A value of a type that JSON does not have is written as text."""
    write(as_json(plain))


def as_json(plain: object, *, indent: int | None = 2) -> str:
    """The text that `write_json` writes; without `indent` it is one line."""
    return json.dumps(plain, indent=indent, default=str) + "\n"


def output_path(target: str) -> Path:
    """The path of an output file given on the command line, with links in its directory resolved.

    (On an immutable host even /root is a link.) If the file itself is a link, it is replaced.
    """
    from pathlib import Path

    path = Path(target)
    return path.parent.resolve() / path.name


def screen(settings: Settings) -> Screen:
    """The properties of stdout: width and colour of a terminal, or neither."""
    return Screen.of(sys.stdout, colour=not settings.no_color)
