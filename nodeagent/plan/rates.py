"""Rate objects as values: which are not as wanted, and which a driver does not have.

A leaf is compared only if the eswitch has it: a subfunction's is removed with it, and a driver
without rates has none. It is named when the node is verified (`no_longer_offered`). A node is made
where the eswitch has rates at all; nodes that are not wanted are left alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.state.model import NodeState, Pf
from nodeagent.state.rates import Rate


def differing(want: Pf, have: Pf) -> Iterator[tuple[Rate, Rate | None]]:
    """Each that is not as wanted, and as it is; None for a node that is missing."""
    if want.rates is None or have.rates is None or want.rates == have.rates:
        return
    known = by_key(have)
    for each in want.rates:
        now = known.get(each.key)
        if now != each and (each.is_node or now is not None):
            yield each, now


def by_key(pf: Pf) -> dict[tuple[bool, str], Rate]:
    """The rate objects of a PF's eswitch."""
    return {each.key: each for each in pf.rates or ()}


def set_by_hand(pf: Pf) -> Iterator[Rate]:
    """Those that a change of the eswitch's mode loses."""
    return (each for each in pf.rates or () if not each.is_fresh)


def no_longer_offered(want: NodeState, have: NodeState) -> Iterator[str]:
    """A line for each leaf that was set, and that the eswitch does not have any more."""
    for pf in want.pfs:
        now = have.pf(pf.handle)
        if now is None:
            continue
        known = by_key(now)
        for each in set_by_hand(pf):
            if each.key not in known:
                yield f"{pf.handle} {each} ({each.words()})"
