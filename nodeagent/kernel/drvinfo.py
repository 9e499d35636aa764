"""The information of `ethtool -i` about a network driver (ethtool(8))."""

from __future__ import annotations

import array
import fcntl
import socket
import struct

# include/uapi/linux/sockios.h, ethtool.h
_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 0x3
# struct ethtool_drvinfo: cmd, driver, version, fw_version, bus_info, erom_version, reserved2 and
# five numbers
_DRVINFO = struct.Struct("=I32s32s32s32s32s12sIIIII")


def driver_version(interface: str) -> str:
    """The version that the interface's driver reports, or ""."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asked:
        return _text(asked, interface, 2)


def bus_info(asked: socket.socket, interface: str) -> str:
    """The device of an interface in the socket's namespace (`0000:01:10.0`), or ""."""
    return _text(asked, interface, 4)


def _text(asked: socket.socket, interface: str, member: int) -> str:
    answer = array.array("B", _DRVINFO.pack(_ETHTOOL_GDRVINFO, *[b""] * 6, *[0] * 5))
    request = struct.pack("16sP", interface.encode(), answer.buffer_info()[0])
    try:
        fcntl.ioctl(asked, _SIOCETHTOOL, request)
    except OSError:
        return ""
    text: bytes = _DRVINFO.unpack(answer.tobytes())[member]
    return text.partition(b"\0")[0].decode(errors="replace")
