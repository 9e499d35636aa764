"""What the emulated node promises to the tests that run in it."""

from __future__ import annotations

import os
from pathlib import Path

PCI = Path("/sys/bus/pci/devices")
PFS = [PCI / f"0000:{bus:02x}:00.0" for bus in range(1, 9)]


def test_pfs_are_on_build_a_without_vfs() -> None:
    present = [pf for pf in PFS if pf.exists()]
    assert present
    for pf in present:
        assert (pf / "driver").resolve().name == "mlx5_core"
        assert (pf / "sriov_numvfs").read_text() == "0\n"
        assert (pf / "sriov_totalvfs").read_text() == "7\n"
        assert os.listdir(pf / "net") == [f"enp{int(pf.name[5:7], 16)}s0"]
