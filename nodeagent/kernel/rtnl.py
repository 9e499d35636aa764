"""rtnetlink: read all links and a PF's VF list, change links and VFs by ifindex.

pyroute2 encodes and decodes the messages: its classes follow if_link.h. But the list of all links,
of which a reload takes a dozen, is read here: in a quarter of the time.

Facts of the kernel that shape this module (net/core/rtnetlink.c, Linux 6.12):

- A PF's VF list is one attribute of at most 64 KiB and wraps silently: with statistics 300 VFs
  come back as 79. So statistics are skipped, and `IFLA_NUM_VF`, which is right in every case, is
  held against the list.
- `rtnl_fill_vfinfo()` presets spoofchk, query_rss and trust to -1: what is still -1 is not
  supported by the driver and is None here. The other attributes are preset to 0.
- In one RTM_SETLINK attributes are applied in a fixed order and the first refusal ends the
  message, without undoing what was applied before. So a refused message is taken apart by the
  caller and sent again, attribute by attribute.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pyroute2.netlink import NLA_F_NESTED, nla, nlmsg
from pyroute2.netlink.exceptions import NetlinkDecodeError
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from nodeagent.errors import KernelError
from nodeagent.kernel import drvinfo
from nodeagent.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    Netlink,
    attributes,
    text,
    understood,
)

RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
RTM_GETNSID: Final = 90
NETNSA_NSID, NETNSA_FD = 1, 3
RTM_NEWLINKPROP: Final = 108
RTM_DELLINKPROP: Final = 109
RTEXT_FILTER_VF: Final = 1
RTEXT_FILTER_SKIP_STATS: Final = 8
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK = 1, 3, 4, 5
IFLA_MASTER, IFLA_TXQLEN, IFLA_LINKINFO, IFLA_IFALIAS = 10, 13, 18, 20
IFLA_AF_SPEC, IFLA_GROUP, IFLA_LINK_NETNSID, IFLA_PHYS_PORT_NAME = 26, 27, 37, 38
IFLA_PROP_LIST, IFLA_ALT_IFNAME = 52, 53
IFLA_PARENT_DEV_NAME, IFLA_PARENT_DEV_BUS_NAME = 56, 57
IFLA_INFO_KIND: Final = 1
ARPHRD_LOOPBACK: Final = 772
IFF_UP: Final = 0x1
IFF_NOARP: Final = 0x80
IFF_PROMISC: Final = 0x100
IFF_ALLMULTI: Final = 0x200
IFF_MULTICAST: Final = 0x1000
IFF_LOWER_UP: Final = 0x10000
U16: Final = 0xFFFF
U32: Final = 0xFFFFFFFF
LINK_STATES: Final = ("auto", "enable", "disable")
PROTOCOLS: Final = {0x8100: "802.1Q", 0x88A8: "802.1ad"}


class _VlanInfo(nla):  # type: ignore[misc] # pyroute2 is untyped
    """struct ifla_vf_vlan_info with its tail padding, without which the kernel says EINVAL."""

    fields = (("vf", "I"), ("vlan", "I"), ("qos", "I"), ("proto", ">H"), ("__pad", "2x"))


class _VlanList(ifinfmsg.vflist.vfinfo.vf_vlist):  # type: ignore[misc] # pyroute2 is untyped
    ivvi = _VlanInfo


class _Guid(nla):  # type: ignore[misc] # pyroute2 is untyped
    """struct ifla_vf_guid: a u32, four bytes of padding, and the GUID as a number."""

    fields = (("vf", "I"), ("__pad", "4x"), ("guid", "Q"))


class _VfInfoMessage(ifinfmsg.vflist.vfinfo):  # type: ignore[misc] # pyroute2 is untyped
    vf_vlist = _VlanList
    vf_ib_node_guid = _Guid
    vf_ib_port_guid = _Guid


class _VfList(ifinfmsg.vflist):  # type: ignore[misc] # pyroute2 is untyped
    vfinfo = _VfInfoMessage


class _LinkMessage(nlmsg):  # type: ignore[misc] # pyroute2 is untyped
    """struct ifinfomsg, with the attributes of a change and of a PF's VF list."""

    prefix = "IFLA_"
    fields = ifinfmsg.fields
    nla_map = (
        (IFLA_ADDRESS, "IFLA_ADDRESS", "l2addr"),
        (IFLA_IFNAME, "IFLA_IFNAME", "asciiz"),
        (IFLA_MTU, "IFLA_MTU", "uint32"),
        (IFLA_TXQLEN, "IFLA_TXQLEN", "uint32"),
        (IFLA_IFALIAS, "IFLA_IFALIAS", "asciiz"),
        (21, "IFLA_NUM_VF", "uint32"),
        (22, "IFLA_VFINFO_LIST", "vflist"),
        (IFLA_GROUP, "IFLA_GROUP", "uint32"),
        (28, "IFLA_NET_NS_FD", "uint32"),
        (29, "IFLA_EXT_MASK", "uint32"),
        (IFLA_PROP_LIST, "IFLA_PROP_LIST", "proplist"),
    )
    vflist = _VfList

    class proplist(nla):  # type: ignore[misc] # noqa: N801 # pyroute2: untyped, and found by name
        nla_map = ((IFLA_ALT_IFNAME, "IFLA_ALT_IFNAME", "asciiz"),)
        nla_flags = NLA_F_NESTED  # newer attributes are refused without it


