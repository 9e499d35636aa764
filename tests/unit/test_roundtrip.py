"""The round trip's own parts: nodes drawn by seed, and a comparison that misses nothing."""

from __future__ import annotations

import json
import re

import pytest

from tests.support import printed, random_node
from tests.support.random_node import CONNECTX, IGB, Nic

LINKS = "ip -d -j link show"
KINDS = """
    sriov_numvfs|vfio-pci|pci-stub|netns|type bridge|type vrf|type vlan|type macvlan
    type ipvlan|altname|sysctl|conf.default|vlan add|rule add|route add|table 10|nexthop via
    nexthop add|proto static|group 1,|type resilient|nhid
    neigh add|neigh add proxy|tc qdisc|ethtool|max_tx_rate|name spare|name uplink|autoprobe
    driver/unbind|gso_max_segs|suppress_prefixlength|route add default|mtu lock|via inet6
    route add throw|expires 80000|scope link metric|valid_lft|preferred_lft 0
    master vrfof|master brof|link set enp1s0|root_block|cake
"""
KINDS_OF_CONNECTX = """
    type bond|dcb ets|dcb pfc|mode switchdev|rate add|rate set|dev param set|cmode driverinit
    dev reload|sriov_vf_msix_count|health set|flavour pcisf|state active|lag/state|hkey
"""


@pytest.mark.parametrize("nic", [IGB, CONNECTX])
def test_a_seed_is_always_the_same_node(nic: Nic) -> None:
    assert random_node.node(nic, 7) == random_node.node(nic, 7)
    assert random_node.node(nic, 7) != random_node.node(nic, 8)


@pytest.mark.parametrize("nic", [IGB, CONNECTX])
def test_names_are_short_enough_for_the_kernel(nic: Nic) -> None:
    texts = (line.text for seed in range(1, 41) for line in random_node.node(nic, seed))
    links = (text for text in texts if text.startswith("ip link"))
    names = re.findall(r"(?<!alt)name (\S+)", "\n".join(links))
    assert max(map(len, names)) == 15


@pytest.mark.parametrize("nic", [IGB, CONNECTX])
def test_ipvlans_on_one_interface_have_one_mode(nic: Nic) -> None:
    """The kernel keeps the last one's for all. Another one first leaves traces: groups of l2."""
    for seed in range(1, 41):
        modes: dict[tuple[int, str], set[str]] = {}
        for line in random_node.node(nic, seed):
            if found := re.search(r"link (\S+) name \S+ type ipvlan mode (.*)", line.text):
                modes.setdefault((line.pod, found[1]), set()).add(found[2])
        assert all(len(each) == 1 for each in modes.values()), seed


def test_no_pf_of_igb_goes_down_while_it_has_vfs() -> None:
    """It answers none of them then that is down: they get no VLANs, and so no bridge takes them."""
    for seed in range(1, 41):
        texts = [line.text for line in random_node.node(IGB, seed) if not line.pod]
        names = dict(re.findall(r"link set (enp.s0) name (?!spare)(\S+)", "\n".join(texts)))
        with_vfs = {
            names.get(f"enp{bus}s0", f"enp{bus}s0")
            for bus in (1, 2)
            if any(re.match(rf"echo .*/0000:0{bus}:00.0/sriov_numvfs", text) for text in texts)
        }
        taken = {each.split()[3] for each in texts if re.match(r"ip link set \S+ master vrf", each)}
        if "ip link set enp1s0 name spare" not in texts:  # they have the names of each other
            assert not taken & with_vfs, seed


def test_no_bridge_has_a_vf_and_its_representor() -> None:
    """Each frame of one is the other's: it would go round for ever, and the node stands still."""
    for seed in range(1, 41):
        text = "\n".join(line.text for line in random_node.node(CONNECTX, seed) if not line.pod)
        swapped = set(re.findall(r" name (enp1s0f\dv\d)$", text, re.MULTILINE))
        ports: dict[str, list[str]] = {}
        for port, bridge in re.findall(r"link set (\S+) master (br-\S+)", text):
            if port not in swapped:
                ports.setdefault(bridge, []).append(re.sub("rep|enp1s0f", "", port))
        assert all(len({*each}) == len(each) for each in ports.values()), (seed, ports)


