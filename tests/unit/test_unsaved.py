"""What a reload takes from an interface and nobody saves: a driver, and sysfs and proc as trees."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

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
    "gro_flush_timeout": "0",
    "napi_defer_hard_irqs": "0",
    "queues/rx-0/rps_cpus": "0",
    "queues/rx-1/rps_cpus": "00000000,00000000",
    "queues/rx-0/rps_flow_cnt": "0",
    "queues/tx-0/xps_rxqs": "0",
    "queues/tx-0/xps_cpus": "3",
}


def test_a_fresh_interface_has_nothing(tmp_path: Path) -> None:
    written(tmp_path / "class/net/ens1", **QUEUES)
    driver = Driver((), 0, 8, 8)
    assert list(of_driver(driver, "ens1")) == []
    assert list(of_queues(driver, "ens1", tmp_path)) == []


def test_what_its_driver_tells() -> None:
    assert list(of_driver(Driver((1, 3), 1), "ens1")) == [
        "RSS context 1 3 of ens1, with n-tuple rules that name it",
        "hardware timestamping of ens1",
    ]


def test_coalescing_of_one_queue(tmp_path: Path) -> None:
    written(tmp_path / "class/net/ens1", **QUEUES)
    assert list(of_queues(Driver((), 0, 8, 50), "ens1", tmp_path)) == [
        "coalescing of single queues of ens1 (ethtool --per-queue)"
    ]


@pytest.mark.parametrize(
    ("file", "content", "word"),
    [
        ("threaded", "1", "threaded"),
        ("gro_flush_timeout", "20000", "gro_flush_timeout"),
        ("napi_defer_hard_irqs", "2", "napi_defer_hard_irqs"),
        ("queues/rx-1/rps_cpus", "00000000,0000000f", "rps_cpus"),
        ("queues/rx-0/rps_flow_cnt", "4096", "rps_flow_cnt"),
        ("queues/tx-0/xps_rxqs", "1", "xps_rxqs"),
    ],
)
def test_a_file_that_is_set(tmp_path: Path, file: str, content: str, word: str) -> None:
    written(tmp_path / "class/net/ens1", **QUEUES | {file: content})
    assert list(of_queues(Driver((), 0), "ens1", tmp_path)) == [f"{word} of ens1"]


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
