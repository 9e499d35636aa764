"""What is stacked on interfaces, over rtnetlink: an adapter a kind, in one dump each.

Headers are looked at before attributes are: a node with many routes and neighbours of others costs
little.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from nodeagent.kernel import sysctls
from nodeagent.kernel.netlink import NLM_F_DUMP, Netlink, request, understood
from nodeagent.kernel.rtnl import Link
from nodeagent.kernel.stack import (
    addresses,
    children,
    memberships,
    neighbours,
    qdiscs,
    routes,
)
from nodeagent.kernel.stack.adapter import Adapter, Look
from nodeagent.kernel.stack.left_out import left_out
from nodeagent.kernel.sysctls import Told
from nodeagent.state.stack import (
    KINDS,
    Address,
    Child,
    Membership,
    Neighbour,
    Qdisc,
    Route,
    Stack,
    Stacked,
)

RTM_GETNEIGHTBL: Final = 66
UNTOLD: Final = Told()

ADAPTERS: Final[Mapping[type[Stacked], Adapter[Any]]] = {
    Child: children,
    Membership: memberships,
    Address: addresses,
    Neighbour: neighbours,
    Route: routes,
    Qdisc: qdiscs,
}

if ADAPTERS.keys() != KINDS.keys():
    raise TypeError(f"kinds without an adapter, or the other way round: {ADAPTERS.keys() ^ KINDS}")


class StackEdge(Netlink):
    """A NETLINK_ROUTE socket for what is stacked on interfaces."""

    def __init__(self) -> None:
        super().__init__(socket.NETLINK_ROUTE)

    @understood("addresses and routes")
    def read(
        self,
        links: Mapping[int, Link],
        roots: Collection[int],
        told: Told = UNTOLD,
        *,
        all_addresses: bool = False,
    ) -> Stack:
        """What is stacked on the interfaces `roots`: a handful of dumps, whatever there is.

        `told`: what is known of sysctls. `all_addresses`: with the link-local ones that the kernel
        makes. KernelError when a dump is refused.
        """
        look = Look(links, roots, told, all_addresses=all_addresses)
        for kind, name in KINDS.items():
            found = ADAPTERS[kind].read(self, look)
            more: dict[str, Any] = {name: found.things, "lost": (*look.stack.lost, *found.lost)}
            look = replace(look, stack=replace(look.stack, **more))
        lost = (*look.stack.lost, *left_out(self, links, look.indexes, told))
        return replace(look.stack, lost=lost)

    @understood("sysctls")
    def parameters(self, proc: Path = Path("/proc")) -> Told:
        """The sysctls that new interfaces start with, and what each has for its neighbours."""
        header = struct.pack("=Bxxx", socket.AF_UNSPEC)
        tables = self.dump(request(RTM_GETNEIGHTBL, NLM_F_DUMP, header), "neighbour tables")
        return sysctls.told(tables, proc)

    @understood("IPv6 addresses")
    def tentative(self, indexes: Collection[int]) -> set[str]:
        """IPv6 addresses of these interfaces that the kernel does not use yet (DAD, RFC 4862)."""
        return addresses.tentative(self, indexes)

    def vlans(self) -> memberships.VlanTables:
        """The VLAN table of each bridge port."""
        return memberships.vlans(self)
