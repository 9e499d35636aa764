"""rtnetlink: read all links and the VF list of a PF, change links and VFs by ifindex.

The structs of a VF's attributes are those of if_link.h, in `VF_CODEC`.

Facts of the kernel that shape this module (net/core/rtnetlink.c, Linux 6.12):

- The VF list is one attribute of at most 64 KiB, whose length wraps silently: with statistics, 300
  VFs are returned as 79. Statistics are therefore skipped, and the list is compared with
  `IFLA_NUM_VF`, which is always right.
- `rtnl_fill_vfinfo()` presets spoofchk, query_rss and trust to -1, which means that the driver does
  not support them: they are None here. The other attributes are preset to 0.
- The attributes of an RTM_SETLINK are applied in a fixed order up to the first refusal, and are not
  undone. A refused message is therefore sent again by the caller, attribute by attribute.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from nodeagent.errors import KernelError
from nodeagent.kernel import drvinfo
from nodeagent.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    Netlink,
    attribute,
    attributes,
    mac_bytes,
    nested,
    request,
    text,
    text_bytes,
    understood,
)
from nodeagent.state.addresses import Guid, Mac
from nodeagent.state.attributes import given
from nodeagent.state.checks import U32
from nodeagent.state.link import LinkAttributes
from nodeagent.state.vf import VLAN_PROTOCOLS, LinkState, VfAttributes, VlanProtocol

LINK_HEADER: Final = 32  # struct nlmsghdr and struct ifinfomsg
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_GETNSID: Final = 90
NETNSA_NSID, NETNSA_FD = 1, 3
RTM_NEWLINKPROP: Final = 108
RTM_DELLINKPROP: Final = 109
RTEXT_FILTER_VF: Final = 1
RTEXT_FILTER_SKIP_STATS: Final = 8
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK = 1, 3, 4, 5
IFLA_MASTER, IFLA_TXQLEN, IFLA_LINKINFO, IFLA_IFALIAS = 10, 13, 18, 20
IFLA_NUM_VF, IFLA_VFINFO_LIST, IFLA_NET_NS_FD, IFLA_EXT_MASK = 21, 22, 28, 29
IFLA_AF_SPEC, IFLA_GROUP, IFLA_LINK_NETNSID, IFLA_PHYS_PORT_NAME = 26, 27, 37, 38
IFLA_PROP_LIST, IFLA_ALT_IFNAME = 52, 53
IFLA_XDP, IFLA_XDP_ATTACHED = 43, 2
IFLA_PARENT_DEV_NAME, IFLA_PARENT_DEV_BUS_NAME = 56, 57
IFLA_GSO_MAX_SEGS, IFLA_GSO_MAX_SIZE, IFLA_GRO_MAX_SIZE = 40, 41, 58
IFLA_GSO_IPV4_MAX_SIZE, IFLA_GRO_IPV4_MAX_SIZE = 63, 64
IFLA_INFO_KIND: Final = 1
IFLA_VF_INFO: Final = 1
IFLA_VF_MAC, IFLA_VF_VLAN, IFLA_VF_SPOOFCHK, IFLA_VF_LINK_STATE, IFLA_VF_RATE = 1, 2, 4, 5, 6
IFLA_VF_RSS_QUERY_EN, IFLA_VF_TRUST, IFLA_VF_IB_NODE_GUID, IFLA_VF_IB_PORT_GUID = 7, 9, 10, 11
IFLA_VF_VLAN_LIST: Final = 12
IFLA_VF_VLAN_INFO: Final = 1
ARPHRD_INFINIBAND: Final = 32
ARPHRD_LOOPBACK: Final = 772
IFF_UP: Final = 0x1
IFF_NOARP: Final = 0x80
IFF_PROMISC: Final = 0x100
IFF_ALLMULTI: Final = 0x200
IFF_MULTICAST: Final = 0x1000
IFF_LOWER_UP: Final = 0x10000
U16: Final = 0xFFFF
STATES: Final = tuple(LinkState)


def _u32(value: bytes) -> int:
    (number,) = struct.unpack("=I", value)
    return int(number)


def _ethernet(value: bytes | None) -> Mac | None:
    """None for other addresses (those of IPv4 tunnels have four bytes, of InfiniBand twenty)."""
    return Mac(value.hex(":")) if value is not None and len(value) == 6 else None


def _known_u32(value: bytes | None) -> int | None:
    return None if value is None else _u32(value)


def _required_u32(value: bytes | None) -> int:
    if value is None:
        raise ValueError("an interface without an MTU")
    return _u32(value)


def _required_text(value: bytes | None) -> str:
    if value is None:
        raise ValueError("an interface without a name")
    return text(value)


def _printable(value: bytes) -> str | None:
    """An alias or altname, of which the kernel checks only the length; None if not printable."""
    try:
        string = value.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        return None
    return string if string.isprintable() else None


def _altnames(properties: bytes) -> tuple[str, ...]:
    values = (value for kind, value in attributes(properties) if kind == IFLA_ALT_IFNAME)
    return tuple(sorted(filter(None, map(_printable, values))))


def _flag(value: int) -> bool | None:
    return None if value == U32 else bool(value)


def _link_state(number: int) -> LinkState | None:
    return STATES[number] if number < len(STATES) else None


def _guid(number: int) -> Guid | None:
    """A GUID; None for zero, which means that it was not set."""
    return Guid(number.to_bytes(8, "big").hex(":")) if number else None


def _guid_number(guid: str) -> int:
    return int(guid.replace(":", ""), 16)


def _packed_u32(value: int) -> bytes:
    return struct.pack("=I", value)


LinkCodec = tuple[str, int, Callable[[bytes | None], Any], Callable[[Any], bytes]]
"""An attribute of `LinkAttributes`, its IFLA_ number, and how its payload is read and written."""

LINK_CODEC: Final[tuple[LinkCodec, ...]] = (
    ("mac", IFLA_ADDRESS, _ethernet, mac_bytes),
    ("mtu", IFLA_MTU, _required_u32, _packed_u32),
    ("txqueuelen", IFLA_TXQLEN, _known_u32, _packed_u32),
    ("group", IFLA_GROUP, lambda value: _u32(value) if value else 0, _packed_u32),
    ("name", IFLA_IFNAME, _required_text, text_bytes),
    ("alias", IFLA_IFALIAS, lambda value: _printable(value or b""), text_bytes),
    ("gso_max_size", IFLA_GSO_MAX_SIZE, _known_u32, _packed_u32),
    ("gso_ipv4_max_size", IFLA_GSO_IPV4_MAX_SIZE, _known_u32, _packed_u32),
    ("gso_max_segs", IFLA_GSO_MAX_SEGS, _known_u32, _packed_u32),
    ("gro_max_size", IFLA_GRO_MAX_SIZE, _known_u32, _packed_u32),
    ("gro_ipv4_max_size", IFLA_GRO_IPV4_MAX_SIZE, _known_u32, _packed_u32),
)
LINK_FLAGS: Final = (
    # attribute, bit of ifi_flags, what the bit means when it is set
    ("up", IFF_UP, True),
    ("promisc", IFF_PROMISC, True),
    ("allmulti", IFF_ALLMULTI, True),
    ("arp", IFF_NOARP, False),
    ("multicast", IFF_MULTICAST, True),
)

VfMember = tuple[str, Callable[[Any], Any], Callable[[Any], Any]]
"""An attribute of `VfAttributes`, and how its member of the struct is read and written."""

VF_CODEC: Final[tuple[tuple[int, str, tuple[VfMember, ...]], ...]] = (
    (IFLA_VF_MAC, "32s", (("admin_mac", lambda value: Mac(value[:6].hex(":")), mac_bytes),)),
    (IFLA_VF_IB_NODE_GUID, "4xQ", (("node_guid", _guid, _guid_number),)),
    (IFLA_VF_IB_PORT_GUID, "4xQ", (("port_guid", _guid, _guid_number),)),
    (IFLA_VF_RATE, "II", (("min_tx_rate", int, int), ("max_tx_rate", int, int))),
    (IFLA_VF_SPOOFCHK, "I", (("spoofchk", _flag, int),)),
    (IFLA_VF_LINK_STATE, "I", (("link_state", _link_state, STATES.index),)),
    (IFLA_VF_RSS_QUERY_EN, "I", (("query_rss", _flag, int),)),
    (IFLA_VF_TRUST, "I", (("trust", _flag, int),)),
)
"""By attribute of a VF, the members of its struct that follow the VF's number.

