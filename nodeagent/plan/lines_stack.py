"""What stands on a netdev as the ip(8) and bridge(8) commands that put it there.

Numbers stay numbers: ip(8) takes them for protocols, scopes and tables.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from nodeagent.plan.sysctls import commands as sysctl_commands
from nodeagent.state.stack import (
    Address,
    Child,
    Membership,
    Neighbour,
    Nexthop,
    Pairs,
    Qdisc,
    Route,
    Stacked,
)
from nodeagent.state.vf import VlanProtocol

ADDRESS_FLAGS: Final = (
    (0x02, "nodad"),
    (0x10, "home"),
    (0x100, "mngtmpaddr"),
    (0x200, "noprefixroute"),
    (0x400, "autojoin"),
)
ROUTE_KINDS: Final = ("unspec", "unicast", "local", "broadcast", "anycast", "multicast")
METRICS: Final = {2: "mtu", 3: "window", 4: "rtt", 7: "cwnd", 8: "advmss", 10: "hoplimit"}
MODES: Final = {
    "macvlan": {1: "private", 2: "vepa", 4: "bridge", 8: "passthru", 16: "source"},
    "ipvlan": {0: "l2", 1: "l3", 2: "l3s"},
}
PROTOCOLS: Final = {each.ethertype: each for each in VlanProtocol}
PVID, UNTAGGED = 0x02, 0x04


def stacked_line(thing: Stacked) -> str:
    """The commands, separated by `; ` where it takes several."""
    match thing:
        case Child():
            return "; ".join(_child_commands(thing))
        case Membership():
            return "; ".join(_member_commands(thing))
        case Address():
            return " ".join(_address_words(thing))
        case Neighbour():
            proxy = "proxy " if thing.proxy else ""
            lladdr = f" lladdr {thing.lladdr} nud permanent" if thing.lladdr else ""
            return f"ip neighbour replace {proxy}{thing.address}{lladdr} dev {thing.dev}"
        case Route():
            return " ".join(_route_words(thing))
        case Qdisc():
            options = " # with the options that it had" if thing.options else ""
            return f"tc qdisc replace dev {thing.dev} {thing.place}{thing.kind}{options}"


def _child_commands(child: Child) -> Iterator[str]:
    yield " ".join(_child_words(child))
    for word, value in child.settings():
        if word == "altname":
            yield f"ip link property add dev {child.dev} altname {shlex.quote(str(value))}"
        elif not word.startswith("net."):
            yield f"ip link set dev {child.dev} {word} {shlex.quote(str(value))}"
    yield from sysctl_commands(child.sysctls, child.dev)
    if child.up:
        yield f"ip link set dev {child.dev} up"


def _child_words(child: Child) -> Iterator[str]:
    yield f"ip link add link {child.parent} name {child.dev}"
    if child.mac is not None:
        yield f"address {child.mac}"
    yield f"mtu {child.mtu} type {child.kind}"
    yield from _data_words(child.kind, child.data)


def _data_words(kind: str, data: Pairs) -> Iterator[str]:
    """The words of ip-link(8); flags, whose words differ by kind, are left out."""
    modes = MODES["macvlan" if kind.startswith("macv") else "ipvlan"]
    for name, value in data:
        if name == "protocol":
            yield f"protocol {PROTOCOLS.get(value, hex(value))}"
        elif name == "mode":
            yield f"mode {modes.get(value, value)}"
        elif name == "id":
            yield f"id {value}"
        elif name.startswith(("egress.", "ingress.")):
            direction, _, source = name.partition(".")
            yield f"{direction}-qos-map {source}:{value}"
        elif name.startswith("source."):
            yield f"macaddr add {name.removeprefix('source.')}"


def _member_commands(member: Membership) -> Iterator[str]:
    if member.kind in {"bond", "team"}:
        yield f"ip link set dev {member.dev} down"
    yield f"ip link set dev {member.dev} master {member.master}"
    if member.data:
        words = " ".join(f"{name} {value}" for name, value in member.data)
        yield f"ip link set dev {member.dev} type {member.kind}_slave {words}"
    for vid, flags in member.vlans:
        words = f"{' pvid' if flags & PVID else ''}{' untagged' if flags & UNTAGGED else ''}"
        yield f"bridge vlan add dev {member.dev} vid {vid}{words}"


def _address_words(address: Address) -> Iterator[str]:
    own, _, length = address.address.partition("/")
    peer = f"{own} peer {address.peer}/{length}" if address.peer else address.address
    yield f"ip address replace {peer} dev {address.dev}"
    for word, value in (("broadcast", address.broadcast), ("label", address.label)):
        if value is not None:
            yield f"{word} {value}"
    if address.scope:
        yield f"scope {address.scope}"
    if address.metric is not None:
        yield f"metric {address.metric}"
    yield from (word for bit, word in ADDRESS_FLAGS if address.flags & bit)
    if address.expires:
        yield "# with what is left of its lifetime"


def _route_words(route: Route) -> Iterator[str]:
    kind = ROUTE_KINDS[route.kind] if route.kind < len(ROUTE_KINDS) else str(route.kind)
    yield f"ip {'-6 ' if route.is_v6 else ''}route append {kind} {route.dst}"
    if len(route.nexthops) == 1:
        yield from _hop_words(route.nexthops[0], route.is_v6)
    yield f"table {route.table} proto {route.proto} scope {route.scope}"
    if route.metric:
        yield f"metric {route.metric}"
    if route.tos:
        yield f"tos {route.tos}"
    if route.src is not None:
        yield f"src {route.src}"
    yield from (f"{METRICS[n]} {value}" for n, value in route.metrics if n in METRICS)
    if len(route.nexthops) > 1:
        for hop in route.nexthops:
            yield " ".join(("nexthop", *_hop_words(hop, route.is_v6), f"weight {hop.weight}"))


def _hop_words(hop: Nexthop, is_v6: bool) -> Iterator[str]:
    if hop.via is not None:
        family = "" if (":" in hop.via) == is_v6 else "inet6 " if ":" in hop.via else "inet "
        yield f"via {family}{hop.via}"
    yield f"dev {hop.dev}"
    if hop.onlink:
        yield "onlink"
