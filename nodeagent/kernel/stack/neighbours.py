"""Permanent neighbours and proxies over rtnetlink: RTM_NEWNEIGH (uapi/linux/neighbour.h)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final

from nodeagent.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    Netlink,
    attribute,
    attributes,
    mac_bytes,
    request,
)
from nodeagent.kernel.stack.adapter import FAMILIES, Adapter, Found, Look
from nodeagent.state.stack import Neighbour

RTM_NEWNEIGH, RTM_GETNEIGH = 28, 30
NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT, NTF_PROXY, NTF_EXT_LEARNED, NTF_ROUTER = 0x80, 0x08, 0x10, 0x80


def read(edge: Netlink, look: Look) -> Found[Neighbour]:
    """Permanent neighbours, and proxies."""
    found: list[Neighbour] = []
    for flags in (0, NTF_PROXY):
        # proxies are dumped only on request (neigh_dump_info())
        header = struct.pack("=BxHiHBB", 0, 0, 0, 0, flags, 0)
        bodies = edge.dump(request(RTM_GETNEIGH, NLM_F_DUMP, header), "neighbours")
        found += (each for body in bodies if (each := neighbour_of(body, look)) is not None)
    return Found(tuple(found))


def message(neighbour: Neighbour, indexes: Mapping[str, int], now: float) -> bytearray:
    """Add it, or change what differs."""
    del now
    address = ip_address(neighbour.address)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    flags = neighbour.flags | (NTF_PROXY if neighbour.proxy else 0)
    body = struct.pack("=BxxxiHBB", family, indexes[neighbour.dev], NUD_PERMANENT, flags, 0)
    body += attribute(NDA_DST, address.packed)
    if neighbour.lladdr is not None:
        body += attribute(NDA_LLADDR, mac_bytes(neighbour.lladdr))
    return request(RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, body)


def neighbour_of(body: bytes, look: Look) -> Neighbour | None:
    """One RTM_NEWNEIGH; None if it is not ours or not permanent."""
    family, index, state, flags, _ = struct.unpack_from("=BxxxiHBB", body, 16)
    proxy = bool(flags & NTF_PROXY)
    port = None if index in look.indexes else look.ports.get(index)
    if (index not in look.indexes and port is None) or family not in FAMILIES:
        return None
    if not proxy and not state & NUD_PERMANENT:
        return None
    found = dict(attributes(body, 28))
    lladdr = found.get(NDA_LLADDR, b"").hex(":") or None
    address = str(ip_address(found[NDA_DST]))
    kept = flags & (NTF_ROUTER | NTF_EXT_LEARNED)
    return Neighbour(look.names[index], address, lladdr, proxy, kept, port)


ADAPTER: Final = Adapter(Neighbour, read, message)
