"""The heartbeat file, by which a probe distinguishes a long wait from a hang.

The heart is a timer (timerfd_create(2)) among the descriptors that the agent's waits sleep on: each
wait that a signal can end writes the heartbeat. There is no thread, which would continue if the
main thread hangs, and no signal, which would interrupt a write to sysfs. The file has seconds of
CLOCK_BOOTTIME, like /proc/uptime: a shell can compute its age without another process, and changes
of the wall clock do not matter.
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
    """Writes `path` at first, and whenever it is drained after `period` seconds."""

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
                hint="it is in the directory of LOCK_FILE_PATH",
            ) from error

    def fileno(self) -> int:
        """The timer: readable when a beat is due."""
        return self._timer

    def drain(self) -> None:
        """Write the heartbeat if it is due."""
        with suppress(BlockingIOError):
            os.read(self._timer, 8)
            try:
                self._beat()
            except OSError as error:
                # the agent continues; a probe may fail
                log.warning("cannot write the sign of life: %s", error.strerror)

    def _beat(self) -> None:
        """Write ten digits in place, so that a reader never finds parts of an older time."""
        now = int(time.clock_gettime(time.CLOCK_BOOTTIME))
        os.pwrite(self._file, b"%010d\n" % now, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._timer)
        os.close(self._file)


def _timer(period: float) -> int:
    """A timerfd that fires each `period` seconds; os.timerfd_create() is new in Python 3.13."""
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
