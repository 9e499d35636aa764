"""Move interfaces of VFs into pods, and set them up there. Pure, like the plan.

An interface that is in a third namespace belongs to another pod by now, and stays there.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping

from nodeagent.plan import stack, sysctls
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
from nodeagent.plan.stages import StageName
from nodeagent.state.attributes import given, needs_down
from nodeagent.state.ethtool import Setting
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import (
    DeviceHandle,
    Netdev,
    NodeState,
    Pf,
    PodNetdev,
    Target,
    Vf,
)
from nodeagent.state.namespaces import Namespace
from nodeagent.state.stack import Stack

LinkChanges = Callable[[Netdev, Netdev | None], LinkAttributes]
Known = Callable[[Pf, Vf], Vf | None]
"""A VF at present; None if it, or its interface, is created by the plan."""

Step = tuple[StageName, MoveVf | MoveRdma | InPod]


def pod_actions(
    want: NodeState, have: NodeState, known: Known, link_changes: LinkChanges
) -> Iterator[Step]:
    """Stage and action for each VF that belongs into a pod, and for the objects on it there."""
    stacked = _stacked(want, have, known)
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
                # the initial settings of a new interface are not known: all, before it is set up
                inner.insert(0, SetEthtool(*target, _ethtool_of(vf)))
            inner += stacked.get(Target(*target), ())
            yield from ((StageName.IN_PODS, InPod(*target, bare, name, each)) for each in inner)


def is_place(place: PodNetdev, state: NodeState, namespace: Namespace) -> bool:
    """Whether an interface of `state` is in that namespace."""
    return state.namespace(place.namespace) == namespace


def _usual_ethtool(pf: Pf) -> Collection[tuple[Setting, ...]]:
    """Settings that several VFs of a PF share: presumably the driver's defaults.

    Setting them would take longer than everything else for a pod. If they are no defaults, the next
    comparison finds the difference.
    """
    count = Counter(map(_ethtool_of, pf.vfs))
    return {(), *(settings for settings, number in count.items() if number > 1)}


def _ethtool_of(vf: Vf) -> tuple[Setting, ...]:
    netdev = vf.netdev if vf.inside is None else vf.inside.netdev
    return (netdev and netdev.ethtool) or ()


def _own(
    target: tuple[DeviceHandle, int],
    want: PodNetdev,
    now: PodNetdev | None,
    link_changes: LinkChanges,
) -> Iterator[SetLink | SetEthtool]:
    """The interface itself; it is set up last."""
    known = None if now is None else now.netdev
    if ethtool := to_set(want.netdev, known):
        yield SetEthtool(*target, ethtool)
    changes = link_changes(want.netdev, known)
    if known is None:
        changes = dataclasses.replace(changes, name=None)  # the move sets it
    elif known.up and needs_down(changes):
        yield SetLink(*target, up=False)
    if values := given(changes):
        yield SetLink(*target, **values)


def _stacked(want: NodeState, have: NodeState, known: Known) -> Mapping[Target, list[AddStacked]]:
    """The missing objects on each VF's interface; on a new interface, all."""
    anew = {
        Target(pf.handle, vf.index)
        for pf in want.pfs
        for vf in pf.vfs
        if vf.inside is not None and ((now := known(pf, vf)) is None or now.inside is None)
    }
    found: dict[Target, list[AddStacked]] = {}
    for namespace in want.namespaces:
        place = stack.pod(want, have, namespace)
        place = dataclasses.replace(place, absent={*place.absent, *anew})
        for each in place.lacking():
            action = AddStacked(*each.owner, each.thing, anew=each.anew)
            found.setdefault(each.owner, []).append(action)
    return found
