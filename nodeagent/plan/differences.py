"""What differs between two states, attribute by attribute: the lines of `verify`.

Nothing differs exactly when the plan is empty; a property test holds the two together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from nodeagent.plan import rdma, sysctls
from nodeagent.plan.ethtool import differing
from nodeagent.plan.pods import new_names, things_of
from nodeagent.plan.stack import is_there, owners_of
from nodeagent.state.attributes import rows
from nodeagent.state.eswitch import EswitchAttributes
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import Netdev, NodeState, Pf, Vf
from nodeagent.state.stack import (
    Address,
    Child,
    Membership,
    Neighbour,
    Qdisc,
    Route,
    Stack,
    Stacked,
    devices_of,
    renamed,
    stands_on,
)
from nodeagent.state.vf import VfAttributes


@dataclass(frozen=True)
class Difference:
    """One attribute that is not as wanted. Its text is the line that people see."""

    target: str
    attribute: str
    want: object
    have: object

    def __str__(self) -> str:
        return f"{self.target} {self.attribute}: want {self.want}, have {self.have}"


def differences(want: NodeState, have: NodeState) -> tuple[Difference, ...]:
    """Every attribute of `want` that `have` does not have, in the order of devices."""
    devices = itertools.chain.from_iterable(_pf_differences(pf, want, have) for pf in want.pfs)
    return (
        *devices,
        *_sysctl_differences(want, have),
        *(Difference(on, "rdma", name, now) for on, name, now in rdma.differing(want, have)),
        *_stack_differences(want, have),
        *_pod_stack_differences(want, have),
    )


def shared_macs(state: NodeState) -> tuple[str, ...]:
    """A line for each MAC that more than one VF's interface has: a race's work, or a person's.

    A PF's interface and a representor may share a VF's address; two VFs may not (SNO#720).
    """
    owners: dict[str, list[str]] = {}
    for pf in state.pfs:
        for vf in pf.vfs:
            if vf.netdev is not None and vf.netdev.mac is not None and not vf.netdev.mac.is_zero:
                owners.setdefault(vf.netdev.mac, []).append(f"{pf.handle} vf {vf.index}")
    return tuple(f"{mac}: {', '.join(vfs)}" for mac, vfs in owners.items() if len(vfs) > 1)


def made_up(state: NodeState) -> tuple[str, ...]:
    """A line for each VF whose MAC its driver made up: its PF has none for it (admin MAC zero)."""
    return tuple(
        f"{pf.handle} vf {vf.index} {vf.netdev.mac}"
        for pf in state.pfs
        for vf in pf.vfs
        if vf.netdev is not None and vf.admin_mac is not None and vf.admin_mac.is_zero
    )


def unseen(state: NodeState) -> tuple[str, ...]:
    """VFs bound to the NIC's own driver whose interface is in no namespace that can be seen."""
    return tuple(
        f"{pf.handle} vf {vf.index}"
        for pf in state.pfs
        for vf in pf.vfs
        if vf.driver == state.driver and vf.netdev is None and vf.inside is None
    )


def headless(state: NodeState) -> tuple[str, ...]:
    """PFs with VFs whose own interface is not here: nobody tells what they hold for their VFs."""
    return tuple(str(pf.handle) for pf in state.pfs if pf.numvfs and pf.netdev is None)


def _pf_differences(want: Pf, wanted: NodeState, state: NodeState) -> Iterator[Difference]:
    target = str(want.handle)
    have = state.pf(want.handle)
    if have is None:
        yield Difference(target, "driver", state.driver, "not bound, or no such device")
        return
    for name in ("numvfs", "autoprobe", *rows(EswitchAttributes)):
        yield from _difference(target, name, getattr(want, name), getattr(have, name))
    yield from _netdev_differences(target, want.netdev, have.netdev)
    known = {param.name: param.value for param in have.params}
    for param in want.params:
        yield from _difference(target, param.name, param.value, known.get(param.name))
    for vf in want.vfs:
        now = have.vf(vf.index)
        yield from _vf_differences(f"{target} vf {vf.index}", vf, now, state)
        yield from _inside_differences(f"{target} vf {vf.index}", vf, now, wanted, state)
    for each in want.representors:
        netdev = have.netdev_of(each.port)
        yield from _netdev_differences(f"{target} representor {each.port}", each.netdev, netdev)


def _inside_differences(
    target: str, want: Vf, have: Vf | None, wanted: NodeState, state: NodeState
) -> Iterator[Difference]:
    """Where its interface is, and what it is like there."""
    if want.inside is None or have is None:
        return
    place = wanted.namespace(want.inside.namespace)
    if have.inside is None:
        where = "not to be found" if have.netdev is None else "here"
        yield Difference(target, "namespace", place, where)
        return
    now = state.namespace(have.inside.namespace)
    if now != place:
        yield Difference(target, "namespace", place, now)
        return
    yield from _netdev_differences(target, want.inside.netdev, have.inside.netdev)
    if want.inside.rdma is not None and have.inside.rdma is None:
        yield Difference(target, f"namespace of RDMA device {want.inside.rdma}", place, "another")
    for (key, value), is_now in sysctls.differing(
        want.inside.netdev, have.inside.netdev, place, now
    ):
        yield Difference(target, f"net.{key}", value, is_now)


def _vf_differences(
    target: str, want: Vf, have: Vf | None, state: NodeState
) -> Iterator[Difference]:
    if have is None:
        yield Difference(target, "function", "present", "missing")
        return
    for name in ("driver", "driver_override", *rows(VfAttributes)):
        yield from _difference(target, name, getattr(want, name), getattr(have, name))
    if want.netdev is not None and have.netdev is None and have.inside is not None:
        where = f"{have.inside.netdev.name} in {state.namespace(have.inside.namespace)}"
        yield Difference(target, "netdev", want.netdev.name, where)
        return
    yield from _netdev_differences(target, want.netdev, have.netdev)


def _netdev_differences(
    target: str, want: Netdev | None, have: Netdev | None
) -> Iterator[Difference]:
    if want is None:
        return
    if have is None:
        yield Difference(target, "netdev", want.name, "missing")
        return
    for name in rows(LinkAttributes):
        yield from _difference(target, name, getattr(want, name), getattr(have, name))
    for (key, value), now in differing(want, have):
        yield Difference(target, key, value, now)


def _sysctl_differences(want: NodeState, have: NodeState) -> Iterator[Difference]:
    for pf in want.pfs:
        known = have.pf(pf.handle)
        for port, netdev in pf.netdevs():
            now = None if known is None else known.netdev_of(port)
            if now is not None:
                for (key, value), is_now in sysctls.differing(netdev, now, want, have):
                    yield Difference(f"{pf.handle} {now.name}", f"net.{key}", value, is_now)


def _difference(target: str, attribute: str, want: object, have: object) -> Iterator[Difference]:
    if want is not None and want != have:
        yield Difference(target, attribute, want, "unknown" if have is None else have)


def _stack_differences(want: NodeState, have: NodeState) -> Iterator[Difference]:
    """What stands on our netdevs no more; what is of an interface nobody has is no difference."""
    owners, sources = owners_of(want), (want.stack or Stack()).sources
    there = {place(thing): thing for thing in (have.stack or Stack()).things()}
    present = {thing: thing for thing in there.values()}
    for thing in (want.stack or Stack()).things():
        is_ours = any(dev in owners for dev in stands_on(thing, sources))
        if is_ours and not is_there(thing, present, have.sysctls):
            dev = thing.dev if isinstance(thing, Child) else devices_of(thing)[0]
            kind = type(thing).__name__.lower()
            yield Difference(dev, kind, thing, there.get(place(thing), "missing"))


def _pod_stack_differences(want: NodeState, have: NodeState) -> Iterator[Difference]:
    """The same inside of namespaces that both have; the others' interfaces are told already."""
    for namespace in want.namespaces:
        there: dict[tuple[object, ...], Stacked] = {}
        defaults = namespace.sysctls
        if namespace in have.namespaces:
            names = new_names(want, have, namespace.inode)
            stack = have.namespace(namespace.inode).stack
            things = (renamed(thing, names) for thing in stack.things())
            there = {place(thing): thing for thing in things}
            defaults = have.namespace(namespace.inode).sysctls
        present = {thing: thing for thing in there.values()}
        for thing, owner in things_of(want, namespace.inode).items():
            now = there.get(place(thing), "missing")
            if owner is not None and not is_there(thing, present, defaults):
                dev = thing.dev if isinstance(thing, Child) else devices_of(thing)[0]
                yield Difference(f"{dev} in {namespace}", type(thing).__name__.lower(), thing, now)


def place(thing: Stacked) -> tuple[object, ...]:
    """What can be there only once."""
    match thing:
        case Child() | Membership():
            return type(thing), thing.dev
        case Address() | Neighbour():
            return type(thing), thing.dev, thing.address
        case Qdisc():
            return Qdisc, thing.dev, thing.parent
        case Route():
            return Route, thing
