"""What stands on netdevs: values, JSON, rtnetlink both ways, order, lines."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import DataError, KernelError
from nodeagent.kernel import rtnl
from nodeagent.kernel.netlink import Netlink, attribute, attributes, nested
from nodeagent.kernel.rtnl import Link
from nodeagent.kernel.stack import StackEdge, _adapter, linkinfo, memberships
from nodeagent.kernel.stack import addresses as of_addresses
from nodeagent.kernel.stack import children as of_children
from nodeagent.kernel.stack import neighbours as of_neighbours
from nodeagent.kernel.stack import nexthops as of_nexthops
from nodeagent.kernel.stack import routes as of_routes
from nodeagent.kernel.stack import tokens as of_tokens
from nodeagent.kernel.stack.adapter import MIN_LIFETIME, Found, Look
from nodeagent.kernel.stack.addresses import address_of
from nodeagent.kernel.stack.left_out import fdb_of, identity_of, mdb_of
from nodeagent.kernel.stack.memberships import membership_of
from nodeagent.kernel.stack.neighbours import neighbour_of
from nodeagent.kernel.stack.routes import Sources
from nodeagent.kernel.sysctls import SysctlTables
from nodeagent.plan.actions import AddStacked, Stage
from nodeagent.plan.comparison import differences
from nodeagent.plan.lines import lines
from nodeagent.plan.plan import after_reload, plan
from nodeagent.state.addresses import Mac
from nodeagent.state.codec import snapshot_from_json, snapshot_to_json
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Pf, Snapshot
from nodeagent.state.stack import (
    QDISC_ROOT,
    Address,
    Child,
    Membership,
    Neighbour,
    Nexthop,
    NexthopObject,
    Qdisc,
    Route,
    Stack,
    Stacked,
    Token,
)

NOW = 1_800_000_000.0
MAC = Mac("52:54:00:00:00:01")


def link(index: int, name: str, **more: Any) -> Link:
    return Link(
        index=index,
        name=name,
        mac=MAC,
        mtu=1500,
        up=True,
        carrier=True,
        bus=None,
        device=None,
        phys_port_name=None,
        **more,
    )


OURS = Look({n: link(n, s) for n, s in ((2, "enp1s0"), (3, "bond0"), (7, "enp1s0.100"))}, {2, 7})
INDEXES = {name: index for index, name in OURS.names.items()}
OURS_BY_INDEX = {n: OURS.links[n] for n in (2, 7)}


NONE = Sources()


def route_of(body: bytes, sources: Sources = NONE) -> Route | str | None:
    return of_routes.route_of(body, OURS, sources, NOW)


v4 = st.ip_addresses(v=4).map(str)
v6 = st.ip_addresses(v=6).filter(lambda a: not a.is_link_local).map(str)
devs = st.sampled_from(("enp1s0", "enp1s0.100"))
numbers = st.integers(0, 0xFFFFFFFF)
addresses = st.builds(
    Address,
    dev=devs,
    address=st.one_of(
        st.builds("{}/{}".format, v4, st.integers(0, 32)),
        st.builds("{}/{}".format, v6, st.integers(0, 128)),
    ),
    scope=st.sampled_from((0, 200, 253)),
    flags=st.sampled_from((0, 0x200, 0x12)),
    metric=st.one_of(st.none(), st.integers(1, 5000)),
    proto=st.sampled_from((0, 4)),
)
hops = st.builds(Nexthop, dev=devs, via=st.one_of(st.none(), v4, v6), weight=st.integers(1, 256))
routes = st.builds(
    Route,
    dst=st.sampled_from(("0.0.0.0/0", "10.1.0.0/16", "::/0", "2001:db8::/48")),
    nexthops=st.lists(hops, min_size=2, max_size=4).map(tuple),
    table=numbers,
    metric=numbers,
    kind=st.sampled_from((1, 2)),
    proto=st.sampled_from((3, 4, 9, 16)),
    scope=st.sampled_from((0, 253)),
    src=st.one_of(st.none(), v4),
    metrics=st.sampled_from(((), ((2, 1400),), ((2, 9000), (8, 1360)))),
)
nexthop_objects = st.builds(
    NexthopObject,
    id=st.just(1),
    devs=st.tuples(devs),
    via=v4,
    onlink=st.booleans(),
    proto=st.sampled_from((0, 4)),
) | st.builds(
    NexthopObject,
    id=st.just(1),
    devs=st.tuples(devs),
    via=st.none() | v6,
    is_v6=st.just(True),
)
neighbours = st.builds(
    Neighbour, dev=devs, address=st.one_of(v4, v6), lladdr=st.just("02:00:00:00:00:01")
)
CHILD = Child(
    "enp1s0.100",
    "enp1s0",
    "vlan",
    (("egress.1", 3), ("flags", 1), ("id", 100), ("protocol", 0x8100)),
    mac=MAC,
    mtu=1500,
    up=True,
)
MEMBER = Membership("enp1s0", "br0", "bridge", (("cost", 55),), ((1, 6), (10, 0)))
ADDRESS = Address("enp1s0", "192.0.2.10/24", broadcast="192.0.2.255")
ROUTE = Route("0.0.0.0/0", (Nexthop("enp1s0", "192.0.2.1"),), metric=100, proto=16)
NEXTHOP = NexthopObject(7, ("enp1s0",), "192.0.2.1")
RESILIENT = (("buckets", 32), ("idle_timer", 6000), ("unbalanced_timer", 0))
GROUP = NexthopObject(9, ("enp1s0",), group=((7, 3), (8, 1)), resilient=RESILIENT)
FQ = Qdisc("enp1s0", "fq", 0x80010000, QDISC_ROOT, "08000100a0860100")
ALL = Stack(
    (CHILD,),
    (MEMBER,),
    (Token("enp1s0", "::77"),),
    (ADDRESS,),
    (Neighbour("enp1s0", "192.0.2.1", MAC),),
    (NEXTHOP, GROUP),
    (ROUTE, replace(ROUTE, nexthops=(Nexthop("enp1s0"),), nhid=9)),
    (FQ,),
)


def node(stack: Stack | None) -> NodeState:
    netdev = Netdev("enp1s0", mac=Mac(MAC), mtu=1500, up=True)
    return NodeState("mlx5_core", (Pf(DeviceHandle("pci", "0000:01:00.0"), netdev=netdev),), stack)


def snapshot(stack: Stack | None) -> Snapshot:
    return Snapshot("2026-11-21T00:00:00Z", "", "", "6.12", (), node(stack))


@given(
    st.builds(
        Stack,
        addresses=st.lists(addresses).map(tuple),
        routes=st.lists(routes).map(tuple),
        neighbours=st.lists(neighbours).map(tuple),
    )
)
def test_json_both_ways(stack: Stack) -> None:
    assert snapshot_from_json(snapshot_to_json(snapshot(stack)), "x") == snapshot(stack)


@pytest.mark.parametrize("stack", [None, Stack(), ALL])
def test_json_of_everything(stack: Stack | None) -> None:
    assert snapshot_from_json(snapshot_to_json(snapshot(stack)), "x") == snapshot(stack)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("192.0.2.10/24", "192.0.2.300/24"),
        ('"cost",', '"cost", 1,'),
        ('"table": 254', '"table": "main"'),
        ('"kind": "vlan"', '"kind": "wlan"'),
        ('"weight": 1', '"weight": 0'),
        ('"metric": 100', '"metrik": 100'),
        ('"up": true\n', '"up": 1\n'),
    ],
)
def test_json_that_is_none_of_ours(good: str, bad: str) -> None:
    text = snapshot_to_json(snapshot(ALL))
    assert good in text
    with pytest.raises(DataError, match="x"):
        snapshot_from_json(text.replace(good, bad), "x")


@given(addresses)
def test_addresses_both_ways(address: Address) -> None:
    body = bytes(of_addresses.message(address, INDEXES, NOW))
    assert address_of(body, OURS, NOW) == address


def test_what_is_left_of_a_lifetime() -> None:
    address = Address(
        "enp1s0", "2001:db8::1/64", expires=True, valid_until=int(NOW) + 900, preferred_until=None
    )
    later = bytes(of_addresses.message(address, INDEXES, NOW + 100))
    found = address_of(later, OURS, NOW + 100)
    assert found == address
    assert found is not None
    assert found.valid_until == NOW + 900
    gone = address_of(bytes(of_addresses.message(address, INDEXES, NOW + 1000)), OURS, NOW)
    assert gone is not None
    assert gone.valid_until == NOW + MIN_LIFETIME


def test_one_that_is_valid_for_ever_and_not_preferred() -> None:
    """ip address add … preferred_lft 0: never a source of its own (RFC 6724)."""
    address = Address("enp1s0", "2001:db8::1/64", preferred_until=int(NOW) - 7)
    found = address_of(bytes(of_addresses.message(address, INDEXES, NOW)), OURS, NOW)
    assert found is not None
    assert (found.expires, found.valid_until, found.preferred_until) == (False, None, int(NOW))


@pytest.mark.parametrize(
    ("address", "proto", "flags"),
    [
        ("fe80::5054:ff:fe00:1", 0, 0x80),
        ("fe80::1", 3, 0x80),
        ("fe80::abcd", 0, 0x880),
        ("2001:db8::77", 0, 0x01),
    ],
)
def test_the_kernel_makes_it_itself(address: str, proto: int, flags: int) -> None:
    made = Address("enp1s0", f"{address}/64", proto=proto, flags=flags)
    assert address_of(bytes(of_addresses.message(made, INDEXES, NOW)), OURS, NOW) is None


def test_a_link_local_that_somebody_gave_is_kept() -> None:
    given_one = Address("enp1s0", "fe80::1/64", scope=253)
    body = bytes(of_addresses.message(given_one, INDEXES, NOW))
    assert address_of(body, OURS, NOW) == given_one
    assert address_of(body, replace(OURS, roots={7}), NOW) is None


@given(routes)
def test_routes_both_ways(route: Route) -> None:
    assert route_of(bytes(of_routes.message(route, INDEXES, NOW))) == route


@given(hops)
def test_a_route_with_one_nexthop(hop: Nexthop) -> None:
    route = Route("10.0.0.0/8", (replace(hop, weight=1, onlink=True),))
    assert route_of(bytes(of_routes.message(route, INDEXES, NOW))) == route


def test_routes_that_are_not_ours_or_the_kernels_own_are_left_out() -> None:
    for route in (
        replace(ROUTE, nexthops=(Nexthop("bond0", "192.0.2.1"),)),
        replace(ROUTE, proto=2),
    ):
        body = bytes(of_routes.message(route, INDEXES, NOW))
        assert route_of(body) is None


def test_a_route_through_others_goes_with_the_address_that_it_is_from() -> None:
    route = Route("10.0.0.0/8", (Nexthop("bond0"),), src="192.0.2.10")
    body = bytes(of_routes.message(route, INDEXES, NOW))
    own = Address("enp1s0", "192.0.2.10/24")
    assert route_of(body, Sources.of([own])) == route
    assert route_of(body, Sources.of([replace(own, address="192.0.2.1/24")])) is None
    netdev = Netdev("enp1s0", mac=Mac(MAC), mtu=1500, up=True)
    state = NodeState(
        "mlx5_core",
        (Pf(DeviceHandle("pci", "0000:01:00.0"), netdev=netdev),),
        Stack(addresses=(own,), routes=(route,)),
    )
    without = replace(state, stack=Stack(addresses=(own,)))
    (stage,) = plan(state, without)
    assert [action.thing for action in stage.actions] == [route]  # type: ignore[union-attr] # one
    assert [each.want for each in differences(state, without)] == [route]


@pytest.mark.parametrize(
    ("subnet", "own"), [("10.2.0.0/24", "10.2.0.1/24"), ("fd00::/64", "fd00::1/64")]
)
def test_a_route_that_networkmanager_makes_in_the_kernels_name(subnet: str, own: str) -> None:
    """Its protocol is the kernel's, which makes none for an address with noprefixroute."""
    route = Route(subnet, (Nexthop("enp1s0"),), metric=100, proto=2)
    body = bytes(of_routes.message(route, INDEXES, NOW))
    flagged, usual = Address("enp1s0", own, flags=0x200), Address("enp1s0", own)
    assert route_of(body, Sources.of([flagged])) == route
    assert route_of(body, Sources.of([usual])) is None
    assert route_of(body, Sources.of([flagged, replace(usual, proto=1)])) is None
    assert route_of(body, Sources.of([replace(flagged, dev="x")])) is None


