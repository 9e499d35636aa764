"""rtnetlink: read all links and a PF's VF list, change links and VFs by ifindex.

pyroute2 encodes and decodes the messages (its classes follow if_link.h); the socket is our own,
because pyroute2 0.9 runs an asyncio loop for each synchronous call, and because several requests
in one datagram are acknowledged one by one and answered in one round trip.

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

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from pyroute2.netlink import nla, nlmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from nodeagent.errors import KernelError

RTM_GETLINK: Final = 18
RTM_SETLINK: Final = 19
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_CAPPED: Final = 0x100
NLM_F_ACK_TLVS: Final = 0x200
NLM_F_DUMP: Final = 0x300
NLMSGERR_ATTR_MSG: Final = 1
SOL_NETLINK: Final = 270
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11
RTEXT_FILTER_VF: Final = 1
RTEXT_FILTER_SKIP_STATS: Final = 8
IFF_UP: Final = 0x1
IFF_LOWER_UP: Final = 0x10000
U16: Final = 0xFFFF
U32: Final = 0xFFFFFFFF
LINK_STATES: Final = ("auto", "enable", "disable")
PROTOCOLS: Final = {0x8100: "802.1Q", 0x88A8: "802.1ad"}
# each acknowledgement takes about 1.3 KiB of the socket's 208 KiB; beyond that they are dropped
BATCH: Final = 64
RECEIVE_BYTES: Final = 512 * 1024
DUMP_TRIES: Final = 8


class _VlanInfo(nla):  # type: ignore[misc] # pyroute2 is untyped
    """struct ifla_vf_vlan_info with its tail padding, without which the kernel says EINVAL."""

    fields = (("vf", "I"), ("vlan", "I"), ("qos", "I"), ("proto", ">H"), ("__pad", "2x"))


class _VlanList(ifinfmsg.vflist.vfinfo.vf_vlist):  # type: ignore[misc] # pyroute2 is untyped
    ivvi = _VlanInfo


class _VfInfoMessage(ifinfmsg.vflist.vfinfo):  # type: ignore[misc] # pyroute2 is untyped
    vf_vlist = _VlanList


class _VfList(ifinfmsg.vflist):  # type: ignore[misc] # pyroute2 is untyped
    vfinfo = _VfInfoMessage


class _LinkMessage(nlmsg):  # type: ignore[misc] # pyroute2 is untyped
    """struct ifinfomsg with the attributes that are used here; the others are not decoded."""

    prefix = "IFLA_"
    fields = ifinfmsg.fields
    nla_map = (
        (1, "IFLA_ADDRESS", "l2addr"),
        (3, "IFLA_IFNAME", "asciiz"),
        (4, "IFLA_MTU", "uint32"),
        (21, "IFLA_NUM_VF", "uint32"),
        (22, "IFLA_VFINFO_LIST", "vflist"),
        (29, "IFLA_EXT_MASK", "uint32"),
        (38, "IFLA_PHYS_PORT_NAME", "asciiz"),
        (56, "IFLA_PARENT_DEV_NAME", "asciiz"),
        (57, "IFLA_PARENT_DEV_BUS_NAME", "asciiz"),
    )
    vflist = _VfList


@dataclass(frozen=True)
class Link:
    """One network interface of the host's namespace.

    `mac` is None where the address is not Ethernet's six bytes. `bus` and `device` name the parent
    device (None for virtual interfaces). `up` is IFF_UP, `carrier` IFF_LOWER_UP.
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


@dataclass(frozen=True)
class LinkChange:
    """What to set on the interface `index`. None: leave alone."""

    index: int
    name: str | None = None
    mac: str | None = None
    mtu: int | None = None
    up: bool | None = None


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


Change = LinkChange | VfChange


