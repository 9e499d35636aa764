"""The objects on our netdevs in one network namespace: a module for each kind, and `Stack`.

Objects refer to interfaces by name: names are restored before anything is added to an interface.
Numbers are the kernel's (rtnetlink(7), uapi/linux/rtnetlink.h, if_addr.h, neighbour.h), because
tables, protocols and scopes have no names that are the same on every node. `None` and the empty
tuple mean: not set.

Other objects are made by the kernel, or survive a reload. The kernel makes routes of protocol
`kernel`, those of the local table, and the link-local address of protocol `kernel_ll` when an
address is added and when the link is set up. Rules with iif or oif survive: the kernel detaches
them, and attaches them again when an interface of that name appears (fib_rules_event(),
net/core/fib_rules.c). Bonds, bridges, VRFs and teams survive with their addresses, without ports.
"""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self

from nodeagent.state.stack.address import Address
from nodeagent.state.stack.child import CHILD_KINDS, Child
from nodeagent.state.stack.kind import Pairs, Stacked, StackStage
from nodeagent.state.stack.membership import MASTER_KINDS, Membership
from nodeagent.state.stack.neighbour import Neighbour
from nodeagent.state.stack.nexthop import NexthopObject
from nodeagent.state.stack.qdisc import QDISC_MAJOR, QDISC_ROOT, Qdisc
from nodeagent.state.stack.route import Nexthop, Route
from nodeagent.state.stack.token import Token

__all__ = (
    "CHILD_KINDS",
    "KINDS",
    "MASTER_KINDS",
    "QDISC_MAJOR",
    "QDISC_ROOT",
    "Address",
    "Child",
    "Membership",
    "Neighbour",
    "Nexthop",
    "NexthopObject",
    "Pairs",
    "Qdisc",
    "Route",
    "Stack",
    "StackStage",
    "Stacked",
    "Token",
)


@dataclass(frozen=True)
class Stack:
    """All objects on our netdevs: a field for each kind. The fields are the registry of kinds.

    The kinds are read and restored in the order of the fields. `children` and `qdiscs` have parents
    first; the others are in the kernel's order, which makes addresses primary or secondary. `lost`
    has a line for each object that the kernel removes with our netdevs and that is not restored.
    """

    children: tuple[Child, ...] = ()
    memberships: tuple[Membership, ...] = ()
    tokens: tuple[Token, ...] = ()
    addresses: tuple[Address, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    nexthops: tuple[NexthopObject, ...] = ()
    routes: tuple[Route, ...] = ()
    qdiscs: tuple[Qdisc, ...] = ()
    lost: tuple[str, ...] = field(default=(), compare=False)

    @property
    def sources(self) -> dict[str, str]:
        """The interface of each IPv4 address. The kernel removes routes from an address with it."""
        fourth = (each for each in self.addresses if not each.is_v6)
        return {each.address.partition("/")[0]: each.dev for each in fourth}

    @property
    def roots(self) -> dict[str, str]:
        """For each child's name, the name of the netdev that it is on, directly or indirectly."""
        found: dict[str, str] = {}
        for child in self.children:
            found[child.dev] = found.get(child.parent, child.parent)
        return found

    def without(self, gone: Collection[str]) -> Self:
        """The objects that need none of these netdevs: a multipath route needs all of its own."""
        roots, sources = self.roots, self.sources

        def stays(thing: Stacked) -> bool:
            return not any(roots.get(name, name) in gone for name in thing.removed_with(sources))

        kept = {name: tuple(filter(stays, getattr(self, name))) for name in KINDS.values()}
        return replace(self, **kept)

    def things(self) -> Iterator[Stacked]:
        """All objects, in the order in which they are restored."""
        for name in KINDS.values():
            yield from getattr(self, name)


KINDS: Final[Mapping[type[Stacked], str]] = {
    typing.get_args(hint)[0]: name
    for name, hint in typing.get_type_hints(Stack).items()
    if name != "lost"
}
"""The kinds, in the order in which they are restored, each with its field of `Stack`."""