def test_a_route_by_a_nexthop_object() -> None:
    """Also where the kernel tells the number alone (nexthop_compat_mode)."""
    route = replace(ROUTE, nexthops=(Nexthop("enp1s0"),), nhid=7)
    body = bytes(of_routes.message(route, INDEXES, NOW))
    assert 4 not in dict(attributes(body, 28))
    look = replace(OURS, stack=Stack(nexthops=(NEXTHOP,)))
    assert of_routes.route_of(body, look, NONE, NOW) == route
    told = body + attribute(4, struct.pack("=i", 2)) + attribute(5, bytes((192, 0, 2, 1)))
    assert of_routes.route_of(told, look, NONE, NOW) == route
    assert route_of(told) == "route 0.0.0.0/0 with nexthop id"


@given(st.lists(nexthop_objects, max_size=4), st.booleans())
def test_nexthop_objects_both_ways(drawn: list[NexthopObject], is_resilient: bool) -> None:
    single = tuple(replace(each, id=10 + n) for n, each in enumerate(drawn))
    weights = tuple((each.id, 1 + 300 * n) for n, each in enumerate(single))
    devs = tuple(dict.fromkeys(dev for each in single for dev in each.devs))
    resilient = RESILIENT if is_resilient else ()
    group = [NexthopObject(9, devs, proto=4, group=weights, resilient=resilient)] if devs else []
    wanted = (*single, *group)
    assert found_in(wanted) == Found(wanted)


