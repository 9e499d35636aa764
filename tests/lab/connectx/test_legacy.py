"""Legacy SR-IOV on the genuine mlx5_core: all that a PF holds for its VFs, by a reload."""

from __future__ import annotations

from tests.support import connectx, lab
from tests.support.lab import PF1, PF2, Nodeagent


def set_up(pf: str, vfs: int) -> None:
    """Everything that ip(8) sets through the PF, another value for each VF."""
    lab.make_vfs(pf, vfs, mtu=9000, rates=True)
    link = f"link set {lab.name(pf)}"
    states = ("auto", "enable", "disable")
    lab.ip(
        *(f"{link} vf {n} state {states[n % 3]}" for n in range(vfs)),
        # as DOCA-OFED reports it: a protocol without a VLAN
        f"{link} vf 0 vlan 0",
        f"{link} vf 1 max_tx_rate 2000 min_tx_rate 100",
    )


def test_two_pfs_with_eight_vfs(nodeagent: Nodeagent, no_vfs: None) -> None:
    for pf in (PF1, PF2):
        set_up(pf, 8)
    lab.unbind(lab.vf(PF1, 5))
    lab.give_to("pci-stub", lab.vf(PF2, 6))
    before = connectx.read()
    assert len(before["rdma"]) == 2 + 14
    assert before["devices"][PF1]["vfs"][1]["told by its PF"]["rate"]["min_tx"] == 100
    wanted = lab.put_other_build_on_disk()
    nodeagent.call("reload")
    assert lab.loaded() == wanted
    assert connectx.read() == before
    assert nodeagent.ready.exists()
    assert lab.restarts() == ["begin", "end"]


def test_64_vfs(nodeagent: Nodeagent, no_vfs: None) -> None:
    """As many as the PF can make."""
    lab.make_vfs(PF1, 64)
    assert len(lab.vfs(PF1)) == 64
    assert {lab.driver(address) for address in lab.vfs(PF1).values()} == {"mlx5_core"}
    assert lab.name(lab.vf(PF1, 63)) == lab.vf_name(PF1, 63)
    before = connectx.read()
    assert len(before["devices"][PF1]["vfs"]) == 64
    lab.put_other_build_on_disk()
    nodeagent.call("reload")
    assert connectx.read() == before


def test_the_mtu_of_ipv6_where_there_is_no_carrier(nodeagent: Nodeagent, no_vfs: None) -> None:
    """The kernel sets it to the interface's with carrier, which is waited for, but not for ever."""
    lab.make_vfs(PF1, 1)
    netdev = lab.name(lab.vf(PF1, 0))
    lab.ip(f"link set {netdev} up")
    lab.await_carrier(lab.vf(PF1, 0))
    lab.sh(f"sysctl -qw net/ipv6/conf/{netdev}/mtu=1290")
    lab.ip(f"link set {lab.name(PF1)} vf 0 state disable")
    before = connectx.read()
    lab.put_other_build_on_disk()
    reload = nodeagent.call("reload")
    assert f"{netdev} has no carrier: the kernel sets net.ipv6.conf.{netdev}.mtu" in reload.log
    assert connectx.read() == before
    assert lab.sh(f"cat /proc/sys/net/ipv6/conf/{netdev}/mtu") == "1290\n"


def test_a_vf_with_another_mac_than_its_admin_mac(nodeagent: Nodeagent, no_vfs: None) -> None:
    """mlx5 makes a node GUID of each admin MAC, and mlx5_ib reads it at the bind."""
    lab.make_vfs(PF1, 2)
    netdev = lab.name(lab.vf(PF1, 1))
    lab.ip(f"link set {netdev} down", f"link set {netdev} address 02:bb:00:00:00:01 up")
    before, guids = connectx.read(), node_guids(PF1)
    assert len(set(guids)) == 2
    lab.put_other_build_on_disk()
    nodeagent.call("reload")
    assert connectx.read() == before
    assert node_guids(PF1) == guids


def node_guids(pf: str) -> list[str]:
    """Of the RDMA devices of a PF's VFs."""
    found = [(lab.PCI / vf).glob("infiniband/*/node_guid") for vf in lab.vfs(pf).values()]
    return [path.read_text().strip() for paths in found for path in paths]


def test_vfs_on_vfio(nodeagent: Nodeagent, no_vfs: None) -> None:
    """Nobody holds them: they are back on vfio-pci, with what their PF holds for them."""
    lab.make_vfs(PF1, 4)
    for index in (1, 2):
        lab.give_to("vfio-pci", lab.vf(PF1, index))
    before = connectx.read()
    lab.put_other_build_on_disk()
    nodeagent.call("reload")
    assert connectx.read() == before
    assert lab.driver(lab.vf(PF1, 1)) == "vfio-pci"
