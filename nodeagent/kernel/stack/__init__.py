"""What is stacked on interfaces, over rtnetlink: one adapter per kind, one dump each.

Headers are checked before attributes are decoded, so that foreign routes cost little.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from nodeagent.kernel import sysctls
from nodeagent.kernel.netlink import NLM_F_DUMP, Netlink, request, understood
from nodeagent.kernel.rtnl import Link
from nodeagent.kernel.stack import addresses, memberships
from nodeagent.kernel.stack.adapter import FAMILIES, Adapter, Look
from nodeagent.kernel.stack.left_out import left_out
from nodeagent.kernel.sysctls import SysctlTables
from nodeagent.state.stack import KINDS, Stack, Stacked

RTM_GETNEIGHTBL: Final = 66
NO_TABLES: Final = SysctlTables()


def _adapter(kind: type[Stacked], name: str) -> Adapter[Any]:
    """That of the module `name`. ImportError or AttributeError for a kind without one."""
    adapter: Adapter[Any] = import_module(f"{__name__}.{name}").ADAPTER
    if adapter.kind is not kind:
        raise TypeError(f"{name} has the adapter of {adapter.kind}, not that of {kind}")
    return adapter


ADAPTERS: Final = {kind: _adapter(kind, name) for kind, name in KINDS.items()}
"""By kind. `nodeagent.state.stack.Stack` is the registry."""


class StackEdge(Netlink):
    """A NETLINK_ROUTE socket for what is stacked on interfaces."""

    def __init__(self) -> None:
        super().__init__(socket.NETLINK_ROUTE)

    @understood("addresses and routes")
    def read(
        self,
        links: Mapping[int, Link],
        roots: Collection[int],
        tables: SysctlTables = NO_TABLES,
        *,
        all_addresses: bool = False,
    ) -> Stack:
        """What is stacked on the interfaces `roots`: a fixed number of dumps.

        `all_addresses`: with the link-local addresses that the kernel adds. KernelError if a dump
        is refused.
        """
        look = Look(links, roots, tables, all_addresses=all_addresses)
        for kind, name in KINDS.items():
            found = ADAPTERS[kind].read(self, look)
            more: dict[str, Any] = {name: found.things, "lost": (*look.stack.lost, *found.lost)}
            look = replace(look, stack=replace(look.stack, **more))
        lost = (*look.stack.lost, *left_out(self, links, look.indexes, tables))
        return replace(look.stack, lost=lost)

    @understood("sysctls")
    def parameters(self, proc: Path = Path("/proc")) -> SysctlTables:
        """The default sysctls of new interfaces, and the parameters for neighbours of each.

        One family is dumped after the other. A dump of all that fills a message right before a
        table omits as many interfaces of it as the table before had (neightbl_dump_info()).
        """
        tables: list[bytes] = []
        for family in FAMILIES:
            header = struct.pack("=Bxxx", family)
            tables += self.dump(request(RTM_GETNEIGHTBL, NLM_F_DUMP, header), "neighbour tables")
        return sysctls.tables_of(tables, proc)

    @understood("IPv6 addresses")
    def tentative(self, indexes: Collection[int]) -> set[str]:
        """IPv6 addresses of these interfaces that the kernel does not use yet (DAD, RFC 4862)."""
        return addresses.tentative(self, indexes)

    def vlans(self) -> memberships.VlanTables:
        """The VLAN table of each bridge port."""
        return memberships.vlans(self)
