"""Files that people name on the command line; links on the way to them are theirs."""

from __future__ import annotations

import sys
from pathlib import Path

from nodeagent import durable, hostpath
from nodeagent.errors import DataError


def content(source: str) -> bytes:
    """All of a file, or of stdin for "-". DataError for one without an end, such as /dev/zero."""
    try:
        file = sys.stdin.buffer if source == "-" else Path(source).open("rb")  # noqa: SIM115
        with file:
            found = file.read(hostpath.MAX_FILE_BYTES + 1)
    except OSError as error:
        raise durable.unreadable(Path(source), error) from error
    if len(found) > hostpath.MAX_FILE_BYTES:
        raise DataError(f"{source} is none of ours: it is larger than any can be")
    return found
