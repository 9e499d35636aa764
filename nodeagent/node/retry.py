"""Send changes again that the kernel refuses temporarily: EBUSY, EAGAIN, or a driver's own error.

A driver returns them during a reset, or while its firmware is busy. There is no event for the end
of that: `wait_until_clear` sends again every RETRY_INTERVAL seconds.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from nodeagent.errors import WaitTimeout
from nodeagent.kernel.events import Watch, wait_until_clear
from nodeagent.node.node import Node

BUSY_ERRORS: Final = frozenset({errno.EBUSY, errno.EAGAIN})
BUSY_TIMEOUT: Final = 5.0
"""Seconds until a refusal is final. mlx5 answers commands within 60 s, mostly at once; the three
plans of a restore retry for three times as long."""
RETRY_INTERVAL: Final = 0.25
"""Seconds between two attempts."""

C = TypeVar("C")

Sender = Callable[[Sequence[C]], list[OSError | None]]
"""An edge's method that sends changes, and returns None or the refusal of each."""


def send(node: Node, changes: Sequence[C], sender: Sender[C]) -> list[OSError | None]:
    """Send all; resend what is busy until it is accepted. For each, None or the last refusal."""
    return resend_busy(changes, sender(changes), sender, *node.stops)


def resend_busy(
    changes: Sequence[C],
    results: Sequence[OSError | None],
    sender: Sender[C],
    *stops: Watch,
    busy: Collection[int] = BUSY_ERRORS,
) -> list[OSError | None]:
    """Resend what was busy, by the results so far, until it is accepted; the last results.

    Raises what the drain() of one of `stops` raises.
    """
    results = list(results)

    def look() -> list[int]:
        again = [at for at, error in enumerate(results) if is_busy(error)]
        for at, error in zip(again, sender([changes[at] for at in again]), strict=True):
            results[at] = error
        return [at for at in again if is_busy(results[at])]

    def is_busy(error: OSError | None) -> bool:
        return error is not None and error.errno in busy

    if any(map(is_busy, results)):
        with suppress(WaitTimeout):
            wait_until_clear(
                look, *stops, what="devices", timeout=BUSY_TIMEOUT, resync=RETRY_INTERVAL
            )
    return results


def call(do: Callable[[], None], busy: Collection[int] = BUSY_ERRORS) -> None:
    """Call `do`, and again while it is refused with one of `busy`. OSError: the last refusal.

    It may be called in a thread. A stop does not end it, but waits BUSY_TIMEOUT at most.
    """

    def tried(_: Sequence[None]) -> list[OSError | None]:
        try:
            do()
        except OSError as error:
            return [error]
        return [None]

    (refused,) = resend_busy([None], tried([None]), tried, busy=busy)
    if refused is not None:
        raise refused
