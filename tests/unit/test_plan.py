"""The plan, held by properties: whatever the node is like, the plan leads to what is wanted."""

from __future__ import annotations

import dataclasses
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeagent.plan.actions import (
    BindVf,
    CreateVfs,
    SetAutoprobe,
    SetEswitch,
    SetLink,
    SetVf,
    Stage,
    UnbindVf,
)
from nodeagent.plan.comparison import Difference, differences
from nodeagent.plan.lines import lines
from nodeagent.plan.plan import after_reload, plan
from nodeagent.plan.stages import ORDER, StageName
from nodeagent.state.addresses import Guid, Mac
from nodeagent.state.eswitch import EswitchMode
from nodeagent.state.model import NO_DRIVER, DeviceHandle, Netdev, NodeState, Pf, Vf
from nodeagent.state.stack import Address, Child, Stack
from nodeagent.state.vf import VlanProtocol
from tests.support.simulate import perform, simulate
from tests.support.strategies import legal_pairs, partly_known_pairs, states

PF = DeviceHandle("pci", "0000:01:00.0")
ROUNDS = 3
thorough = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def settled(want: NodeState, have: NodeState) -> NodeState:
    """What restore does: plan, perform, look again, until nothing is left."""
    for _ in range(ROUNDS):
        stages = plan(want, have)
        if not stages:
            break
        have = simulate(have, stages)
    return have


def undone(want: NodeState, have: NodeState) -> list[Difference]:
    """What differs and is not the driver's choice."""
    return [each for each in differences(want, have) if not each.is_drivers]


def test_vfs_made_anew_get_in_legacy_mode_what_switchdev_refuses() -> None:
    vfs = tuple(Vf(n, driver="mlx5_core", trust=True) for n in range(2))
    pf = Pf(PF, 2, vfs=vfs, eswitch_mode=EswitchMode.SWITCHDEV)
    want = NodeState("mlx5_core", (pf,))
    have = NodeState("mlx5_core", (dataclasses.replace(pf, vfs=vfs[:1]),))
    stages = plan(want, have)
    assert [stage.name for stage in stages] == [
        StageName.REMOVE_VFS,
        StageName.LEGACY,
        StageName.CREATE_VFS,
        StageName.VFS,
        StageName.ESWITCH,
        StageName.BIND_VFS,
    ]
    modes = [each for stage in stages for each in stage.actions if isinstance(each, SetEswitch)]
    assert modes == [
        SetEswitch(PF, eswitch_mode=EswitchMode.LEGACY),
        SetEswitch(PF, eswitch_mode=EswitchMode.SWITCHDEV),
    ]


def test_what_is_on_a_vf_that_is_bound_again_comes_back_in_one_plan() -> None:
    guids = (Guid(f"02:00:00:00:00:00:00:0{n}") for n in (1, 2))
    vfs = [
        Vf(0, driver="mlx5_core", node_guid=guid, netdev=Netdev("v0", up=True)) for guid in guids
    ]
    vlan = Child("v0.2", "v0", "vlan", (("id", 2),), up=True)
    whole = Stack(children=(vlan,), addresses=(Address("v0.2", "10.0.0.1/24"),))
    want, have = (NodeState("mlx5_core", (Pf(PF, 1, vfs=(vf,)),), stack=whole) for vf in vfs)
    partly = dataclasses.replace(have, stack=dataclasses.replace(whole, addresses=()))
    for now in (have, partly):
        assert undone(want, simulate(now, plan(want, now))) == []


@given(states())
def test_nothing_to_do_is_an_empty_plan(state: NodeState) -> None:
    assert plan(state, state) == ()
    assert differences(state, state) == ()


@given(partly_known_pairs())
@thorough
def test_performing_the_plan_leads_to_what_is_wanted(pair: tuple[NodeState, NodeState]) -> None:
    want, have = pair
    assert undone(want, settled(want, have)) == []


@given(legal_pairs())
@thorough
def test_the_plan_is_empty_exactly_when_nothing_differs(
    pair: tuple[NodeState, NodeState],
) -> None:
    """But for what is another's: a VF in another namespace, which is named and left there."""
    want, have = pair
    found = [each for each in undone(want, have) if not each.is_anothers]
    stages = plan(want, have)
    assert (stages == ()) == (found == [])
    assert all(stage.actions for stage in stages)


