"""What dies with interfaces and is not put back, in words: for the log, before it is too late.

Each is one dump. Formats: uapi/linux/{neighbour,nexthop,if_bridge,rtnetlink}.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.kernel.netlink import NLM_F_DUMP, NLM_F_REQUEST, Netlink, attributes
from nodeagent.kernel.rtnl import Link

RTM_GETNEIGH: Final = 30
RTM_GETNEXTHOP: Final = 106
NUD_NOARP: Final = 0x40
NDA_LLADDR, NDA_VLAN, NDA_MASTER = 2, 5, 9
NHA_ID, NHA_OIF = 1, 5

Tell = Callable[[bytes], str | None]


def left_out(edge: Netlink, ours: dict[int, Link], *, bridged: bool) -> Iterator[str]:
    """A line for each nexthop object and static FDB entry of `ours`.

    A kernel that knows nothing of a kind has none.
    """
    dumps: list[tuple[int, bytes, str, Tell]] = [
        (RTM_GETNEXTHOP, bytes(8), "nexthops", lambda body: nexthop_of(body, ours))
    ]
    if bridged:
        header = struct.pack("=BxHiHBB", socket.AF_BRIDGE, 0, 0, 0, 0, 0)
        dumps.append((RTM_GETNEIGH, header, "FDB entries", lambda body: fdb_of(body, ours)))
    for kind, header, what, tell in dumps:
        message = struct.pack("=IHHII", 16 + len(header), kind, NLM_F_REQUEST | NLM_F_DUMP, 0, 0)
        try:
            bodies = edge.dump(bytearray(message + header), what)
        except KernelError:
            continue  # EOPNOTSUPP: a kernel before 5.3 has no nexthop objects
        yield from (text for body in bodies if (text := tell(body)) is not None)


def nexthop_of(body: bytes, ours: dict[int, Link]) -> str | None:
    """`nexthop id 7 on enp1s0`: routes by it are lost, too."""
    found = dict(attributes(body, 24))
    if NHA_OIF not in found or NHA_ID not in found:
        return None
    (index,), (number,) = (struct.unpack("=I", found[each]) for each in (NHA_OIF, NHA_ID))
    return f"nexthop id {number} on {ours[index].name}" if index in ours else None


def fdb_of(body: bytes, ours: dict[int, Link]) -> str | None:
    """`static FDB entry 02:… on enp1s0v1 vlan 10`; learned ones and own addresses come anyway."""
    index, state = struct.unpack_from("=iH", body, 20)
    found = dict(attributes(body, 28))
    if index not in ours or not state & NUD_NOARP or NDA_MASTER not in found:
        return None
    (vlan,) = struct.unpack("=H", found[NDA_VLAN]) if NDA_VLAN in found else (0,)
    where = f" vlan {vlan}" if vlan else ""
    lladdr = found.get(NDA_LLADDR, b"").hex(":")
    return f"static FDB entry {lladdr} on {ours[index].name}{where}"
