"""What the emulated node with a ConnectX promises to the tests that run in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import connectx, lab
from tests.support.lab import PF1, PF2

VFS = 64


@pytest.fixture(autouse=True)
def _without_vfs() -> Iterator[None]:
    yield
    for pf in lab.pfs():
        lab.PCI.joinpath(pf, "sriov_numvfs").write_text("0")
    lab.settle()


def test_names_are_those_of_the_real_card() -> None:
    lab.create_vfs(PF1, 2)
    lab.create_vfs(PF2, 2)
    assert [lab.name(pf) for pf in (PF1, PF2)] == ["enp1s0f0np0", "enp1s0f1np1"]
    assert [lab.name(lab.vf(PF1, n)) for n in range(2)] == ["enp1s0f0v0", "enp1s0f0v1"]
    assert [lab.name(lab.vf(PF2, n)) for n in range(2)] == ["enp1s0f1v0", "enp1s0f1v1"]
    devices = {path.name for path in Path("/sys/class/infiniband").iterdir()}
    assert {"rocep1s0f0", "rocep1s0f1", "rocep1s0f0v0", "rocep1s0f1v1"} <= devices


def test_the_driver_is_the_genuine_one() -> None:
    """Nothing of igb's stand-in: that has no devlink eswitch, and no firmware version."""
    assert lab.driver(PF1) == "mlx5_core"
    assert "igb" not in lab.sh("modinfo -F description mlx5_core; lsmod")
    assert "mode legacy" in lab.sh(f"devlink dev eswitch show pci/{PF1}")
    assert "fw.version" in lab.sh(f"devlink dev info pci/{PF1}")


def test_the_second_pf_makes_all_its_vfs() -> None:
    """They come after the first one's, on the same bus; those are in test_legacy.py."""
    lab.create_vfs(PF2, VFS)
    assert len(lab.vfs(PF2)) == VFS
    assert {lab.driver(address) for address in lab.vfs(PF2).values()} == {"mlx5_core"}
    assert lab.name(lab.vf(PF2, VFS - 1)) == lab.vf_name(PF2, VFS - 1)


def test_what_firmware_is_asked_is_on_record() -> None:
    before = connectx.LOG.stat().st_size
    lab.create_vfs(PF1, 1)
    asked = connectx.commands(before)
    assert ("pf1", "ENABLE_HCA") in asked
    assert ("pf1vf0", "INIT_HCA") in asked


@pytest.mark.wide
def test_eight_pfs_are_the_ports_of_four_cards() -> None:
    names = [f"enp{card}s0f{port}np{port}" for card in range(1, 5) for port in range(2)]
    assert [lab.name(pf) for pf in lab.pfs()] == names
    lab.on_each_pf(lambda pf: lab.create_vfs(pf, 2))
    assert all(len(lab.vfs(pf)) == 2 for pf in lab.pfs())
