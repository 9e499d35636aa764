"""Routes over rtnetlink: RTM_NEWROUTE (rtnetlink(7), uapi/linux/rtnetlink.h).

- A route whose gateway is not reachable by another route is refused (ENETUNREACH), so routes with a
  gateway are sent after those without.
- If a device is removed, IPv4 removes its multipath routes completely, IPv6 only the nexthop;
  NLM_F_REPLACE restores the IPv6 route.
- With NLM_F_APPEND there can be several routes of the same prefix and metric.
- A route by a nexthop object has that one's number (RTA_NH_ID). A dump has the interfaces, too, if
  the sysctl nexthop_compat_mode is set; a request for it has the number alone.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface
from typing import Final

from nodeagent.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    Netlink,
    attribute,
    attributes,
    nested,
    request,
)
from nodeagent.kernel.stack.adapter import FAMILIES, Adapter, Found, Look, time_left
from nodeagent.state.stack import Address, Nexthop, Route

RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTPROT_KERNEL, RTN_UNICAST = 2, 1
IFA_F_NOPREFIXROUTE: Final = 0x200
RTM_F_CLONED: Final = 0x200
RTNH_F_ONLINK: Final = 4
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS = 1, 4, 5, 6, 7, 8
RTA_MULTIPATH, RTA_CACHEINFO, RTA_TABLE, RTA_VIA, RTA_PREF, RTA_EXPIRES = 9, 12, 15, 18, 20, 23
RTA_NH_ID: Final = 30
RTA_REST: Final = {2: "src", 11: "realm", 16: "mark", 19: "newdst", 22: "encap"}
"""Attributes of routes that are not restored: such routes are logged."""
RTAX_CC_ALGO: Final = 16
RT_TABLE_COMPAT: Final = 252
USER_HZ: Final = 100


@dataclass(frozen=True)
class Sources:
    """Our addresses, as far as they decide which routes are ours.

    `own` are the IPv4 addresses that routes may have as source. `plain` are interfaces and subnets
    without the kernel's prefix route: an address with IFA_F_NOPREFIXROUTE has none. NetworkManager
    sets that, and adds a route with its own metric and the kernel's protocol.
    """

    own: Collection[str] = ()
    plain: Collection[tuple[str, str]] = ()

    @classmethod
    def of(cls, addresses: Collection[Address]) -> Sources:
        """Those of these addresses."""
        flagged = {each for each in addresses if each.flags & IFA_F_NOPREFIXROUTE}
        made = {(each.dev, _subnet(each)) for each in addresses if each not in flagged}
        return cls(
            own={each.address.partition("/")[0] for each in addresses if not each.is_v6},
            plain={(each.dev, _subnet(each)) for each in flagged} - made,
        )


def read(edge: Netlink, look: Look) -> Found[Route]:
    """The routes that an administrator or a program has added, and those that are not restored."""
    now, sources = time.time(), Sources.of(look.stack.addresses)
    bodies = edge.dump(request(RTM_GETROUTE, NLM_F_DUMP, bytes(12)), "routes")
    found = [each for body in bodies if (each := route_of(body, look, sources, now)) is not None]
    return Found(
        tuple(each for each in found if isinstance(each, Route)),
        tuple(each for each in found if isinstance(each, str)),
    )


def in_order(routes: Sequence[Route]) -> list[Route]:
    """Routes without a gateway first: gateways are reached by them."""
    return sorted(routes, key=lambda route: any(hop.via for hop in route.nexthops))


def message(route: Route, indexes: Mapping[str, int], now: float) -> bytearray:
    """Add it, in addition to others."""
    dst, _, length = route.dst.partition("/")
    family = socket.AF_INET6 if route.is_v6 else socket.AF_INET
    single = len(route.nexthops) == 1
    flags = RTNH_F_ONLINK if single and route.nexthops[0].onlink else 0
    table = route.table if route.table < 256 else RT_TABLE_COMPAT
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
        body += attribute(RTA_EXPIRES, struct.pack("=I", time_left(route.expires_at, now)))
    if route.nhid is not None:
        body += attribute(RTA_NH_ID, struct.pack("=I", route.nhid))
    elif single:
        body += attribute(RTA_OIF, struct.pack("=i", indexes[route.nexthops[0].dev or ""]))
        body += _gateway(route.nexthops[0], family)
    else:
        body += attribute(RTA_MULTIPATH, b"".join(_hops(route, indexes, family)))
    replaces = route.is_v6 and not single and route.nhid is None
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


def _subnet(address: Address) -> str:
    return str(ip_interface(address.address).network)


def route_of(body: bytes, look: Look, sources: Sources, now: float) -> Route | str | None:
    """One RTM_NEWROUTE; None if it is not ours or the kernel's own; a line if it is lost."""
    family, length, _, tos, table, proto, scope, kind, flags = struct.unpack_from(
        "=BBBBBBBBI", body, 16
    )
    if family not in FAMILIES or flags & RTM_F_CLONED:
        return None
    if proto == RTPROT_KERNEL and (not sources.plain or kind != RTN_UNICAST):
        return None
    found = dict(attributes(body, 28))
    nhid = _u32(found, RTA_NH_ID, 0) or None
    by_object = _by_object(look, nhid)
    hops: Sequence[tuple[int, Nexthop | None]] = by_object or tuple(_nexthops(found, flags))
    src = str(ip_address(found[RTA_PREFSRC])) if RTA_PREFSRC in found else None
    if not any(index in look.indexes for index, _ in hops) and src not in sources.own:
        return None
    zero = bytes(4 if family == socket.AF_INET else 16)
    dst = f"{ip_address(found.get(RTA_DST, zero))}/{length}"
    if proto == RTPROT_KERNEL and (look.names.get(hops[0][0]), dst) not in sources.plain:
        return None
    names = RTA_REST if by_object else RTA_REST | {RTA_NH_ID: "nexthop id"}
    rest = ", ".join(name for number, name in names.items() if number in found)
    metrics = dict(attributes(found.get(RTA_METRICS, b"")))
    if rest or RTAX_CC_ALGO in metrics or any(hop is None for _, hop in hops):
        return f"route {dst} with {rest or 'attributes that are not known'}"
    expires = 0
    if RTA_CACHEINFO in found and family == socket.AF_INET6:
        (expires,) = struct.unpack_from("=i", found[RTA_CACHEINFO], 8)
    return Route(
        dst=dst,
        nexthops=tuple(replace(h, dev=look.names.get(index)) for index, h in hops if h is not None),
        table=_u32(found, RTA_TABLE, table),
        metric=_u32(found, RTA_PRIORITY, 0),
        kind=kind,
        proto=proto,
        scope=scope,
        tos=tos,
        src=src,
        pref=found[RTA_PREF][0] if RTA_PREF in found else None,
        metrics=tuple(
            (number, struct.unpack("=I", value)[0]) for number, value in sorted(metrics.items())
        ),
        nhid=nhid,
        expires=expires > 0,
        expires_at=int(now + expires / USER_HZ) if expires > 0 else None,
    )


