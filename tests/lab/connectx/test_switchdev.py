"""switchdev on the genuine mlx5_core: a reload keeps eswitch, representors and rates."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support import connectx, lab
from tests.support.lab import PF1, PF2, Nodeagent, State

VFS = 4


@pytest.fixture
def switchdev() -> Iterator[State]:
    """Two PFs with four VFs each, made as switchdev nodes are: MACs first, then the mode."""
    lab.clean("A")
    for pf in (PF1, PF2):
        lab.create_vfs(pf, VFS)
        link = f"link set {lab.name(pf)}"
        lab.ip(*(f"{link} vf {n} mac 02:00:00:0{pf[-1]}:01:0{n}" for n in range(VFS)))
        connectx.switch(pf)
        for port, name in lab.representors(pf).items():
            lab.ip(f"link set {name} up mtu {2000 + int(port[-1])} txqueuelen 77")
        for address in lab.vfs(pf).values():
            lab.ip(f"link set {lab.name(address)} up")
    lab.ip(f"link set {lab.representors(PF1)['pf0vf1']} alias tenant-1 name tenant1")
    lab.settle()
    yield connectx.read()
    lab.clean("A")


def test_two_pfs_with_four_vfs_are_ready(nodeagent: Nodeagent, switchdev: State) -> None:
    assert {each["mode"] for each in switchdev["eswitches"].values()} == {"switchdev"}
    assert len(switchdev["representors"][PF1]) == VFS
    wanted = lab.put_other_build_on_disk()
    reload = nodeagent.call("reload")
    assert lab.loaded() == wanted
    assert connectx.read() == switchdev
    assert nodeagent.ready.exists()
    assert not nodeagent.open_snapshot.exists()
    assert f"pci/{PF1}: mlx5_core makes its 4 representors with random MACs" in reload.log


def test_rates_of_ports(nodeagent: Nodeagent, switchdev: State) -> None:
    """tx_max and tx_share, which the change of mode wipes: firmware has them again.

    What devlink itself shows of them, and groups, are test_rates.py's.
    """
    port = f"devlink port function rate set pci/{PF1}"
    lab.sh(f"{port}/1 tx_max 200mbit; {port}/2 tx_share 24mbit; {port}/3 tx_max 1gbit")
    before = connectx.read()["devices"]
    assert before != switchdev["devices"]
    assert before[PF1]["vfs"][0]["told by its PF"]["rate"]["max_tx"] == 200
    lab.put_other_build_on_disk()
    nodeagent.call("reload")
    assert connectx.read()["devices"] == before


def test_killed_between_eswitch_and_representors(nodeagent: Nodeagent, switchdev: State) -> None:
    nodeagent.reload_killed_at("set eswitch: ")
    assert connectx.read() == switchdev


def test_vfs_that_were_made_in_switchdev_mode(nodeagent: Nodeagent) -> None:
    """They have link state auto: a restore, which makes VFs first, has them with disable.

    A VLAN on a representor takes the MAC that the representor is given anew.
    """
    lab.clean("A")
    connectx.switch(PF1)
    lab.create_vfs(PF1, 2)
    lab.settle()
    representor = lab.representors(PF1)["pf0vf0"]
    vlan_5 = f"link add link {representor} name tenant.5 type vlan id 5"
    lab.ip(f"link set {representor} up", vlan_5, "link set tenant.5 up")
    before = connectx.read()
    lab.put_other_build_on_disk()
    nodeagent.call("reload")
    after = connectx.read()
    (vlan,) = json.loads(lab.sh("ip -j link show tenant.5"))
    (below,) = json.loads(lab.sh(f"ip -d -j link show {representor}"))
    assert (vlan["address"], below["promiscuity"]) == (below["address"], 0)
    states = [
        [vf["told by its PF"].pop("link_state") for vf in each["devices"][PF1]["vfs"].values()]
        for each in (before, after)
    ]
    assert states == [["auto", "auto"], ["disable", "disable"]]
    assert after == before
    assert nodeagent.ready.exists()
    lab.clean("A")