@dataclass(frozen=True)
class Link:
    """One network interface of the host's namespace.

    `mac` is None where the address is not Ethernet's six bytes. `bus` and `device` name the parent
    device (None for virtual interfaces). `up` is IFF_UP, `carrier` IFF_LOWER_UP. `parent` is the
    ifindex of the interface in this namespace that it stands on, `master` that of the one it is a
    port of; `info` is IFLA_LINKINFO as it is, for `nodeagent.kernel.linkinfo`, and `af_spec`
    IFLA_AF_SPEC, for `nodeagent.kernel.sysctls`. `elsewhere`: the ifindex of what it stands on in
    another namespace, and that namespace's number in this one.
    """

    index: int
    name: str
    mac: str | None
    mtu: int
    up: bool
    carrier: bool
    bus: str | None
    device: str | None
    phys_port_name: str | None
    altnames: tuple[str, ...] = ()
    promisc: bool = False
    allmulti: bool = False
    arp: bool = True
    multicast: bool = True
    txqueuelen: int | None = None
    group: int = 0
    alias: str | None = ""
    parent: int | None = None
    master: int | None = None
    info: bytes = b""
    af_spec: bytes = b""
    elsewhere: tuple[int, int] | None = None


@dataclass(frozen=True)
class VfInfo:
    """One VF as its PF reports it. None: the driver does not report it. Rates in Mbit/s."""

    index: int
    mac: str | None
    vlan: int | None
    qos: int | None
    vlan_proto: str | None
    spoofchk: bool | None
    trust: bool | None
    link_state: str | None
    min_tx_rate: int | None
    max_tx_rate: int | None
    query_rss: bool | None
    node_guid: str | None = None
    port_guid: str | None = None


@dataclass(frozen=True)
class LinkChange:
    """What to set on the interface `index`. None: leave alone."""

    index: int
    name: str | None = None
    mac: str | None = None
    mtu: int | None = None
    up: bool | None = None
    promisc: bool | None = None
    allmulti: bool | None = None
    arp: bool | None = None
    multicast: bool | None = None
    txqueuelen: int | None = None
    group: int | None = None
    alias: str | None = None


@dataclass(frozen=True)
class AltnameChange:
    """Give the interface `index` an alternative name, or take one away."""

    index: int
    altname: str
    add: bool


@dataclass(frozen=True)
class VfChange:
    """What to set for VF `vf` on the PF whose interface is `index`. None: leave alone.

    `vlan` comes with `qos` and, for anything but 802.1Q, `vlan_proto`; both rates come together.
    """

    index: int
    vf: int
    mac: str | None = None
    vlan: int | None = None
    qos: int | None = None
    vlan_proto: str | None = None
    spoofchk: bool | None = None
    trust: bool | None = None
    link_state: str | None = None
    min_tx_rate: int | None = None
    max_tx_rate: int | None = None
    query_rss: bool | None = None
    node_guid: str | None = None
    port_guid: str | None = None