@given(partly_known_pairs(), st.randoms(use_true_random=False))
@thorough
def test_the_actions_of_a_stage_may_be_performed_in_any_order(
    pair: tuple[NodeState, NodeState], rng: random.Random
) -> None:
    want, have = pair
    for _ in range(ROUNDS):
        for stage in plan(want, have):
            shuffled = list(stage.actions)
            rng.shuffle(shuffled)
            have = simulate(have, (Stage(stage.name, tuple(shuffled)),))
    assert undone(want, have) == []


@given(partly_known_pairs(), st.data())
@thorough
def test_cut_anywhere_and_planned_again_it_ends_the_same(
    pair: tuple[NodeState, NodeState], data: st.DataObject
) -> None:
    want, have = pair
    actions = [action for stage in plan(want, have) for action in stage.actions]
    for action in actions[: data.draw(st.integers(0, len(actions)), label="cut")]:
        have = perform(have, action)
    assert undone(want, settled(want, have)) == []


@given(states())
def test_after_a_reload_every_vf_is_probed_once(state: NodeState) -> None:
    stages = plan(state, after_reload(state))
    binds = [a for stage in stages for a in stage.actions if isinstance(a, BindVf)]
    assert len(binds) == len({(a.pf, a.index) for a in binds})
    assert not any(isinstance(a, UnbindVf) for stage in stages for a in stage.actions)


@given(partly_known_pairs())
def test_nothing_is_ever_unbound_that_is_not_a_vf_of_this_pf(
    pair: tuple[NodeState, NodeState],
) -> None:
    want, have = pair
    for stage in plan(want, have):
        for action in stage.actions:
            if isinstance(action, UnbindVf):
                pf = have.pf(action.pf)
                assert pf is not None
                vf = pf.vf(action.index)
                assert vf is not None
                assert vf.driver == action.driver


@given(partly_known_pairs())
def test_stages_come_in_the_order_of_the_table(pair: tuple[NodeState, NodeState]) -> None:
    order = list(ORDER)
    positions = [order.index(stage.name) for stage in plan(*pair)]
    assert positions == sorted(set(positions))


@given(partly_known_pairs())
def test_every_plan_can_be_printed(pair: tuple[NodeState, NodeState]) -> None:
    want, have = pair
    stages = plan(want, have)
    text = lines(stages, want, have)
    assert len(text) == sum(1 + len(stage.actions) for stage in stages)
    assert all("None" not in line and "\n" not in line for line in text)


@given(states())
def test_unknown_is_never_written(state: NodeState) -> None:
    unknown = dataclasses.replace(
        state,
        pfs=tuple(
            Pf(pf.handle, pf.numvfs, None, None, tuple(Vf(vf.index) for vf in pf.vfs))
            for pf in state.pfs
        ),
    )
    assert plan(unknown, state) == ()


def one_vf(**changes: object) -> NodeState:
    vf = Vf(
        index=3,
        address="0000:01:10.6",
        driver="mlx5_core",
        driver_override="",
        admin_mac=Mac("02:11:22:33:44:53"),
        vlan=100,
        qos=3,
        vlan_proto=VlanProtocol.Q,
        trust=True,
        spoofchk=False,
        netdev=Netdev("ens1f0v3", mac=Mac("02:11:22:33:44:53"), mtu=1400, up=True),
    )
    vf = dataclasses.replace(vf, **changes)  # type: ignore[arg-type] # a test's shorthand
    netdev = Netdev("ens1f0np0", mac=Mac("52:54:00:00:00:01"), mtu=9000, up=True)
    return NodeState("mlx5_core", (Pf(PF, 7, True, netdev, (vf,)),))


def test_the_life_of_one_vf_as_an_engineer_reads_it() -> None:
    want = one_vf()
    have = after_reload(want)
    assert lines(plan(want, have), want, have) == [
        "# hold probing",
        "echo 0 > /sys/bus/pci/devices/0000:01:00.0/sriov_drivers_autoprobe",
        "# create VFs",
        "echo 7 > /sys/bus/pci/devices/0000:01:00.0/sriov_numvfs",
        "# prepare PFs",
        "ip link set dev ens1f0np0 mtu 9000 up",
        "# set VFs",
        "ip link set dev ens1f0np0 vf 3 mac 02:11:22:33:44:53 vlan 100 qos 3 proto 802.1Q"
        " spoofchk off trust on",
        "# allow probing",
        "echo 1 > /sys/bus/pci/devices/0000:01:00.0/sriov_drivers_autoprobe",
        "# bind VFs",
        "echo 0000:01:10.6 > /sys/bus/pci/drivers/mlx5_core/bind",
        "# set VF netdevs",
        "udevadm settle; ip link set dev ens1f0v3 address 02:11:22:33:44:53 mtu 1400"
        " name ens1f0v3 up",
    ]


