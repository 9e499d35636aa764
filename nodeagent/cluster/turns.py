"""One process at a time announces to the cluster, and at most one waits for its turn.

Otherwise each start of an agent would add a process while the API server does not answer. The
waiting process reads the journal when its turn comes, so it announces everything until then.
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
    """Wait for the turn of this process; False, without a wait, if another process waits already.

    Both locks are flock(2)s, which the kernel releases with their process. A signal handler that
    raises ends the wait (PEP 475). StorageError if the lock files cannot be opened.
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


@contextmanager
def alone(state_dir: Path, name: str) -> Iterator[None]:
    """Wait for the lock file `name` of STATE_DIR and hold it. StorageError if it can't be opened.

    A request of one process that the API server delays is thus not made after the request of
    another process that undoes it.
    """
    durable.make_private_directory(state_dir)
    fd = _open(state_dir / name)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    try:
        return durable.open_plain(path, os.O_RDWR, 0o600)
    except OSError as error:
        raise StorageError(f"cannot open the lock file {path}: {error.strerror}") from error
