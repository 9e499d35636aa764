"""What has to be put back on top of our netdevs: pure, like `nodeagent.sriov.plan`.

What is there beyond what is wanted stays: another program may have put it there since.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from nodeagent.sriov.actions import AddStacked
from nodeagent.sriov.model import DeviceHandle, NodeState, Port
from nodeagent.sriov.stack import (
    Address,
    Child,
    Membership,
    Neighbour,
    Route,
    Stack,
    devices_of,
    renamed,
    roots,
)

STAGE_OF: Final = {
    Child: "add children",
    Membership: "join masters",
    Address: "add addresses",
    Neighbour: "add neighbours",
    Route: "add routes",
}


def stack_actions(want: NodeState, have: NodeState) -> Iterator[tuple[str, AddStacked]]:
    """Stage and action for each thing that is wanted and is not there.

    Names are compared as they will be: what stands on a netdev is not lost by its renaming.
    """
    if want.stack is None:
        return
    names = _new_names(want, have)
    there = {renamed(thing, names) for thing in (have.stack or Stack()).things()}
    owners = owners_of(want)
    for thing in want.stack.things():
        owner = next((owners[dev] for dev in devices_of(thing) if dev in owners), None)
        if thing not in there and owner is not None:
            yield STAGE_OF[type(thing)], AddStacked(*owner, thing)


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
