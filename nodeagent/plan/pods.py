"""VFs whose interfaces belong into pods: moved there and set up there. Pure, like the plan.

An interface that somebody has put into yet another namespace is left there: it is theirs now.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping

from nodeagent.plan import sysctls
from nodeagent.plan.actions import (
    AddStacked,
    InPod,
    MoveRdma,
    MoveVf,
    SetEthtool,
    SetLink,
    SetSysctls,
)
from nodeagent.plan.ethtool import to_set
from nodeagent.plan.stack import is_there
from nodeagent.plan.stages import StageName
from nodeagent.state.attributes import given, needs_down
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import DeviceHandle, Inside, Netdev, NodeState, Pf, Setting, Vf
from nodeagent.state.namespaces import Namespace
from nodeagent.state.stack import Stack, Stacked, renamed, roots, stands_on

LinkChanges = Callable[[Netdev, Netdev | None], LinkAttributes]
Known = Callable[[Pf, Vf], Vf | None]
"""A VF as it is now; None where it, or its interface, is made anew."""

Step = tuple[StageName, MoveVf | MoveRdma | InPod]


def pod_actions(
    want: NodeState, have: NodeState, known: Known, link_changes: LinkChanges
) -> Iterator[Step]:
    """Stage and action for each VF that belongs into a pod, and for what stands on it there."""
    for pf in want.pfs:
        usual = _usual_ethtool(pf)
        for vf in pf.vfs:
            if vf.inside is None:
                continue
            namespace = want.namespace(vf.inside.namespace)
            now = known(pf, vf)
            place = None if now is None else now.inside
            if place is not None and not is_place(place, have, namespace):
                continue
            name = vf.inside.netdev.name
            bare = dataclasses.replace(namespace, stack=Stack(), sysctls=())
            if place is None:
                address = vf.address or (now and now.address) or ""
                carrier = vf.inside.carrier
                yield StageName.MOVE_VFS, MoveVf(pf.handle, vf.index, address, bare, name, carrier)
            target = (pf.handle, vf.index)
            device = vf.inside.rdma
            if device is not None and (place is None or place.rdma is None):
                yield StageName.RDMA_MOVES, MoveRdma(*target, bare, device)
            inner: list[SetLink | SetEthtool | SetSysctls | AddStacked]
            now_there = namespace if place is None else have.namespace(place.namespace)
            values = sysctls.to_set(
                vf.inside.netdev, None if place is None else place.netdev, namespace, now_there
            )
            inner = [SetSysctls(*target, values)] if values else []
            inner += _own(target, vf.inside, place, link_changes)
            if place is None and _ethtool_of(vf) not in usual:
                # what a new interface starts with is not known: all of it, before it goes up
                inner.insert(0, SetEthtool(*target, _ethtool_of(vf)))
            inner += _stacked(target, vf.inside, place, want, have)
            yield from ((StageName.IN_PODS, InPod(*target, bare, name, each)) for each in inner)


def is_place(place: Inside, state: NodeState, namespace: Namespace) -> bool:
    """Whether an interface of `state` is in that namespace."""
    return state.namespace(place.namespace) == namespace


def things_of(state: NodeState, inode: int) -> Mapping[Stacked, tuple[DeviceHandle, int] | None]:
    """What stands in a namespace, each with the VF on which: where on several, on the first."""
    owners = {
        vf.inside.netdev.name: (pf.handle, vf.index)
        for pf in state.pfs
        for vf in pf.vfs
        if vf.inside is not None and vf.inside.namespace == inode
    }
    stack = state.namespace(inode).stack
    owners |= {child: owners[root] for child, root in roots(stack).items() if root in owners}
    sources = stack.sources
    return {
        thing: next((owners[dev] for dev in stands_on(thing, sources) if dev in owners), None)
        for thing in stack.things()
    }


def new_names(want: NodeState, have: NodeState, inode: int) -> dict[str, str]:
    """The names that our interfaces in a namespace have now, and those that they shall have."""
    wanted = {
        (pf.handle, vf.index): vf.inside.netdev.name
        for pf in want.pfs
        for vf in pf.vfs
        if vf.inside is not None and vf.inside.namespace == inode
    }
    return {
        vf.inside.netdev.name: wanted[pf.handle, vf.index]
        for pf in have.pfs
        for vf in pf.vfs
        if vf.inside is not None and (pf.handle, vf.index) in wanted
    }


def _usual_ethtool(pf: Pf) -> Collection[tuple[Setting, ...]]:
    """Settings that several VFs of a PF share are what their driver starts with.

    To look at them costs a pod more than all else that is done for it. Should they not be, the next
    look at the node tells.
    """
    count = Counter(map(_ethtool_of, pf.vfs))
    return {(), *(settings for settings, number in count.items() if number > 1)}


def _ethtool_of(vf: Vf) -> tuple[Setting, ...]:
    netdev = vf.netdev if vf.inside is None else vf.inside.netdev
    return (netdev and netdev.ethtool) or ()


def _own(
    target: tuple[DeviceHandle, int], want: Inside, now: Inside | None, link_changes: LinkChanges
) -> Iterator[SetLink | SetEthtool]:
    """The interface itself; up is the last."""
    known = None if now is None else now.netdev
    if ethtool := to_set(want.netdev, known):
        yield SetEthtool(*target, ethtool)
    changes = link_changes(want.netdev, known)
    if known is None:
        changes = dataclasses.replace(changes, name=None)  # it comes with the move
    elif known.up and needs_down(changes):
        yield SetLink(*target, up=False)
    if values := given(changes):
        yield SetLink(*target, **values)


def _stacked(
    target: tuple[DeviceHandle, int],
    want: Inside,
    now: Inside | None,
    wanted: NodeState,
    have: NodeState,
) -> Iterator[AddStacked]:
    """What stands on it there."""
    there: dict[Stacked, Stacked] = {}
    defaults = wanted.namespace(want.namespace).sysctls
    if now is not None:
        names = new_names(wanted, have, want.namespace)
        namespace = have.namespace(now.namespace)
        things = (renamed(thing, names) for thing in namespace.stack.things())
        there, defaults = {thing: thing for thing in things}, namespace.sysctls
    for thing, owner in things_of(wanted, want.namespace).items():
        if owner == target and not is_there(thing, there, defaults):
            yield AddStacked(*target, thing)
