"""Lines for the log about things that are removed with interfaces and not restored.

Each kind is one dump. Formats: uapi/linux/{neighbour,if_bridge,rtnetlink}.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.kernel import sysctls
from nodeagent.kernel.netlink import NLM_F_DUMP, Netlink, attributes, request
from nodeagent.kernel.rtnl import Link

RTM_GETNEIGH: Final = 30
RTM_GETMDB: Final = 86
NUD_NOARP, NTF_SELF = 0x40, 0x02
MDBA_MDB, MDBA_MDB_ENTRY_INFO, MDB_PERMANENT = 1, 1, 1
NDA_LLADDR, NDA_VLAN, NDA_MASTER = 2, 5, 9

Tell = Callable[[bytes], Iterable[str | None]]


def left_out(
    edge: Netlink,
    links: Mapping[int, Link],
    indexes: Collection[int],
    tables: sysctls.SysctlTables,
) -> Iterator[str]:
    """A line for each thing on the interfaces `indexes` that is not restored."""
    ours = {index: links[index] for index in sorted(indexes)}
    macs = {link.mac for link in links.values()}
    bridged = any(link.master is not None for link in ours.values())
    neighbours = struct.pack("=BxHiHBB", socket.AF_BRIDGE, 0, 0, 0, 0, 0)
    ports = struct.pack("=Bxxxi", socket.AF_BRIDGE, 0)
    dumps: list[tuple[int, bytes, str, Tell]] = [
        (RTM_GETNEIGH, neighbours, "FDB entries", lambda body: [fdb_of(body, ours, macs)]),
    ]
    if bridged:
        dumps.append((RTM_GETMDB, ports, "MDB entries", lambda body: mdb_of(body, ours)))
    for kind, header, what, tell in dumps:
        try:
            bodies = edge.dump(request(kind, NLM_F_DUMP, header), what)
        except KernelError:
            continue  # EOPNOTSUPP: no bridge is loaded, the master is another
        yield from (text for body in bodies for text in tell(body) if text is not None)
    for link in ours.values():
        yield from identity_of(link, tables)
        if link.has_xdp:
            yield f"XDP program on {link.name}"


def identity_of(link: Link, tables: sysctls.SysctlTables) -> Iterator[str]:
    """The source of IPv6 addresses: `stable_secret on enp1s0`."""
    if tables.is_secret_of_its_own(link.af_spec):
        yield f"stable_secret on {link.name}, with the IPv6 addresses that are made of it"


def fdb_of(body: bytes, ours: dict[int, Link], macs: Collection[str | None] = ()) -> str | None:
    """`static FDB entry 02:… on enp1s0v1 vlan 10`; not learned ones and addresses of interfaces.

    One without a bridge is an address on which the interface itself receives. `macs` are the
    interfaces' own addresses; multicast groups are joined again.
    """
    index, state, flags = struct.unpack_from("=iHB", body, 20)
    found = dict(attributes(body, 28))
    if index not in ours:
        return None
    lladdr = found.get(NDA_LLADDR, b"")
    if NDA_MASTER in found:
        if not state & NUD_NOARP:
            return None
    elif not flags & NTF_SELF or len(lladdr) != 6 or lladdr[0] & 1 or lladdr.hex(":") in macs:
        return None
    (vlan,) = struct.unpack("=H", found[NDA_VLAN]) if NDA_VLAN in found else (0,)
    where = f" vlan {vlan}" if vlan else ""
    return f"static FDB entry {lladdr.hex(':')} on {ours[index].name}{where}"


def mdb_of(body: bytes, ours: dict[int, Link]) -> Iterator[str]:
    """`MDB entry 239.1.1.1 on enp1s0v1 vlan 10` for permanent ones (struct br_mdb_entry)."""
    entries = dict(attributes(body, 24)).get(MDBA_MDB, b"")
    infos = (
        info
        for _, entry in attributes(entries)
        for kind, info in attributes(entry)
        if kind == MDBA_MDB_ENTRY_INFO
    )
    for info in infos:
        index, state, _, vlan, group, protocol = struct.unpack_from("=iBBH16s2s", info)
        if index in ours and state == MDB_PERMANENT:
            where = f" vlan {vlan}" if vlan else ""
            yield f"MDB entry {_group(group, protocol)} on {ours[index].name}{where}"


def _group(raw: bytes, protocol: bytes) -> str:
    """An address of IPv4 or IPv6 (ETH_P_IP, ETH_P_IPV6), or a MAC."""
    if protocol == b"\x08\x00":
        return str(ip_address(raw[:4]))
    return str(ip_address(raw)) if protocol == b"\x86\xdd" else raw[:6].hex(":")