class Rtnl:
    """A NETLINK_ROUTE socket of one thread. `requests` counts the messages sent, for the bench."""

    def __init__(self) -> None:
        self.requests = 0
        self._sequence = 0
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def links(self) -> dict[int, Link]:
        """Every interface of this network namespace, by ifindex: one request, however many.

        The kernel marks a dump that was overtaken by a change (NLM_F_DUMP_INTR); such a dump is
        asked for again, because it may lack a link. KernelError when that happens every time.
        """
        for _ in range(DUMP_TRIES):
            sequence = self._send([_get_link(0, NLM_F_DUMP, RTEXT_FILTER_SKIP_STATS)])
            replies = list(self._replies(sequence))
            if not any(flags & NLM_F_DUMP_INTR for _, flags, _ in replies):
                messages = (_decoded(body) for kind, _, body in replies if kind != NLMSG_DONE)
                return {link.index: link for link in map(_link, messages)}
        raise KernelError(
            f"cannot list the network interfaces: they changed during each of {DUMP_TRIES} dumps",
            hint="something creates and removes interfaces without pause: `ip monitor link`",
        )

    def vfs(self, index: int) -> tuple[VfInfo, ...]:
        """The VF list of the PF whose interface is `index`, sorted: one request.

        A driver that cannot say anything about a VF (ndo_get_vf_config is missing, or fails with
        EINVAL) leaves it out of the list. KernelError when the interface is gone, or when the list
        is short because it wrapped at 64 KiB: a cut list is never taken for the truth.
        """
        mask = RTEXT_FILTER_VF | RTEXT_FILTER_SKIP_STATS
        sequence = self._send([_get_link(index, 0, mask)])
        _, _, body = next(iter(self._replies(sequence)))
        if isinstance(body, OSError):
            raise KernelError(
                f"cannot read the VFs of interface {index}: {body.strerror}", errno=body.errno
            )
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

    def change(self, changes: Sequence[Change]) -> list[OSError | None]:
        """Send all changes; for each, in order, None or why the kernel refused it.

        The changes are independent messages: one that is refused does not hold up the others. The
        OSError's text carries the driver's own words (extended ack), where there are any.
        """
        results: list[OSError | None] = []
        messages = [_set_link(change) for change in changes]
        for start in range(0, len(messages), BATCH):
            batch = messages[start : start + BATCH]
            first = self._send(batch)
            answers: dict[int, OSError | None] = {}
            while len(answers) < len(batch):
                for sequence, kind, _, body in self._receive():
                    if kind == NLMSG_ERROR and first <= sequence < first + len(batch):
                        answers[sequence] = body if isinstance(body, OSError) else None
            results.extend(answers[first + n] for n in range(len(batch)))
        return results

    def _send(self, messages: Sequence[bytearray]) -> int:
        """Number and send messages in one datagram; the first one's sequence number."""
        first = self._sequence + 1
        datagram = bytearray()
        for message in messages:
            self._sequence += 1
            self.requests += 1
            struct.pack_into("=I", message, 8, self._sequence)
            datagram += message
            datagram += bytes(-len(message) % 4)
        self._socket.send(datagram)
        return first

    def _replies(self, sequence: int) -> Iterator[tuple[int, int, bytes | OSError]]:
        """Everything that answers request `sequence`, up to its end."""
        while True:
            for number, kind, flags, body in self._receive():
                if number != sequence:
                    continue
                yield kind, flags, body
                if kind in {NLMSG_DONE, NLMSG_ERROR} or not flags & 0x2:  # NLM_F_MULTI
                    return

    def _receive(self) -> Iterator[tuple[int, int, int, bytes | OSError]]:
        """The messages of one datagram: sequence, type, flags, and the message or the refusal."""
        data = self._socket.recv(RECEIVE_BYTES)
        offset = 0
        while offset + 16 <= len(data):
            length, kind, flags, sequence = struct.unpack_from("=IHHI", data, offset)
            if length < 16:
                break
            message = data[offset : offset + length]
            yield (
                sequence,
                kind,
                flags,
                _refusal(message, flags) if kind == NLMSG_ERROR else message,
            )
            offset += (length + 3) & ~3


def _refusal(message: bytes, flags: int) -> OSError | bytes:
    """NLMSG_ERROR as an OSError; the message itself where it only acknowledges (error 0)."""
    (code,) = struct.unpack_from("=i", message, 16)
    if code == 0:
        return message
    said = os.strerror(-code)
    if flags & NLM_F_ACK_TLVS:
        # struct nlmsgerr: error, then the request's header alone if capped, else all of it
        (request,) = struct.unpack_from("=I", message, 20)
        offset = 20 + (16 if flags & NLM_F_CAPPED else (request + 3) & ~3)
        for kind, value in _attributes(message, offset):
            if kind == NLMSGERR_ATTR_MSG:
                said += f" ({value.rstrip(bytes(1)).decode(errors='replace')})"
    return OSError(-code, said)


def _attributes(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


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
            ("IFLA_IFNAME", change.name),
        )
        if value is not None
    ]
    if change.up is not None:
        message["change"] = IFF_UP
        message["flags"] = IFF_UP if change.up else 0
    return _encoded(message)


def _vf_attributes(change: VfChange) -> Iterator[tuple[str, Any]]:
    vf = change.vf
    if change.mac is not None:
        yield "IFLA_VF_MAC", {"vf": vf, "mac": change.mac}
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


def _decoded(body: bytes | OSError) -> Any:
    if isinstance(body, OSError):
        raise KernelError(f"rtnetlink: {body.strerror}", errno=body.errno)
    message = _LinkMessage(body)
    message.decode()
    return message


def _link(message: Any) -> Link:
    mac = message.get_attr("IFLA_ADDRESS")
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mac=mac if mac is not None and len(mac) == len("00:00:00:00:00:00") else None,
        mtu=message.get_attr("IFLA_MTU"),
        up=bool(message["flags"] & IFF_UP),
        carrier=bool(message["flags"] & IFF_LOWER_UP),
        bus=message.get_attr("IFLA_PARENT_DEV_BUS_NAME"),
        device=message.get_attr("IFLA_PARENT_DEV_NAME"),
        phys_port_name=message.get_attr("IFLA_PHYS_PORT_NAME"),
    )


def _vf_info(info: Any) -> VfInfo:
    def field(attribute: str, name: str) -> Any:
        value = info.get_attr(attribute)
        return None if value is None else value[name]

    vlan, qos, protocol = _vlan_of(info)
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
    )


def _vlan_of(info: Any) -> tuple[int | None, int | None, str | None]:
    """VLAN, QoS and protocol; the list has all three (Linux 4.9), IFLA_VF_VLAN lacks the last."""
    listed = info.get_attr("IFLA_VF_VLAN_LIST")
    entry = listed.get_attr("IFLA_VF_VLAN_INFO") if listed is not None else None
    if entry is not None:
        return entry["vlan"], entry["qos"], PROTOCOLS.get(entry["proto"])
    entry = info.get_attr("IFLA_VF_VLAN")
    return (None, None, None) if entry is None else (entry["vlan"], entry["qos"], None)


def _flag(value: int | None) -> bool | None:
    return None if value is None or value == U32 else bool(value)


def describe(error: OSError) -> str:
    """The kernel's refusal for a message: `EBUSY: Device or resource busy`."""
    name = errno.errorcode.get(error.errno or 0, str(error.errno))
    return f"{name}: {error.strerror}"
