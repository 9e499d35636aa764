"""One process at a time tells the cluster, and at most one waits for its turn.

While the API server is away each start of an agent would add a process that tries; the one that
waits reads the journal when its turn comes, so whatever happened until then is in it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeagent import durable
from nodeagent.errors import StorageError


@contextmanager
def turn(state_dir: Path) -> Iterator[bool]:
    """Wait for our turn; False at once when somebody is waiting already: he does what we would.

    Both locks are flock(2)s, which go with their process. A signal's handler that raises ends the
    wait (PEP 475). StorageError when there can be no lock files.
    """
    durable.make_private_directory(state_dir)
    waiting = _open(state_dir / "cluster.next.lock")
    working = _open(state_dir / "cluster.lock")
    try:
        try:
            fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        fcntl.flock(working, fcntl.LOCK_EX)
        fcntl.flock(waiting, fcntl.LOCK_UN)
        yield True
    finally:
        os.close(working)
        os.close(waiting)


def _open(path: Path) -> int:
    try:
        return durable.open_plain(path, os.O_RDWR, 0o600)
    except OSError as error:
        raise StorageError(f"cannot open the lock file {path}: {error.strerror}") from error
