"""What else holds for a PF's and a VF's interface: altnames, flags, alias, and names that cross."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import lab
from tests.support.lab import PF1, Nodeagent

KEPT = ("ifname", "altnames", "mtu", "address", "txqlen", "group", "ifalias", "flags")


def read() -> dict[str, Any]:
    """What iproute2 says of the first PF's interfaces, by device address."""
    devices = [PF1, *lab.vfs(PF1).values()]
    links = {link["ifname"]: link for link in json.loads(lab.sh("ip -d -j link show"))}
    found = {}
    for device in devices:
        link = links[lab.name(device)]
        found[device] = {key: link.get(key) for key in KEPT}
        found[device]["flags"] = sorted(set(found[device]["flags"]) & {"UP", "PROMISC", "ALLMULTI"})
    return found


def rename(old: str, new: str) -> None:
    """udevd adds the old name as an altname of what was renamed; an administrator takes it away."""
    lab.sh(f"ip link set {old} name {new}; udevadm settle")
    lab.sh(f"ip link property del dev {new} altname {old} 2>/dev/null || true")


@pytest.fixture
def crossed(no_vfs: None) -> None:
    """Three VFs: one with every attribute, two with each other's names; a PF with an altname."""
    lab.make_vfs(PF1, 3)
    pf = lab.name(PF1)
    lab.ip(*(f"link set {pf}v{index} down" for index in (0, 1, 2)))
    lab.ip(
        f"link set {pf}v0 promisc on allmulticast on txqueuelen 500 group 7 alias uplink-of-rack-4",
        f"link property add dev {pf}v0 altname tenant-a",
        f"link property add dev {pf}v0 altname tenant-b",
        f"link property add dev {pf} altname uplink",
        f"link set {pf} txqueuelen 777",
    )
    rename(f"{pf}v1", "tmpx")
    rename(f"{pf}v2", f"{pf}v1")
    rename("tmpx", f"{pf}v2")
    lab.ip(f"link set {pf}v1 up")


def test_everything_comes_back_in_one_pass(
    nodeagent: Nodeagent, crossed: None, tmp_path: Path
) -> None:
    before = read()
    snapshot = str(tmp_path / "snapshot")
    nodeagent.call("snapshot", "-o", snapshot)
    lab.sh("modprobe -r mlx5_core; modprobe mlx5_core; udevadm settle")
    done = nodeagent.call("restore", "--snapshot", snapshot)
    lab.settle()
    assert read() == before
    assert "FAILED" not in done.log
    assert done.log.count("create VFs") == 1
    nodeagent.call("verify", "--snapshot", snapshot)
