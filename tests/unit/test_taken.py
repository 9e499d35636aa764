"""What others take between two looks is theirs: found, and touched by no action of the plan."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeagent.plan.actions import Action, CreateVfs, SetEswitch, SetVf
from nodeagent.plan.comparison import differences
from nodeagent.plan.plan import plan
from nodeagent.plan.taken import attainable, given_back, spared_rates, taken, without
from nodeagent.state.addresses import Mac
from nodeagent.state.model import (
    CniRecord,
    DeviceHandle,
    Netdev,
    NodeState,
    Pf,
    PodNetdev,
    Representor,
    Target,
    Vf,
)
from nodeagent.state.namespaces import Holder, Namespace
from nodeagent.state.rates import Rate
from nodeagent.state.stack import Nexthop, Route, Stack
from nodeagent.state.vf import VlanProtocol
from tests.support.simulate import Refused, perform
from tests.support.strategies import pairs

PF = DeviceHandle("pci", "0000:01:00.0")
POD = Namespace(4, 4026532001, "b-1", (Holder(812, 99),), 17)
OTHER = Namespace(4, 4026532002, "b-1", (Holder(813, 100),), 18)
WAYS = ("namespace", "driver", "record")
thorough = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def node(*vfs: Vf, numvfs: int | None = None, **facts: object) -> NodeState:
    count = len(vfs) if numvfs is None else numvfs
    pf = Pf(PF, count, autoprobe=True, netdev=Netdev("enp1s0"), vfs=vfs)
    changed = dataclasses.replace(pf, **facts)  # type: ignore[arg-type] # what a test gives
    return NodeState("mlx5_core", (changed,), namespaces=(OTHER,))


def vf(index: int = 0, **facts: object) -> Vf:
    usual: dict[str, object] = {"driver": "mlx5_core", "driver_override": "", "vlan": 0}
    return Vf(index, f"0000:01:10.{2 * index}", **usual | facts)  # type: ignore[arg-type]


def taken_by(vf: Vf, way: str) -> Vf:
    """The VF as it is when another has it."""
    if way == "namespace":
        inside = PodNetdev(OTHER.inode, Netdev("net1", mac=Mac("02:00:00:00:77:01")))
        return dataclasses.replace(vf, driver="mlx5_core", netdev=None, inside=inside, vlan=500)
    if way == "driver":
        return dataclasses.replace(vf, driver="uio_pci_generic", netdev=None, rdma=None)
    return dataclasses.replace(vf, cni=CniRecord("another-net1", Vf(vf.index)))


@st.composite
def disputed(draw: st.DrawFn) -> tuple[NodeState, NodeState, set[Target]]:
    """A state that is wanted, one that is there, and whose VFs others have got there."""
    want, have = draw(pairs())
    owners = [Target(pf.handle, v.index) for pf in have.pfs for v in pf.vfs if v.driver is not None]
    chosen = set(draw(st.lists(st.sampled_from(owners), unique=True))) if owners else set()
    ways = {owner: draw(st.sampled_from(WAYS)) for owner in sorted(chosen)}
    pfs = tuple(
        dataclasses.replace(
            pf,
            vfs=tuple(
                taken_by(v, ways[Target(pf.handle, v.index)])
                if Target(pf.handle, v.index) in ways
                else v
                for v in pf.vfs
            ),
        )
        for pf in have.pfs
    )
    return want, dataclasses.replace(have, pfs=pfs, namespaces=(OTHER,)), chosen


def touched(action: Action, state: NodeState) -> set[Target]:
    """The VFs that an action is about, or that do not survive it."""
    index = getattr(action, "index", None)
    if isinstance(index, int):
        return {Target(action.pf, index)}
    if isinstance(action, CreateVfs) or (isinstance(action, SetEswitch) and action.eswitch_mode):
        return {
            Target(pf.handle, v.index) for pf in state.pfs for v in pf.vfs if pf.handle == action.pf
        }
    return set()


@given(disputed())
@thorough
def test_no_action_touches_what_others_have_taken(
    given: tuple[NodeState, NodeState, set[Target]],
) -> None:
    want, have, chosen = given
    wanted = {Target(pf.handle, v.index) for pf in want.pfs for v in pf.vfs if v.driver is not None}
    found = {each.target for each in taken(want, have)}
    assert chosen & wanted <= found
    ours = without(want, found)
    stages = plan(attainable(ours, have, found), have)
    for stage in stages:
        for action in stage.actions:
            assert not touched(action, have) & found, action
    after = have
    for action in (action for stage in stages for action in stage.actions):
        # a takers' interface may have a name that is wanted, or be what a route goes through
        with suppress(Refused):
            after = perform(after, action)
    for target in found:
        assert have.pf(target.pf) is not None
        assert after.pf(target.pf) is not None
        assert after.vf(target) == have.vf(target)
    told = {each.target for each in differences(ours, have)}
    assert not told & {str(target) for target in found}


def test_how_it_is_told() -> None:
    want = node(vf(0), vf(1), vf(2), vf(3))
    have = node(vf(0), *(taken_by(vf(n), way) for n, way in enumerate(WAYS, 1)))
    assert [str(each) for each in taken(want, have)] == [
        f"{PF} vf 1: taken since the snapshot (net1 in {OTHER}): left alone",
        f"{PF} vf 2: taken since the snapshot (bound to uio_pci_generic): left alone",
        f"{PF} vf 3: taken since the snapshot (given to a pod by SR-IOV CNI, record another-net1): "
        "left alone",
    ]


def test_what_is_where_it_was_is_not_taken() -> None:
    """In its pod; with the driver that it had, or none, or its NIC's own; with its record."""
    inside = PodNetdev(OTHER.inode, Netdev("net1"))
    record = CniRecord("its-net1", Vf(0))
    want = node(vf(0, inside=inside, cni=record), vf(1, driver="vfio-pci"), vf(2))
    for second, third in (("vfio-pci", "mlx5_core"), ("mlx5_core", "none"), ("none", "none")):
        have = node(vf(0, inside=inside, cni=record), vf(1, driver=second), vf(2, driver=third))
        assert taken(want, have) == ()
    assert taken(want, node(vf(0, inside=inside), numvfs=1)) == ()


