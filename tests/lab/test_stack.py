"""What stands on PFs and VFs in the host's namespace dies with them, and is put back by a reload.

The node's uplink with its default routes, a bond, a bridge, a VRF, children and all that stands on
them: compared as ip(8) and bridge(8) print it, but for ifindexes, counters and what counts down.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from nodeagent.kernel import sysctls
from nodeagent.kernel.rtnl import Rtnl
from tests.support import lab, looks
from tests.support.lab import PF1, Nodeagent

PF, BONDED = "enp1s0", "enp2s0"
SET_UP: Final = f"""
link set {PF} up
address add 192.0.2.10/24 broadcast + dev {PF}
address add 192.0.2.11/24 dev {PF} label {PF}:a
address add 192.0.2.77/32 dev {PF} scope link noprefixroute
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
rule add oif {PF} lookup 100 priority 1000
rule add iif {PF} lookup 100 priority 1001
neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev {PF} nud permanent
neigh add 2001:db8::1 lladdr 02:00:00:00:00:01 dev {PF} nud permanent
neigh add proxy 192.0.2.200 dev {PF}
link add link {PF} name {PF}.100 type vlan id 100 egress-qos-map 1:3 gvrp on
link set {PF}.100 up mtu 1400
address add 198.51.100.1/24 dev {PF}.100
route add 198.18.0.0/15 via 198.51.100.9 dev {PF}.100
link set {BONDED} down
link set {BONDED} master bond7
link set bond7 up
address add 10.9.0.1/24 dev bond7
route add 198.51.0.0/20 nexthop via 192.0.2.1 dev {PF} weight 3 nexthop via 10.9.0.9 dev bond7
link set {PF}v1 up master br7
link set {PF}v2 up master vrf7
address add 10.10.0.1/24 dev {PF}v2
route add 10.11.0.0/24 via 10.10.0.9 dev {PF}v2 vrf vrf7
link set {PF}v3 up
link add link {PF}v3 name macvlan7 address 02:00:00:00:07:07 type macvlan mode bridge
link set macvlan7 up
address add 10.12.0.1/24 dev macvlan7
link add link macvlan7 name macvlan7.9 type vlan id 9
link set macvlan7.9 up master br7
link set {PF}v4 up
link add link {PF}v4 name ipvlan7 type ipvlan mode l3
link set ipvlan7 up
address add 10.13.0.1/24 dev ipvlan7
link set {PF}.100 alias storage txqueuelen 77 group 5
link property add dev {PF}.100 altname vlan-of-storage
link set {PF}v4 addrgenmode none
"""
SET_BY_SYSCTL: Final = f"""
net/ipv4/conf/{PF}/rp_filter=2
net/ipv4/conf/{PF}/arp_ignore=1
net/ipv4/conf/{PF}v1/forwarding=0
net/ipv6/conf/{PF}/accept_ra=0
net/ipv6/conf/{PF}/hop_limit=33
net/ipv6/conf/{PF}/router_solicitation_interval=9
net/ipv6/conf/{PF}/use_tempaddr=-1
net/ipv6/conf/{PF}v3/disable_ipv6=1
net/ipv4/conf/{PF}.100/log_martians=1
net/ipv6/conf/{PF}.100/dad_transmits=0
net/ipv4/conf/ipvlan7/proxy_arp=1
"""


@pytest.fixture
def virtual() -> Iterator[None]:
    """What outlives a reload: a bond with another port, a bridge, a VRF."""
    lab.clean()
    lab.sh("modprobe -a bonding bridge 8021q macvlan ipvlan vrf dummy")
    lab.ip(
        "link add dummy7 type dummy",
        f"link add bond7 type bond mode active-backup miimon 100 primary {BONDED}",
        "link set dummy7 down",
        "link add br7 type bridge vlan_filtering 1",
        "link set br7 up",
        "link add vrf7 type vrf table 77",
        "link set vrf7 up",
    )
    yield
    for link in ("bond7", "dummy7", "br7", "vrf7"):
        lab.sh(f"ip link delete {link}")
    lab.sh("ip rule delete priority 1000 || true; ip rule delete priority 1001 || true")
    lab.clean("A")


def test_all_that_stood_on_the_interfaces_stands_again(nodeagent: Nodeagent, virtual: None) -> None:
    lab.create_vfs(PF1, 5)
    lab.settle()
    lab.ip(f"link add link {BONDED} name {BONDED}.5 type vlan id 5")
    lab.ip(f"link set {BONDED} up", f"link set {BONDED}.5 up")
    for line in filter(None, SET_UP.split("\n")):
        if line.endswith("src 2001:db8::13"):
            lab.eventually(_settled_addresses, "IPv6 addresses")
        lab.ip(line)
    lab.ip("link set dummy7 master bond7")
    lab.sh("".join(f"sysctl -qw {line};" for line in SET_BY_SYSCTL.split()))
    lab.sh(f"bridge link set dev {PF}v1 cost 55 hairpin on isolated on learning off priority 9")
    lab.sh(f"bridge vlan add dev {PF}v1 vid 10 pvid untagged; bridge vlan del dev {PF}v1 vid 1")
    lab.sh(f"bridge vlan add dev {PF}v1 vid 11")
    lab.await_carrier(PF1)
    lab.eventually(_settled, "IPv6 addresses and links")
    before = looks.look()
    lab.put_other_build_on_disk()
    nodeagent.call("reload", ALLOW_UPLINK_RELOAD="true")
    lab.eventually(_settled, "IPv6 addresses and links")
    after = looks.look()
    looks.assert_same(before, after)


def test_the_kernel_tells_what_is_in_the_files(nodeagent: Nodeagent, no_vfs: None) -> None:
    """The table of `nodeagent.kernel.sysctls` against this kernel, with values of its own each."""
    known = dict(sysctls.defaults())
    assert len(known) > 80
    lab.ip(f"link set {PF} up")
    with Rtnl() as rtnl:
        before = next(link for link in rtnl.links().values() if link.name == PF)
        unset = tuple((key, -77) for key in known)
        told = dict(sysctls.decoded(before.af_spec, unset, before.mtu))
    for key, value in told.items():
        family, _, name = key.partition(".")
        path = Path("/proc/sys/net") / family / "conf" / PF / name
        assert int(path.read_text()) == value, key
    assert told.keys() == known.keys()


def test_what_is_not_put_back_is_named(nodeagent: Nodeagent, virtual: None) -> None:
    lab.sh(f"tc qdisc add dev {PF} root handle 7: prio; tc qdisc add dev {PF} clsact")
    lab.sh(f"tc filter add dev {PF} parent 7: matchall classid 7:1")
    lab.put_other_build_on_disk()
    log = nodeagent.call("reload", ALLOW_UPLINK_RELOAD="true").log
    for lost in (
        f"qdisc prio 7: on {PF}, with its classes and filters",
        f"qdisc clsact ffff: on {PF}, with its classes and filters",
    ):
        assert f"{lost}: the reload takes it away, and it is not put back" in log


def _settled_addresses() -> bool:
    return "tentative" not in lab.sh("ip address")


def _settled() -> bool:
    text = lab.sh("ip address; ip link show bond7")
    links = json.loads(lab.sh(f"ip -j link show {BONDED}")) + json.loads(lab.sh("ip -j link"))
    return (
        "tentative" not in text
        and all("NO-CARRIER" not in link["flags"] for link in links)
        and f'"active_slave":"{BONDED}"' in lab.sh("ip -d -j link show bond7")
    )
