"""Input files given on the command line; links in their paths are followed."""

from __future__ import annotations

import sys
from pathlib import Path

from nodeagent import durable, hostpath
from nodeagent.errors import DataError


def content(source: str) -> bytes:
    """The content of a file, or of stdin for "-". DataError if it is too large (/dev/zero)."""
    try:
        file = sys.stdin.buffer if source == "-" else Path(source).open("rb")  # noqa: SIM115
        with file:
            found = file.read(hostpath.MAX_FILE_BYTES + 1)
    except OSError as error:
        raise durable.unreadable(Path(source), error) from error
    if len(found) > hostpath.MAX_FILE_BYTES:
        raise DataError(f"{source} was not written by nodeagent: it is too large")
    return found
