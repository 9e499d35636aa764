"""By hand: snapshot, plan, restore, verify, and what a look at the node costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nodeagent.node.node import Node
from nodeagent.node.observe import observe
from nodeagent.settings import Settings
from tests.support import lab
from tests.support.lab import PCI, PF1, PF2, Nodeagent, State

pytestmark = [pytest.mark.both_nics, pytest.mark.short]


def test_lines_of_the_plan_can_be_pasted(
    nodeagent: Nodeagent, three_vfs: State, tmp_path: Path
) -> None:
    """`plan --after-reload`, asked for before, does in a root shell what restore would do."""
    snapshot = str(tmp_path / "snapshot")
    lines = nodeagent.call("plan", "--after-reload").output()
    nodeagent.call("snapshot", "--file", snapshot)
    lab.reload_by_hand()
    assert lab.read() != three_vfs
    lab.sh(lines)
    assert lab.read() == three_vfs
    # ethtool's defaults are the driver's choice: no line can know them before there is a driver
    nodeagent.call("restore", "--snapshot", snapshot)
    nodeagent.call("verify", "--snapshot", snapshot)


def test_verify_tells_what_restore_then_mends(
    nodeagent: Nodeagent, three_vfs: State, tmp_path: Path
) -> None:
    snapshot = str(tmp_path / "snapshot")
    nodeagent.call("snapshot", "--file", snapshot)
    pf, vf = lab.name(PF1), lab.name(lab.vf(PF1, 0))
    lab.ip(f"link set {pf} vf 2 vlan 7", f"link set {vf} mtu 1400", f"link set {vf} name other0")
    lab.settle()
    told = nodeagent.call("verify", "--snapshot", snapshot, "--output", "json", status=1)
    found = json.loads(told.output())["differences"]
    assert [(each["target"], each["attribute"], each["have"]) for each in found] == [
        (f"pci/{PF1} vf 0", "mtu", 1400),
        (f"pci/{PF1} vf 0", "name", "other0"),
        # udev keeps the name that it would have given
        (f"pci/{PF1} vf 0", "altnames", [vf]),
        (f"pci/{PF1} vf 2", "vlan", 7),
        (f"pci/{PF1} vf 2", "qos", 0),
    ]
    nodeagent.call("restore", "--snapshot", snapshot)
    assert lab.read() == three_vfs


def test_look_at_the_node_costs_one_request_and_one_a_pf(three_vfs: State) -> None:
    with Node(Settings()) as node:
        observe(node)
        assert node.rtnl.requests == 2
    (PCI / PF2 / "sriov_numvfs").write_text("2")
    lab.settle()
    with Node(Settings()) as node:
        state = observe(node)
        assert state.vf_count == 5
        assert node.rtnl.requests == 3
