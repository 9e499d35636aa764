"""What is stacked on our netdevs in one network namespace: a module a kind, and `Stack` of all.

Everything names interfaces by their names: these are put back before anything is stacked on them.
Numbers are the kernel's (rtnetlink(7), uapi/linux/rtnetlink.h, if_addr.h, neighbour.h), because
tables, protocols and scopes have no other names that hold on every node. `None` and the empty
tuple mean: not set.

What is not here comes by itself, or survives. The kernel makes routes of protocol `kernel`, the
local table's, and the link-local address of protocol `kernel_ll` when an address is added and when
the link goes up. Rules with iif or oif stay: the kernel detaches them by name and attaches them
again when an interface of that name comes (fib_rules_event(), net/core/fib_rules.c). Bonds,
bridges, VRFs and teams stay, with their addresses: they lose their ports only.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from nodeagent.state.stack.address import Address
from nodeagent.state.stack.child import CHILD_KINDS, Child
from nodeagent.state.stack.kind import Pairs, Stacked, StackStage
from nodeagent.state.stack.membership import MASTER_KINDS, Membership
from nodeagent.state.stack.neighbour import Neighbour
from nodeagent.state.stack.qdisc import QDISC_MAJOR, QDISC_ROOT, Qdisc
from nodeagent.state.stack.route import Nexthop, Route

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
    "Pairs",
    "Qdisc",
    "Route",
    "Stack",
    "StackStage",
    "Stacked",
)


@dataclass(frozen=True)
class Stack:
    """All that is stacked on our netdevs: a field a kind, which is the registry of kinds.

    The order of the fields is that in which kinds are read and put back. `children` and `qdiscs`
    have parents first, the rest is in the kernel's order, which for addresses means something
    (primary and secondary). `lost` is in words: what the kernel removes with our netdevs and is not
    put back.
    """

    children: tuple[Child, ...] = ()
    memberships: tuple[Membership, ...] = ()
    addresses: tuple[Address, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    routes: tuple[Route, ...] = ()
    qdiscs: tuple[Qdisc, ...] = ()
    lost: tuple[str, ...] = field(default=(), compare=False)

    @property
    def sources(self) -> dict[str, str]:
        """By IPv4 address its interface. The kernel removes a route from it with the address."""
        fourth = (each for each in self.addresses if not each.is_v6)
        return {each.address.partition("/")[0]: each.dev for each in fourth}

    @property
    def roots(self) -> dict[str, str]:
        """Each child's name, and the name of the netdev that is at the bottom of it."""
        found: dict[str, str] = {}
        for child in self.children:
            found[child.dev] = found.get(child.parent, child.parent)
        return found

    def things(self) -> Iterator[Stacked]:
        """Everything, in the order in which it can be put back."""
        for name in KINDS.values():
            yield from getattr(self, name)


KINDS: Final[Mapping[type[Stacked], str]] = {
    typing.get_args(hint)[0]: name
    for name, hint in typing.get_type_hints(Stack).items()
    if name != "lost"
}
"""The kinds, in the order in which they are put back, and the field of `Stack` that has each."""