@pytest.mark.parametrize(
    ("nic", "kinds"),
    [(IGB, KINDS), (CONNECTX, f"{KINDS}|{KINDS_OF_CONNECTX}")],
    ids=["igb", "connectx"],
)
def test_twenty_seeds_have_everything(nic: Nic, kinds: str) -> None:
    text = "\n".join(line for seed in range(1, 21) for line in random_node.script(nic, seed))
    assert [kind for kind in re.split(r"[|\n]", kinds) if kind.strip() not in text] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("mtu",), 9000),
        (("linkinfo", "info_data", "id"), 6),
        (("flags",), ["NOARP"]),
        (("linkinfo", "info_data", "new"), True),
    ],
)
def test_a_difference_is_named(path: tuple[str, ...], value: object) -> None:
    link = {"ifname": "a", "mtu": 1500, "flags": ["UP"], "linkinfo": {"info_data": {"id": 5}}}
    other = json.loads(json.dumps(link))
    *down, last = path
    inner = other
    for key in down:
        inner = inner[key]
    inner[last] = value
    found = compared(LINKS, [link], [other])
    assert found[0] == LINKS
    assert found[-1] == f"  + [a].{'.'.join(path)} = {json.dumps(value)}"


def test_what_has_gone_and_what_has_come() -> None:
    route = {"dst": "10.1.0.0/24", "dev": "a"}
    command = "ip -d -j -4 route show table all"
    assert len(compared(command, [route, route], [route])) == 2
    assert compared(command, [route], [{**route, "metric": 7}])[1].startswith("  - ")
    assert compared("ip -d -j neigh show nud all", [], [{"dst": "x", "state": ["PERMANENT"]}])
    assert printed.difference({"a": ["x"]}, {}) == ["a", "  - x"]


def test_linkdown_of_a_route_by_an_ipv6_gateway_does_not_count() -> None:
    command = "ip -d -j -4 route show table all"
    route = {"dst": "198.51.100.0/24", "dev": "a", "flags": ["onlink"]}
    down = route | {"flags": ["onlink", "linkdown"]}
    by_v6 = {"via": {"family": "inet6", "host": "fe80::9"}}
    assert compared(command, [route], [down])
    assert not compared(command, [route | by_v6], [down | by_v6])
    assert compared(command, [route | by_v6], [down | by_v6 | {"flags": ["linkdown"]}])


def test_the_order_of_addresses_counts() -> None:
    first, second = ({"local": f"10.1.0.{n}", "prefixlen": 24} for n in (1, 2))
    before, after = (
        {"ifname": "a", "addr_info": each} for each in ([first, second], [second, first])
    )
    assert compared("ip -d -j address show", [before], [after])


def test_vectors_of_a_function() -> None:
    """A list of capabilities: one of 0x40, that leads to one of MSI-X with 12 entries at 0x60."""
    config = bytearray(256)
    assert printed.msix(config) == 0
    config[0x34], config[0x40:0x42], config[0x60:0x64] = 0x40, b"\x10\x60", b"\x11\0\x0b\x80"
    assert printed.msix(config) == 12


def test_only_what_must_change_may() -> None:
    """Each with its reason: numbers, timers, a representor's MAC, but no other one's."""
    link = {"ifname": "a", "ifindex": 3, "address": "02:00:00:00:00:01"}
    assert not compared(LINKS, [link], [{**link, "ifindex": 9}])
    other = {**link, "address": "02:00:00:00:00:02"}
    assert compared(LINKS, [link], [other])
    port = {"phys_port_name": "pf0vf3"}
    assert not compared(LINKS, [link | port], [other | port])
    made = [{"dev": "rep", "dst": f"fe80::{n}ff:fe00:1"} for n in ("11:22", "11:44")]
    looks = [
        printed.lines(
            "ip -d -j -6 route show table all",
            json.dumps([each]),
            {"rep": printed.made_of({"address": mac, "inet6_addr_gen_mode": mode})},
        )
        for mode in ("eui64", "none")
        for each, mac in zip(made, ("02:11:22:00:00:01", "02:11:44:00:00:01"), strict=True)
    ]
    assert looks[0] == looks[1]
    assert looks[2] != looks[3]
    assert all(len(row.reason) > 20 or row.reason == "likewise" for row in printed.NORMALISED)


def compared(command: str, before: object, after: object) -> list[str]:
    looks = (printed.lines(command, json.dumps(each)) for each in (before, after))
    return printed.difference(*({command: each} for each in looks))
