"""WATCH_DRIFT: what no longer is as it was when the node became ready is reported, and left alone.

nodeagent puts back what a reload destroyed, and no more: whoever changes the node afterwards has a
right to. But whoever looks for the moment at which a VF lost its VLAN finds it here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from nodeagent.errors import KernelError, UnavailableError, WaitTimeout
from nodeagent.journal import Journal
from nodeagent.kernel.events import Watch, wait_until_clear
from nodeagent.sriov.differences import Difference, differences
from nodeagent.sriov.node import Node

log = logging.getLogger(__name__)

SAFETY: Final = 60.0
"""Seconds after which the node is looked at without any event: autoprobe changes without one."""
QUIET: Final = 2.0
"""Seconds after an event before the look: a burst of events is one look, a storm one each 2 s."""

Drift = Mapping[tuple[str, str], Difference]


def watch(node: Node, journal: Journal, *, safety: float = SAFETY, quiet: float = QUIET) -> None:
    """Until a stop, which raises Stopped: a line for each attribute that differs, and no more does.

    What counts is the node as it is now. A look that fails is reported, and is not the end.
    """
    want = node.observe()
    known: Drift = {}
    log.info("watching for drift: it is reported, nothing is changed")
    stops = () if node.stop is None else (node.stop,)
    with node.watches() as watches:
        heard = [_Heard(each) for each in watches if each not in stops]
        while True:
            _sleep(heard, stops, safety, quiet)
            try:
                have = node.observe()
            except (KernelError, UnavailableError) as error:
                log.warning("cannot look for drift: %s", error.message)
                continue
            now = {(each.target, each.attribute): each for each in differences(want, have)}
            report(known, now, journal)
            known = now


def report(known: Drift, now: Drift, journal: Journal) -> None:
    """What has changed between two looks, in the log and the journal."""
    for key, each in now.items():
        if known.get(key) != each:
            log.warning("drift: %s", each)
            facts = {"want": str(each.want), "have": str(each.have)}
            journal.note("drift", target=each.target, attribute=each.attribute, **facts)
    for key, each in known.items():
        if key not in now:
            log.info("drift over: %s %s is %s again", each.target, each.attribute, each.want)
            journal.note("drift-over", target=each.target, attribute=each.attribute)


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


def _sleep(heard: Sequence[_Heard], stops: Sequence[Watch], safety: float, quiet: float) -> None:
    """Until something happens, and then until there has been time for what belongs to it."""
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
    with suppress(WaitTimeout):
        wait_until_clear(lambda: ("quiet",), *stops, what="quiet", timeout=quiet, resync=quiet)
    for each in heard:
        each.drain()
