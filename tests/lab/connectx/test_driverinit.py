"""Parameters that mlx5_core starts with: it forgets them, and takes them by a devlink reload."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support import connectx, lab
from tests.support.lab import PF1, PF2, Nodeagent, State
from tests.support.pods import Pod

VFS = 4
NETDEVS = {0: "net1", 3: "net2"}
"""By VF of the first PF, the interface that a pod has."""


def parameters() -> State:
    """What devlink shows, by device."""
    return State(json.loads(lab.sh("devlink -j dev param show"))["param"])


def start_with(address: str, **params: object) -> None:
    """As an administrator does it."""
    lines = [f"name {name} value {value}" for name, value in params.items()]
    for line in lines:
        lab.sh(f"devlink dev param set pci/{address} {line} cmode driverinit")
    lab.sh(f"devlink dev reload pci/{address}; udevadm settle")


def reloads() -> dict[str, int]:
    """How often each instance was reloaded since its driver was bound."""
    told = json.loads(lab.sh("devlink -js dev show"))["dev"]
    return {
        device.removeprefix("pci/"): each["stats"]["reload"]["driver_reinit"]["unspecified"]
        for device, each in told.items()
        if device.startswith("pci/")
    }


def inside(pod: Pod) -> State:
    """What there is, once the driver has heard from firmware that the links are up."""
    lab.eventually(lambda: " DOWN " not in pod.sh("ip -br link show up"), "carrier in the pod")
    return pod.read()


@pytest.fixture
def pod(no_vfs: None) -> Iterator[Pod]:
    """RoCE off on a PF and some of its VFs, other queues, a VF without an interface; two in a pod.

    One VF of the PF, and the other PF with its VFs, start with what the driver has itself.
    """
    start_with(PF1, enable_roce="false", event_eq_size=2048, fdb_large_groups=7)
    for pf in (PF1, PF2):
        lab.make_vfs(pf, VFS)
    start_with(lab.vf(PF1, 0), enable_roce="false", io_eq_size=128)
    start_with(lab.vf(PF1, 1), enable_eth="false")
    start_with(lab.vf(PF1, 2), max_macs=64, enable_rdma="false")
    lab.ip(f"link set {lab.vf_name(PF1, 2)} mtu 1400 up")
    with Pod() as made:
        for index, name in NETDEVS.items():
            made.take(lab.vf(PF1, index), name)
            made.ip(f"address add 10.7.0.{index}/24 dev {name}", f"link set {name} up")
        lab.settle()
        yield made
    lab.clean("A")
    if any(reloads().values()):
        lab.reload_by_hand()


def test_pf_and_vfs_start_with_them_in_one_pass(nodeagent: Nodeagent, pod: Pod) -> None:
    before, params, told = connectx.read(), parameters(), inside(pod)
    assert before["devices"][PF1]["vfs"][1]["interface"] is None
    assert lab.vf(PF1, 2) not in before["rdma"]
    lab.put_other_build_on_disk()
    reload = nodeagent.call("reload")
    assert parameters() == params
    assert connectx.read() == before
    assert inside(pod) == told
    assert reload.log.count("reload PFs: 1 actions") == 1
    assert reload.log.count("reload VFs: 3 actions") == 1
    assert reload.log.count("bind VFs: ") == 1
    changed = {PF1, *(lab.vf(PF1, index) for index in range(3))}
    assert reloads() == {each: int(each in changed) for each in reloads()}
    nodeagent.call("verify")


def test_killed_while_they_are_reloaded(nodeagent: Nodeagent, pod: Pod) -> None:
    """Set and reloaded is one system call; what a kill leaves of a reload is done again."""
    before, params, told = connectx.read(), parameters(), inside(pod)
    nodeagent.reload_killed_at("reload PFs: ", "bind VFs: ")
    assert parameters() == params
    assert connectx.read() == before
    assert inside(pod) == told
    assert {lab.vf(PF1, 0), lab.vf(PF1, 1), PF1} <= {each for each, n in reloads().items() if n}
