"""All of it at once, on real PCI functions, through one openibd restart: the same before and after.

Two PFs and twelve VFs: some with all attributes that igb supports, three in a ring of names, some
without a driver or with pci-stub, two in namespaces. One PF, under a name of its own, is the node's
uplink, and udev calls it something else afterwards; the other is in a bond. A bridge, a VRF,
children and all that stands on them. Compared as ip(8) and bridge(8) print it, but for ifindexes,
counters and what counts down.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import pytest

from tests.support import lab, looks
from tests.support.lab import PF1, PF2, Nodeagent

pytestmark = pytest.mark.real_time
"""With udevd at work on a processor of its own."""

PF, VF = "uplink0", "enp1s0v"
BONDED, OTHER = "enp2s0", "enp2s0v"
PODS: Final = {f"{OTHER}0": "pod-a", f"{OTHER}1": "pod-b"}
LONG: Final = "fifteen-letters"
SET_UP: Final = f"""
link set {PF} vf 0 mac 02:00:00:00:01:00 vlan 0 trust on spoofchk off
link set {PF} vf 1 mac 02:00:00:00:01:01 vlan 101 qos 3
link set {PF} alias rack-4 txqueuelen 777 allmulticast on
link property add dev {PF} altname uplink-of-rack-4
address add 192.0.2.10/24 broadcast + dev {PF}
address add 192.0.2.11/24 dev {PF} label {PF}:a
address add 192.0.2.77/32 dev {PF} scope link noprefixroute
address add 10.2.0.1/24 dev {PF} noprefixroute
address add 10.7.0.1 peer 10.7.0.2/32 dev {PF}
address add 2001:db8::10/64 dev {PF}
address add 2001:db8::11/64 dev {PF} nodad valid_lft 9000 preferred_lft 8000
address add 2001:db8::12/64 dev {PF} nodad home
address add 2001:db8::13/64 dev {PF}
route add default via 192.0.2.1 dev {PF} metric 100 proto dhcp src 192.0.2.10
route add default via 2001:db8::1 dev {PF} metric 1024 proto ra
route add 2001:db8:5::/48 via 2001:db8::1 dev {PF} src 2001:db8::12
route add 2001:db8:6::/48 via 2001:db8::1 dev {PF} src 2001:db8::13
route add 203.0.113.0/24 via 192.0.2.1 dev {PF} table 100 mtu 1400
route add 203.0.113.0/25 via 192.168.77.1 dev {PF} onlink tos 0x10
route add 169.254.0.0/16 dev {PF} scope link metric 1000
route append 169.254.0.0/16 dev {BONDED}.5 scope link metric 1000
route add 10.2.0.0/24 dev {PF} proto kernel scope link src 10.2.0.1 metric 100
rule add oif {PF} lookup 100 priority 1000
rule add iif {PF} lookup 100 priority 1001
neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev {PF} nud permanent
neigh add 2001:db8::1 lladdr 02:00:00:00:00:01 dev {PF} nud permanent
neigh add proxy 192.0.2.200 dev {PF}
link add link {PF} name storage type vlan id 100 egress-qos-map 1:3 gvrp on
link set storage up mtu 1400
link set storage alias storage txqueuelen 77 group 5
link property add dev storage altname vlan-of-storage
address add 198.51.100.1/24 dev storage
route add 198.18.0.0/15 via 198.51.100.9 dev storage
link set {BONDED} down
link set {BONDED} master bond7
link set bond7 up
address add 10.9.0.1/24 dev bond7
route add 198.51.0.0/20 nexthop via 192.0.2.1 dev {PF} weight 3 nexthop via 10.9.0.9 dev bond7
route add 10.55.0.0/16 dev bond7 src 192.0.2.10
nexthop add id 7 via 192.0.2.1 dev {PF} proto static
nexthop add id 8 via 10.9.0.9 dev bond7
nexthop add id 9 via fe80::9 dev {PF}
nexthop add id 10 group 7,3/8,2
nexthop add id 11 group 8/7 type resilient buckets 32 idle_timer 60
route add 198.52.0.0/24 nhid 7
route add 198.52.1.0/24 nhid 10 metric 77
route add 198.52.2.0/24 nhid 11 table 100
route add 198.52.3.0/24 nhid 9
route add 2001:db8:8::/48 nhid 9
route add 2001:db8:7::/48 nexthop via 2001:db8::1 dev {PF} nexthop via fe80::5 dev bond7 weight 3
link set {VF}0 mtu 3500 up
link add link {VF}0 name {VF}0.7 type vlan id 7 protocol 802.1ad
link set {VF}0.7 up
token set ::77 dev {VF}0
token set ::78 dev {VF}0.7
link add link {VF}0.7 name {VF}0.7.8 type vlan id 8
link set {VF}0.7.8 up
address add 10.8.0.1/24 dev {VF}0.7.8
route add 10.88.0.0/16 via 10.8.0.9 dev {VF}0.7.8
link set {VF}1 up master br7
link set {VF}2 up master vrf7
address add 10.10.0.1/24 dev {VF}2
route add 10.11.0.0/24 via 10.10.0.9 dev {VF}2 vrf vrf7
link set {VF}3 up
link add link {VF}3 name macvlan7 address 02:00:00:00:07:07 type macvlan mode bridge
link set macvlan7 up
address add 10.12.0.1/24 dev macvlan7
link add link {VF}3 name macvlan8 type macvlan mode source
link set macvlan8 type macvlan macaddr add 02:00:00:00:07:08
link add link macvlan7 name macvlan7.9 type vlan id 9
link set macvlan7.9 up master br7
link set {VF}4 up
link add link {VF}4 name ipvlan7 type ipvlan mode l3
link set ipvlan7 up
address add 10.13.0.1/24 dev ipvlan7
link set {VF}4 addrgenmode none
link set {OTHER}0 netns pod-a
link set {OTHER}1 netns pod-b
link set {LONG} up promisc on txqueuelen 500 group 7
link property add dev {LONG} altname {OTHER}4
address add 10.14.0.1/24 dev {LONG}
neigh add 10.14.0.9 lladdr 02:00:00:00:00:09 dev {LONG} nud permanent
"""
IN_POD: Final = """
link set {device} name net1
link set net1 mtu 1400 up
token set ::79 dev net1
address add 10.20.0.{number}/24 dev net1
route add 10.21.0.0/16 via 10.20.0.9 dev net1
nexthop add id 3 via 10.20.0.9 dev net1
route add 10.22.0.0/16 nhid 3
neigh add 10.20.0.9 lladdr 02:00:00:00:00:09 dev net1 nud permanent
rule add iif net1 lookup 100 priority 1000
"""
SET_BY_SYSCTL: Final = f"""
net/ipv4/conf/{PF}/rp_filter=2
net/ipv4/conf/{PF}/arp_ignore=1
net/ipv4/conf/{VF}1/forwarding=0
net/ipv6/conf/{PF}/accept_ra=0
net/ipv6/conf/{PF}/hop_limit=33
net/ipv6/conf/{PF}/router_solicitation_interval=9
net/ipv6/conf/{PF}/use_tempaddr=-1
net/ipv6/conf/{VF}3/disable_ipv6=1
net/ipv4/conf/storage/log_martians=1
net/ipv6/conf/storage/dad_transmits=0
net/ipv4/conf/ipvlan7/proxy_arp=1
net/ipv4/neigh/{PF}/gc_stale_time=77
net/ipv6/neigh/{VF}3/base_reachable_time_ms=12000
net/ipv4/neigh/storage/locktime=55
"""
SET_BY_BRIDGE: Final = f"""
link set dev {VF}1 cost 55 hairpin on isolated on learning off priority 9
vlan add dev {VF}1 vid 10 pvid untagged
vlan del dev {VF}1 vid 1
vlan add dev {VF}1 vid 11
"""


def rename(old: str, new: str) -> None:
    """udevd adds the old name as an altname of what was renamed; an administrator takes it away."""
    lab.ip(f"link set {old} down", f"link set {old} name {new}")
    lab.settle()
    lab.sh(f"ip link property del dev {new} altname {old} 2>/dev/null || true")


@pytest.fixture
def everything() -> Iterator[None]:
    lab.clean()
    lab.sh("modprobe -a bonding bridge 8021q macvlan ipvlan vrf dummy")
    lab.sh("ip netns add pod-a; ip netns add pod-b")
    lab.ip(
        "link add dummy7 type dummy",
        f"link add bond7 type bond mode active-backup miimon 100 primary {BONDED}",
        "link add br7 type bridge vlan_filtering 1",
        "link set br7 up",
        "link add vrf7 type vrf table 77",
        "link set vrf7 up",
    )
    rename("enp1s0", PF)
    lab.ip(f"link set {PF} mtu 4000 up")
    lab.create_vfs(PF1, 7)
    lab.create_vfs(PF2, 5)
    ring()
    lab.give_to("pci-stub", lab.vf(PF1, 5))
    lab.unbind(lab.vf(PF1, 6))
    set_up()
    yield
    for link in ("bond7", "dummy7", "br7", "vrf7"):
        lab.sh(f"ip link delete {link}")
    lab.sh("ip rule delete priority 1000 || true; ip rule delete priority 1001 || true")
    lab.clean("A")


def ring() -> None:
    """Three VFs: one has the next one's name, one a name of 15 letters, one the first one's."""
    rename(f"{OTHER}2", "spare")
    rename(f"{OTHER}3", f"{OTHER}2")
    rename("spare", f"{OTHER}3")
    rename(f"{OTHER}4", LONG)


def set_up() -> None:
    lab.ip(f"link add link {BONDED} name {BONDED}.5 type vlan id 5")
    lab.ip(f"link set {BONDED} up", f"link set {BONDED}.5 up")
    lab.await_carrier(PF1)
    lab.ip(f"link set {PF} vf 1 max_tx_rate 300")
    lab.rebind(lab.vf(PF1, 0))
    lab.rebind(lab.vf(PF1, 1))
    lab.settle()
    for line in filter(None, SET_UP.split("\n")):
        if line.endswith("src 2001:db8::13"):
            lab.eventually(_settled_addresses, "IPv6 addresses")
        if line.startswith("nexthop"):
            lab.eventually(partial(_is_taken, f"ip {line}"), "carrier")
        else:
            lab.ip(line)
    lab.ip("link set dummy7 master bond7")
    lab.sh("".join(f"sysctl -qw {line};" for line in SET_BY_SYSCTL.split()))
    for line in filter(None, SET_BY_BRIDGE.split("\n")):
        lab.sh(f"bridge {line}")
    for number, (device, pod) in enumerate(PODS.items(), 1):
        for line in filter(None, IN_POD.format(device=device, number=number).split("\n")):
            if line.startswith("nexthop"):
                lab.eventually(partial(_is_taken, f"ip -n {pod} {line}"), "carrier")
            else:
                lab.sh(f"ip -n {pod} {line}")


def _is_taken(command: str) -> bool:
    """Whether it could be done: the kernel takes no nexthop on an interface without carrier."""
    return "done" in lab.sh(f"{command} 2>/dev/null && echo done || true")


def call_by_udev(address: str, name: str) -> None:
    """From now on udev calls a device's interface that when it comes."""
    lab.RULES.mkdir(exist_ok=True)
    match = f'SUBSYSTEM=="net", ACTION=="add", KERNELS=="{address}"'
    (lab.RULES / "99-lab.rules").write_text(f'{match}, NAME="{name}"\n')
    lab.sh("udevadm control --reload")


