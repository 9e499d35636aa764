"""What a reload takes from an interface and nobody saves: a driver, and sysfs and proc as trees."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from nodeagent.kernel.attached import hooked, offloaded
from nodeagent.kernel.netlink import attribute, nested
from nodeagent.kernel.receive import Interface
from nodeagent.kernel.unsaved import of_driver, of_interrupts, of_queues


class Driver(Interface):
    """RSS contexts, timestamping, and the coalescing of two queues."""

    def __init__(self, contexts: tuple[int, ...], stamps: int, *usecs: int) -> None:
        self.contexts, self.stamps, self.usecs = contexts, stamps, usecs

    def ask(self, body: bytes, kind: int = 0x8946) -> bytes:
        if kind == 0x89B1:
            return struct.pack("=iii", 0, self.stamps, self.stamps)
        command, number = struct.unpack_from("=II", body)
        if command == 0x46 and number in self.contexts:
            return body
        if command == 0x4B and self.usecs:
            assert number == 0xE
            assert int.from_bytes(body[8:520], "little") == (1 << len(self.usecs)) - 1
            return body[:520] + b"".join(struct.pack("=23I", 0xE, n, *[0] * 21) for n in self.usecs)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def written(root: Path, **files: str) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


QUEUES = {
    "threaded": "0",
    "queues/rx-0/rps_cpus": "0",
    "queues/rx-1/rps_cpus": "3",
}


def test_a_fresh_interface_has_nothing(tmp_path: Path) -> None:
    written(tmp_path, **QUEUES)
    driver = Driver((), 0, 8, 8)
    assert list(of_driver(driver, "ens1")) == []
    assert list(of_queues(driver, "ens1", tmp_path)) == []


def test_what_its_driver_tells() -> None:
    assert list(of_driver(Driver((1, 3), 1), "ens1")) == [
        "RSS context 1 3 of ens1, with n-tuple rules that name it",
        "hardware timestamping of ens1",
    ]


def test_coalescing_of_one_queue(tmp_path: Path) -> None:
    written(tmp_path, **QUEUES)
    assert list(of_queues(Driver((), 0, 8, 50), "ens1", tmp_path)) == [
        "coalescing of single queues of ens1 (ethtool --per-queue)"
    ]


def test_threaded_napi(tmp_path: Path) -> None:
    written(tmp_path, **QUEUES | {"threaded": "1"})
    assert list(of_queues(Driver((), 0), "ens1", tmp_path)) == ["threaded of ens1"]


@pytest.mark.parametrize(
    ("hint", "affinity", "comm", "told"),
    [
        ("1", "2", "bash", ["smp_affinity of 1 of 2 interrupts of ens1"]),
        ("1", "2", "irqbalance", []),
        ("1", "1", "bash", []),
        ("0", "2", "bash", []),
    ],
)
def test_interrupts(tmp_path: Path, hint: str, affinity: str, comm: str, told: list[str]) -> None:
    written(tmp_path, **{"device/msi_irqs/30": "msix", "device/msi_irqs/31": "msix"})
    written(tmp_path / "proc/irq", **{"30/affinity_hint": "1", "30/smp_affinity": "1"})
    written(tmp_path / "proc/irq", **{"31/affinity_hint": hint, "31/smp_affinity": affinity})
    written(tmp_path / "proc", **{"77/comm": comm})
    assert list(of_interrupts(tmp_path / "device", "ens1", tmp_path / "proc")) == told


def test_ipoib_in_connected_mode(tmp_path: Path) -> None:
    written(tmp_path / "ib0", mode="connected")
    written(tmp_path / "ib1", mode="datagram")
    said = [list(of_queues(Driver((), 0), name, tmp_path / name)) for name in ("ib0", "ib1")]
    assert said == [["IPoIB mode connected of ib0"], []]


CHAIN = bytes.fromhex(
    "7c000000030a020001000000da0600000500000606000100740000000600030063000000"
    "0c00020000000000000000012800048008000100000000000800020000000000"
    "0c000400070001006c6f0000070003006c6f000008000500000000010b00070066696c746572000008000a"
    "00000000010800060000000000"
)
"""As Linux 6.18 tells of `chain c` of `table netdev t`, on lo."""


def test_a_chain_of_nftables() -> None:
    assert list(hooked("chain", CHAIN, ["lo", "ens1"])) == ["nftables chain c of table t on lo"]
    assert list(hooked("chain", CHAIN, ["ens1"])) == []


def test_a_flowtable_of_nftables() -> None:
    devices = nested(3, attribute(1, b"ens2\0") + attribute(1, b"ens1\0"))
    hook = nested(3, attribute(1, bytes(4)) + attribute(2, bytes(4)) + devices)
    body = bytes(20) + attribute(1, b"t\0") + attribute(2, b"f\0") + hook
    assert list(hooked("flowtable", body, ["ens1", "ens2", "ens3"])) == [
        f"nftables flowtable f of table t on ens{number}" for number in (1, 2)
    ]


def test_an_ipsec_state_of_a_driver() -> None:
    identity = bytes(56 + 16) + struct.pack(">I", 0x1000)
    state = bytes(16) + identity.ljust(224, b"\0")
    offload = attribute(28, struct.pack("=iB", 2, 0))
    assert offloaded(state, {2: "ens1"}) is None
    assert offloaded(state + offload, {3: "ens2"}) is None
    told = offloaded(state + offload, {2: "ens1"})
    assert told == "IPsec state 0x00001000 offloaded to ens1"