VLANs are `_vlan_attributes` and `_vlan_of`. A GUID is a u64 behind four bytes of padding.
"""


@dataclass(frozen=True, kw_only=True)
class Link(LinkAttributes):
    """One network interface of the host's namespace.

    `mac` is None if the address does not have Ethernet's six bytes. `bus` and `device` name the
    parent device (None for virtual interfaces). `carrier` is IFF_LOWER_UP. `parent` is the ifindex
    of the interface below it, in this namespace, `master` that of the interface of which it is a
    port; `info` is the raw IFLA_LINKINFO, for `nodeagent.kernel.stack`, and `af_spec` IFLA_AF_SPEC,
    for `nodeagent.kernel.sysctls`. `foreign_parent`: the ifindex of the interface below it in
    another namespace, and that namespace's number in this one. `has_xdp`: an XDP program is
    attached.
    """

    index: int
    name: str
    carrier: bool = False
    bus: str | None = None
    device: str | None = None
    phys_port_name: str | None = None
    parent: int | None = None
    master: int | None = None
    info: bytes = b""
    af_spec: bytes = b""
    foreign_parent: tuple[int, int] | None = None
    has_xdp: bool = False


@dataclass(frozen=True)
class VfInfo(VfAttributes):
    """One VF as its PF reports it. None: the driver does not report it."""

    index: int


@dataclass(frozen=True)
class LinkChange(LinkAttributes):
    """What to set on the interface `index`. None: leave alone; altnames are AltnameChanges."""

    index: int


@dataclass(frozen=True)
class AltnameChange:
    """Add or delete an alternative name of the interface `index`."""

    index: int
    altname: str
    add: bool


@dataclass(frozen=True)
class VfChange(VfAttributes):
    """What to set for VF `vf` on the PF whose interface is `index`. None: leave alone.

    `vlan` comes with `qos` and, for anything but 802.1Q, `vlan_proto`; both rates come together.
    """

    index: int
    vf: int


@dataclass(frozen=True)
class LinkMove:
    """Move the interface `index` to the namespace of the descriptor `fd`, as `name`.

    Both in one message. If the name is taken there, the message is refused with EEXIST, but the
    interface is moved nevertheless, under its old name (do_setlink()).
    """

    index: int
    fd: int
    name: str


Change = LinkChange | AltnameChange | VfChange | LinkMove


class Rtnl(Netlink):
    """A NETLINK_ROUTE socket."""

    def __init__(self) -> None:
        super().__init__(socket.NETLINK_ROUTE)

    @understood("network interfaces")
    def links(self) -> dict[int, Link]:
        """Every interface of this network namespace, by ifindex: one request, however many."""
        request = _get_link(0, NLM_F_DUMP, RTEXT_FILTER_SKIP_STATS)
        links = map(_link, self.dump(request, "network interfaces"))
        return {link.index: link for link in links}

    @understood("network interfaces")
    def has_hardware(self) -> bool:
        """Whether an interface here is one of a device: not lo, and without a kind."""
        request = _get_link(0, NLM_F_DUMP, RTEXT_FILTER_SKIP_STATS)
        return any(map(_is_hardware, self.dump(request, "network interfaces")))

    @understood("VFs")
    def vfs(self, index: int) -> tuple[VfInfo, ...]:
        """The VF list of the PF whose interface is `index`, sorted: one request.

        VFs about which the driver cannot report (ndo_get_vf_config is missing, or fails with
        EINVAL) are not in the list. KernelError if the interface is gone, or if VFs are missing
        because the list wrapped at 64 KiB.

        IPoIB lists its own address for each VF (ipoib_get_vf_config()), which nothing sets.
        """
        mask = RTEXT_FILTER_VF | RTEXT_FILTER_SKIP_STATS
        try:
            (body,) = self.ask(_get_link(index, 0, mask))
        except OSError as error:
            raise KernelError(
                f"cannot read the VFs of interface {index}: {error.strerror}", errno=error.errno
            ) from error
        found = _by_number(body, LINK_HEADER)
        infos = _vf_infos(found)
        expected = _u32(found.get(IFLA_NUM_VF, bytes(4)))
        if len(infos) != expected and len(body) > U16:
            raise KernelError(
                f"the kernel lists {len(infos)} of the {expected} VFs of interface "
                f"{text(found[IFLA_IFNAME])}: the list is cut at 64 KiB",
                hint="a PF can report about 340 VFs; use fewer VFs, or a newer kernel",
            )
        vfs: Iterable[VfInfo] = map(_vf_info, infos)
        if _type_of(body) == ARPHRD_INFINIBAND:
            vfs = (replace(vf, admin_mac=None) for vf in vfs)
        return tuple(sorted(vfs, key=lambda vf: vf.index))

    @understood("network namespaces")
    def number_of(self, fd: int) -> int | None:
        """The number of a namespace in this socket's namespace; None if it has none."""
        named = attribute(NETNSA_FD, struct.pack("=I", fd))
        (body,) = self.ask(request(RTM_GETNSID, 0, bytes(4) + named))
        (number,) = struct.unpack("=i", dict(attributes(body, 20))[NETNSA_NSID])
        return number if number >= 0 else None

    def bus_info(self, name: str) -> str:
        """The device that an interface's driver reports, in this socket's namespace, or ""."""
        return drvinfo.bus_info(self._socket, name)

    def change(self, changes: Sequence[Change]) -> list[OSError | None]:
        """Send all changes; for each, in order, None or why the kernel refused it."""
        return self.send([_set_link(change) for change in changes])


