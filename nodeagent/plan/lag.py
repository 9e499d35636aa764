"""The plan for LAGs: which PFs join their bond before VFs are bound, and which LAGs to wait for.

mlx5 makes a LAG of a bond when the card's ports, and only they, are in it, with all eswitches in
the same mode; firmware refuses to make one while a VF is bound (mlx5_activate_lag(), core/lag).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from nodeagent.plan.actions import AddStacked, AwaitLag
from nodeagent.plan.stages import AnyStage, StageName
from nodeagent.state.lag import ESW_MULTIPORT
from nodeagent.state.model import DeviceHandle, NodeState, Param, Pf
from nodeagent.state.stack import Membership

BONDS: Final = ("bond", "team")


def must_make(want: Pf, have: Pf) -> bool:
    """Whether a LAG has to be made, for which no VF may be bound.

    False if `have` does not report a LAG: the result could not be verified.
    """
    if _is_multiport(want) and not _is_multiport(have):
        return True
    if want.lag is None or have.lag is None:
        return False
    return want.lag.is_made and not want.lag.is_met_by(have.lag)


def stage_of(param: Param) -> StageName:
    """The stage of a parameter: esw_multiport makes a LAG, as a bond does."""
    makes = param.name == ESW_MULTIPORT and param.value is True
    return StageName.LAG if makes else StageName.PARAMETERS


def steps(
    want: NodeState,
    stacked: Iterable[tuple[AnyStage, AddStacked]],
    remade: Collection[DeviceHandle],
) -> Iterator[tuple[AnyStage, AddStacked | AwaitLag]]:
    """`stacked`, with the ports of LAGs in the stage before VFs are bound, and a wait for each LAG.

    `remade`: the PFs whose LAG an earlier stage ends.
    """
    joining: set[DeviceHandle] = set()
    for stage, action in stacked:
        pf = want.pf(action.pf)
        is_early = pf is not None and action.thing == _port(want, pf) and _joins_early(pf)
        if is_early:
            joining.add(action.pf)
        yield StageName.LAG if is_early else stage, action
    for pf in want.pfs:
        if pf.handle in joining | {*remade} and pf.lag is not None and pf.lag.is_made:
            yield StageName.AWAIT_LAG, AwaitLag(pf.handle, pf.lag, _port(want, pf), _manager(pf))


def unknown(state: NodeState) -> Iterator[str]:
    """A line for each PF in a bond that does not report whether the card has a LAG."""
    for pf in state.pfs:
        if pf.lag is None and pf.eswitch_mode is not None and (port := _port(state, pf)):
            yield f"{pf.handle}: whether its card makes a LAG of {port.kind} {port.master}"


def no_longer_offered(want: NodeState, have: NodeState) -> Iterator[str]:
    """A line for each PF that had a LAG and does not report any now."""
    for pf in want.pfs:
        now = have.pf(pf.handle)
        if pf.lag is not None and pf.lag.active and now is not None and now.lag is None:
            yield f"{pf.handle} lag ({pf.lag}; debugfs would report it)"


def _is_multiport(pf: Pf) -> bool:
    return any(stage_of(param) is StageName.LAG for param in pf.params)


def _joins_early(pf: Pf) -> bool:
    """Whether it joins its bond before VFs are bound, so that a LAG is made."""
    return pf.is_switchdev if pf.lag is None else pf.lag.is_made


def _port(state: NodeState, pf: Pf) -> Membership | None:
    """The membership of a PF's own interface in a bond."""
    ports = () if state.stack is None or pf.netdev is None else state.stack.memberships
    name = None if pf.netdev is None else pf.netdev.name
    return next((each for each in ports if each.dev == name and each.kind in BONDS), None)


def _manager(pf: Pf) -> str | None:
    return None if pf.netdev is None else pf.netdev.manager