def test_nexthop_objects_that_are_not_put_back_are_named() -> None:
    """FRR's (proto zebra), encapsulations, and groups of them; others' are not ours to name."""
    zebra, own = replace(NEXTHOP, id=10, proto=11), replace(NEXTHOP, id=11)
    others = replace(NEXTHOP, id=12, devs=("bond0",))
    mixed = NexthopObject(20, ("enp1s0",), group=((10, 1), (11, 1)))
    frr = replace(mixed, id=21, group=((11, 1),), proto=11)
    partly = replace(mixed, id=22, group=((11, 1), (12, 1)))
    foreign = replace(mixed, id=23, group=((12, 1),))
    found = found_in((zebra, own, others, mixed, frr, partly, foreign))
    assert found.things == (own, partly)
    lost = ("nexthop id 10 on enp1s0", "nexthop id 20, a group", "nexthop id 21, a group")
    assert found.lost == lost
    tunnel = bytes(of_nexthops.message(own, INDEXES, NOW)) + attribute(8, b"")
    assert of_nexthops.found_in([tunnel], OURS_BY_INDEX, {}).lost == ("nexthop id 11 on enp1s0",)


def test_a_route_by_a_nexthop_object_is_the_same_wherever_that_leads() -> None:
    """A port of ours stands for a bond, and it is another one when they have joined anew."""
    route = replace(ROUTE, nexthops=(Nexthop("enp1s0"),), nhid=7)
    other = replace(route, nexthops=(Nexthop("enp1s0v1"), Nexthop("enp1s0v2")))
    assert route.key == other.key
    assert route.is_met_by(other, ())
    assert not route.is_met_by(replace(other, proto=4), ())
    assert route.key != replace(other, nhid=8).key
    plain = replace(ROUTE, nexthops=(Nexthop("enp1s0"),))
    assert not plain.is_met_by(replace(plain, nexthops=(Nexthop("enp1s0v1"),)), ())