def _by_object(look: Look, nhid: int | None) -> tuple[tuple[int, Nexthop], ...]:
    """Ifindex and nexthop of each of our interfaces to which this nexthop object leads.

    A port stands for the bond or bridge with which it would go.
    """
    if nhid is None:
        return ()
    found = (each for each in look.stack.nexthops if each.id == nhid)
    devs = {dev for each in found for dev in each.removed_with({})}
    return tuple((n, Nexthop(None)) for n in sorted(look.indexes) if look.names[n] in devs)


def _nexthops(found: Mapping[int, bytes], flags: int) -> Iterator[tuple[int, Nexthop | None]]:
    """Ifindex and nexthop of each; None for a nexthop with unknown attributes (encapsulations)."""
    if RTA_MULTIPATH not in found:
        yield _u32(found, RTA_OIF, 0), Nexthop(None, _via(found), 1, bool(flags & RTNH_F_ONLINK))
        return
    raw, offset = found[RTA_MULTIPATH], 0
    while offset + 8 <= len(raw):
        length, state, hops, index = struct.unpack_from("=HBBi", raw, offset)
        if length < 8:
            return
        own = dict(attributes(raw[offset : offset + length], 8))
        known = own.keys() <= {RTA_GATEWAY, RTA_VIA}
        via, onlink = _via(own), bool(state & RTNH_F_ONLINK)
        yield index, Nexthop(None, via, hops + 1, onlink) if known else None
        offset += (length + 3) & ~3


def _via(found: Mapping[int, bytes]) -> str | None:
    """A gateway of the route's own family, or of another (struct rtvia: family, address)."""
    if RTA_VIA in found:
        return str(ip_address(found[RTA_VIA][2:]))
    return str(ip_address(found[RTA_GATEWAY])) if RTA_GATEWAY in found else None


def _u32(found: Mapping[int, bytes], number: int, default: int) -> int:
    if number not in found:
        return default
    value: int = struct.unpack("=I", found[number])[0]
    return value


ADAPTER: Final = Adapter(Route, read, message, in_order)
