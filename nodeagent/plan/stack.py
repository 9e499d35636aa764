"""What has to be put back on top of our netdevs: pure, like `nodeagent.plan.plan`.

What is there beyond what is wanted stays: another program may have put it there since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from nodeagent.plan.actions import AddStacked, Stage
from nodeagent.plan.stages import StageName
from nodeagent.plan.sysctls import missing
from nodeagent.state.model import DeviceHandle, NodeState, Port, Sysctl
from nodeagent.state.stack import (
    Address,
    Child,
    Membership,
    Neighbour,
    Qdisc,
    Route,
    Stack,
    Stacked,
    renamed,
    roots,
    stands_on,
)

STAGE_OF: Final = {
    Child: StageName.CHILDREN,
    Membership: StageName.MASTERS,
    Address: StageName.ADDRESSES,
    Neighbour: StageName.NEIGHBOURS,
    Route: StageName.ROUTES,
    Qdisc: StageName.QDISCS,
}


def stack_actions(want: NodeState, have: NodeState) -> Iterator[tuple[StageName, AddStacked]]:
    """Stage and action for each thing that is wanted and is not there.

    Names are compared as they will be: what stands on a netdev is not lost by its renaming.
    """
    if want.stack is None:
        return
    names = _new_names(want, have)
    things = (renamed(thing, names) for thing in (have.stack or Stack()).things())
    there = {thing: thing for thing in things}
    owners, sources = owners_of(want), want.stack.sources
    called = {owner: name for name, owner in owners_of_netdevs(want)}
    for thing in want.stack.things():
        owner = next((owners[dev] for dev in stands_on(thing, sources) if dev in owners), None)
        if owner is not None and not is_there(thing, there, have.sysctls):
            yield STAGE_OF[type(thing)], AddStacked(*owner, thing, called[owner])


def without_stacked(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages that do not put anything on interfaces."""
    return tuple(stage for stage in stages if stage.name not in STAGE_OF.values())


def is_there(
    thing: Stacked, there: Mapping[Stacked, Stacked], defaults: tuple[Sysctl, ...]
) -> bool:
    """Whether `thing` is among what is `there`, a child with its sysctls (`defaults`: of now)."""
    found = there.get(thing)
    if isinstance(thing, Child) and isinstance(found, Child):
        return not missing(thing.sysctls, found.sysctls, defaults)
    return found is not None


def owners_of(state: NodeState) -> dict[str, tuple[DeviceHandle, Port]]:
    """Whose netdev it is, by name; a child is of the netdev that it stands on in the end."""
    owners = dict(owners_of_netdevs(state))
    for child, root in roots(state.stack or Stack()).items():
        if root in owners:
            owners[child] = owners[root]
    return owners


def _new_names(want: NodeState, have: NodeState) -> dict[str, str]:
    """The names that our netdevs have now, and those that they shall have."""
    wanted = {owner: name for name, owner in owners_of_netdevs(want)}
    return {name: wanted.get(owner, name) for name, owner in owners_of_netdevs(have)}


def owners_of_netdevs(state: NodeState) -> Iterator[tuple[str, tuple[DeviceHandle, Port]]]:
    """Each netdev's name and whose it is."""
    for pf in state.pfs:
        for port, netdev in pf.netdevs():
            yield netdev.name, (pf.handle, port)