def look() -> dict[str, Any]:
    """The host's namespace, both pods', and what sysfs and the PFs tell of VFs."""
    vfs = [
        {f"{pf} vf {index}": [vf["driver"], vf["override"], vf["told by its PF"]]}
        for pf in (PF1, PF2)
        for index, vf in lab.read()[pf]["vfs"].items()
    ]
    return {**looks.look(), **looks.look("pod-a"), **looks.look("pod-b"), "VFs": vfs}


def test_everything_at_once_in_one_pass(nodeagent: Nodeagent, everything: None) -> None:
    lab.await_carrier(PF1)
    lab.eventually(_settled, "IPv6 addresses and links")
    before = look()
    lab.put_other_build_on_disk()
    call_by_udev(PF1, "odd0")
    done = nodeagent.call("reload", ALLOW_UPLINK_RELOAD="true")
    lab.eventually(_settled, "IPv6 addresses and links")
    looks.assert_same(before, look())
    assert "FAILED" not in done.log
    assert done.log.count("create VFs: ") == 1
    assert "not restored" not in done.log


def _settled_addresses() -> bool:
    return "tentative" not in lab.sh("ip address; ip -n pod-a address; ip -n pod-b address")


def _settled() -> bool:
    links = [
        link
        for place in ("", "-n pod-a", "-n pod-b")
        for link in json.loads(lab.sh(f"ip -j {place} link"))
        if "UP" in link["flags"]
    ]
    return (
        _settled_addresses()
        and all("NO-CARRIER" not in link["flags"] for link in links)
        and f'"active_slave":"{BONDED}"' in lab.sh("ip -d -j link show bond7")
    )
