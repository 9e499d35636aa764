"""A port function's RoCE, migratability and event queues: iproute2 6.1 has no words for them.

Messages are those of include/uapi/linux/devlink.h. Nothing here uses nodeagent.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

NETLINK_GENERIC: Final = 16
NLMSG_ERROR: Final = 2
NLM_F_REQUEST, NLM_F_ACK = 1, 4
GENL_ID_CTRL: Final = 16
CTRL_CMD_GETFAMILY: Final = 3
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 1, 2
DEVLINK_CMD_PORT_GET, DEVLINK_CMD_PORT_SET = 5, 6
BUS_NAME, DEV_NAME, PORT_INDEX, PORT_FUNCTION = 1, 2, 3, 145
CAPS, MAX_IO_EQS = 4, 6
BITS: Final = {"roce": 1, "migratable": 2}
NESTED: Final = 0x8000

Attributes = dict[int, bytes]


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> Attributes:
    found = {}
    while data:
        length, kind = struct.unpack_from("=HH", data)
        found[kind & ~NESTED] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


class PortFunctions:
    """Those of a PF's VFs, by the index of their devlink port."""

    def __init__(self, kernel: socket.socket, pf: str) -> None:
        self._kernel = kernel
        self._of = attribute(BUS_NAME, b"pci\0") + attribute(DEV_NAME, f"{pf}\0".encode())
        name = attribute(CTRL_ATTR_FAMILY_NAME, b"devlink\0")
        family = self._ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, name)[CTRL_ATTR_FAMILY_ID]
        (self._devlink,) = struct.unpack("=H", family)

    def get(self, port: int) -> dict[str, int]:
        """What the kernel tells of it."""
        told = self._ask(self._devlink, DEVLINK_CMD_PORT_GET, self._port(port))
        function = attributes(told[PORT_FUNCTION])
        caps, _ = struct.unpack("=II", function[CAPS])
        (queues,) = struct.unpack("=I", function[MAX_IO_EQS])
        return {name: int(bool(caps & bit)) for name, bit in BITS.items()} | {"max_io_eqs": queues}

    def set(self, port: int, **values: int) -> None:
        """OSError where the kernel refuses."""
        parts = b""
        for name, value in values.items():
            if name in BITS:  # struct nla_bitfield32
                parts += attribute(CAPS, struct.pack("=II", BITS[name] * value, BITS[name]))
            else:
                parts += attribute(MAX_IO_EQS, struct.pack("=I", value))
        function = attribute(PORT_FUNCTION | NESTED, parts)
        self._ask(self._devlink, DEVLINK_CMD_PORT_SET, self._port(port) + function)

    def _port(self, port: int) -> bytes:
        return self._of + attribute(PORT_INDEX, struct.pack("=I", port))

    def _ask(self, family: int, command: int, body: bytes) -> Attributes:
        """The answer, which comes before the acknowledgement."""
        flags = NLM_F_REQUEST | NLM_F_ACK
        head = struct.pack("=IHHIIBBH", 20 + len(body), family, flags, 1, 0, command, 1, 0)
        self._kernel.send(head + body)
        found: Attributes = {}
        while True:
            data = self._kernel.recv(65536)
            length, kind = struct.unpack_from("=IH", data)
            if kind != NLMSG_ERROR:
                found = attributes(data[20:length])
                continue
            (error,) = struct.unpack_from("=i", data, 16)
            if error:
                raise OSError(-error, os.strerror(-error))
            return found


@contextmanager
def port_functions(pf: str) -> Iterator[PortFunctions]:
    """Those of a PF in switchdev mode."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC) as kernel:
        kernel.bind((0, 0))
        yield PortFunctions(kernel, pf)
