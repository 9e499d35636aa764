"""Qdiscs as messages: which are the kernel's own, which can be made again, and in what order.

That the kernel takes what it has told is tried on a kernel: tests/lab/test_qdiscs.py.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from nodeagent.kernel.netlink import Netlink, attribute
from nodeagent.kernel.rtnl import Link
from nodeagent.kernel.stack import qdiscs
from nodeagent.kernel.stack.adapter import Look
from nodeagent.state.stack import QDISC_ROOT, Qdisc

FQ = Qdisc("net1", "fq", 0x80010000, QDISC_ROOT, "08000100a0860100")
PRIO = Qdisc("net1", "prio", 0x10000, QDISC_ROOT, "03000000" + "01" * 16)
TBF = Qdisc("net1", "tbf", 0x20000, 0x10002)
PFIFO = Qdisc("net1", "pfifo", 0x30000, 0x20001, "64000000")
NETEM = Qdisc("net1", "netem", 0x20000, 0x10002)
LINKS = {
    4: Link(
        index=4,
        name="net1",
        mac=None,
        mtu=1500,
        up=True,
        carrier=True,
        bus=None,
        device=None,
        phys_port_name=None,
    )
}
LOOK = Look(LINKS, LINKS.keys())
FILTERS, CLASSES = qdiscs.RTM_GETTFILTER, qdiscs.RTM_GETTCLASS


class Told(Netlink):
    """A kernel that has these qdiscs, and filters and classes with these handles."""

    def __init__(self, *found: bytes, used: dict[int, int] | None = None) -> None:
        self.found = found
        self.used = used or {}

    def dump(self, message: bytearray, what: str) -> list[bytes]:
        (kind,) = struct.unpack_from("=H", message, 4)
        _, handle, parent, _ = struct.unpack_from("=iIII", message, 20)
        assert handle == 0
        if kind == qdiscs.RTM_GETQDISC:
            return list(self.found)
        return [
            bytes(16) + struct.pack("=BxxxiIII", 0, 4, each, 0, 0)
            for each, number in self.used.items()
            if number == kind and (kind == CLASSES or each == parent)
        ]


def body(qdisc: Qdisc, *more: bytes, index: int = 4) -> bytes:
    """A message of a dump is one that makes it, but for its type."""
    return bytes(qdiscs.message(qdisc, {qdisc.dev: index}, 0)) + b"".join(more)


def read(*found: bytes, used: dict[int, int] | None = None) -> tuple[list[str], list[str]]:
    read = qdiscs.read(Told(*found, used=used), LOOK)
    return [each.kind for each in read.things], [line.split()[1] for line in read.lost]


def test_what_is_told_is_what_is_sent() -> None:
    for each in (FQ, PRIO, TBF, PFIFO):
        assert qdiscs.qdisc_of(body(each), "net1") == (each, False)


def test_the_kernels_own_and_another_interfaces_are_left_alone() -> None:
    own = Qdisc("net1", "fq_codel", 0, QDISC_ROOT)
    assert read(body(own), body(FQ, index=5)) == ([], [])


def test_parents_come_first_and_what_hangs_on_nothing_is_named() -> None:
    assert read(body(PFIFO), body(TBF), body(PRIO)) == (["prio", "tbf", "pfifo"], [])
    assert read(body(PFIFO), body(NETEM), body(PRIO)) == (["prio"], ["pfifo", "netem"])
    assert read(body(PFIFO)) == ([], ["pfifo"])


def test_handles_are_each_interfaces_own() -> None:
    """Scripts call the root of every interface `1:`, and all are made in one stage."""
    roots = [replace(PRIO, dev=dev) for dev in ("net1", "net2", "net3")]
    assert qdiscs.in_order([TBF, *roots]) == [*roots, TBF]
    assert qdiscs.in_order([replace(TBF, dev="net2"), PRIO]) == [PRIO]


@pytest.mark.parametrize("number", [8, 13, 14])
def test_a_size_table_and_a_shared_block_are_named(number: int) -> None:
    assert read(body(FQ, attribute(number, bytes(4)))) == ([], ["fq"])


def test_mqprio_without_hardware_is_made_of_its_struct_alone() -> None:
    """The kernel tells of attributes behind it, and refuses them; with hardware it is named."""
    struct_alone = bytes([2, *range(16), 0]) + bytes(66)
    told = Qdisc("net1", "mqprio", 0x10000, QDISC_ROOT, (struct_alone + b"attributes.").hex())
    assert qdiscs.qdisc_of(body(told), "net1") == (
        Qdisc("net1", "mqprio", 0x10000, QDISC_ROOT, struct_alone.hex()),
        False,
    )
    in_hardware = struct_alone[:17] + b"\1" + struct_alone[18:]
    found = qdiscs.qdisc_of(
        body(Qdisc("net1", "mqprio", 1 << 16, QDISC_ROOT, in_hardware.hex())), ""
    )
    assert found is not None
    assert found[1]


def test_filters_and_classes_are_its_makers() -> None:
    assert read(body(PRIO), used={0x10000: FILTERS}) == ([], ["prio"])
    clsact = Qdisc("net1", "clsact", 0xFFFF0000, 0xFFFFFFF1)
    assert read(body(PRIO), body(clsact)) == (["prio"], ["clsact"])
    htb = Qdisc("net1", "htb", 0x10000, QDISC_ROOT)
    assert read(body(htb), used={0x10010: CLASSES}) == ([], ["htb"])
    assert read(body(htb), used={0x20010: CLASSES}) == (["htb"], [])
    # prio has classes by itself, one a band
    assert read(body(PRIO), used={0x10001: CLASSES}) == (["prio"], [])
    (line,) = qdiscs.read(Told(body(NETEM)), LOOK).lost
    assert line == "qdisc netem 2: on net1, with its classes and filters"


def test_htb_tells_another_version_than_it_takes_and_a_count() -> None:
    told = struct.pack("=5I", 0x30011, 10, 0x20, 0, 4711)
    queue = attribute(5, struct.pack("=I", 1000))
    htb = Qdisc("net1", "htb", 0x10000, QDISC_ROOT, (attribute(2, told) + queue).hex())
    found, more = qdiscs.qdisc_of(body(htb), "net1") or (None, True)
    taken = attribute(2, struct.pack("=5I", 3, 10, 0x20, 0, 0))
    assert not more
    assert found is not None
    assert bytes.fromhex(found.options) == taken + queue


@pytest.mark.parametrize("given", [1, 999, 5000, 7000, 90_000, 100_000, 1_000_000])
def test_codel_cuts_off_what_it_is_given_and_what_it_tells(given: int) -> None:
    """As codel_change() and codel_dump() count."""

    def told(microseconds: int) -> int:
        return (microseconds * 1000 >> 10) * 1024 // 1000

    def options(microseconds: int) -> str:
        return attribute(1, struct.pack("=I", microseconds)).hex()

    codel = Qdisc("net1", "codel", 0x10000, QDISC_ROOT, options(told(given)))
    found, _ = qdiscs.qdisc_of(body(codel), "net1") or (codel, True)
    (again,) = struct.unpack_from("=I", bytes.fromhex(found.options), 4)
    assert told(again) == told(given)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"kind": ""}, "not a kind"),
        ({"kind": "x" * 16}, "not a kind"),
        ({"options": "0g"}, "hexadecimal"),
        ({"handle": -1}, "not within"),
    ],
)
def test_what_is_none_is_refused(wrong: dict[str, object], why: str) -> None:
    given: dict[str, object] = {"dev": "net1", "kind": "fq", "handle": 1, "parent": 1, **wrong}
    with pytest.raises(ValueError, match=why):
        Qdisc(**given)  # type: ignore[arg-type] # that is the test
