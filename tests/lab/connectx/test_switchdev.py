"""switchdev on the genuine mlx5_core: a reload keeps eswitch, representors and rates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.lab import PF1, PF2, Nodeagent, State

VFS = 4


def switch(pf: str, mode: str = "switchdev") -> None:
    """Set an eswitch's mode as its manual says: while no VF is bound."""
    for address in lab.vfs(pf).values():
        lab.unbind(address)
    lab.sh(f"devlink dev eswitch set pci/{pf} mode {mode}; udevadm settle")
    for address in lab.vfs(pf).values():
        Path("/sys/bus/pci/drivers/mlx5_core/bind").write_text(address)
    lab.settle()


def eswitch(pf: str) -> State:
    (told,) = json.loads(lab.sh(f"devlink -j dev eswitch show pci/{pf}"))["dev"].values()
    return State(told)


def representors(pf: str) -> State:
    """Each by its port. Its MAC is the driver's choice, another one each time."""
    told = {link["ifname"]: link for link in json.loads(lab.sh("ip -d -j link show"))}
    found = {}
    for port, name in lab.representors(pf).items():
        read = lab.read_interface(told[name])
        assert read is not None
        found[port] = {**read, "address": None, "txqlen": told[name]["txqlen"]}
    return found


def read() -> State:
    return {
        "devices": lab.read(),
        "eswitches": {pf: eswitch(pf) for pf in (PF1, PF2)},
        "representors": {pf: representors(pf) for pf in (PF1, PF2)},
        "rates": json.loads(lab.sh("devlink -j port function rate show")),
    }


@pytest.fixture
def switchdev() -> Iterator[State]:
    """Two PFs with four VFs each, made as switchdev nodes are: MACs first, then the mode."""
    lab.clean("A")
    for pf in (PF1, PF2):
        lab.create_vfs(pf, VFS)
        link = f"link set {lab.name(pf)}"
        lab.ip(*(f"{link} vf {n} mac 02:00:00:0{pf[-1]}:01:0{n}" for n in range(VFS)))
        switch(pf)
        for port, name in lab.representors(pf).items():
            lab.ip(f"link set {name} up mtu {2000 + int(port[-1])} txqueuelen 77")
        for address in lab.vfs(pf).values():
            lab.ip(f"link set {lab.name(address)} up")
    lab.settle()
    yield read()
    lab.clean("A")


def test_two_pfs_with_four_vfs_are_ready(nodeagent: Nodeagent, switchdev: State) -> None:
    assert {each["mode"] for each in switchdev["eswitches"].values()} == {"switchdev"}
    assert len(switchdev["representors"][PF1]) == VFS
    wanted = lab.put_other_build_on_disk()
    nodeagent.call("reload")
    assert lab.loaded() == wanted
    assert read() == switchdev
    assert nodeagent.ready.exists()
    assert not nodeagent.open_snapshot.exists()
