"""A port of InfiniBand: its VFs have GUIDs and no MAC, and its interfaces are IPoIB's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import connectx, lab
from tests.support.lab import PF1, Nodeagent, State

GUIDS = {0: ("02:11:22:33:44:55:66:77", "02:11:22:33:44:55:66:78")}


@pytest.fixture
def infiniband() -> Iterator[None]:
    """Three VFs: one with GUIDs and a link, one with a link, and one with what is preset."""
    lab.clean("A")
    with connectx.card() as card, connectx.infiniband(card) as name:
        (lab.PCI / PF1 / "sriov_drivers_autoprobe").write_text("0")
        (lab.PCI / PF1 / "sriov_numvfs").write_text("3")
        for index, (node, port) in GUIDS.items():
            lab.ip(f"link set {name} vf {index} node_guid {node}")
            lab.ip(f"link set {name} vf {index} port_guid {port}")
        lab.ip(f"link set {name} vf 0 state enable", f"link set {name} vf 1 state auto")
        (lab.PCI / PF1 / "sriov_drivers_autoprobe").write_text("1")
        for vf in lab.vfs(PF1).values():
            connectx.bind(vf)
        lab.settle()
        yield
    lab.clean("A")


def read() -> State:
    """What the PF holds for its VFs, and their RDMA devices; addresses have a new QPN each time."""
    vfs = lab.sh(f"ip -d link show {lab.name(PF1)}").split(" vf ")[1:]
    return {
        "held": [text.partition(", spoof")[2] for text in vfs],
        "rdma": {
            index: [
                (path / name).read_text()
                for path in Path(lab.PCI / vf / "infiniband").iterdir()
                for name in ("node_guid", "ports/1/gids/0")
            ]
            for index, vf in lab.vfs(PF1).items()
        },
    }


def test_guids_and_policies_outlast_a_reload(nodeagent: Nodeagent, infiniband: None) -> None:
    before = read()
    assert "NODE_GUID 02:11:22:33:44:55:66:77" in before["held"][0]
    assert ["link-state disable" in text for text in before["held"]] == [False, False, True]
    lab.put_other_build_on_disk()
    reload = nodeagent.call("reload")
    assert reload.log.count("set VFs: ") == 1
    assert read() == before
    nodeagent.call("verify")