def test_a_nexthop_of_a_bond_goes_with_its_last_port() -> None:
    """The bond stays, and loses its carrier; a route by the nexthop goes, too."""
    nexthop, group = replace(NEXTHOP, devs=("bond0",)), replace(GROUP, devs=("bond0",))
    bodies = [bytes(of_nexthops.message(each, INDEXES, NOW)) for each in (nexthop, group)]
    found = of_nexthops.found_in(bodies, {3: OURS.links[3]}, {3: "enp1s0"})
    assert found.things == (nexthop, group)
    assert [each.port for each in found.things] == ["enp1s0", "enp1s0"]
    assert [each.renamed({"enp1s0": "a"}).port for each in found.things] == ["a", "a"]
    look = replace(OURS, stack=Stack(nexthops=found.things))
    route = replace(ROUTE, nexthops=(Nexthop("enp1s0"),), nhid=7)
    told = bytes(of_routes.message(route, INDEXES, NOW))
    assert of_routes.route_of(told, look, NONE, NOW) == route
    want = node(Stack(nexthops=found.things, routes=(route,)))
    assert things(plan(want, node(Stack()))) == [nexthop, group, route]
    assert want.stack is not None
    assert want.stack.without({"enp1s0"}) == Stack()


def test_a_nexthop_without_carrier_is_named_and_not_wanted() -> None:
    """The kernel would not add it; a group has its others then."""
    alone = NexthopObject(10, ("enp1s0",), group=((7, 1),))
    bodies = [bytes(of_nexthops.message(each, INDEXES, NOW)) for each in (NEXTHOP, alone, GROUP)]
    found = of_nexthops.found_in(bodies, {2: replace(OURS.links[2], carrier=False)}, {})
    assert [each.carrier for each in found.things] == [False, False, True]
    silent = "nexthop id 7 via 192.0.2.1 dev enp1s0, without carrier, and routes by it"
    assert found.lost[0] == silent
    routes = tuple(replace(ROUTE, nexthops=(Nexthop("enp1s0"),), nhid=n) for n in (7, 9, 10))
    want = node(Stack(nexthops=found.things, routes=routes))
    left = replace(GROUP, group=((8, 1),))
    assert things(plan(want, node(Stack()))) == [left, routes[1]]
    assert plan(want, node(Stack(nexthops=(GROUP,), routes=routes))) == ()