def test_a_vf_that_kept_its_own_mac_is_bound_with_it_and_told_the_other_later() -> None:
    own, admin = Mac("02:aa:00:00:00:01"), Mac("02:aa:00:00:00:99")
    want = one_vf(admin_mac=admin, netdev=Netdev("ens1f0v3", mac=own, mtu=1500, up=True))
    stages = {str(stage.name): stage.actions for stage in plan(want, after_reload(want))}
    (first,) = stages["set VFs"]
    assert isinstance(first, SetVf)
    assert first.admin_mac == own
    assert stages["set VFs late"] == (SetVf(PF, 3, admin_mac=admin),)


def test_rates_are_set_last_and_together() -> None:
    want = one_vf(min_tx_rate=0, max_tx_rate=100)
    stages = {str(stage.name): stage.actions for stage in plan(want, after_reload(want))}
    assert stages["set VFs late"] == (SetVf(PF, 3, min_tx_rate=0, max_tx_rate=100),)


def test_another_number_of_vfs_goes_through_zero() -> None:
    want = one_vf()
    (pf,) = want.pfs
    have = dataclasses.replace(want, pfs=(dataclasses.replace(pf, numvfs=4, vfs=pf.vfs),))
    stages = {str(stage.name): stage.actions for stage in plan(want, have)}
    assert stages["remove VFs"] == (CreateVfs(PF, 0),)
    assert stages["create VFs"] == (CreateVfs(PF, 7),)


def test_a_pf_that_was_down_is_up_while_its_vfs_are_bound() -> None:
    want = one_vf()
    (pf,) = want.pfs
    assert pf.netdev is not None
    down = dataclasses.replace(pf, netdev=dataclasses.replace(pf.netdev, up=False))
    want = dataclasses.replace(want, pfs=(down,))
    stages = {str(stage.name): stage.actions for stage in plan(want, after_reload(want))}
    (prepare,) = stages["prepare PFs"]
    assert isinstance(prepare, SetLink)
    assert prepare.up is True
    assert stages["finish PFs"] == (SetLink(PF, None, up=False),)


def test_a_vf_without_a_driver_stays_without() -> None:
    want = one_vf(driver=NO_DRIVER, netdev=None)
    stages = plan(want, after_reload(want))
    assert not any(isinstance(a, BindVf) for stage in stages for a in stage.actions)


def test_autoprobe_off_is_allowed_for_the_bind_and_put_back() -> None:
    want = one_vf()
    (pf,) = want.pfs
    want = dataclasses.replace(want, pfs=(dataclasses.replace(pf, autoprobe=False),))
    stages = {str(stage.name): stage.actions for stage in plan(want, after_reload(want))}
    assert stages["allow probing"] == (SetAutoprobe(PF, True),)
    assert stages["put autoprobe back"] == (SetAutoprobe(PF, False),)


def test_swapped_names_go_through_a_third() -> None:
    first = Vf(0, "0000:01:10.0", "mlx5_core", "", netdev=Netdev("a", mac=None, mtu=None, up=True))
    second = Vf(1, "0000:01:10.2", "mlx5_core", "", netdev=Netdev("b", mac=None, mtu=None, up=True))
    swapped = (
        dataclasses.replace(first, netdev=Netdev("b", mac=None, mtu=None, up=True)),
        dataclasses.replace(second, netdev=Netdev("a", mac=None, mtu=None, up=True)),
    )
    want = NodeState("mlx5_core", (Pf(PF, 2, True, None, (first, second)),))
    have = NodeState("mlx5_core", (Pf(PF, 2, True, None, swapped),))
    stages = {str(stage.name): stage.actions for stage in plan(want, have)}
    assert {a.name for a in stages["free names"] if isinstance(a, SetLink)} == {"natmp0", "natmp1"}
    assert undone(want, settled(want, have)) == []


def test_a_difference_reads_like_the_field_reports_it() -> None:
    want, have = one_vf(), one_vf(admin_mac=Mac("00:00:00:00:00:00"))
    assert [str(difference) for difference in differences(want, have)] == [
        "pci/0000:01:00.0 vf 3 admin_mac: want 02:11:22:33:44:53, have 00:00:00:00:00:00"
    ]
