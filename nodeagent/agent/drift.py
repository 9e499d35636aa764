"""WATCH_DRIFT: what no longer is as it was when the node became ready is reported, and left alone.

nodeagent puts back what a reload destroyed, and no more: whoever changes the node afterwards has a
right to. But whoever looks for the moment at which a VF lost its VLAN finds it here.
"""

from __future__ import annotations

import logging
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
from nodeagent.record.journal import Journal
from nodeagent.state.model import NodeState

log = logging.getLogger(__name__)

SAFETY: Final = 60.0
"""Seconds after which the node is looked at without any event: autoprobe changes without one."""
QUIET: Final = 2.0
"""Seconds after an event before the look: a burst of events is one look."""
LONGEST: Final = 30.0
"""Seconds. Where events never pause, each look is twice as long after the last as that one was, up
to this."""
MOST: Final = 50
"""Lines of one look: when everything is gone at once, `nodeagent verify` says it better."""
RECORDED: Final = 500
"""Reports of one run in the journal, which keeps 1 MiB, and the reload's own records before all."""

Drift = Mapping[tuple[str, str], Difference]


def watch(node: Node, journal: Journal, *, safety: float = SAFETY, quiet: float = QUIET) -> None:
    """Until a stop, which raises Stopped: a line for each attribute that differs, and no more does.

    What counts is the node as it is now. A look that fails is reported, and is not the end.
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
            never_pauses = _sleep(heard, node.stops, safety, pause)
            pause = min(2 * pause, max(quiet, LONGEST)) if never_pauses else quiet


class _Reports:
    """What has changed between two looks, in the log and the journal. Neither grows for ever."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._left = RECORDED

    def add(self, known: Drift, now: Drift) -> None:
        new = [each for key, each in now.items() if known.get(key) != each]
        over = [each for key, each in known.items() if key not in now]
        for each in new[:MOST]:
            log.warning("drift: %s", each)
            facts = {"want": str(each.want), "have": str(each.have)}
            self._note("drift", each, facts)
        for each in over[:MOST]:
            log.info("drift over: %s %s is %s again", each.target, each.attribute, each.want)
            self._note("drift-over", each, {})
        more = len(new[MOST:]) + len(over[MOST:])
        if more:
            log.warning("drift: %d more lines are left out: see `nodeagent verify`", more)

    def _note(self, name: str, each: Difference, facts: Mapping[str, str]) -> None:
        self._left -= 1
        if self._left >= 0:
            self._journal.note(name, target=each.target, attribute=each.attribute, **facts)
        elif self._left == -1:
            log.warning("drift: %d are on record, the others of this run are only logged", RECORDED)


class _Heard:
    """A watch that remembers that it was drained: a stop's descriptor wakes for other reasons."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.anything = False

    def fileno(self) -> int:
        return self._watch.fileno()

    def drain(self) -> None:
        self._watch.drain()
        self.anything = True


def _sleep(heard: Sequence[_Heard], stops: Sequence[Watch], safety: float, pause: float) -> bool:
    """Until something happens, and then until there has been time for what belongs to it.

    Whether it happened within QUIET: then it had never ended.
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
            timeout=safety,
            resync=safety,
        )
    never_pauses = time.monotonic() - began < QUIET
    with suppress(WaitTimeout):
        wait_until_clear(lambda: ("quiet",), *stops, what="quiet", timeout=pause, resync=pause)
    for each in heard:
        each.drain()
    return never_pauses