def things(stages: Sequence[Stage]) -> list[Stacked]:
    actions = (action for stage in stages for action in stage.actions)
    return [action.thing for action in actions if isinstance(action, AddStacked)]


def found_in(nexthops: Sequence[NexthopObject]) -> Found[NexthopObject]:
    bodies = [bytes(of_nexthops.message(each, INDEXES, NOW)) for each in nexthops]
    return of_nexthops.found_in(bodies, OURS_BY_INDEX, {})


def test_what_is_left_of_a_group_is_replaced_by_the_group() -> None:
    left = replace(GROUP, devs=("enp1s0",), group=((8, 1),))
    want, have = (node(Stack(nexthops=(each,))) for each in (GROUP, left))
    assert things(plan(want, have)) == [GROUP]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EPERM])
def test_a_kernel_without_nexthop_objects(number: int) -> None:
    class Edge(StackEdge):
        def dump(self, message: bytearray, what: str) -> list[bytes]:
            raise KernelError(what, errno=number)

    with Edge() as edge:
        if number == errno.EOPNOTSUPP:
            assert of_nexthops.read(edge, OURS) == Found()
        else:
            with pytest.raises(KernelError):
                of_nexthops.read(edge, OURS)


@given(neighbours)
def test_neighbours_both_ways(neighbour: Neighbour) -> None:
    body = bytes(of_neighbours.message(neighbour, INDEXES, NOW))
    assert neighbour_of(body, OURS) == neighbour


@pytest.mark.parametrize(
    ("forwarding", "accept_ra", "solicitations", "arp", "is_kept"),
    [
        *((0, 1, -1, True, True), (1, 2, 3, True, True), (0, 2, 3, None, True)),
        *((1, 1, 3, True, False), (0, 0, 3, True, False), (0, 1, 0, True, False)),
        (0, 1, 3, False, False),
    ],
)
def test_tokens_both_ways(
    forwarding: int, accept_ra: int, solicitations: int, arp: bool | None, is_kept: bool
) -> None:
    """One that the kernel would refuse is named."""
    sent = bytes(of_tokens.message(Token("enp1s0", "::77"), INDEXES, NOW))
    (token,) = (raw for kind, raw in attributes(sent, 32) if kind == 26)
    (sixth,) = (raw for kind, raw in attributes(token) if kind == 10)
    conf = struct.pack("=8i", forwarding, 64, 1500, accept_ra, 1, 1, 1, solicitations)
    spec = nested(10, sixth + attribute(2, conf))
    look = Look({2: link(2, "enp1s0", af_spec=spec, arp=arp), 3: link(3, "enp2s0")}, {2, 3})
    with Netlink(0) as edge:
        found = of_tokens.read(edge, look)
    lost = ("IPv6 token ::77 on enp1s0, which accepts no advertisements now",)
    assert found.things == ((Token("enp1s0", "::77"),) if is_kept else ())
    assert found.lost == (() if is_kept else lost)


def test_a_proxy_has_no_address_of_its_own() -> None:
    proxy = Neighbour("enp1s0", "192.0.2.200", proxy=True)
    assert neighbour_of(bytes(of_neighbours.message(proxy, INDEXES, NOW)), OURS) == proxy


def test_a_bond_without_ports_loses_its_neighbours() -> None:
    """And so does what stands on it. Neither is ours: who owns the port puts them back."""
    links = dict(OURS.links) | {9: link(9, "bond0.5", parent=3)}
    member = Membership("enp1s0", "bond0", "bond")
    look = Look(links, {2}, stack=Stack(memberships=(member,)))
    for dev, index in (("bond0", 3), ("bond0.5", 9)):
        found = Neighbour(dev, "192.0.2.1", MAC, port="enp1s0")
        body = bytes(of_neighbours.message(found, {dev: index}, NOW))
        assert neighbour_of(body, look) == found
        assert neighbour_of(body, OURS) is None
        assert found.removed_with({}) == (dev, "enp1s0")
        assert found.renamed({"enp1s0": "uplink"}).removed_with({}) == (dev, "uplink")
        want, have = node(Stack(memberships=(member,), neighbours=(found,))), node(Stack())
        assert f"192.0.2.1 lladdr {MAC} nud permanent dev {dev}" in "\n".join(
            lines(plan(want, have), want, have)
        )


