"""A sign of life on disk, by which a probe tells a long wait from a hang.

The heart is a timer (timerfd_create(2)) among the descriptors that the agent's waits sleep on: each
wait that can be stopped also beats. No thread does it and no signal, so it cannot go on beating for
a main thread that hangs, nor interrupt a write to sysfs. What it writes is seconds of
CLOCK_BOOTTIME, which is what /proc/uptime counts: a shell can tell its age without another process,
and no change of the wall clock makes it look old.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from nodeagent import durable
from nodeagent.errors import KernelError, StorageError

log = logging.getLogger(__name__)

PERIOD: Final = 5.0
"""Seconds between two beats."""

_CLOCK_MONOTONIC: Final = 1
_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK and TFD_CLOEXEC are these


class Heart:
    """Beats into `path` when it is made, and whenever it is drained after `period` seconds."""

    def __init__(self, path: Path, period: float = PERIOD) -> None:
        try:
            self._file = durable.open_plain(path, os.O_WRONLY, 0o644)
        except OSError as error:
            raise StorageError(f"cannot write the sign of life {path}: {error.strerror}") from error
        try:
            self._timer = _timer(period)
        except KernelError:
            os.close(self._file)
            raise
        try:
            self._beat()
        except OSError as error:
            self.__exit__(None, None, None)
            raise StorageError(
                f"cannot write the sign of life {path}: {error.strerror}",
                hint="LOCK_FILE_PATH says where it is: beside the lock",
            ) from error

    def fileno(self) -> int:
        """The timer: readable when a beat is due."""
        return self._timer

    def drain(self) -> None:
        """Beat if one is due."""
        with suppress(BlockingIOError):
            os.read(self._timer, 8)
            try:
                self._beat()
            except OSError as error:
                # what is under way is not stopped for it; a probe may come to another conclusion
                log.warning("no sign of life could be given: %s", error.strerror)

    def _beat(self) -> None:
        """Always ten digits, so that a reader never finds half of an older one."""
        now = int(time.clock_gettime(time.CLOCK_BOOTTIME))
        os.pwrite(self._file, b"%010d\n" % now, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._timer)
        os.close(self._file)


def _timer(period: float) -> int:
    """A timerfd that fires each `period` seconds; os.timerfd_create() came with Python 3.13."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS))
    if fd >= 0:
        seconds, rest = divmod(period, 1)
        # struct itimerspec: interval and first expiry, each struct timespec
        spec = struct.pack("@lLlL", *(int(seconds), int(rest * 1e9)) * 2)
        if libc.timerfd_settime(fd, 0, spec, None) == 0:
            return fd
        os.close(fd)
    number = ctypes.get_errno()
    raise KernelError(f"cannot make a timer: {os.strerror(number)}", errno=number)
