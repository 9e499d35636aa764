"""What stands on PFs, as the kernel tells it: sysctls in the link dump, and what is not put back.

All that is put back is in `test_everything.py`.
"""

from __future__ import annotations

from pathlib import Path

from nodeagent.kernel import sysctls
from nodeagent.kernel.rtnl import Rtnl
from nodeagent.kernel.stack import StackEdge
from nodeagent.state.sysctls import sysctl_parts
from tests.support import lab
from tests.support.lab import PF1, Nodeagent

PF, PORT = "enp1s0", "enp2s0"


def test_the_kernel_tells_what_is_in_the_files(nodeagent: Nodeagent, no_vfs: None) -> None:
    """The tables of `nodeagent.kernel.sysctls` against this kernel, with values of its own each."""
    known = dict(sysctls.defaults())
    assert len(known) > 80
    lab.ip(f"link set {PF} up")
    lab.sh(f"sysctl -qw net/ipv4/neigh/{PF}/gc_stale_time=77 net/ipv6/neigh/{PF}/locktime=56")
    with Rtnl() as rtnl:
        before = next(link for link in rtnl.links().values() if link.name == PF)
        unset = dict.fromkeys(known, -77)
        told = dict(sysctls.decoded(before.af_spec, unset, before.mtu or 0))
    with StackEdge() as edge:
        neighbours = edge.parameters().neighbours[before.index]
    assert len(neighbours) == 28
    for key, value in {**told, **neighbours}.items():
        family, tree, name = sysctl_parts(key)
        path = Path("/proc/sys/net") / family / tree / PF / name
        assert int(path.read_text()) == value, key
    assert told.keys() == known.keys()


def test_an_odd_hundredth_of_a_second_is_kept(nodeagent: Nodeagent, no_vfs: None) -> None:
    """The kernel rounds it to ticks, and its file rounds that again: it reads 6."""
    lab.ip(f"link set {PF} up")
    lab.sh(f"sysctl -qw net/ipv6/neigh/{PF}/locktime=7")
    assert '"locktime":68' in lab.sh(f"ip -j ntable show dev {PF}")
    lab.put_other_build_on_disk()
    nodeagent.call("reload")
    assert '"locktime":68' in lab.sh(f"ip -j ntable show dev {PF}")


def test_the_mtu_of_ipv6_is_set_when_the_link_is_ready(nodeagent: Nodeagent, no_vfs: None) -> None:
    """The kernel sets it to the interface's with carrier, which a VF of igb gets after seconds."""
    lab.create_vfs(PF1, 1)
    name = lab.vf_name(PF1, 0)
    lab.ip(f"link set {name} up")
    lab.await_carrier(lab.vf(PF1, 0))
    lab.sh(f"sysctl -qw net/ipv6/conf/{name}/mtu=1290")
    lab.put_other_build_on_disk()
    nodeagent.call("reload")
    lab.await_carrier(lab.vf(PF1, 0))
    assert lab.sh(f"cat /proc/sys/net/ipv6/conf/{name}/mtu") == "1290\n"


def test_the_port_of_a_bond_keeps_its_mtu_of_ipv6(nodeagent: Nodeagent, no_vfs: None) -> None:
    """IPv6 never becomes ready there: nobody waits for it."""
    lab.sh("modprobe bonding")
    lab.ip("link add bond7 type bond mode active-backup miimon 100")
    lab.ip(f"link set {PF} down", f"link set {PF} master bond7", "link set bond7 up")
    lab.sh(f"sysctl -qw net/ipv6/conf/{PF}/mtu=1290")
    lab.put_other_build_on_disk()
    reload = nodeagent.call("reload")
    assert lab.sh(f"cat /proc/sys/net/ipv6/conf/{PF}/mtu") == "1290\n"
    assert "no carrier" not in reload.log
    lab.ip("link del bond7")


def test_what_is_not_put_back_is_named(nodeagent: Nodeagent, no_vfs: None) -> None:
    lab.sh("modprobe -a bridge macvlan")
    lab.ip(
        "link add br7 type bridge vlan_filtering 1",
        "link set br7 up",
        f"link set {PF} up",
        f"link set {PORT} up master br7",
        f"address add 192.0.2.10/24 dev {PF}",
    )
    lab.sh(f"ip netns add pod-c; ip link add child7 netns pod-c link {PF} type macvlan")
    lab.await_carrier(PF1)
    lab.ip(
        f"nexthop add id 7 via 192.0.2.1 dev {PF} proto zebra", "route add 203.0.113.0/24 nhid 7"
    )
    lab.sh(
        f"""
        tc qdisc add dev {PF} root handle 7: prio
        tc qdisc add dev {PF} clsact
        tc filter add dev {PF} parent 7: matchall classid 7:1
        bridge fdb add 02:00:00:00:00:07 dev {PORT} master static vlan 1
        bridge fdb add 02:00:00:00:00:08 dev {PF} self
        bridge mdb add dev br7 port {PORT} grp 239.9.9.9 permanent vid 1
        sysctl -qw net/ipv6/conf/{PF}/stable_secret=2001:db8::1
        """
    )
    lab.put_other_build_on_disk()
    log = nodeagent.call("reload", ALLOW_UPLINK_RELOAD="true").log
    lab.ip("link delete br7")
    for lost in (
        f"qdisc prio 7: on {PF}, with its classes and filters",
        f"qdisc clsact ffff: on {PF}, with its classes and filters",
        f"nexthop id 7 on {PF}",
        "route 203.0.113.0/24 with nexthop id",
        f"static FDB entry 02:00:00:00:00:07 on {PORT} vlan 1",
        f"static FDB entry 02:00:00:00:00:08 on {PF}",
        f"MDB entry 239.9.9.9 on {PORT} vlan 1",
        f"stable_secret on {PF}, with the IPv6 addresses that are made of it",
    ):
        assert f"{lost}: the reload removes it, and it is not restored" in log
    assert f"macvlan child7 on {PF} in " in log


def test_a_child_has_its_flags_again(nodeagent: Nodeagent, no_vfs: None, tmp_path: Path) -> None:
    """`arp off` and `multicast off`, which ip(8) shows as NOARP and as no MULTICAST."""
    snapshot = tmp_path / "snapshot.json"
    lab.ip(
        f"link set {PF} up",
        f"link add link {PF} name quiet7 type vlan id 7",
        "link set quiet7 arp off multicast off up",
    )
    before = flags("quiet7")
    assert "NOARP" in before
    assert "MULTICAST" not in before
    nodeagent.call("snapshot", "--file", str(snapshot))
    lab.ip("link delete quiet7")
    nodeagent.call("restore", "--snapshot", str(snapshot))
    assert flags("quiet7") == before
    lab.ip("link set quiet7 arp on multicast on")
    nodeagent.call("restore", "--snapshot", str(snapshot))
    assert flags("quiet7") == before
    lab.ip("link delete quiet7")


def flags(name: str) -> set[str]:
    """What ip(8) shows between angle brackets, but for what tells of the carrier."""
    text = lab.sh(f"ip -o link show dev {name}")
    return set(text.partition("<")[2].partition(">")[0].split(",")) - {"LOWER_UP", "NO-CARRIER"}