def test_a_bridge_port_that_its_own_driver_tells_of_too() -> None:
    """mlx5e_bridge_getlink() answers a second time, without VLANs."""

    class Edge(Netlink):
        def __init__(self) -> None:
            """Without a socket."""

        def dump(self, message: bytearray, what: str) -> list[bytes]:
            header = bytes(16) + struct.pack("=BxHiII", socket.AF_BRIDGE, 0, 2, 0, 0)
            entries = (attribute(2, struct.pack("=HH", flags, vid)) for vid, flags in MEMBER.vlans)
            mode = attribute(1, struct.pack("=H", 1))
            return [header + nested(26, b"".join(entries)), header + nested(26, mode)]

    assert memberships.vlans(Edge()) == {2: MEMBER.vlans}


def test_a_bridge_port_without_vlans_has_none_again() -> None:
    """Joining a bridge gives it VLAN 1."""
    want = replace(MEMBER, vlans=())
    (message,) = memberships.port_messages(want, replace(want, vlans=((1, 6),)), ((1, 6),), 2)
    assert struct.unpack_from("=H", message, 4) == (rtnl.RTM_DELLINK,)
    assert not list(memberships.port_messages(want, want, (), 2))


def test_neighbour_tables_are_asked_for_one_by_one() -> None:
    """The kernel's dump of all leaves interfaces out where a message ends before a table."""
    asked = []

    class Edge(StackEdge):
        def __init__(self) -> None:
            """Without a socket."""

        def dump(self, message: bytearray, what: str) -> list[bytes]:
            asked.append(message[16])
            return []

    Edge().parameters(Path("/nonexistent"))
    assert asked == [socket.AF_INET, socket.AF_INET6]


def test_a_static_fdb_entry_is_lost() -> None:
    ours = {2: link(2, "enp1s0")}
    entry = attribute(2, bytes.fromhex("020000000009")) + attribute(9, struct.pack("=I", 3))
    vlan = attribute(5, struct.pack("=H", 10))
    for state, more, text in (
        (0x40, vlan, "static FDB entry 02:00:00:00:00:09 on enp1s0 vlan 10"),
        (0x40, b"", "static FDB entry 02:00:00:00:00:09 on enp1s0"),
        (0x02, b"", None),  # learned
        (0x80, b"", None),  # a port's own
    ):
        header = bytes(16) + struct.pack("=BxxxiHBB", 7, 2, state, 0, 0)
        assert fdb_of(header + entry + more, ours) == text


@pytest.mark.parametrize(
    ("lladdr", "flags", "text"),
    [
        ("020000000009", 2, "static FDB entry 02:00:00:00:00:09 on enp1s0"),
        ("020000000009", 0, None),
        ("01005e000001", 2, None),  # a multicast group's
        ("525400000001", 2, None),  # an interface's own
    ],
)
def test_an_address_that_an_interface_listens_to_is_lost(
    lladdr: str, flags: int, text: str | None
) -> None:
    header = bytes(16) + struct.pack("=BxxxiHBB", 7, 2, 0x80, flags, 0)
    body = header + attribute(2, bytes.fromhex(lladdr))
    assert fdb_of(body, {2: link(2, "enp1s0")}, {MAC}) == text


def test_permanent_mdb_entries_are_lost() -> None:
    def body(index: int, state: int, vlan: int, group: bytes, protocol: str) -> bytes:
        place = struct.pack("=iBBH16s2s", index, state, 0, vlan, group, bytes.fromhex(protocol))
        info = attribute(1, place + bytes(2))
        return bytes(24) + nested(1, nested(1, info + attribute(2, bytes(4))))

    ours = {2: link(2, "enp1s0")}
    fourth, sixth = bytes([239, 1, 1, 1]), bytes.fromhex("ff0e" + "00" * 13 + "07")
    assert list(mdb_of(body(2, 1, 10, fourth, "0800"), ours)) == [
        "MDB entry 239.1.1.1 on enp1s0 vlan 10"
    ]
    assert list(mdb_of(body(2, 1, 0, sixth, "86dd"), ours)) == ["MDB entry ff0e::7 on enp1s0"]
    assert list(mdb_of(body(2, 1, 0, bytes.fromhex("01005e000009"), "0000"), ours)) == [
        "MDB entry 01:00:5e:00:00:09 on enp1s0"
    ]
    assert list(mdb_of(body(2, 0, 0, fourth, "0800"), ours)) == []
    assert list(mdb_of(body(3, 1, 0, fourth, "0800"), ours)) == []


