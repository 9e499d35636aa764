"""What is stacked on interfaces, over rtnetlink: read in one dump a kind.

Headers are looked at before attributes are: a node with many routes and neighbours of others costs
little. Formats: rtnetlink(7), uapi/linux/{if_addr,rtnetlink,neighbour,pkt_sched,if_bridge}.h.

Facts of the kernel that shape this module:

- `IFA_PROTO` (Linux 5.18) says which link-local address the kernel made. Before it, one that is
  made of the MAC, or has IFA_F_STABLE_PRIVACY, counts as the kernel's.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address, ip_interface
from pathlib import Path
from typing import Final

from nodeagent.kernel import linkinfo, qdiscs, sysctls
from nodeagent.kernel.left_out import left_out
from nodeagent.kernel.linkinfo import attribute
from nodeagent.kernel.netlink import (
    NLM_F_DUMP,
    NLM_F_REQUEST,
    Netlink,
    attributes,
    text,
    understood,
)
from nodeagent.kernel.rtnl import IFLA_AF_SPEC, Link
from nodeagent.kernel.sysctls import Told
from nodeagent.state.stack import (
    CHILD_KINDS,
    MASTER_KINDS,
    Address,
    Child,
    Membership,
    Neighbour,
    Nexthop,
    Route,
    Stack,
)

RTM_NEWLINK, RTM_GETLINK, RTM_SETLINK = 16, 18, 19
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTM_NEWNEIGH, RTM_GETNEIGH, RTM_GETNEIGHTBL = 28, 30, 66
IFLA_EXT_MASK = 29
RTEXT_FILTER_BRVLAN: Final = 2
BRIDGE_VLAN_INFO: Final = 2
IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_BROADCAST, IFA_CACHEINFO = 1, 2, 3, 4, 6
IFA_FLAGS, IFA_RT_PRIORITY, IFA_PROTO = 8, 9, 11
IFA_F_TEMPORARY, IFA_F_STABLE_PRIVACY = 0x01, 0x800
IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x08, 0x40
ADMIN_FLAGS: Final = 0x712
"""IFA_F_NODAD, _HOMEADDRESS, _MANAGETEMPADDR, _NOPREFIXROUTE, _MCAUTOJOIN."""
IFAPROT_KERNEL_LL: Final = 3
FOREVER: Final = 0xFFFFFFFF
NUD_PERMANENT, NTF_PROXY, NTF_EXT_LEARNED, NTF_ROUTER = 0x80, 0x08, 0x10, 0x80
RTPROT_KERNEL, RTN_UNICAST = 2, 1
IFA_F_NOPREFIXROUTE: Final = 0x200
RTM_F_CLONED: Final = 0x200
RTNH_F_ONLINK: Final = 4
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS = 1, 4, 5, 6, 7, 8
RTA_MULTIPATH, RTA_CACHEINFO, RTA_TABLE, RTA_VIA, RTA_PREF = 9, 12, 15, 18, 20
RTA_REST: Final = {2: "src", 11: "realm", 16: "mark", 19: "newdst", 22: "encap", 30: "nexthop id"}
"""What a route may have and is not put back: the route is named instead."""
RTAX_CC_ALGO: Final = 16
USER_HZ: Final = 100
UNTOLD: Final = Told()
FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True)
class Ours:
    """The interfaces whose stack is ours, by ifindex, with children; `names` are everybody's.

    `without`: those that the kernel would not give a link-local address again. `sources` are our
    IPv4 addresses; `plain` are subnets of addresses of ours whose routes the kernel does not make.
    """

    names: Mapping[int, str]
    indexes: Collection[int]
    macs: Mapping[int, str | None]
    without: Collection[int] = ()
    sources: Collection[str] = ()
    plain: Collection[tuple[str, str]] = ()


class StackEdge(Netlink):
    """A NETLINK_ROUTE socket for addresses, routes, neighbours, ports and children."""

    def __init__(self) -> None:
        super().__init__(socket.NETLINK_ROUTE)

    @understood("addresses and routes")
    def read(
        self,
        links: Mapping[int, Link],
        roots: Collection[int],
        told: Told = UNTOLD,
    ) -> Stack:
        """What is stacked on the interfaces `roots`: a handful of dumps, whatever there is.

        `told`: what is known of sysctls. KernelError when a dump is refused.
        """
        children, lost = children_of(links, roots, told)
        by_name = {link.name: index for index, link in links.items()}
        indexes = {*roots, *(by_name[child.dev] for child in children)}
        ours = Ours(
            {index: link.name for index, link in links.items()},
            indexes,
            {index: links[index].mac for index in indexes},
            {index for index in indexes if sysctls.makes_no_address(links[index].af_spec)},
        )
        addresses = self._addresses(ours)
        routes, routes_lost = self._routes(with_addresses(ours, addresses))
        memberships = self._memberships(links, indexes)
        ports = [member.dev for member in memberships if member.kind == "team"]
        teamed = (f"options of team port {dev}, but for teamd's" for dev in ports)
        queues, queues_lost = qdiscs.read(self, {index: links[index] for index in indexes})
        return Stack(
            children=children,
            memberships=memberships,
            addresses=addresses,
            neighbours=self._neighbours(ours),
            routes=routes,
            qdiscs=queues,
            lost=(
                *(*lost, *routes_lost, *teamed, *queues_lost),
                *left_out(self, links, indexes, told),
            ),
        )

    @understood("sysctls")
    def parameters(self, proc: Path = Path("/proc")) -> Told:
        """The sysctls that new interfaces start with, and what each has for its neighbours."""
        header = struct.pack("=Bxxx", socket.AF_UNSPEC)
        tables = self.dump(request(RTM_GETNEIGHTBL, NLM_F_DUMP, header), "neighbour tables")
        return sysctls.told(tables, proc)

    @understood("IPv6 addresses")
    def tentative(self, indexes: Collection[int]) -> set[str]:
        """IPv6 addresses of these interfaces that the kernel does not use yet (DAD, RFC 4862)."""
        header = struct.pack("=BBBBI", socket.AF_INET6, 0, 0, 0, 0)
        found = set()
        for body in self.dump(request(RTM_GETADDR, NLM_F_DUMP, header), "IPv6 addresses"):
            (index,) = struct.unpack_from("=I", body, 20)
            own = dict(attributes(body, 24))
            (flags,) = struct.unpack("=I", own[IFA_FLAGS])
            if index in indexes and flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED) == IFA_F_TENTATIVE:
                found.add(str(ip_address(own[IFA_ADDRESS])))
        return found

    def _addresses(self, ours: Ours) -> tuple[Address, ...]:
        now = time.time()
        bodies = self.dump(request(RTM_GETADDR, NLM_F_DUMP, bytes(8)), "addresses")
        found = (address_of(body, ours, now) for body in bodies)
        return tuple(address for address in found if address is not None)

    def _routes(self, ours: Ours) -> tuple[tuple[Route, ...], tuple[str, ...]]:
        now = time.time()
        bodies = self.dump(request(RTM_GETROUTE, NLM_F_DUMP, bytes(12)), "routes")
        found = [route for body in bodies if (route := route_of(body, ours, now)) is not None]
        return (
            tuple(each for each in found if isinstance(each, Route)),
            tuple(each for each in found if isinstance(each, str)),
        )

    def _neighbours(self, ours: Ours) -> tuple[Neighbour, ...]:
        found: list[Neighbour] = []
        for flags in (0, NTF_PROXY):
            # proxies are listed only when they are asked for (neigh_dump_info())
            header = struct.pack("=BxHiHBB", 0, 0, 0, 0, flags, 0)
            bodies = self.dump(request(RTM_GETNEIGH, NLM_F_DUMP, header), "neighbours")
            found += (each for body in bodies if (each := neighbour_of(body, ours)) is not None)
        return tuple(found)

    def _memberships(
        self, links: Mapping[int, Link], indexes: Collection[int]
    ) -> tuple[Membership, ...]:
        found = {
            index: member
            for index in sorted(indexes)
            if (member := membership_of(links[index], links)) is not None
        }
        if not any(member.kind == "bridge" for member in found.values()):
            return tuple(found.values())
        tables = self.vlans()
        return tuple(
            replace(member, vlans=tables.get(index, ())) if member.kind == "bridge" else member
            for index, member in found.items()
        )

    def vlans(self) -> dict[int, tuple[tuple[int, int], ...]]:
        """The VLAN table of each bridge port, by ifindex: ids with their flags."""
        header = struct.pack("=BxHiII", socket.AF_BRIDGE, 0, 0, 0, 0)
        mask = attribute(IFLA_EXT_MASK, struct.pack("=I", RTEXT_FILTER_BRVLAN))
        tables: dict[int, tuple[tuple[int, int], ...]] = {}
        for body in self.dump(request(RTM_GETLINK, NLM_F_DUMP, header + mask), "bridge VLANs"):
            (index,) = struct.unpack_from("=i", body, 20)
            found = dict(attributes(body, 32)).get(IFLA_AF_SPEC, b"")
            entries = (v for kind, v in attributes(found) if kind == BRIDGE_VLAN_INFO)
            pairs = (struct.unpack_from("=HH", entry) for entry in entries)
            tables[index] = tuple((vid, flags) for flags, vid in pairs)
        return tables


# reading


def children_of(
    links: Mapping[int, Link], roots: Collection[int], told: Told = UNTOLD
) -> tuple[tuple[Child, ...], tuple[str, ...]]:
    """The children of the interfaces `roots`, parents first, and what dies and is not put back."""
    found, lost, seen = [], [], set(roots)
    while level := [
        link for link in links.values() if lower_of(link) in seen and link.index not in seen
    ]:
        for link in sorted(level, key=lambda each: each.index):
            seen.add(link.index)
            info = linkinfo.decoded(link.info)
            parent = links[lower_of(link) or 0].name
            if info.kind not in CHILD_KINDS:
                lost.append(f"{info.kind or 'interface'} {link.name} on {parent}")
                continue
            mac = None if info.kind.startswith("ip") else link.mac
            found.append(
                Child(
                    *(link.name, parent, info.kind, info.data, mac, link.mtu or 0, bool(link.up)),
                    altnames=link.altnames or (),
                    alias=link.alias or "",
                    txqueuelen=link.txqueuelen,
                    group=link.group or 0,
                    promisc=bool(link.promisc),
                    allmulti=bool(link.allmulti),
                    sysctls=told.of(link.index, link.af_spec, link.mtu or 0),
                )
            )
    return tuple(found), tuple(lost)


def lower_of(link: Link) -> int | None:
    """The ifindex of what it stands on. A VXLAN has it among its own attributes only."""
    return linkinfo.vxlan_lower(link.info) if link.parent is None else link.parent


def membership_of(link: Link, links: Mapping[int, Link]) -> Membership | None:
    """Whose port it is; None for none, and for kinds that are no configuration of ours (OVS)."""
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


def address_of(body: bytes, ours: Ours, now: float) -> Address | None:
    """One RTM_NEWADDR; None when it is not ours, or when the kernel makes it itself."""
    family, length, _, scope, index = struct.unpack_from("=BBBBI", body, 16)
    if index not in ours.indexes or family not in FAMILIES:
        return None
    found = dict(attributes(body, 24))
    (flags,) = struct.unpack("=I", found[IFA_FLAGS]) if IFA_FLAGS in found else (body[18],)
    own = str(ip_address(found.get(IFA_LOCAL, found[IFA_ADDRESS])))
    other = str(ip_address(found.get(IFA_ADDRESS, found.get(IFA_LOCAL, b""))))
    proto = found.get(IFA_PROTO, b"\0")[0]
    if family == socket.AF_INET6 and flags & IFA_F_TEMPORARY:
        return None
    if family == socket.AF_INET6 and index not in ours.without:
        is_made = proto == IFAPROT_KERNEL_LL
        if is_made or _is_made_of_mac(own, flags, ours.macs.get(index)):
            return None
    name = ours.names[index]
    label = text(found.get(IFA_LABEL, b""))
    preferred, valid = struct.unpack_from("=II", found.get(IFA_CACHEINFO, b"\xff" * 8))
    priority = found.get(IFA_RT_PRIORITY)
    return Address(
        dev=name,
        address=f"{own}/{length}",
        scope=scope,
        flags=flags & ADMIN_FLAGS,
        peer=other if other != own else None,
        broadcast=str(ip_address(found[IFA_BROADCAST])) if IFA_BROADCAST in found else None,
        label=label if label not in {"", name} else None,
        metric=None if priority is None else struct.unpack("=I", priority)[0],
        proto=proto,
        tentative=bool(flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED)),
        expires=valid != FOREVER,
        valid_until=None if valid == FOREVER else int(now + valid),
        preferred_until=None if preferred == FOREVER else int(now + preferred),
    )


def with_addresses(ours: Ours, addresses: Collection[Address]) -> Ours:
    """What routes are ours also depends on our addresses.

    The kernel makes no route for one with IFA_F_NOPREFIXROUTE. NetworkManager sets that, and adds
    one with a metric of its own and the kernel's protocol.
    """
    flagged = {each for each in addresses if each.flags & IFA_F_NOPREFIXROUTE}
    made = {(each.dev, _subnet(each)) for each in addresses if each not in flagged}
    return replace(
        ours,
        sources={each.address.partition("/")[0] for each in addresses if ":" not in each.address},
        plain={(each.dev, _subnet(each)) for each in flagged} - made,
    )


def _subnet(address: Address) -> str:
    return str(ip_interface(address.address).network)


def _is_made_of_mac(address: str, flags: int, mac: str | None) -> bool:
    """fe80:: and the MAC as EUI-64 (addrconf_ifid_eui48()), or a stable one by the kernel."""
    own = IPv6Address(address)
    if not own.is_link_local:
        return False
    if flags & IFA_F_STABLE_PRIVACY or mac is None:
        return bool(flags & IFA_F_STABLE_PRIVACY)
    raw = bytes.fromhex(mac.replace(":", ""))
    return own.packed[8:] == bytes([raw[0] ^ 2, *raw[1:3], 0xFF, 0xFE, *raw[3:]])


def route_of(body: bytes, ours: Ours, now: float) -> Route | str | None:
    """One RTM_NEWROUTE; None when it is not ours or the kernel's own; text: it is lost."""
    family, length, _, tos, table, proto, scope, kind, flags = struct.unpack_from(
        "=BBBBBBBBI", body, 16
    )
    if family not in FAMILIES or flags & RTM_F_CLONED:
        return None
    if proto == RTPROT_KERNEL and (not ours.plain or kind != RTN_UNICAST):
        return None
    found = dict(attributes(body, 28))
    hops = tuple(_nexthops(found, flags))
    src = str(ip_address(found[RTA_PREFSRC])) if RTA_PREFSRC in found else None
    if not any(index in ours.indexes for index, _ in hops) and src not in ours.sources:
        return None
    zero = bytes(4 if family == socket.AF_INET else 16)
    dst = f"{ip_address(found.get(RTA_DST, zero))}/{length}"
    if proto == RTPROT_KERNEL and (ours.names.get(hops[0][0]), dst) not in ours.plain:
        return None
    rest = ", ".join(name for number, name in RTA_REST.items() if number in found)
    metrics = dict(attributes(found.get(RTA_METRICS, b"")))
    if rest or RTAX_CC_ALGO in metrics or any(hop is None for _, hop in hops):
        return f"route {dst} with {rest or 'attributes that are not known'}"
    expires = 0
    if RTA_CACHEINFO in found and family == socket.AF_INET6:
        (expires,) = struct.unpack_from("=i", found[RTA_CACHEINFO], 8)
    return Route(
        dst=dst,
        nexthops=tuple(replace(h, dev=ours.names.get(index)) for index, h in hops if h is not None),
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
        expires=expires > 0,
        expires_at=int(now + expires / USER_HZ) if expires > 0 else None,
    )


def _nexthops(found: Mapping[int, bytes], flags: int) -> Iterator[tuple[int, Nexthop | None]]:
    """Ifindex and nexthop of each; None for one with what is not known here (an encapsulation)."""
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


def neighbour_of(body: bytes, ours: Ours) -> Neighbour | None:
    """One RTM_NEWNEIGH; None when it is not ours or not permanent."""
    family, index, state, flags, _ = struct.unpack_from("=BxxxiHBB", body, 16)
    proxy = bool(flags & NTF_PROXY)
    if index not in ours.indexes or family not in FAMILIES:
        return None
    if not proxy and not state & NUD_PERMANENT:
        return None
    found = dict(attributes(body, 28))
    lladdr = found.get(2, b"").hex(":") or None
    address = str(ip_address(found[1]))
    kept = flags & (NTF_ROUTER | NTF_EXT_LEARNED)
    return Neighbour(ours.names[index], address, lladdr, proxy, kept)


def request(kind: int, flags: int, body: bytes) -> bytearray:
    header = struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | flags, 0, 0)
    return bytearray(header + body)
