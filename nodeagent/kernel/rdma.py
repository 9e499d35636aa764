"""Rename and move RDMA devices over rdma netlink (uapi/rdma/rdma_netlink.h), as rdma(8) does.

A rename is refused with EEXIST if another device has the name (ib_device_rename()), in any network
namespace. A device returns to the host's namespace when its own ends. The functions of devices are
in sysfs: `nodeagent.kernel.sysfs.Sysfs.rdma_devices`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from nodeagent.kernel.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    Netlink,
    attribute,
    attributes,
    request,
    text,
    text_bytes,
)

NETLINK_RDMA: Final = 20
RDMA_NL_NLDEV: Final = 5
NLDEV_CMD_GET: Final = (RDMA_NL_NLDEV << 10) | 1
NLDEV_CMD_SET: Final = (RDMA_NL_NLDEV << 10) | 2
ATTR_DEV_INDEX: Final = 1
ATTR_DEV_NAME: Final = 2
ATTR_NET_NS_FD: Final = 68


class Rdma(Netlink):
    """A NETLINK_RDMA socket. OSError (EPROTONOSUPPORT) if ib_core is not loaded."""

    def __init__(self) -> None:
        super().__init__(NETLINK_RDMA)

    def indexes(self) -> dict[str, int]:
        """The number of each RDMA device by its name: one request."""
        found = {}
        for body in self.dump(request(NLDEV_CMD_GET, NLM_F_DUMP, b""), "RDMA devices"):
            own = dict(attributes(body, 16))
            name = text(own[ATTR_DEV_NAME])
            (found[name],) = struct.unpack("=I", own[ATTR_DEV_INDEX])
        return found

    def rename(self, changes: Sequence[tuple[int, str]]) -> list[OSError | None]:
        """Give devices other names, one after the other; for each None or the refusal."""
        return self._set(
            (index, attribute(ATTR_DEV_NAME, text_bytes(name))) for index, name in changes
        )

    def give(self, index: int, namespace: int) -> OSError | None:
        """Move a device to the network namespace of the descriptor `namespace`.

        The kernel refuses it (EOPNOTSUPP) in shared mode, in which a device is in all of them, and
        for drivers that cannot disassociate users (rdma_rxe; ib_device_set_netns_put()).
        """
        (refused,) = self._set([(index, attribute(ATTR_NET_NS_FD, struct.pack("=I", namespace)))])
        return refused

    def _set(self, changes: Iterable[tuple[int, bytes]]) -> list[OSError | None]:
        return self.send(
            [
                request(
                    NLDEV_CMD_SET,
                    NLM_F_ACK,
                    attribute(ATTR_DEV_INDEX, struct.pack("=I", index)) + change,
                )
                for index, change in changes
            ]
        )
