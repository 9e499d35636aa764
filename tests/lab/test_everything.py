"""All of it at once, on real PCI functions, through one reload: the same before and after.

Two PFs, ten VFs: two with all attributes that igb supports, two with each other's names, one given
away, one without a driver, two in namespaces. A PF with a name of its own is the node's uplink, the
other is in a bond; a VF is a bridge's port; PF and VF have VLAN children with addresses and routes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.support import lab, looks
from tests.support.lab import PF1, PF2, Nodeagent

UP: Final = "uplink0"
BONDED: Final = "enp2s0"
VF: Final = "enp1s0v"
OTHER: Final = "enp2s0v"
SET_UP: Final = f"""
link set {UP} alias rack-4
address add 192.0.2.10/24 dev {UP}
address add 2001:db8::10/64 dev {UP} nodad
route add default via 192.0.2.1 dev {UP} metric 100 src 192.0.2.10
route add default via 2001:db8::1 dev {UP} metric 1024
link add link {UP} name storage type vlan id 100
link set storage up mtu 3000
address add 198.51.100.1/24 dev storage
route add 198.18.0.0/15 via 198.51.100.9 dev storage
link set {UP} vf 0 mac 02:00:00:00:01:00 vlan 0 trust on spoofchk off
link set {UP} vf 1 mac 02:00:00:00:01:01 vlan 101 qos 3
link set {VF}0 mtu 3500 up
link add link {VF}0 name {VF}0.7 type vlan id 7
link set {VF}0.7 up
address add 10.7.0.1/24 dev {VF}0.7
route add 10.8.0.0/16 via 10.7.0.9 dev {VF}0.7
link set {VF}1 up
link set {VF}2 up
link set {VF}2 master br7
link set {BONDED} down
link set {BONDED} master bond7
link set bond7 up
address add 10.9.0.1/24 dev bond7
link set {OTHER}0 netns pod-a
link set {OTHER}1 netns pod-b
link set {OTHER}2 up
address add 10.10.0.1/24 dev {OTHER}2
neigh add 10.10.0.9 lladdr 02:00:00:00:00:09 dev {OTHER}2 nud permanent
"""
IN_POD: Final = """
link set {device} name net1
link set net1 mtu 1400 up
address add 10.20.0.{number}/24 dev net1
route add 10.21.0.0/16 via 10.20.0.9 dev net1
"""


def rename(old: str, new: str) -> None:
    """udevd adds the old name as an altname of what was renamed; an administrator takes it away."""
    lab.ip(f"link set {old} down", f"link set {old} name {new}")
    lab.settle()
    lab.sh(f"ip link property del dev {new} altname {old} 2>/dev/null || true")


@pytest.fixture
def everything() -> Iterator[None]:
    lab.clean()
    lab.sh("modprobe -a bonding bridge 8021q; ip netns add pod-a; ip netns add pod-b")
    lab.ip(
        "link add bond7 type bond mode active-backup miimon 100",
        "link add br7 type bridge",
        "link set br7 up",
    )
    rename("enp1s0", UP)
    lab.ip(f"link set {UP} mtu 4000 up")
    lab.create_vfs(PF1, 7)
    lab.create_vfs(PF2, 3)
    lab.settle()
    lab.await_carrier(PF1)
    lab.ip(*filter(None, SET_UP.split("\n")))
    lab.await_carrier(PF1)
    lab.ip(f"link set {UP} vf 1 max_tx_rate 300")
    for number, name in enumerate(("pod-a", "pod-b")):
        text = IN_POD.format(device=f"{OTHER}{number}", number=number + 1)
        for line in filter(None, text.split("\n")):
            lab.sh(f"ip -n {name} {line}")
    rename(f"{VF}3", "spare")
    rename(f"{VF}4", f"{VF}3")
    rename("spare", f"{VF}4")
    lab.give_to("pci-stub", lab.vf(PF1, 5))
    lab.unbind(lab.vf(PF1, 6))
    yield
    lab.sh("ip netns delete pod-a; ip netns delete pod-b")
    for link in ("bond7", "br7"):
        lab.sh(f"ip link delete {link}")
    lab.clean("A")
    if lab.name(PF1) == UP:
        lab.sh("modprobe -r mlx5_core; modprobe mlx5_core; udevadm settle")


def in_pod(name: str) -> Any:
    commands = ("ip -n {} -d -j address show dev net1", "ip -n {} -d -j route show dev net1")
    return [looks.plain(json.loads(lab.sh(command.format(name)))) for command in commands]


def look() -> dict[str, Any]:
    drivers = {
        vf: (state["driver"], state["told by its PF"])
        for pf in (PF1, PF2)
        for vf, state in enumerate(lab.read()[pf]["vfs"])
    }
    return {
        **looks.look(),
        "drivers": [{str(vf): told} for vf, told in drivers.items()],
        "pods": [{name: in_pod(name)} for name in ("pod-a", "pod-b")],
    }


def settled() -> bool:
    links = json.loads(lab.sh("ip -j link")) + [
        link
        for name in ("pod-a", "pod-b")
        for link in json.loads(lab.sh(f"ip -n {name} -j link show dev net1"))
    ]
    tentative = "tentative" in lab.sh("ip address; ip -n pod-a address; ip -n pod-b address")
    return not tentative and all("NO-CARRIER" not in link["flags"] for link in links)


def test_everything_at_once_in_one_pass(nodeagent: Nodeagent, everything: None) -> None:
    lab.eventually(settled, "IPv6 addresses and links")
    before = look()
    lab.put_other_build_on_disk()
    reload = nodeagent.call("reload", ALLOW_UPLINK_RELOAD="true")
    lab.eventually(settled, "IPv6 addresses and links")
    looks.assert_same(before, look())
    assert reload.log.count("create VFs: ") == 1
    assert "FAILED" not in reload.log