@dataclass(frozen=True)
class LinkMove:
    """Take the interface `index` to the namespace that `fd` is open on, where it is `name`.

    Name and namespace in one message. If the name is taken there, the interface is there all the
    same, under the name that it had, and the message is refused with EEXIST (do_setlink()).
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
        """Whether any interface here is a device's: not lo, and of no kind. Nothing is decoded."""
        request = _get_link(0, NLM_F_DUMP, RTEXT_FILTER_SKIP_STATS)
        return any(map(_is_hardware, self.dump(request, "network interfaces")))

    @understood("VFs")
    def vfs(self, index: int) -> tuple[VfInfo, ...]:
        """The VF list of the PF whose interface is `index`, sorted: one request.

        A driver that cannot say anything about a VF (ndo_get_vf_config is missing, or fails with
        EINVAL) leaves it out of the list. KernelError when the interface is gone, or when the list
        is short because it wrapped at 64 KiB: a cut list is never taken for the truth.
        """
        mask = RTEXT_FILTER_VF | RTEXT_FILTER_SKIP_STATS
        try:
            (body,) = self.ask(_get_link(index, 0, mask))
        except OSError as error:
            raise KernelError(
                f"cannot read the VFs of interface {index}: {error.strerror}", errno=error.errno
            ) from error
        message = _decoded(body)
        listed = message.get_attr("IFLA_VFINFO_LIST")
        found = tuple(map(_vf_info, listed.get_attrs("IFLA_VF_INFO"))) if listed else ()
        expected = message.get_attr("IFLA_NUM_VF") or 0
        if len(found) != expected and len(body) > U16:
            raise KernelError(
                f"the kernel lists {len(found)} of the {expected} VFs of interface "
                f"{message.get_attr('IFLA_IFNAME')}: the list is cut at 64 KiB",
                hint="about 340 VFs is what one PF can report; fewer VFs, or a newer kernel",
            )
        return tuple(sorted(found, key=lambda vf: vf.index))

    @understood("network namespaces")
    def number_of(self, fd: int) -> int | None:
        """The number that a namespace has in this socket's one; None: it has none."""
        header = struct.pack("=IHHIIBxxx", 28, RTM_GETNSID, NLM_F_REQUEST, 0, 0, 0)
        (body,) = self.ask(bytearray(header + struct.pack("=HHI", 8, NETNSA_FD, fd)))
        (number,) = struct.unpack("=i", dict(attributes(body, 20))[NETNSA_NSID])
        return number if number >= 0 else None

    def bus_info(self, name: str) -> str:
        """The device that an interface's driver says it is of, in this socket's namespace; ""."""
        return drvinfo.bus_info(self._socket, name)

    def change(self, changes: Sequence[Change]) -> list[OSError | None]:
        """Send all changes; for each, in order, None or why the kernel refused it."""
        return self.send([_set_link(change) for change in changes])


def _is_hardware(body: bytes) -> bool:
    """Of struct ifinfomsg the type; of the attributes IFLA_LINKINFO's IFLA_INFO_KIND."""
    (kind,) = struct.unpack_from("=H", body, 18)
    info = dict(attributes(body, 32)).get(IFLA_LINKINFO, b"")
    return kind != ARPHRD_LOOPBACK and IFLA_INFO_KIND not in dict(attributes(info))


def _encoded(message: Any) -> bytearray:
    message.encode()
    return bytearray(message.data)


def _get_link(index: int, flags: int, mask: int) -> bytearray:
    message = _LinkMessage()
    message["header"]["type"] = RTM_GETLINK
    message["header"]["flags"] = NLM_F_REQUEST | flags
    message["index"] = index
    message["attrs"] = [("IFLA_EXT_MASK", mask)]
    return _encoded(message)


def _set_link(change: Change) -> bytearray:
    if isinstance(change, AltnameChange):
        return _set_altname(change)
    if isinstance(change, LinkMove):
        return _move(change)
    message = _LinkMessage()
    message["header"]["type"] = RTM_SETLINK
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK
    message["index"] = change.index
    if isinstance(change, VfChange):
        attributes = {"attrs": [("IFLA_VF_INFO", {"attrs": list(_vf_attributes(change))})]}
        message["attrs"] = [("IFLA_VFINFO_LIST", attributes)]
        return _encoded(message)
    message["attrs"] = [
        (name, value)
        for name, value in (
            ("IFLA_ADDRESS", change.mac),
            ("IFLA_MTU", change.mtu),
            ("IFLA_TXQLEN", change.txqueuelen),
            ("IFLA_GROUP", change.group),
            ("IFLA_IFNAME", change.name),
            ("IFLA_IFALIAS", change.alias),
        )
        if value is not None
    ]
    for bit, wanted in (
        (IFF_UP, change.up),
        (IFF_PROMISC, change.promisc),
        (IFF_ALLMULTI, change.allmulti),
        (IFF_NOARP, None if change.arp is None else not change.arp),
        (IFF_MULTICAST, change.multicast),
    ):
        if wanted is not None:
            message["change"] |= bit
            message["flags"] |= bit if wanted else 0
    return _encoded(message)


