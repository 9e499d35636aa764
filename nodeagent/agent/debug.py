"""ENTRYPOINT_DEBUG: a log of every command, and a pause for an operator after a failure."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nodeagent import durable
from nodeagent.errors import AgentError, Stopped, StorageError, WaitTimeout
from nodeagent.kernel import process
from nodeagent.kernel.events import StopSignal, wait_until_clear
from nodeagent.settings import Settings

log = logging.getLogger(__name__)


@contextmanager
def commands_on_record(settings: Settings) -> Iterator[None]:
    """Append each command and its result to DEBUG_LOG_FILE; times in UTC.

    StorageError if that is a link, which any user may have left in /tmp, or cannot be opened.
    """
    if not settings.debug:
        yield
        return
    path = settings.debug_log_file
    try:
        fd = durable.open_plain(path, os.O_WRONLY | os.O_APPEND, 0o600)
    except OSError as error:
        raise StorageError(
            f"cannot open the debug log {path}: {error.strerror}",
            hint="set DEBUG_LOG_FILE to another place, or ENTRYPOINT_DEBUG=false",
        ) from error
    handler = logging.StreamHandler(os.fdopen(fd, "a"))
    handler.formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(message)s", _TIME_FORMAT)
    handler.formatter.converter = time.gmtime
    before = process.log.level
    process.log.addHandler(handler)
    process.log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        process.log.setLevel(before)
        process.log.removeHandler(handler)
        handler.stream.close()


def pause(settings: Settings, error: AgentError, stop: StopSignal) -> None:
    """After a failure, wait DEBUG_SLEEP_SEC_ON_EXIT, or until a signal arrives."""
    if not settings.debug or isinstance(error, Stopped) or not settings.debug_sleep:
        return
    log.warning(
        "%s; ENTRYPOINT_DEBUG: exiting in %g s, or on SIGTERM", error.message, settings.debug_sleep
    )
    with suppress(Stopped, WaitTimeout):
        wait_until_clear(
            lambda: ["the end of the pause"],
            stop,
            what="a signal",
            timeout=settings.debug_sleep,
            notice=math.inf,
        )


_TIME_FORMAT = "%Y-%m-%dT%H:%M:%S"