def test_another_pod_has_what_a_pod_had() -> None:
    was = vf(0, inside=PodNetdev(POD.inode, Netdev("net1")))
    want = NodeState("mlx5_core", (Pf(PF, 1, vfs=(was,)),), namespaces=(POD,))
    (found,) = taken(want, node(taken_by(vf(0), "namespace")))
    assert found.target == (PF, 0)


def test_vfs_are_not_made_anew_under_a_taker() -> None:
    """Then their number stays wrong, and that is what is told."""
    want, have = node(vf(0), vf(1), vf(2)), node(taken_by(vf(0), "namespace"), vf(1, vlan=7))
    found = {each.target for each in taken(want, have)}
    ours = without(want, found)
    (stage,) = plan(attainable(ours, have, found), have)
    assert stage.actions == (SetVf(PF, 1, vlan=0),)
    assert [(each.target, each.attribute) for each in differences(ours, have)] == [
        (str(PF), "numvfs"),
        (f"{PF} vf 1", "vlan"),
        (f"{PF} vf 2", "function"),
    ]


def test_an_eswitch_keeps_its_mode_under_a_taker() -> None:
    want = node(vf(0), eswitch_mode="switchdev")
    have = node(taken_by(vf(0), "namespace"), eswitch_mode="legacy")
    found = {each.target for each in taken(want, have)}
    assert plan(attainable(without(want, found), have, found), have) == ()


def test_a_route_over_a_representor_that_cannot_come_is_not_added() -> None:
    representors = (Representor("pf0vf1", Netdev("rep1")),)
    want = node(vf(0), eswitch_mode="switchdev", representors=representors)
    route = Route("192.0.2.0/24", (Nexthop("enp1s0"), Nexthop("rep1")))
    want = dataclasses.replace(want, stack=Stack(routes=(route,)))
    have = node(taken_by(vf(0), "namespace"), eswitch_mode="legacy")
    found = {each.target for each in taken(want, have)}
    assert plan(attainable(without(want, found), have, found), have) == ()


# What was written in between


def test_what_a_taker_had_set_is_given_back() -> None:
    """VLAN and rates are one message each; what it had not set stays as we have set it."""
    given = Vf(0, vlan=500, qos=3, vlan_proto=VlanProtocol.Q, trust=True)
    now = Vf(0, vlan=0, qos=0, vlan_proto=VlanProtocol.Q, trust=True, spoofchk=True)
    written = {"vlan": 0, "qos": 0, "trust": False, "spoofchk": True}
    action, unknown = given_back(Target(PF, 0), written, given, now)
    assert action == SetVf(PF, 0, vlan=500, qos=3, vlan_proto=VlanProtocol.Q)
    assert unknown == ()
    now = dataclasses.replace(now, max_tx_rate=100, min_tx_rate=0)
    given = Vf(0, min_tx_rate=10, max_tx_rate=900)
    action, _ = given_back(Target(PF, 0), {"max_tx_rate": 100}, given, now)
    assert action == SetVf(PF, 0, min_tx_rate=10, max_tx_rate=900)


def test_a_taker_that_keeps_no_record() -> None:
    now = Vf(0, vlan=0, trust=True)
    assert given_back(Target(PF, 0), {"vlan": 0, "trust": False}, None, now) == (None, ("vlan",))
    assert given_back(Target(PF, 0), {}, None, now) == (None, ())


def test_the_rate_of_a_port_whose_vf_is_anothers_is_left_alone() -> None:
    """mlx5 has the vport in the port's index, for the second PF with its vhca_id above it."""
    mlx5, netdevsim = DeviceHandle("pci", "0000:01:00.0"), DeviceHandle("netdevsim", "netdevsim1")
    vfs = (Vf(index=0), Vf(index=1))
    for pf, indexes in ((mlx5, ("1", "65535", "65538")), (netdevsim, ("0", "128", "129"))):
        first, second, of_vf_1 = (Rate(name=index, tx_max=1000) for index in indexes)
        gold = Rate(name="gold", is_node=True)
        rates = (first, second, of_vf_1, gold)
        assert spared_rates(pf, rates, {Target(pf, 1)}) == (first, second, gold)
        state = NodeState("mlx5_core", (Pf(pf, 2, vfs=vfs, rates=rates),))
        (left,) = without(state, {Target(pf, 1)}).pfs
        assert left.rates == (first, second, gold)
