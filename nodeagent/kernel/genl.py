"""Generic netlink: a socket of one family, found by its name (net/netlink/genetlink.c).

A kernel without the family has no number for it: reads are empty then, and writes are EOPNOTSUPP.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from nodeagent.errors import KernelError, reason
from nodeagent.kernel.netlink import (
    SOL_NETLINK,
    Netlink,
    attribute,
    attributes,
    request,
    text,
    text_bytes,
)

NETLINK_GENERIC: Final = 16
GENL_ID_CTRL: Final = 0x10
CTRL_CMD_GETFAMILY: Final = 3
CTRL_ATTR_FAMILY_ID: Final = 1
CTRL_ATTR_FAMILY_NAME: Final = 2
CTRL_ATTR_MCAST_GROUPS: Final = 7
CTRL_ATTR_MCAST_GRP_NAME: Final = 1
CTRL_ATTR_MCAST_GRP_ID: Final = 2
NETLINK_ADD_MEMBERSHIP: Final = 1
HEADER: Final = 20  # struct nlmsghdr and struct genlmsghdr

Attribute = tuple[int, bytes]
"""Type (with NLA_F_NESTED where it is a nest) and payload."""


class Genl(Netlink):
    """A generic netlink socket of the family `name`; `family` is its number, None without it."""

    def __init__(self, name: str) -> None:
        super().__init__(NETLINK_GENERIC)
        self.name = name
        self._groups: dict[str, int] = {}
        self.family = self._find_family()

    def message(self, command: int, flags: int, *parts: Attribute) -> bytearray:
        """A request of the family. OSError (EOPNOTSUPP) where the kernel has no such family."""
        if self.family is None:
            raise OSError(errno.EOPNOTSUPP, f"this kernel has no {self.name}")
        return _request(self.family, command, flags, *parts)

    def join(self, group: str) -> None:
        """Have the kernel's notifications of this multicast group; none without the family."""
        if group in self._groups:
            number = self._groups[group]
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, number)

    def _find_family(self) -> int | None:
        name = (CTRL_ATTR_FAMILY_NAME, text_bytes(self.name))
        try:
            (body,) = self.ask(_request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 0, name))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise KernelError(
                f"cannot look up the netlink family {self.name}: {reason(error)}",
                errno=error.errno,
            ) from error
        found = dict(attributes(body, HEADER))
        for _, each in attributes(found.get(CTRL_ATTR_MCAST_GROUPS, b"")):
            group = dict(attributes(each))
            (number,) = struct.unpack("=I", group[CTRL_ATTR_MCAST_GRP_ID])
            self._groups[text(group[CTRL_ATTR_MCAST_GRP_NAME])] = number
        return int(struct.unpack("=H", found[CTRL_ATTR_FAMILY_ID])[0])


def encoded(*parts: Attribute) -> bytes:
    """Attributes, each padded to four bytes: the body of a message or of a nest."""
    return b"".join(attribute(kind, payload) for kind, payload in parts)


def _request(family: int, command: int, flags: int, *parts: Attribute) -> bytearray:
    return request(family, flags, struct.pack("=BBH", command, 1, 0) + encoded(*parts))
