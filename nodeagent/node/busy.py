"""Netlink changes that are refused for the moment only: EBUSY and EAGAIN, and nothing else.

A driver that resets, or whose firmware is at work, says so of whatever it is asked then. Nothing
tells when that is over, so asking again is the look: `wait_until_clear` does it at each event and
each AGAIN seconds.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from nodeagent.errors import WaitTimeout
from nodeagent.kernel.events import Watch, wait_until_clear
from nodeagent.node.node import Node

FOR_NOW: Final = frozenset({errno.EBUSY, errno.EAGAIN})
PATIENCE: Final = 5.0
"""Seconds until a refusal counts as one. mlx5 answers commands within its own 60 s, mostly at once;
three rounds of a restore ask three times that long."""
AGAIN: Final = 0.25
"""Seconds from one try to the next."""

C = TypeVar("C")


def sent(
    node: Node, changes: Sequence[C], send: Callable[[Sequence[C]], list[OSError | None]]
) -> list[OSError | None]:
    """Send all; what is busy is sent again until it is taken. For each None or the last refusal."""
    return sent_again(changes, send(changes), send, *node.stops)


def sent_again(
    changes: Sequence[C],
    results: Sequence[OSError | None],
    send: Callable[[Sequence[C]], list[OSError | None]],
    *stops: Watch,
) -> list[OSError | None]:
    """What was busy, according to the results so far, is sent until it is taken; the last results.

    `stops` are looked at meanwhile: what their drain() raises ends it.
    """
    results = list(results)

    def look() -> list[int]:
        busy = [at for at, error in enumerate(results) if _is_busy(error)]
        for at, error in zip(busy, send([changes[at] for at in busy]), strict=True):
            results[at] = error
        return [at for at in busy if _is_busy(results[at])]

    if any(map(_is_busy, results)):
        with suppress(WaitTimeout):
            wait_until_clear(look, *stops, what="devices", timeout=PATIENCE, resync=AGAIN)
    return results


def done(do: Callable[[], None]) -> None:
    """Do one thing; while it is busy, again. OSError: its last refusal.

    For a thread beside others: it looks at no signal, so a stop waits PATIENCE for it at most.
    """

    def tried(_: Sequence[None]) -> list[OSError | None]:
        try:
            do()
        except OSError as error:
            return [error]
        return [None]

    (refused,) = sent_again([None], tried([None]), tried)
    if refused is not None:
        raise refused


def _is_busy(error: OSError | None) -> bool:
    return error is not None and error.errno in FOR_NOW
