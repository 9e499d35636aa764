"""Interfaces on top of another one over rtnetlink: RTM_NEWLINK with IFLA_LINK and IFLA_LINKINFO."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final

from nodeagent.kernel import rtnl
from nodeagent.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    Netlink,
    attribute,
    mac_bytes,
    nested,
    text_bytes,
)
from nodeagent.kernel.rtnl import Link, link_message
from nodeagent.kernel.stack import linkinfo
from nodeagent.kernel.stack.adapter import Adapter, Found, Look
from nodeagent.state.attributes import given
from nodeagent.state.stack import CHILD_KINDS, Child


def read(edge: Netlink, look: Look) -> Found[Child]:
    """The children of the interfaces, parents first, and those that are not restored."""
    del edge  # everything is in the dump of links
    found: list[Child] = []
    lost: list[str] = []
    seen = set(look.indexes)
    while level := [
        link for link in look.links.values() if lower_of(link) in seen and link.index not in seen
    ]:
        for link in sorted(level, key=lambda each: each.index):
            seen.add(link.index)
            info = linkinfo.decoded(link.info)
            parent = look.names[lower_of(link) or 0]
            if info.kind not in CHILD_KINDS:
                lost.append(f"{info.kind or 'interface'} {link.name} on {parent}")
                continue
            values: dict[str, Any] = {**given(link), "name": None}
            if info.kind.startswith("ip"):
                values["mac"] = None  # its parent's
            own = look.tables.of(link.index, link.af_spec, link.mtu or 0)
            found.append(Child(link.name, parent, info.kind, info.data, own, **values))
    return Found(tuple(found), tuple(lost))


def message(child: Child, indexes: Mapping[str, int], now: float) -> bytearray:
    """Create `child`, or change what differs on an interface of that name."""
    del now
    parts = []
    if child.dev not in indexes:
        parts.append(attribute(rtnl.IFLA_IFNAME, text_bytes(child.dev)))
        parts.append(attribute(rtnl.IFLA_LINK, struct.pack("=I", indexes[child.parent])))
    if child.mac is not None:
        parts.append(attribute(rtnl.IFLA_ADDRESS, mac_bytes(child.mac)))
    if child.mtu is not None:
        parts.append(attribute(rtnl.IFLA_MTU, struct.pack("=I", child.mtu)))
    parts.append(nested(rtnl.IFLA_LINKINFO, linkinfo.child_info(child.kind, child.data)))
    index, up = indexes.get(child.dev, 0), rtnl.IFF_UP if child.up else 0
    flags = NLM_F_ACK | NLM_F_CREATE
    return link_message(rtnl.RTM_NEWLINK, flags, index, *parts, up=up, change=rtnl.IFF_UP)


def lower_of(link: Link) -> int | None:
    """The ifindex of the interface below it. A VXLAN has it only among its own attributes."""
    return linkinfo.vxlan_lower(link.info) if link.parent is None else link.parent


ADAPTER: Final = Adapter(Child, read, message)