def test_the_secret_of_ipv6_addresses_is_lost() -> None:
    own = link(2, "enp1s0", af_spec=nested(10, attribute(8, b"\x02")))
    assert list(identity_of(own, SysctlTables())) == [
        "stable_secret on enp1s0, with the IPv6 addresses that are made of it",
    ]
    usual = link(2, "enp1s0", af_spec=nested(10, attribute(7, bytes(16)) + attribute(8, b"\x02")))
    assert list(identity_of(usual, SysctlTables((("ipv6.addr_gen_mode", 2),)))) == []


VXLAN = attribute(linkinfo.INFO_KIND, b"vxlan\0") + nested(
    linkinfo.INFO_DATA, attribute(linkinfo.VXLAN_LINK, struct.pack("=I", 9))
)
"""It says what it stands on in its own attributes, and in IFLA_LINK nothing."""


def test_a_macvlan_listens_to_its_sources_again() -> None:
    data = (("mode", 16), ("source.02:00:00:00:00:01", 1), ("source.02:00:00:00:00:02", 1))
    assert linkinfo.decoded(linkinfo.child_info("macvlan", data)).data == data


def test_children_come_after_their_parents_and_others_are_named() -> None:
    vlan = linkinfo.child_info("vlan", CHILD.data)
    links = {
        9: link(9, "enp1s0"),
        4: link(4, "macvlan0", parent=5, info=linkinfo.child_info("macvlan", (("mode", 4),))),
        5: link(5, "enp1s0.100", parent=9, info=vlan),
        6: link(6, "vx0", info=VXLAN),
        7: link(7, "vx1", info=attribute(linkinfo.INFO_KIND, b"vxlan\0")),
        8: link(8, "other", parent=77),
    }
    with Netlink(socket.NETLINK_ROUTE) as edge:
        found = of_children.read(edge, Look(links, {9}))
    assert [child.dev for child in found.things] == ["enp1s0.100", "macvlan0"]
    assert found.things[0] == CHILD
    assert found.lost == ("vxlan vx0 on enp1s0",)


@pytest.mark.parametrize("kind", ["vlan", "ipvlan"])
def test_a_child_is_all_that_a_link_is_but_for_its_name(kind: str) -> None:
    """`arp off` and `multicast off` on a VLAN were lost without a word."""
    given: dict[str, Any] = {"arp": False, "multicast": False, "promisc": True, "alias": "x"}
    info = linkinfo.child_info(kind, ())
    links = {2: link(2, "enp1s0"), 3: link(3, "child0", parent=2, info=info, **given)}
    with Netlink(socket.NETLINK_ROUTE) as edge:
        (child,) = of_children.read(edge, Look(links, {2})).things
    mac = None if kind == "ipvlan" else MAC
    wanted = Child("child0", "enp1s0", kind, child.data, mac=mac, mtu=1500, up=True, **given)
    assert (child, child.name) == (wanted, None)


@pytest.mark.parametrize("name", ["arp", "multicast"])
def test_a_child_that_has_another_flag_is_set_again(name: str) -> None:
    values: dict[str, Any] = {name: False}
    others: dict[str, Any] = {name: True}
    want = node(Stack((replace(CHILD, **values),)))
    have = node(Stack((replace(CHILD, **others),)))
    for there in (have, node(Stack((CHILD,)))):
        (stage,) = plan(want, there)
        assert [stage.name, *stage.actions] == ["add children", *stage.actions]
        assert f"ip link set dev enp1s0.100 {name} off; " in lines([stage], want, there)[1]
    assert plan(node(Stack((CHILD,))), have) == ()
    (difference,) = differences(want, have)
    assert str(difference).endswith(f", up, {name} off, have vlan{str(CHILD)[4:]}")


def test_a_snapshot_of_before_children_had_these_flags_is_read() -> None:
    text = snapshot_to_json(snapshot(Stack((CHILD,))))
    assert "arp" not in text
    found = snapshot_from_json(text, "x").state
    assert plan(found, node(Stack((replace(CHILD, arp=False, multicast=False),)))) == ()


def test_a_child_has_no_second_name() -> None:
    with pytest.raises(ValueError, match="second name"):
        replace(CHILD, name="enp1s0.101")


