"""What is stacked on interfaces, as the rtnetlink messages that put it back.

All of them may be sent again: what is so already is left as it is, or refused with EEXIST.

- The IPv6 address that was added last is dumped first among those of its scope
  (ipv6_link_dev_addr()), so they are added from the last to the first.
- A route whose gateway no other route reaches is refused (ENETUNREACH), so routes with a gateway
  go after those without.
- IPv4 drops a multipath route as a whole when one of its devices goes, IPv6 that nexthop only;
  NLM_F_REPLACE puts all of them back there.
- NLM_F_APPEND lets a route stand beside another of the same prefix and metric.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Final

from nodeagent.kernel import linkinfo
from nodeagent.kernel.linkinfo import attribute, nested
from nodeagent.kernel.netlink import NLM_F_ACK
from nodeagent.kernel.rtnl import (
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_AF_SPEC,
    IFLA_IFNAME,
    IFLA_LINK,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_MTU,
    Link,
)
from nodeagent.kernel.stack import (
    BRIDGE_VLAN_INFO,
    FOREVER,
    IFA_ADDRESS,
    IFA_BROADCAST,
    IFA_CACHEINFO,
    IFA_FLAGS,
    IFA_LABEL,
    IFA_LOCAL,
    IFA_PROTO,
    IFA_RT_PRIORITY,
    NTF_PROXY,
    NUD_PERMANENT,
    RTA_DST,
    RTA_GATEWAY,
    RTA_METRICS,
    RTA_MULTIPATH,
    RTA_OIF,
    RTA_PREF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_TABLE,
    RTA_VIA,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTM_SETLINK,
    RTNH_F_ONLINK,
    request,
)
from nodeagent.state.stack import Address, Child, Membership, Neighbour, Nexthop, Route

RTM_DELLINK: Final = 17
NLM_F_REPLACE, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x400, 0x800
RTA_EXPIRES: Final = 23
GRACE: Final = 60
"""Seconds. What is left to an address whose lifetime ended while its interface was away."""


def child_message(child: Child, indexes: Mapping[str, int]) -> bytearray:
    """Make `child`, or set what an interface of that name may have different."""
    up = IFF_UP if child.up else 0
    body = struct.pack("=BxHiII", 0, 0, indexes.get(child.dev, 0), up, IFF_UP)
    if child.dev not in indexes:
        body += attribute(IFLA_IFNAME, child.dev.encode() + b"\0")
        body += attribute(IFLA_LINK, struct.pack("=I", indexes[child.parent]))
    if child.mac is not None:
        body += attribute(IFLA_ADDRESS, bytes.fromhex(child.mac.replace(":", "")))
    body += attribute(IFLA_MTU, struct.pack("=I", child.mtu))
    body += nested(IFLA_LINKINFO, linkinfo.child_info(child.kind, child.data))
    return request(RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE, body)


def join_messages(member: Membership, link: Link, master: int) -> Iterator[bytearray]:
    """Make it a port. A bond takes only a port that is down (bond_enslave()), and opens it."""
    if member.kind in {"bond", "team"} and link.up:
        yield request(RTM_SETLINK, NLM_F_ACK, struct.pack("=BxHiII", 0, 0, link.index, 0, IFF_UP))
    if member.mac not in {None, link.mac}:
        yield mac_message(link.index, member.mac or "")
    header = struct.pack("=BxHiII", 0, 0, link.index, 0, 0)
    number = attribute(IFLA_MASTER, struct.pack("=I", master))
    yield request(RTM_SETLINK, NLM_F_ACK, header + number)


def mac_message(index: int, mac: str) -> bytearray:
    """Set a MAC; a bond passes it on to its ports (bond_set_mac_address())."""
    header = struct.pack("=BxHiII", 0, 0, index, 0, 0)
    own = attribute(IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    return request(RTM_SETLINK, NLM_F_ACK, header + own)


def port_messages(
    want: Membership, have: Membership, vlans: Sequence[tuple[int, int]], index: int
) -> Iterator[bytearray]:
    """Set what the port has different; a VLAN that joining gave it (pvid 1) goes."""
    data = tuple(pair for pair in want.data if pair not in have.data)
    header = struct.pack("=BxHiII", 0, 0, index, 0, 0)
    if data:
        info = nested(IFLA_LINKINFO, linkinfo.port_info(want.kind, data))
        yield request(RTM_NEWLINK, NLM_F_ACK, header + info)
    bridge = struct.pack("=BxHiII", socket.AF_BRIDGE, 0, index, 0, 0)
    wanted = {vid for vid, _ in want.vlans}
    for kind, pairs in (
        (RTM_DELLINK, [(vid, 0) for vid, _ in vlans if want.vlans and vid not in wanted]),
        (RTM_SETLINK, [pair for pair in want.vlans if pair not in vlans]),
    ):
        for vid, flags in pairs:
            entry = attribute(BRIDGE_VLAN_INFO, struct.pack("=HH", flags, vid))
            yield request(kind, NLM_F_ACK, bridge + nested(IFLA_AF_SPEC, entry))


def address_message(address: Address, index: int, now: float) -> bytearray:
    own, _, length = address.address.partition("/")
    local = ip_address(own)
    family = socket.AF_INET if local.version == 4 else socket.AF_INET6
    peer = ip_address(address.peer) if address.peer else local
    body = struct.pack("=BBBBI", family, int(length), 0, address.scope, index)
    body += attribute(IFA_LOCAL, local.packed) + attribute(IFA_ADDRESS, peer.packed)
    body += attribute(IFA_FLAGS, struct.pack("=I", address.flags))
    if address.broadcast is not None:
        body += attribute(IFA_BROADCAST, ip_address(address.broadcast).packed)
    if family == socket.AF_INET:
        body += attribute(IFA_LABEL, (address.label or address.dev).encode() + b"\0")
    if address.metric is not None:
        body += attribute(IFA_RT_PRIORITY, struct.pack("=I", address.metric))
    if address.proto:
        body += attribute(IFA_PROTO, bytes([address.proto]))
    if (address.valid_until, address.preferred_until) != (None, None):
        # valid for ever and preferred for no time: one that is not to be used as a source
        valid = FOREVER if address.valid_until is None else _left(address.valid_until, now)
        preferred = FOREVER
        if address.preferred_until is not None:
            preferred = max(0, int(address.preferred_until - now))
        body += attribute(IFA_CACHEINFO, struct.pack("=IIII", min(preferred, valid), valid, 0, 0))
    return request(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, body)


def _left(until: int, now: float) -> int:
    return max(GRACE, int(until - now))


def neighbour_message(neighbour: Neighbour, index: int) -> bytearray:
    address = ip_address(neighbour.address)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    flags = neighbour.flags | (NTF_PROXY if neighbour.proxy else 0)
    body = struct.pack("=BxxxiHBB", family, index, NUD_PERMANENT, flags, 0)
    body += attribute(1, address.packed)
    if neighbour.lladdr is not None:
        body += attribute(2, bytes.fromhex(neighbour.lladdr.replace(":", "")))
    return request(RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, body)


def route_message(route: Route, indexes: Mapping[str, int], now: float) -> bytearray:
    dst, _, length = route.dst.partition("/")
    family = socket.AF_INET6 if route.is_v6 else socket.AF_INET
    single = len(route.nexthops) == 1
    flags = RTNH_F_ONLINK if single and route.nexthops[0].onlink else 0
    table = route.table if route.table < 256 else 252  # RT_TABLE_COMPAT
    body = struct.pack(
        "=BBBBBBBBI",
        *(family, int(length), 0, route.tos, table, route.proto, route.scope, route.kind, flags),
    )
    if int(length):
        body += attribute(RTA_DST, ip_address(dst).packed)
    body += attribute(RTA_TABLE, struct.pack("=I", route.table))
    if route.metric:
        body += attribute(RTA_PRIORITY, struct.pack("=I", route.metric))
    if route.src is not None:
        body += attribute(RTA_PREFSRC, ip_address(route.src).packed)
    if route.pref is not None:
        body += attribute(RTA_PREF, bytes([route.pref]))
    if route.metrics:
        values = (attribute(number, struct.pack("=I", value)) for number, value in route.metrics)
        body += nested(RTA_METRICS, b"".join(values))
    if route.expires_at is not None:
        body += attribute(RTA_EXPIRES, struct.pack("=I", _left(route.expires_at, now)))
    if single:
        body += attribute(RTA_OIF, struct.pack("=i", indexes[route.nexthops[0].dev or ""]))
        body += _gateway(route.nexthops[0], family)
    else:
        body += attribute(RTA_MULTIPATH, b"".join(_hops(route, indexes, family)))
    replaces = route.is_v6 and not single
    mode = NLM_F_CREATE | (NLM_F_REPLACE if replaces else NLM_F_APPEND)
    return request(RTM_NEWROUTE, NLM_F_ACK | mode, body)


def _hops(route: Route, indexes: Mapping[str, int], family: int) -> Iterator[bytes]:
    for hop in route.nexthops:
        own = _gateway(hop, family)
        state = RTNH_F_ONLINK if hop.onlink else 0
        index = indexes[hop.dev or ""]
        yield struct.pack("=HBBi", 8 + len(own), state, hop.weight - 1, index) + own


def _gateway(hop: Nexthop, family: int) -> bytes:
    if hop.via is None:
        return b""
    address = ip_address(hop.via)
    own = socket.AF_INET if address.version == 4 else socket.AF_INET6
    if own == family:
        return attribute(RTA_GATEWAY, address.packed)
    return attribute(RTA_VIA, struct.pack("=H", own) + address.packed)


def in_order(addresses: Sequence[Address]) -> list[Address]:
    """IPv4 as they were dumped, IPv6 the other way round: so they are dumped again as they were."""
    fourth = [each for each in addresses if ":" not in each.address]
    sixth = [each for each in addresses if ":" in each.address]
    return [*fourth, *reversed(sixth)]


def gateways_last(routes: Iterable[Route]) -> list[Route]:
    """What a gateway needs to be reached by goes first."""
    return sorted(routes, key=lambda route: any(hop.via for hop in route.nexthops))