def _move(change: LinkMove) -> bytearray:
    message = _LinkMessage()
    message["header"]["type"] = RTM_SETLINK
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK
    message["index"] = change.index
    message["attrs"] = [("IFLA_NET_NS_FD", change.fd), ("IFLA_IFNAME", change.name)]
    return _encoded(message)


def _set_altname(change: AltnameChange) -> bytearray:
    message = _LinkMessage()
    message["header"]["type"] = RTM_NEWLINKPROP if change.add else RTM_DELLINKPROP
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK
    message["index"] = change.index
    message["attrs"] = [("IFLA_PROP_LIST", {"attrs": [("IFLA_ALT_IFNAME", change.altname)]})]
    return _encoded(message)


def _vf_attributes(change: VfChange) -> Iterator[tuple[str, Any]]:
    vf = change.vf
    if change.mac is not None:
        yield "IFLA_VF_MAC", {"vf": vf, "mac": change.mac}
    if change.node_guid is not None:
        yield "IFLA_VF_IB_NODE_GUID", {"vf": vf, "guid": int(change.node_guid.replace(":", ""), 16)}
    if change.port_guid is not None:
        yield "IFLA_VF_IB_PORT_GUID", {"vf": vf, "guid": int(change.port_guid.replace(":", ""), 16)}
    if change.vlan is not None:
        yield from _vlan_attributes(vf, change.vlan, change.qos or 0, change.vlan_proto)
    if change.min_tx_rate is not None or change.max_tx_rate is not None:
        rates = {"min_tx_rate": change.min_tx_rate or 0, "max_tx_rate": change.max_tx_rate or 0}
        yield "IFLA_VF_RATE", {"vf": vf, **rates}
    if change.spoofchk is not None:
        yield "IFLA_VF_SPOOFCHK", {"vf": vf, "spoofchk": int(change.spoofchk)}
    if change.link_state is not None:
        state = LINK_STATES.index(change.link_state)
        yield "IFLA_VF_LINK_STATE", {"vf": vf, "link_state": state}
    if change.query_rss is not None:
        yield "IFLA_VF_RSS_QUERY_EN", {"vf": vf, "rss_query_en": int(change.query_rss)}
    if change.trust is not None:
        yield "IFLA_VF_TRUST", {"vf": vf, "trust": int(change.trust)}


def _vlan_attributes(vf: int, vlan: int, qos: int, proto: str | None) -> Iterator[tuple[str, Any]]:
    """802.1Q in the attribute that every driver knows, another protocol in the list."""
    if proto in {None, "802.1Q"}:
        yield "IFLA_VF_VLAN", {"vf": vf, "vlan": vlan, "qos": qos}
        return
    number = next(number for number, name in PROTOCOLS.items() if name == proto)
    info = {"vf": vf, "vlan": vlan, "qos": qos, "proto": number}
    yield "IFLA_VF_VLAN_LIST", {"attrs": [("IFLA_VF_VLAN_INFO", info)]}


def _decoded(body: bytes) -> Any:
    """ValueError for what pyroute2 cannot decode, as from every other decoder of ours."""
    message = _LinkMessage(body)
    try:
        message.decode()
    except NetlinkDecodeError as error:
        raise ValueError(str(error)) from error
    return message


def _by_name(message: Any) -> dict[str, Any]:
    """The attributes in one pass: get_attr() walks all fifty for each name it is asked for."""
    return {slot.name: slot.value for slot in message["attrs"] if slot.name != "UNKNOWN"}