def test_a_port_and_its_attributes() -> None:
    info = linkinfo.port_info("bridge", (("cost", 55), ("hairpin", 1), ("isolated", 0)))
    links = {2: link(2, "enp1s0", master=3, info=info), 3: link(3, "br0")}
    data = (("cost", 55), ("hairpin", 1), ("isolated", 0))
    assert membership_of(links[2], links) == Membership("enp1s0", "br0", "bridge", data)
    assert membership_of(links[3], links) is None


def test_a_port_of_a_bond_is_taken_down_and_has_its_own_mac_before_it_joins() -> None:
    member = Membership("enp1s0", "bond0", "bond", mac="02:00:00:00:00:09")
    before = memberships.messages_before(member, link(2, "enp1s0"))
    messages = [*before, memberships.message(member, INDEXES, NOW)]
    assert [message[4] for message in messages] == [19, 19, 19]
    bridge = Membership("enp1s0", "br0", "bridge")
    assert list(memberships.messages_before(bridge, link(2, "enp1s0"))) == []


def test_a_kind_needs_an_adapter_of_its_own() -> None:
    with pytest.raises(ImportError, match="no_such_kinds"):
        _adapter(Route, "no_such_kinds")
    with pytest.raises(TypeError, match="addresses has the adapter of"):
        _adapter(Route, "addresses")


def test_order() -> None:
    near = Route("192.0.2.0/24", (Nexthop("enp1s0"),))
    assert of_routes.in_order([ROUTE, near]) == [near, ROUTE]
    first, second, third = (Address("e", a) for a in ("10.0.0.1/8", "fd00::1/64", "fd00::2/64"))
    assert of_addresses.in_order([first, second, third]) == [first, third, second]


def test_after_a_reload_all_of_it_is_planned_in_an_order_that_works() -> None:
    want = node(ALL)
    stages = plan(want, after_reload(want))
    assert [stage.name for stage in stages][-8:] == [
        *(
            "add children",
            "join masters",
            "set tokens",
            "add addresses",
            "add neighbours",
            "add nexthops",
            "add routes",
        ),
        "add qdiscs",
    ]
    text = [str(difference) for difference in differences(want, after_reload(want))]
    assert (
        "enp1s0 route: want 0.0.0.0/0 via 192.0.2.1 dev enp1s0 table 254 metric 100 proto 16, "
        "have missing"
    ) in text


def test_what_is_there_beyond_what_is_wanted_stays() -> None:
    assert plan(node(Stack()), node(ALL)) == ()
    assert plan(node(None), node(ALL)) == ()


@pytest.mark.parametrize(
    ("thing", "line"),
    [
        (
            CHILD,
            f"ip link add link enp1s0 name enp1s0.100 address {MAC} mtu 1500 type vlan"
            " egress-qos-map 1:3 id 100 protocol 802.1Q; ip link set dev enp1s0.100 up",
        ),
        (
            MEMBER,
            "ip link set dev enp1s0 master br0; ip link set dev enp1s0 type bridge_slave cost 55;"
            " bridge vlan add dev enp1s0 vid 1 pvid untagged; bridge vlan add dev enp1s0 vid 10",
        ),
        (ADDRESS, "ip address replace 192.0.2.10/24 dev enp1s0 broadcast 192.0.2.255"),
        (
            ROUTE,
            "ip route append unicast 0.0.0.0/0 via 192.0.2.1 dev enp1s0"
            " table 254 proto 16 scope 0 metric 100",
        ),
        (
            replace(ROUTE, nhid=7),
            "ip route append unicast 0.0.0.0/0 nhid 7 table 254 proto 16 scope 0 metric 100",
        ),
        (NEXTHOP, "ip nexthop replace id 7 via 192.0.2.1 dev enp1s0"),
        (
            NexthopObject(8, ("enp1s0",), is_v6=True, onlink=True, proto=4),
            "ip -6 nexthop replace id 8 dev enp1s0 onlink proto 4",
        ),
        (
            GROUP,
            "ip nexthop replace id 9 group 7,3/8,1"
            " type resilient buckets 32 idle_timer 60 unbalanced_timer 0",
        ),
        (
            Neighbour("enp1s0", "192.0.2.1", MAC),
            f"ip neighbour replace 192.0.2.1 lladdr {MAC} nud permanent dev enp1s0",
        ),
        (
            FQ,
            "tc qdisc replace dev enp1s0 root handle 8001: fq # with its former options",
        ),
        (
            Qdisc("enp1s0", "pfifo", 0x20000, 0x80010002),
            "tc qdisc replace dev enp1s0 parent 8001:2 handle 2: pfifo",
        ),
    ],
)
def test_lines(thing: Stacked, line: str) -> None:
    assert "; ".join(thing.commands()) == line
