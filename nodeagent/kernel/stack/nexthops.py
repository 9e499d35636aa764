"""Nexthop objects over rtnetlink: RTM_NEWNEXTHOP (uapi/linux/nexthop.h).

- A nexthop goes with its interface, and when that is set down or loses its carrier, as a bond does
  with its ports (nh_netdev_event()). A group loses it, and goes with its last one. Routes go with
  the nexthop or group that they are made by.
- Without carrier none can be added (ENETDOWN, rtm_to_nh_config()).
- Each is replaced: what is left of a group may be there, or somebody else's under the number.
- FRR numbers its nexthops anew when it resolves its routes again, so they are not saved.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    Netlink,
    attribute,
    attributes,
    nested,
    request,
)
from nodeagent.kernel.rtnl import Link
from nodeagent.kernel.stack.adapter import Adapter, Found, Look
from nodeagent.state.stack import NexthopObject, Pairs

RTM_NEWNEXTHOP, RTM_GETNEXTHOP = 104, 106
NHA_ID, NHA_GROUP, NHA_GROUP_TYPE, NHA_OIF, NHA_GATEWAY = 1, 2, 3, 5, 6
NHA_ENCAP, NHA_RES_GROUP = 8, 12
GROUP_TYPE_RESILIENT: Final = 1
RTNH_F_ONLINK: Final = 4
RTPROT_ZEBRA: Final = 11
_HEADER: Final = struct.Struct("=BBBxI")
"""struct nhmsg: family, scope, protocol, flags."""
_MEMBER: Final = struct.Struct("=IBBxx")
"""struct nexthop_grp: id, weight - 1, and its high byte (0 before Linux 6.13)."""
_RESILIENT: Final = {1: ("buckets", "=H"), 2: ("idle_timer", "=I"), 3: ("unbalanced_timer", "=I")}
"""NHA_RES_GROUP_*, each with its format."""


def read(edge: Netlink, look: Look) -> Found[NexthopObject]:
    """Those on our interfaces, and groups with one of them; a line for each other one."""
    try:
        bodies = edge.dump(request(RTM_GETNEXTHOP, NLM_F_DUMP, bytes(_HEADER.size)), "nexthops")
    except KernelError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return Found()  # a kernel before 5.3
    ours = {index: look.links[index] for index in {*look.indexes, *look.ports}}
    ports = {index: name for index, name in look.ports.items() if index not in look.indexes}
    return found_in(bodies, ours, ports)


def found_in(
    bodies: Sequence[bytes], ours: Mapping[int, Link], ports: Mapping[int, str]
) -> Found[NexthopObject]:
    """Those of a dump. By ifindex, `ours`: our interfaces, and masters of ours and what stands on
    them; `ports`: a port of ours of each of the latter."""
    kept: dict[int, NexthopObject] = {}
    lost: dict[int, str] = {}
    groups: list[tuple[int, int, dict[int, bytes]]] = []
    for body in bodies:
        family, _, proto, flags = _HEADER.unpack_from(body, 16)
        found = dict(attributes(body, 24))
        (number,) = struct.unpack("=I", found[NHA_ID])
        if NHA_GROUP in found:
            groups.append((number, proto, found))
        elif NHA_OIF in found:
            (index,) = struct.unpack("=I", found[NHA_OIF])
            if index not in ours:
                continue
            if proto == RTPROT_ZEBRA or NHA_ENCAP in found:
                lost[number] = f"nexthop id {number} on {ours[index].name}"
                continue
            via = str(ip_address(found[NHA_GATEWAY])) if NHA_GATEWAY in found else None
            is_v6, onlink = family == socket.AF_INET6, bool(flags & RTNH_F_ONLINK)
            link = ours[index]
            kept[number] = NexthopObject(
                *(number, (link.name,), via, is_v6, onlink, proto),
                carrier=link.carrier,
                port=ports.get(index),
            )
    for number, proto, found in groups:
        members = tuple(_members(found[NHA_GROUP]))
        if proto == RTPROT_ZEBRA or any(each in lost for each, _ in members):
            if any(each in lost or each in kept for each, _ in members):
                lost[number] = f"nexthop id {number}, a group"
            continue
        own = [kept[each] for each, _ in members if each in kept]
        if own:
            kept[number] = NexthopObject(
                number,
                tuple(dict.fromkeys(dev for each in own for dev in each.devs)),
                proto=proto,
                group=members,
                resilient=_resilient(found),
                carrier=len(own) < len(members) or any(each.carrier for each in own),
                port=next((each.port for each in own if each.port is not None), None),
            )
    silent = (
        f"nexthop {each}, without carrier, and routes by it"
        for each in kept.values()
        if not each.carrier
    )
    return Found(tuple(kept.values()), (*lost.values(), *silent))


def in_order(nexthops: Sequence[NexthopObject]) -> list[NexthopObject]:
    """Groups last."""
    return sorted(nexthops, key=lambda each: bool(each.group))


def message(nexthop: NexthopObject, indexes: Mapping[str, int], now: float) -> bytearray:
    """Add it, in place of another one with its number."""
    del now
    family = socket.AF_INET6 if nexthop.is_v6 else socket.AF_INET
    flags = RTNH_F_ONLINK if nexthop.onlink else 0
    body = _HEADER.pack(0 if nexthop.group else family, 0, nexthop.proto, flags)
    body += attribute(NHA_ID, struct.pack("=I", nexthop.id))
    if nexthop.group:
        body += attribute(NHA_GROUP, b"".join(_packed(*each) for each in nexthop.group))
        if nexthop.resilient:
            body += attribute(NHA_GROUP_TYPE, struct.pack("=H", GROUP_TYPE_RESILIENT))
            body += nested(NHA_RES_GROUP, b"".join(_packed_resilient(nexthop.resilient)))
    else:
        body += attribute(NHA_OIF, struct.pack("=I", indexes[nexthop.devs[0]]))
    if nexthop.via is not None:
        body += attribute(NHA_GATEWAY, ip_address(nexthop.via).packed)
    return request(RTM_NEWNEXTHOP, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, body)


def _members(raw: bytes) -> Iterator[tuple[int, int]]:
    return ((number, (high << 8 | low) + 1) for number, low, high in _MEMBER.iter_unpack(raw))


def _packed(number: int, weight: int) -> bytes:
    return _MEMBER.pack(number, (weight - 1) & 0xFF, (weight - 1) >> 8)


def _resilient(found: Mapping[int, bytes]) -> Pairs:
    values = dict(attributes(found.get(NHA_RES_GROUP, b"")))
    return tuple(
        (name, struct.unpack(form, values[number])[0])
        for number, (name, form) in _RESILIENT.items()
        if number in values
    )


def _packed_resilient(pairs: Pairs) -> Iterator[bytes]:
    values = dict(pairs)
    for number, (name, form) in _RESILIENT.items():
        if name in values:
            yield attribute(number, struct.pack(form, values[name]))


ADAPTER: Final = Adapter(NexthopObject, read, message, in_order)
