"""InfiniBand GUIDs of VFs, against messages written out by struct ifla_vf_guid (if_link.h).

No kernel here has InfiniBand VFs: the bytes are those of the header file, not of a capture.
"""

from __future__ import annotations

import struct

from nodeagent.kernel.netlink import attributes
from nodeagent.kernel.rtnl import VfChange, _set_link, _vf_info, _vf_infos
from nodeagent.state.addresses import Guid

NODE, PORT = Guid("02:11:22:33:44:55:66:77"), Guid("02:11:22:33:44:55:66:88")


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def guid(kind: int, vf: int, text: str) -> bytes:
    return attribute(kind, struct.pack("=I4xQ", vf, int(text.replace(":", ""), 16)))


def link_with_vf(*parts: bytes) -> bytes:
    mac = attribute(1, struct.pack("=I32s", 3, bytes.fromhex("021122334453")))
    listed = attribute(22, attribute(1, mac + b"".join(parts)))
    body = struct.pack("=BBHiII", 0, 0, 32, 7, 0, 0) + attribute(21, struct.pack("=I", 1)) + listed
    return struct.pack("=IHHII", 16 + len(body), 16, 0, 1, 0) + body


def read(message: bytes) -> tuple[str | None, str | None]:
    (info,) = _vf_infos(dict(attributes(message, 32)))
    vf = _vf_info(info)
    return vf.node_guid, vf.port_guid


def test_node_and_port_guid_are_read_apart() -> None:
    assert read(link_with_vf(guid(10, 3, NODE), guid(11, 3, PORT))) == (NODE, PORT)


def test_a_zero_guid_is_one_that_nobody_has_set() -> None:
    zero = "00:00:00:00:00:00:00:00"
    assert read(link_with_vf(guid(10, 3, zero), guid(11, 3, PORT))) == (None, PORT)


def test_a_driver_without_guids_reports_none() -> None:
    assert read(link_with_vf()) == (None, None)


def test_each_is_written_as_the_header_has_it() -> None:
    """In a nest each: the kernel takes one GUID of a nest."""
    message = bytes(_set_link(VfChange(7, 3, node_guid=NODE, port_guid=PORT, trust=True)))
    first, second = _vf_infos(dict(attributes(message, 32)))
    assert dict(attributes(first)).keys() == {9, 10}
    assert guid(10, 3, NODE) in first
    assert second == guid(11, 3, PORT)