def _type_of(body: bytes) -> int:
    """The member ifi_type of struct ifinfomsg."""
    return int(struct.unpack_from("=H", body, 18)[0])


def _is_hardware(body: bytes) -> bool:
    """A kind of its own (IFLA_INFO_KIND) is a virtual interface's."""
    info = dict(attributes(body, LINK_HEADER)).get(IFLA_LINKINFO, b"")
    return _type_of(body) != ARPHRD_LOOPBACK and IFLA_INFO_KIND not in dict(attributes(info))


def _by_number(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The first attribute of each number: bytes after a list that wrapped are not attributes."""
    found: dict[int, bytes] = {}
    for kind, value in attributes(data, offset):
        found.setdefault(kind, value)
    return found


def _vf_infos(found: dict[int, bytes]) -> list[bytes]:
    listed = attributes(found.get(IFLA_VFINFO_LIST, b""))
    return [info for kind, info in listed if kind == IFLA_VF_INFO]


def link_message(
    kind: int,
    flags: int,
    index: int,
    *parts: bytes,
    up: int = 0,
    change: int = 0,
    family: int = socket.AF_UNSPEC,
) -> bytearray:
    """A request with struct ifinfomsg: `up` is ifi_flags, `change` the mask of those that count."""
    header = struct.pack("=BxHiII", family, 0, index, up, change)
    return request(kind, flags, header + b"".join(parts))


def _get_link(index: int, flags: int, mask: int) -> bytearray:
    return link_message(RTM_GETLINK, flags, index, attribute(IFLA_EXT_MASK, _packed_u32(mask)))


def _set_link(change: Change) -> bytearray:
    if isinstance(change, AltnameChange):
        return _set_altname(change)
    if isinstance(change, LinkMove):
        return _move(change)
    if isinstance(change, VfChange):
        infos = attribute(IFLA_VFINFO_LIST, b"".join(_vf_nests(change)))
        return link_message(RTM_SETLINK, NLM_F_ACK, change.index, infos)
    values = given(change)
    parts = [
        attribute(kind, write(values[name]))
        for name, kind, _, write in LINK_CODEC
        if name in values
    ]
    asked = [(bit, values[name] is is_on) for name, bit, is_on in LINK_FLAGS if name in values]
    return link_message(
        RTM_SETLINK,
        NLM_F_ACK,
        change.index,
        *parts,
        up=sum(bit for bit, is_set in asked if is_set),
        change=sum(bit for bit, _ in asked),
    )


def _move(change: LinkMove) -> bytearray:
    place = attribute(IFLA_NET_NS_FD, _packed_u32(change.fd))
    name = attribute(IFLA_IFNAME, text_bytes(change.name))
    return link_message(RTM_SETLINK, NLM_F_ACK, change.index, place, name)


def _set_altname(change: AltnameChange) -> bytearray:
    """The kernel requires the list to be marked as a nest."""
    kind = RTM_NEWLINKPROP if change.add else RTM_DELLINKPROP
    altname = attribute(IFLA_ALT_IFNAME, text_bytes(change.altname))
    return link_message(kind, NLM_F_ACK, change.index, nested(IFLA_PROP_LIST, altname))


def _vf_nests(change: VfChange) -> Iterator[bytes]:
    """The kernel sets one GUID of a nest, and ignores what follows (do_setvfinfo())."""
    port_guid = VfChange(change.index, change.vf, port_guid=change.port_guid)
    for part in (replace(change, port_guid=None), port_guid):
        if given(part):
            yield attribute(IFLA_VF_INFO, b"".join(_vf_attributes(part)))


def _vf_attributes(change: VfChange) -> Iterator[bytes]:
    values, vf = given(change), change.vf
    for kind, members, names in VF_CODEC:
        if any(name in values for name, *_ in names):
            written = [write(values[name]) if name in values else 0 for name, _, write in names]
            yield attribute(kind, struct.pack(f"=I{members}", vf, *written))
    if change.vlan is not None:
        yield _vlan_attribute(vf, change.vlan, change.qos or 0, change.vlan_proto)


def _vlan_attribute(vf: int, vlan: int, qos: int, proto: VlanProtocol | None) -> bytes:
    """802.1Q in the attribute that every driver knows, another protocol in the list.

    The list's struct ifla_vf_vlan_info has two bytes of tail padding: without them it is EINVAL.
    """
    known = struct.pack("=III", vf, vlan, qos)
    if proto is None or proto is VlanProtocol.Q:
        return attribute(IFLA_VF_VLAN, known)
    info = known + struct.pack(">H2x", proto.ethertype)
    return attribute(IFLA_VF_VLAN_LIST, attribute(IFLA_VF_VLAN_INFO, info))


def _link(message: bytes) -> Link:
    """From struct ifinfomsg (rtnetlink(7)) and its attributes (if_link.h)."""
    index, flags = struct.unpack_from("=4xiI", message, 16)
    found = dict(attributes(message, LINK_HEADER))

    def number(kind: int) -> int | None:
        return _u32(found[kind]) if kind in found else None

    def string(kind: int) -> str | None:
        return text(found[kind]) if kind in found else None

    parent, namespace = number(IFLA_LINK), number(IFLA_LINK_NETNSID)
    return Link(
        index=index,
        carrier=bool(flags & IFF_LOWER_UP),
        bus=string(IFLA_PARENT_DEV_BUS_NAME),
        device=string(IFLA_PARENT_DEV_NAME),
        phys_port_name=string(IFLA_PHYS_PORT_NAME),
        altnames=_altnames(found.get(IFLA_PROP_LIST, b"")),
        # with IFLA_LINK_NETNSID it is an ifindex in that namespace
        parent=parent if namespace is None else None,
        master=number(IFLA_MASTER),
        info=found.get(IFLA_LINKINFO, b""),
        af_spec=found.get(IFLA_AF_SPEC, b""),
        has_xdp=any(dict(attributes(found.get(IFLA_XDP, b""))).get(IFLA_XDP_ATTACHED, b"")),
        foreign_parent=None if parent is None or namespace is None else (parent, namespace),
        **{name: read(found.get(kind)) for name, kind, read, _ in LINK_CODEC},
        **_flags(flags),
    )


def _flags(flags: int) -> dict[str, Any]:
    return {name: (flags & bit != 0) is is_on for name, bit, is_on in LINK_FLAGS}


def _vf_info(info: bytes) -> VfInfo:
    found = _by_number(info)
    values: dict[str, Any] = {}
    for kind, members, names in VF_CODEC:
        if kind in found:
            numbers = struct.unpack_from(f"=4x{members}", found[kind])
            values |= {
                name: read(number) for (name, read, _), number in zip(names, numbers, strict=True)
            }
    return VfInfo(index=_u32(found[IFLA_VF_MAC][:4]), **values, **_vlan_of(found))


def _vlan_of(found: dict[int, bytes]) -> dict[str, Any]:
    """VLAN, QoS and protocol; the list has all three (Linux 4.9), IFLA_VF_VLAN lacks the last.

    rtnl_fill_vfinfo() presets 802.1Q, and the kernel's own mlx5 zeroes that: it has no other one.
    """
    entry = _by_number(found.get(IFLA_VF_VLAN_LIST, b"")).get(IFLA_VF_VLAN_INFO)
    if entry is not None:
        vlan, qos = struct.unpack_from("=4xII", entry)
        (number,) = struct.unpack_from(">H", entry, 12)
        protocol = VLAN_PROTOCOLS.get(number) if number else VlanProtocol.Q
        return {"vlan": vlan, "qos": qos, "vlan_proto": protocol}
    entry = found.get(IFLA_VF_VLAN)
    if entry is None:
        return {}
    vlan, qos = struct.unpack_from("=4xII", entry)
    return {"vlan": vlan, "qos": qos}
