"""IFLA_LINKINFO: the kind of an interface, and of a port, decoded and encoded by tables.

Numbers and sizes are those of uapi/linux/if_link.h. State (a bridge port's timers) is not in the
tables.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from nodeagent.kernel.netlink import attribute, attributes, mac_bytes, nested, text
from nodeagent.state.stack import Pairs

INFO_KIND: Final = 1
INFO_DATA: Final = 2
INFO_SLAVE_KIND: Final = 4
INFO_SLAVE_DATA: Final = 5
BOND_PERM_HWADDR: Final = 4
VLAN_FLAGS: Final = 2
VLAN_FLAGS_MASK: Final = 0x1F
"""Those of Linux 6.12; the kernel refuses unknown flags (vlan_dev_change_flags())."""
VLAN_MAPS: Final = {3: "egress", 4: "ingress"}
VLAN_QOS_MAPPING: Final = 1
VXLAN_LINK: Final = 3
MACVLAN_SOURCES_MODE, MACVLAN_SOURCE, MACVLAN_SOURCES, MACVLAN_SOURCES_SET = 3, 4, 5, 3
SOURCE: Final = "source."

Table = dict[str, tuple[int, str]]

_MACVLAN: Final[Table] = {"mode": (1, "=I"), "flags": (2, "=H"), "bcqueuelen": (7, "=I")}
_IPVLAN: Final[Table] = {"mode": (1, "=H"), "flags": (2, "=H")}
DATA: Final[dict[str, Table]] = {
    "vlan": {"id": (1, "=H"), "protocol": (5, ">H")},
    "macvlan": _MACVLAN,
    "macvtap": _MACVLAN,
    "ipvlan": _IPVLAN,
    "ipvtap": _IPVLAN,
}
PORT_DATA: Final[dict[str, Table]] = {
    "bond": {"queue_id": (5, "=H"), "prio": (9, "=I"), "actor_port_prio": (10, "=H")},
    "bridge": {
        "priority": (2, "=H"),
        "cost": (3, "=I"),
        "hairpin": (4, "=B"),
        "guard": (5, "=B"),
        "root_block": (6, "=B"),
        "fastleave": (7, "=B"),
        "learning": (8, "=B"),
        "flood": (9, "=B"),
        "proxy_arp": (10, "=B"),
        "proxy_arp_wifi": (12, "=B"),
        "mcast_router": (25, "=B"),
        "mcast_flood": (27, "=B"),
        "mcast_to_unicast": (28, "=B"),
        "vlan_tunnel": (29, "=B"),
        "bcast_flood": (30, "=B"),
        "group_fwd_mask": (31, "=H"),
        "neigh_suppress": (32, "=B"),
        "isolated": (33, "=B"),
        "mcast_hosts_limit": (37, "=I"),
        "locked": (39, "=B"),
        "mab": (40, "=B"),
        "mcast_max_groups": (42, "=I"),
        "neigh_vlan_suppress": (43, "=B"),
    },
}


@dataclass(frozen=True)
class LinkInfo:
    """Kind and attributes of an interface, and kind and attributes of a port, if it is one.

    `port_mac` is the MAC that a bond restores when the port leaves (IFLA_BOND_SLAVE_PERM_HWADDR).
    """

    kind: str | None = None
    data: Pairs = ()
    port_kind: str | None = None
    port_data: Pairs = ()
    port_mac: str | None = None


def decoded(raw: bytes) -> LinkInfo:
    """The payload of IFLA_LINKINFO."""
    found = dict(attributes(raw))
    kind, port_kind = _kind(found.get(INFO_KIND)), _kind(found.get(INFO_SLAVE_KIND))
    data = _pairs(DATA.get(kind or "", {}), found.get(INFO_DATA, b""))
    if kind == "vlan":
        data = tuple(sorted((*data, *_vlan_pairs(found.get(INFO_DATA, b"")))))
    if kind in {"macvlan", "macvtap"}:
        data = tuple(sorted((*data, *_source_pairs(found.get(INFO_DATA, b"")))))
    ports = _pairs(PORT_DATA.get(port_kind or "", {}), found.get(INFO_SLAVE_DATA, b""))
    mac = None
    if port_kind == "bond":
        mac = dict(attributes(found.get(INFO_SLAVE_DATA, b""))).get(BOND_PERM_HWADDR, b"").hex(":")
    return LinkInfo(kind, data, port_kind, ports, mac or None)


def vxlan_lower(raw: bytes) -> int | None:
    """The ifindex of the interface below a VXLAN (IFLA_VXLAN_LINK), with which it is removed."""
    if b"vxlan" not in raw:
        return None
    data = dict(attributes(dict(attributes(raw)).get(INFO_DATA, b""))).get(VXLAN_LINK, b"")
    return int.from_bytes(data, sys.byteorder) or None


def child_info(kind: str, data: Pairs) -> bytes:
    """The payload of IFLA_LINKINFO for a new interface of `kind`."""
    return attribute(INFO_KIND, kind.encode()) + nested(INFO_DATA, _encoded_data(kind, data))


def port_info(kind: str, data: Pairs) -> bytes:
    """The payload of IFLA_LINKINFO that sets attributes of a port of `kind`."""
    values = b"".join(_encoded(PORT_DATA[kind], data))
    return attribute(INFO_SLAVE_KIND, kind.encode()) + nested(INFO_SLAVE_DATA, values)


def _kind(raw: bytes | None) -> str | None:
    return None if raw is None else text(raw)


def _pairs(table: Table, raw: bytes) -> Pairs:
    values = dict(attributes(raw)) if table else {}
    return tuple(
        (name, struct.unpack_from(form, values[number])[0])
        for name, (number, form) in sorted(table.items())
        if len(values.get(number, b"")) >= struct.calcsize(form)
    )


def _vlan_pairs(raw: bytes) -> Iterator[tuple[str, int]]:
    """Flags (struct ifla_vlan_flags) and priority maps (struct ifla_vlan_qos_mapping)."""
    for number, payload in attributes(raw):
        if number == VLAN_FLAGS:
            yield "flags", struct.unpack_from("=I", payload)[0]
        if number in VLAN_MAPS:
            for _, mapping in attributes(payload):
                source, target = struct.unpack_from("=II", mapping)
                yield f"{VLAN_MAPS[number]}.{source}", target


def _source_pairs(raw: bytes) -> Iterator[tuple[str, int]]:
    """The MACs from which a MACVLAN of mode source receives, as `source.02:…`."""
    listed = dict(attributes(raw)).get(MACVLAN_SOURCES, b"")
    for number, mac in attributes(listed):
        if number == MACVLAN_SOURCE:
            yield f"{SOURCE}{mac.hex(':')}", 1


def _encoded_sources(data: Pairs) -> bytes:
    macs = [name.removeprefix(SOURCE) for name, _ in data if name.startswith(SOURCE)]
    if not macs:
        return b""
    entries = (attribute(MACVLAN_SOURCE, mac_bytes(mac)) for mac in macs)
    mode = attribute(MACVLAN_SOURCES_MODE, struct.pack("=I", MACVLAN_SOURCES_SET))
    return mode + nested(MACVLAN_SOURCES, b"".join(entries))


def _encoded_data(kind: str, data: Pairs) -> bytes:
    values = b"".join(_encoded(DATA[kind], data)) + _encoded_sources(data)
    if kind == "vlan":
        flags = dict(data).get("flags", 0)
        values += attribute(VLAN_FLAGS, struct.pack("=II", flags, VLAN_FLAGS_MASK))
        for number, direction in VLAN_MAPS.items():
            mappings = b"".join(
                attribute(VLAN_QOS_MAPPING, struct.pack("=II", int(name.split(".")[1]), target))
                for name, target in data
                if name.startswith(f"{direction}.")
            )
            values += nested(number, mappings) if mappings else b""
    return values


def _encoded(table: Table, data: Iterable[tuple[str, int]]) -> Iterator[bytes]:
    for name, value in data:
        if name in table:
            number, form = table[name]
            yield attribute(number, struct.pack(form, value))
