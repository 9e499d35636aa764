"""WATCH_DRIFT: report each attribute that differs from what it was when the node became ready.

Nothing is changed: nodeagent restores what a reload destroyed, and an operator may change the node
afterwards. The report tells when a VF lost its VLAN.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from nodeagent.errors import KernelError, UnavailableError, WaitTimeout
from nodeagent.kernel.events import Watch, wait_until_clear
from nodeagent.node.node import Node
from nodeagent.node.observe import observe
from nodeagent.node.settle import watching
from nodeagent.plan.comparison import Difference, differences
from nodeagent.record.journal import Journal, Note
from nodeagent.state.model import NodeState

log = logging.getLogger(__name__)

RESYNC_INTERVAL: Final = 60.0
"""Seconds between two looks if there is no event: autoprobe changes without one."""
QUIET_PERIOD: Final = 2.0
"""Seconds from an event to the look, so that a burst of events causes one look."""
MAX_QUIET_PERIOD: Final = 30.0
"""Seconds. While events do not pause, the period doubles at each look, up to this."""
MAX_LINES: Final = 50
"""The most lines for one look; `nodeagent verify` prints all differences."""
MAX_RECORDS: Final = 500
"""The most records of one run: the journal keeps 1 MiB, and the reload's own records matter more.
"""

Drift = Mapping[tuple[str, str], Difference]


def watch(
    node: Node, journal: Journal, *, resync: float = RESYNC_INTERVAL, quiet: float = QUIET_PERIOD
) -> None:
    """Report each attribute that begins or ceases to differ from the first look, until Stopped.

    A look that fails is logged, and the watch continues.
    """
    want: NodeState | None = None
    known: Drift = {}
    reports = _Reports(journal)
    pause = quiet
    with watching(node) as watches:
        heard = [_Heard(each) for each in watches if each not in node.stops]
        while True:
            try:
                have = observe(node)
            except (KernelError, UnavailableError) as error:
                log.warning("cannot look for drift: %s", error.message)
            else:
                if want is None:
                    want = have
                    log.info("watching for drift: it is reported, nothing is changed")
                now = {(each.target, each.attribute): each for each in differences(want, have)}
                reports.add(known, now)
                known = now
            never_pauses = _sleep(heard, node.stops, resync, pause)
            pause = min(2 * pause, max(quiet, MAX_QUIET_PERIOD)) if never_pauses else quiet


class _Reports:
    """Report changes between two looks, in the log and, up to MAX_RECORDS, in the journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._left = MAX_RECORDS

    def add(self, known: Drift, now: Drift) -> None:
        new = [each for key, each in now.items() if known.get(key) != each]
        over = [each for key, each in known.items() if key not in now]
        for each in new[:MAX_LINES]:
            log.warning("drift: %s", each)
            facts = {"want": str(each.want), "have": str(each.have)}
            self._note(Note.DRIFT, each, facts)
        for each in over[:MAX_LINES]:
            log.info("drift over: %s %s is %s again", each.target, each.attribute, each.want)
            self._note(Note.DRIFT_OVER, each, {})
        more = len(new[MAX_LINES:]) + len(over[MAX_LINES:])
        if more:
            log.warning("drift: %d more lines are left out: see `nodeagent verify`", more)

    def _note(self, name: Note, each: Difference, facts: Mapping[str, str]) -> None:
        self._left -= 1
        if self._left >= 0:
            self._journal.note(name, target=each.target, attribute=each.attribute, **facts)
        elif self._left == -1:
            log.warning(
                "drift: %d are on record, the others of this run are only logged", MAX_RECORDS
            )


class _Heard:
    """A watch that notes that it was drained: a stop's descriptor is readable for other reasons."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.anything = False

    def fileno(self) -> int:
        return self._watch.fileno()

    def drain(self) -> None:
        self._watch.drain()
        self.anything = True


def _sleep(heard: Sequence[_Heard], stops: Sequence[Watch], resync: float, pause: float) -> bool:
    """Sleep until an event, and then for `pause` seconds, in which more events may follow.

    Returns whether the event came within QUIET_PERIOD, so that events do not pause.
    """
    began = time.monotonic()
    for each in heard:
        each.anything = False
    with suppress(WaitTimeout):
        wait_until_clear(
            lambda: () if any(each.anything for each in heard) else ("an event",),
            *heard,
            *stops,
            what="an event",
            timeout=resync,
            resync=resync,
            notice=math.inf,
        )
    never_pauses = time.monotonic() - began < QUIET_PERIOD
    with suppress(WaitTimeout):
        wait_until_clear(
            lambda: ("quiet",),
            *stops,
            what="quiet",
            timeout=pause,
            resync=pause,
            notice=math.inf,
        )
    for each in heard:
        each.drain()
    return never_pauses