def _link(message: bytes) -> Link:
    """From struct ifinfomsg (rtnetlink(7)) and its attributes (if_link.h)."""
    index, flags = struct.unpack_from("=4xiI", message, 16)
    given = dict(attributes(message, 32))

    def number(kind: int) -> int | None:
        return _u32(given[kind]) if kind in given else None

    def string(kind: int) -> str | None:
        return text(given[kind]) if kind in given else None

    mac, names = given.get(IFLA_ADDRESS, b""), given.get(IFLA_PROP_LIST, b"")
    parent, namespace = number(IFLA_LINK), number(IFLA_LINK_NETNSID)
    return Link(
        index=index,
        name=text(given[IFLA_IFNAME]),
        mac=mac.hex(":") if len(mac) == 6 else None,
        mtu=_u32(given[IFLA_MTU]),
        up=bool(flags & IFF_UP),
        carrier=bool(flags & IFF_LOWER_UP),
        bus=string(IFLA_PARENT_DEV_BUS_NAME),
        device=string(IFLA_PARENT_DEV_NAME),
        phys_port_name=string(IFLA_PHYS_PORT_NAME),
        altnames=_altnames(value for kind, value in attributes(names) if kind == IFLA_ALT_IFNAME),
        promisc=bool(flags & IFF_PROMISC),
        allmulti=bool(flags & IFF_ALLMULTI),
        arp=not flags & IFF_NOARP,
        multicast=bool(flags & IFF_MULTICAST),
        txqueuelen=number(IFLA_TXQLEN),
        group=number(IFLA_GROUP) or 0,
        alias=_printable(given.get(IFLA_IFALIAS, b"")),
        # beside IFLA_LINK_NETNSID it is a number of that namespace's
        parent=parent if namespace is None else None,
        master=number(IFLA_MASTER),
        info=given.get(IFLA_LINKINFO, b""),
        af_spec=given.get(IFLA_AF_SPEC, b""),
        elsewhere=None if parent is None or namespace is None else (parent, namespace),
    )


def _u32(value: bytes) -> int:
    (number,) = struct.unpack("=I", value)
    return int(number)


def _printable(value: bytes) -> str | None:
    """Of aliases and altnames the kernel checks the length alone; None: nobody could read it."""
    try:
        string = value.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        return None
    return string if string.isprintable() else None


def _altnames(values: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(sorted(filter(None, map(_printable, values))))


def _vf_info(info: Any) -> VfInfo:
    given = _by_name(info)

    def field(attribute: str, name: str) -> Any:
        value = given.get(attribute)
        return None if value is None else value[name]

    vlan, qos, protocol = _vlan_of(given)
    state = field("IFLA_VF_LINK_STATE", "link_state")
    return VfInfo(
        index=field("IFLA_VF_MAC", "vf"),
        mac=field("IFLA_VF_MAC", "mac"),
        vlan=vlan,
        qos=qos,
        vlan_proto=protocol,
        spoofchk=_flag(field("IFLA_VF_SPOOFCHK", "spoofchk")),
        trust=_flag(field("IFLA_VF_TRUST", "trust")),
        link_state=LINK_STATES[state] if state is not None and state < len(LINK_STATES) else None,
        min_tx_rate=field("IFLA_VF_RATE", "min_tx_rate"),
        max_tx_rate=field("IFLA_VF_RATE", "max_tx_rate"),
        query_rss=_flag(field("IFLA_VF_RSS_QUERY_EN", "rss_query_en")),
        node_guid=_guid(field("IFLA_VF_IB_NODE_GUID", "guid")),
        port_guid=_guid(field("IFLA_VF_IB_PORT_GUID", "guid")),
    )


def _vlan_of(given: dict[str, Any]) -> tuple[int | None, int | None, str | None]:
    """VLAN, QoS and protocol; the list has all three (Linux 4.9), IFLA_VF_VLAN lacks the last."""
    listed = given.get("IFLA_VF_VLAN_LIST")
    entry = listed.get_attr("IFLA_VF_VLAN_INFO") if listed is not None else None
    if entry is not None:
        return entry["vlan"], entry["qos"], PROTOCOLS.get(entry["proto"])
    entry = given.get("IFLA_VF_VLAN")
    return (None, None, None) if entry is None else (entry["vlan"], entry["qos"], None)


def _guid(number: int | None) -> str | None:
    """A GUID as text; zero is one that nobody has set."""
    return number.to_bytes(8, "big").hex(":") if number else None


def _flag(value: int | None) -> bool | None:
    return None if value is None or value == U32 else bool(value)
