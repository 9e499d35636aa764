"""One reload of a node on which each VF is odd in its own way, looked at VF by VF.

The reload is shared, because it takes longer than all the looking. State is compared with iproute2.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import lab
from tests.support.lab import PCI, PF1, PF2, Nodeagent, State
from tests.support.zygote import Zygote

pytestmark = pytest.mark.both_nics


class Reloaded(NamedTuple):
    """The node before and after."""

    before: State
    after: State


def make_odd_vfs() -> None:
    """PF1 is up with jumbo frames; PF2 is down and does not probe its VFs any more."""
    lab.ip(f"link set {lab.name(PF1)} mtu 9000")
    lab.create_vfs(PF1, 7)
    lab.create_vfs(PF2, 4)
    pf, first = lab.name(PF1), lab.vfs(PF1)
    # 0: as it was made; 1: an admin MAC it runs with
    lab.ip(f"link set {pf} vf 1 mac 02:00:00:00:01:01 vlan 101 qos 3")
    lab.rebind(first[1])
    # 2: an admin MAC that it does not have yet
    lab.ip(f"link set {pf} vf 2 mac 02:00:00:00:01:02")
    # 3: trusted, and it chose its own MAC
    lab.ip(f"link set {pf} vf 3 trust on", f"link set {pf} vf 3 spoofchk off")
    lab.settle()
    lab.ip(f"link set {lab.name(first[3])} address 02:00:00:00:99:03")
    # 4: a larger MTU than the usual one, and a rate
    lab.ip(f"link set {lab.name(first[4])} mtu 8000 up")
    lab.await_carrier(PF1)
    lab.ip(f"link set {pf} vf 4 max_tx_rate 400")
    # 5 and 6: their names are swapped; udev would make the old ones altnames in between
    five, six = lab.name(first[5]), lab.name(first[6])
    lab.sh("udevadm control --stop-exec-queue")
    lab.ip(
        f"link set {five} name spare",
        f"link set {six} name {five} up",
        f"link set spare name {six}",
    )
    lab.sh("udevadm control --start-exec-queue")
    second = lab.vfs(PF2)
    lab.give_to("pci-stub", second[0])
    lab.unbind(second[1])
    lab.sh("ip netns add pod")
    lab.ip(f"link set {lab.name(second[2])} netns pod")
    (PCI / PF2 / "sriov_drivers_autoprobe").write_text("0")
    lab.ip(f"link set {lab.name(PF2)} down")


@pytest.fixture(scope="module")
def reloaded(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Reloaded:
    """The odd node, before and after a reload."""
    lab.clean()
    make_odd_vfs()
    before = lab.read()
    lab.put_other_build_on_disk()
    agent = Nodeagent(tmp_path_factory.mktemp("reloaded"), zygote)
    try:
        reload = agent.start("reload")
        assert reload.wait() == 0, reload.log
    finally:
        agent.end()
    return Reloaded(before, lab.read())


@pytest.mark.parametrize(
    ("pf", "index"),
    [(PF1, index) for index in range(7)] + [(PF2, index) for index in (0, 1, 3)],
    ids=[
        "as-made",
        "admin-mac",
        "admin-mac-not-taken-up-yet",
        "mac-of-its-own",
        "mtu-and-rate",
        "swapped-name-1",
        "swapped-name-2",
        "pci-stub",
        "unbound",
        "of-a-pf-that-is-down",
    ],
)
def test_vf(reloaded: Reloaded, pf: str, index: int) -> None:
    assert reloaded.after[pf]["vfs"][index] == reloaded.before[pf]["vfs"][index]


def test_vf_in_another_namespace(reloaded: Reloaded) -> None:
    """It is there again, and what its PF holds for it is as before."""
    before, after = (state[PF2]["vfs"][2] for state in reloaded)
    assert before["interface"] is None
    assert after == before
    assert lab.vf_name(PF2, 2) in lab.sh("ip -n pod link")


@pytest.mark.parametrize("pf", [PF1, PF2], ids=["up-with-mtu-9000", "down-without-autoprobe"])
def test_pf(reloaded: Reloaded, pf: str) -> None:
    before, after = (dict(state[pf], vfs=None) for state in reloaded)
    assert after == before


def test_odd_state_was_odd(reloaded: Reloaded) -> None:
    """What is compared above is what was meant."""
    first, second = (reloaded.before[pf]["vfs"] for pf in (PF1, PF2))
    assert first[2]["interface"]["address"] != first[2]["told by its PF"]["address"]
    assert first[3]["interface"]["address"] == "02:00:00:00:99:03"
    assert first[5]["interface"]["ifname"] == lab.vf_name(PF1, 6)
    assert second[0]["driver"] == "pci-stub"
    assert second[1]["driver"] is None
    assert not reloaded.before[PF2]["interface"]["up"]


def test_pf_without_vfs_keeps_mtu_and_state(
    nodeagent: Nodeagent, no_vfs: None, tmp_path: Path
) -> None:
    snapshot = tmp_path / "snapshot"
    lab.ip(f"link set {lab.name(PF1)} mtu 4000 up", f"link set {lab.name(PF2)} mtu 3000")
    before = lab.read()
    nodeagent.call("snapshot", "--file", str(snapshot))
    lab.reload_by_hand()
    assert lab.read() != before
    nodeagent.call("restore", "--snapshot", str(snapshot))
    assert lab.read() == before
