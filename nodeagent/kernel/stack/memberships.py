"""Ports of bonds, bridges, teams and VRFs over rtnetlink: RTM_SETLINK with IFLA_MASTER."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from nodeagent.kernel import rtnl
from nodeagent.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    Netlink,
    attribute,
    attributes,
    mac_bytes,
    nested,
)
from nodeagent.kernel.rtnl import Link, link_message
from nodeagent.kernel.stack import linkinfo
from nodeagent.kernel.stack.adapter import Adapter, Found, Look
from nodeagent.state.stack import MASTER_KINDS, Membership

RTEXT_FILTER_BRVLAN: Final = 2
BRIDGE_VLAN_INFO: Final = 2

VlanTables = dict[int, tuple[tuple[int, int], ...]]
"""By ifindex of a bridge port, its VLAN IDs with their flags."""


def read(edge: Netlink, look: Look) -> Found[Membership]:
    """The interfaces that are ports of others."""
    found = {
        index: member
        for index in sorted(look.indexes)
        if (member := membership_of(look.links[index], look.links)) is not None
    }
    if any(member.kind == "bridge" for member in found.values()):
        tables = vlans(edge)
        for index, member in found.items():
            if member.kind == "bridge":
                found[index] = replace(member, vlans=tables.get(index, ()))
    ports = (member.dev for member in found.values() if member.kind == "team")
    lost = tuple(f"options of team port {dev}, but for teamd's" for dev in ports)
    return Found(tuple(found.values()), lost)


def message(member: Membership, indexes: Mapping[str, int], now: float) -> bytearray:
    """Make the interface a port."""
    del now
    return _set_link(indexes[member.dev], _master(indexes[member.master]))


def leave_message(index: int) -> bytearray:
    """End its being a port."""
    return _set_link(index, _master(0))


def messages_before(member: Membership, link: Link) -> Iterator[bytearray]:
    """The messages before: a bond's port must be down (bond_enslave()); the bond sets it up."""
    if member.kind in {"bond", "team"} and link.up:
        yield _set_link(link.index, change=rtnl.IFF_UP)
    if member.mac not in {None, link.mac}:
        yield mac_message(link.index, member.mac or "")


def messages_after(
    want: Membership, links: Mapping[int, Link], index: int, tables: VlanTables
) -> Iterator[bytearray]:
    """The messages after it has become a port; none if it has not."""
    have = membership_of(links[index], links) if index in links else None
    if have is None or have.master != want.master:
        return
    master = links[links[index].master or 0]
    if want.master_mac not in {None, master.mac}:
        yield mac_message(master.index, want.master_mac or "")
    yield from port_messages(want, have, tables.get(index, ()), index)


def mac_message(index: int, mac: str) -> bytearray:
    """Set a MAC, which a bond also sets on its ports (bond_set_mac_address())."""
    return _set_link(index, attribute(rtnl.IFLA_ADDRESS, mac_bytes(mac)))


def port_messages(
    want: Membership, have: Membership, vlans: Sequence[tuple[int, int]], index: int
) -> Iterator[bytearray]:
    """Set what differs on the port, and remove the VLAN that it got by joining (pvid 1)."""
    data = tuple(pair for pair in want.data if pair not in have.data)
    if data:
        info = nested(rtnl.IFLA_LINKINFO, linkinfo.port_info(want.kind, data))
        yield link_message(rtnl.RTM_NEWLINK, NLM_F_ACK, index, info)
    wanted = {vid for vid, _ in want.vlans}
    for kind, pairs in (
        (rtnl.RTM_DELLINK, [(vid, 0) for vid, _ in vlans if vid not in wanted]),
        (rtnl.RTM_SETLINK, [pair for pair in want.vlans if pair not in vlans]),
    ):
        for vid, flags in pairs:
            entry = attribute(BRIDGE_VLAN_INFO, struct.pack("=HH", flags, vid))
            spec = nested(rtnl.IFLA_AF_SPEC, entry)
            yield link_message(kind, NLM_F_ACK, index, spec, family=socket.AF_BRIDGE)


def vlans(edge: Netlink) -> VlanTables:
    """The VLAN table of each bridge port.

    A port's driver that is asked for its bridge mode (mlx5e_bridge_getlink()) answers in a second
    message for the same interface, without VLANs.
    """
    mask = attribute(rtnl.IFLA_EXT_MASK, struct.pack("=I", RTEXT_FILTER_BRVLAN))
    asked = link_message(rtnl.RTM_GETLINK, NLM_F_DUMP, 0, mask, family=socket.AF_BRIDGE)
    tables: VlanTables = {}
    for body in edge.dump(asked, "bridge VLANs"):
        (index,) = struct.unpack_from("=i", body, 20)
        found = dict(attributes(body, 32)).get(rtnl.IFLA_AF_SPEC, b"")
        entries = (v for kind, v in attributes(found) if kind == BRIDGE_VLAN_INFO)
        pairs = (struct.unpack_from("=HH", entry) for entry in entries)
        tables[index] = (*tables.get(index, ()), *((vid, flags) for flags, vid in pairs))
    return tables


def membership_of(link: Link, links: Mapping[int, Link]) -> Membership | None:
    """The link as a port; None if it is none, or a port of a kind that is not restored (OVS)."""
    master = links.get(link.master or 0)
    info = linkinfo.decoded(link.info)
    if master is None or info.port_kind not in MASTER_KINDS:
        return None
    master_mac = master.mac if info.port_kind == "bond" else None
    return Membership(
        link.name,
        master.name,
        info.port_kind,
        info.port_data,
        mac=info.port_mac,
        master_mac=master_mac,
    )


def _set_link(index: int, *parts: bytes, change: int = 0) -> bytearray:
    """The flags in `change` are cleared."""
    return link_message(rtnl.RTM_SETLINK, NLM_F_ACK, index, *parts, change=change)


def _master(index: int) -> bytes:
    return attribute(rtnl.IFLA_MASTER, struct.pack("=I", index))


ADAPTER: Final = Adapter(Membership, read, message)
