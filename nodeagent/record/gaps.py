"""How long each VF was unusable in a reload: its moments, as noted, on record, in the timeline.

Moments are kept in memory and recorded in one note, `vf-times`: a record for each would be hundreds
of writes to the disk while the VFs are gone. The moments of a run that was killed are lost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from nodeagent.state.model import Target


class Moment(StrEnum):
    """The moments of a VF in a reload, in their order."""

    GONE = "gone"
    BOUND = "bound"
    SETTLED = "settled"
    """udev has finished with its interface."""
    SET_UP = "set_up"
    """The last setting that it lacked is set."""
    IN_POD = "in_pod"


@dataclass(frozen=True)
class VfGap:
    """One VF's moments, in seconds since the first VFs were removed. None: not noted.

    `gone` is when it was unbound individually, or 0. `seconds` is from then to its last moment;
    None if it is not bound again.
    """

    vf: str
    gone: float
    bound: float | None = None
    settled: float | None = None
    set_up: float | None = None
    in_pod: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Gaps:
    """The gaps of the VFs that are bound again: median, 95th percentile and longest, in seconds.

    `vf` is the VF with the longest gap. Percentiles are by the nearest rank.
    """

    median: float
    p95: float
    worst: float
    vf: str


class VfTimes:
    """The moments that this process has noted, by VF. Threads may note them."""

    def __init__(self) -> None:
        self._noted: dict[Target, dict[Moment, float]] = {}

    def note(self, vf: Target, moment: Moment, at: float | None = None) -> None:
        """A VF has reached a moment, now or `at`. The first GONE counts; of others, the last."""
        clock = time.clock_gettime(time.CLOCK_BOOTTIME) if at is None else at
        own = self._noted.setdefault(vf, {})
        if moment is Moment.BOUND:
            own.pop(Moment.SETTLED, None)  # its interface is a new one
        own[moment] = own.get(moment, clock) if moment is Moment.GONE else clock

    def has(self, vf: Target, moment: Moment) -> bool:
        """Whether the VF has reached it."""
        return moment in self._noted.get(vf, {})

    def taken(self) -> dict[str, str]:
        """The facts of the note; the moments are removed."""
        noted, self._noted = self._noted, {}
        return {
            str(vf): " ".join(f"{moment}={at:.3f}" for moment, at in own.items())
            for vf, own in noted.items()
        }


def moments(fact: str) -> dict[str, float]:
    """The moments in a fact of the note; anything else is skipped."""
    found: dict[str, float] = {}
    for word in fact.split():
        name, _, number = word.partition("=")
        with suppress(ValueError):
            if math.isfinite(at := float(number)):
                found[Moment(name)] = at
    return found


def gap(vf: str, noted: Mapping[str, float]) -> VfGap:
    """A VF's gap, from its moments in seconds since the first VFs were removed."""
    at = {moment: round(noted[moment], 3) for moment in Moment if moment in noted}
    gone = max(at.pop(Moment.GONE, 0.0), 0.0)
    back = round(max(at.values()) - gone, 3) if Moment.BOUND in at else None
    return VfGap(vf, gone, **{str(moment): when for moment, when in at.items()}, seconds=back)


def summary(gaps: Iterable[VfGap]) -> Gaps | None:
    """The summary; None if no VF is bound again."""
    back = sorted((each.seconds, each.vf) for each in gaps if each.seconds is not None)
    if not back:
        return None
    worst, vf = back[-1]
    return Gaps(_percentile(back, 50), _percentile(back, 95), worst, vf)


def _percentile(ordered: Sequence[tuple[float, str]], percent: int) -> float:
    return ordered[math.ceil(len(ordered) * percent / 100) - 1][0]
