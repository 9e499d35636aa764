"""RoCE's defaults in configfs, as cma_roce_tos and cma_roce_mode set them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import connectx, lab
from tests.support.lab import PF1, PF2, Nodeagent

CONFIG = Path("/sys/kernel/config")


@pytest.fixture(autouse=True)
def _with_rdma_cm() -> Iterator[None]:
    lab.clean("A")
    lab.sh(f"modprobe rdma_cm; mount -t configfs lab {CONFIG}")
    yield
    lab.sh(f"umount {CONFIG}")
    lab.clean("A")


def roce(device: str, *, mode: str | None = None, tos: int | None = None) -> tuple[str, str]:
    """What a device has at port 1, after these were set; by hand, as the scripts do."""
    group = CONFIG / "rdma_cm" / device
    group.mkdir()
    try:
        at = group / "ports/1"
        if mode is not None:
            (at / "default_roce_mode").write_text(mode)
        if tos is not None:
            (at / "default_roce_tos").write_text(str(tos))
        return (
            (at / "default_roce_mode").read_text().strip(),
            (at / "default_roce_tos").read_text().strip(),
        )
    finally:
        group.rmdir()


def test_they_are_kept_in_one_pass(nodeagent: Nodeagent, tmp_path: Path) -> None:
    """rdma_cm is unloaded with the driver, loaded again, and gives each new device its own."""
    lab.create_vfs(PF1, 2)
    lab.settle()
    names = connectx.rdma()
    vf0, vf1 = (names[lab.vf(PF1, n)] for n in range(2))
    roce(names[PF1], tos=106)
    roce(vf1, mode="IB/RoCE v1", tos=26)
    wanted = {name: roce(name) for name in (names[PF1], names[PF2], vf0, vf1)}
    assert wanted[names[PF1]] == ("RoCE v2", "106")
    assert wanted[vf1] == ("IB/RoCE v1", "26")
    before = connectx.read()

    lab.put_other_build_on_disk()
    reload = nodeagent.call("reload")
    assert reload.log.count("set RoCE defaults: 2 actions") == 1
    assert {name: roce(name) for name in wanted} == wanted
    assert connectx.read() == before
    assert not list((CONFIG / "rdma_cm").iterdir())

    snapshot = str(tmp_path / "snapshot")
    nodeagent.call("snapshot", "--file", snapshot)
    roce(vf1, mode="RoCE v2", tos=0)
    roce(vf0, tos=8)
    told = nodeagent.call("verify", "--snapshot", snapshot, status=1).output()
    rows = [" ".join(line.split()) for line in told.splitlines()]
    assert f"pci/{PF1} vf 0 roce port 1 RoCE v2 tos 0 RoCE v2 tos 8" in rows
    assert f"pci/{PF1} vf 1 roce port 1 IB/RoCE v1 tos 26 RoCE v2 tos 0" in rows
    lab.sh(nodeagent.call("plan", "--snapshot", snapshot).output())
    assert {name: roce(name) for name in wanted} == wanted
    nodeagent.call("verify", "--snapshot", snapshot)
