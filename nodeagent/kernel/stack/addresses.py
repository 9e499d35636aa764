"""IP addresses over rtnetlink: RTM_NEWADDR (rtnetlink(7), uapi/linux/if_addr.h).

- `IFA_PROTO` (Linux 5.18) marks link-local addresses that the kernel has added. On older kernels an
  address that is made of the MAC, or has IFA_F_STABLE_PRIVACY, is taken for one.
- Of the IPv6 addresses of a scope, the last added one is dumped first (ipv6_link_dev_addr()), so
  they are added from the last to the first.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Collection, Mapping, Sequence
from ipaddress import IPv6Address, ip_address
from typing import Final

from nodeagent.kernel import sysctls
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
    text,
    text_bytes,
)
from nodeagent.kernel.stack.adapter import FAMILIES, Adapter, Found, Look, time_left
from nodeagent.state.stack import Address

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_BROADCAST, IFA_CACHEINFO = 1, 2, 3, 4, 6
IFA_FLAGS, IFA_RT_PRIORITY, IFA_PROTO = 8, 9, 11
IFA_F_TEMPORARY, IFA_F_STABLE_PRIVACY = 0x01, 0x800
IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x08, 0x40
ADMIN_FLAGS: Final = 0x712
"""IFA_F_NODAD, _HOMEADDRESS, _MANAGETEMPADDR, _NOPREFIXROUTE, _MCAUTOJOIN."""
IFAPROT_KERNEL_LL: Final = 3
FOREVER: Final = 0xFFFFFFFF


def read(edge: Netlink, look: Look) -> Found[Address]:
    """The addresses that an administrator or a program has added."""
    now = time.time()
    bodies = edge.dump(request(RTM_GETADDR, NLM_F_DUMP, bytes(8)), "addresses")
    found = (address_of(body, look, now) for body in bodies)
    return Found(tuple(address for address in found if address is not None))


def in_order(addresses: Sequence[Address]) -> list[Address]:
    """IPv4 addresses as dumped, IPv6 addresses in reverse: that restores the order of the dump."""
    fourth = [each for each in addresses if not each.is_v6]
    sixth = [each for each in addresses if each.is_v6]
    return [*fourth, *reversed(sixth)]


def message(address: Address, indexes: Mapping[str, int], now: float) -> bytearray:
    """Add it, or change what differs."""
    own, _, length = address.address.partition("/")
    local = ip_address(own)
    family = socket.AF_INET if local.version == 4 else socket.AF_INET6
    peer = ip_address(address.peer) if address.peer else local
    body = struct.pack("=BBBBI", family, int(length), 0, address.scope, indexes[address.dev])
    body += attribute(IFA_LOCAL, local.packed) + attribute(IFA_ADDRESS, peer.packed)
    body += attribute(IFA_FLAGS, struct.pack("=I", address.flags))
    if address.broadcast is not None:
        body += attribute(IFA_BROADCAST, ip_address(address.broadcast).packed)
    if family == socket.AF_INET:
        body += attribute(IFA_LABEL, text_bytes(address.label or address.dev))
    if address.metric is not None:
        body += attribute(IFA_RT_PRIORITY, struct.pack("=I", address.metric))
    if address.proto:
        body += attribute(IFA_PROTO, bytes([address.proto]))
    if (address.valid_until, address.preferred_until) != (None, None):
        # valid for ever and preferred for 0 seconds: an address that is not used as a source
        valid = FOREVER if address.valid_until is None else time_left(address.valid_until, now)
        preferred = FOREVER
        if address.preferred_until is not None:
            preferred = max(0, int(address.preferred_until - now))
        body += attribute(IFA_CACHEINFO, struct.pack("=IIII", min(preferred, valid), valid, 0, 0))
    return request(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, body)


def removal(address: Address, indexes: Mapping[str, int]) -> bytearray:
    """Remove it."""
    own, _, length = address.address.partition("/")
    local = ip_address(own)
    family = socket.AF_INET if local.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBI", family, int(length), 0, address.scope, indexes[address.dev])
    return request(RTM_DELADDR, NLM_F_ACK, body + attribute(IFA_LOCAL, local.packed))


def tentative(edge: Netlink, indexes: Collection[int]) -> set[str]:
    """IPv6 addresses of these interfaces that the kernel does not use yet (DAD, RFC 4862)."""
    header = struct.pack("=BBBBI", socket.AF_INET6, 0, 0, 0, 0)
    found = set()
    for body in edge.dump(request(RTM_GETADDR, NLM_F_DUMP, header), "IPv6 addresses"):
        (index,) = struct.unpack_from("=I", body, 20)
        own = dict(attributes(body, 24))
        (flags,) = struct.unpack("=I", own[IFA_FLAGS])
        if index in indexes and flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED) == IFA_F_TENTATIVE:
            found.add(str(ip_address(own[IFA_ADDRESS])))
    return found


def address_of(body: bytes, look: Look, now: float) -> Address | None:
    """One RTM_NEWADDR; None if it is not ours, or if the kernel adds it itself."""
    family, length, _, scope, index = struct.unpack_from("=BBBBI", body, 16)
    if index not in look.indexes or family not in FAMILIES:
        return None
    found = dict(attributes(body, 24))
    (flags,) = struct.unpack("=I", found[IFA_FLAGS]) if IFA_FLAGS in found else (body[18],)
    own = str(ip_address(found.get(IFA_LOCAL, found[IFA_ADDRESS])))
    other = str(ip_address(found.get(IFA_ADDRESS, found.get(IFA_LOCAL, b""))))
    proto = found.get(IFA_PROTO, b"\0")[0]
    if family == socket.AF_INET6 and flags & IFA_F_TEMPORARY:
        return None
    # addr_gen_mode none: the kernel would not add a link-local address again
    is_kept = look.all_addresses or sysctls.makes_no_address(look.links[index].af_spec)
    if family == socket.AF_INET6 and not is_kept:
        is_made = proto == IFAPROT_KERNEL_LL
        if is_made or _is_made_of_mac(own, flags, look.links[index].mac):
            return None
    name = look.names[index]
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
        failed=True if flags & IFA_F_DADFAILED else None,
        expires=valid != FOREVER,
        valid_until=None if valid == FOREVER else int(now + valid),
        preferred_until=None if preferred == FOREVER else int(now + preferred),
    )


def _is_made_of_mac(address: str, flags: int, mac: str | None) -> bool:
    """fe80:: and the MAC as EUI-64 (addrconf_ifid_eui48()), or a stable one by the kernel."""
    own = IPv6Address(address)
    if not own.is_link_local:
        return False
    if flags & IFA_F_STABLE_PRIVACY or mac is None:
        return bool(flags & IFA_F_STABLE_PRIVACY)
    raw = mac_bytes(mac)
    return own.packed[8:] == bytes([raw[0] ^ 2, *raw[1:3], 0xFF, 0xFE, *raw[3:]])


ADAPTER: Final = Adapter(Address, read, message, in_order)
