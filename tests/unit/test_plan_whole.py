"""Whole plans, action by action: what an engineer would write down for these nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from nodeagent.plan.actions import (
    Action,
    AddStacked,
    BindPf,
    BindVf,
    CreateVfs,
    InPod,
    MoveVf,
    OverrideDriver,
    SetAutoprobe,
    SetEswitch,
    SetEthtool,
    SetLink,
    SetParam,
    SetSysctls,
    SetVf,
    UnbindVf,
)
from nodeagent.plan.plan import after_reload, plan
from nodeagent.plan.stack import without_stacked
from nodeagent.state.addresses import Mac
from nodeagent.state.attributes import fresh, given
from nodeagent.state.eswitch import EncapMode, EswitchMode, InlineMode
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import (
    NO_DRIVER,
    DeviceHandle,
    Netdev,
    NodeState,
    Param,
    Pf,
    PodNetdev,
    Representor,
    Vf,
)
from nodeagent.state.namespaces import Holder, Namespace
from nodeagent.state.stack import Address, Child, Stack
from nodeagent.state.vf import VlanProtocol

PF = DeviceHandle("pci", "0000:01:00.0")
OTHER = DeviceHandle("pci", "0000:02:00.0")
OWN, ADMIN, ZERO = (
    Mac("02:aa:00:00:00:01"),
    Mac("02:aa:00:00:00:99"),
    Mac("00:00:00:00:00:00"),
)
DRIVER = "mlx5_core"
STEERING = Param("flow_steering_mode", 5, "dmfs")
VLAN = Child("v0.5", "v0", "vlan", (("id", 5),), mtu=1500, up=True)
ADDRESS = Address("v0.5", "10.0.0.1/24")
FAST, SLOW = (("coalesce.rx-usecs", 3),), (("coalesce.rx-usecs", 50),)


def stages(want: NodeState, have: NodeState) -> Mapping[str, tuple[Action, ...]]:
    return {str(stage.name): stage.actions for stage in plan(want, have)}


def node(*pfs: Pf, **facts: Any) -> NodeState:
    return NodeState(DRIVER, pfs, **facts)


def pf(*vfs: Vf, **facts: Any) -> Pf:
    usual: dict[str, Any] = {"numvfs": len(vfs), "autoprobe": True, "vfs": vfs}
    return Pf(PF, **usual | facts)


def vf(index: int = 0, **facts: Any) -> Vf:
    usual: dict[str, Any] = {"address": f"0000:01:10.{2 * index}", "driver": DRIVER}
    return Vf(index, **usual | {"driver_override": ""} | facts)


def link(name: str = "eth9", **facts: Any) -> Netdev:
    return Netdev(name, **facts)


# what a reload leaves


def test_what_a_reload_leaves_of_a_node() -> None:
    """Everything is a default, nothing that was not known is known now, autoprobe outlives it."""
    netdev = link("enp1s0", mac=OWN, mtu=9000, up=True, alias="uplink", ethtool=FAST, sysctls=())
    whole = pf(
        vf(),
        autoprobe=False,
        netdev=netdev,
        eswitch_mode=EswitchMode.SWITCHDEV,
        representors=(Representor("pf0vf0", link("eth8")),),
        params=(STEERING,),
    )
    unknown = Pf(OTHER)
    pod = Namespace(4, 4026532201, "b", (Holder(pid=1, started=1),))
    new = link("enp1s0", mac=OWN, mtu=1500, up=False, sysctls=(), **given(fresh(LinkAttributes)))
    left = Pf(PF, 0, False, new, (), eswitch_mode=EswitchMode.LEGACY, params=(STEERING,))
    want = node(whole, unknown, stack=Stack((VLAN,)), namespaces=(pod,))
    assert after_reload(want) == node(left, unknown, stack=Stack())
    assert after_reload(dataclasses.replace(want, stack=None)) == node(left, unknown)


# PFs


def test_a_pf_that_has_no_driver_is_bound_and_all_is_made() -> None:
    want = node(pf(vf(admin_mac=ADMIN)))
    assert stages(want, node()) == {
        "bind PFs": (BindPf(PF, DRIVER),),
        "hold probing": (SetAutoprobe(PF, False),),
        "create VFs": (CreateVfs(PF, 1),),
        "set VFs": (SetVf(PF, 0, admin_mac=ADMIN),),
        "allow probing": (SetAutoprobe(PF, True),),
        "bind VFs": (BindVf(PF, 0, "0000:01:10.0", DRIVER),),
    }


def test_of_a_pf_that_has_no_driver_only_what_is_known_is_written() -> None:
    assert stages(node(Pf(PF)), node()) == {"bind PFs": (BindPf(PF, DRIVER),)}
    assert stages(node(Pf(PF, 0, False)), node()) == {
        "bind PFs": (BindPf(PF, DRIVER),),
        "put autoprobe back": (SetAutoprobe(PF, False),),
    }
    assert stages(node(Pf(PF, 2)), node()) == {
        "bind PFs": (BindPf(PF, DRIVER),),
        "create VFs": (CreateVfs(PF, 2),),
    }


def test_without_a_number_none_are_made() -> None:
    assert stages(node(Pf(PF)), node(Pf(PF, 3))) == {}


@pytest.mark.parametrize(
    ("wanted", "now", "stage"),
    [(None, False, None), (None, True, None), (False, True, False), (True, False, True)],
)
def test_autoprobe_by_itself(wanted: bool | None, now: bool, stage: bool | None) -> None:
    expected = {} if stage is None else {"put autoprobe back": (SetAutoprobe(PF, stage),)}
    assert stages(node(Pf(PF, 0, wanted)), node(Pf(PF, 0, now))) == expected


def test_autoprobe_that_nobody_wants_to_know_ends_as_it_was() -> None:
    """Off before, on for the bind, off again."""
    want = node(pf(vf(), autoprobe=None))
    assert stages(want, node(pf(autoprobe=False))) == {
        "create VFs": (CreateVfs(PF, 1),),
        "allow probing": (SetAutoprobe(PF, True),),
        "bind VFs": (BindVf(PF, 0, "0000:01:10.0", DRIVER),),
        "put autoprobe back": (SetAutoprobe(PF, False),),
    }
    unbound = node(pf(vf(driver=NO_DRIVER), autoprobe=True))
    assert stages(unbound, node(pf())) == {
        "hold probing": (SetAutoprobe(PF, False),),
        "create VFs": (CreateVfs(PF, 1),),
        "put autoprobe back": (SetAutoprobe(PF, True),),
    }


MTU_UP = [
    # wanted, now; before the VFs, after them
    ({"mtu": 9000, "up": True}, {"mtu": 1500, "up": True}, {"mtu": 9000}, {}),
    ({"mtu": 1500, "up": True}, {"mtu": 9000, "up": True}, {}, {"mtu": 1500}),
    ({"mtu": 1, "up": True}, {"mtu": None, "up": True}, {"mtu": 1}, {}),
    ({"mtu": 1500}, {"mtu": 1500}, {}, {}),
    ({"mtu": None, "up": True}, {"mtu": 1500, "up": False}, {"up": True}, {}),
    ({"mac": OWN, "up": True}, {"mac": ADMIN, "up": True}, {"mac": OWN, "up": True}, {}),
    ({"alias": "a", "up": True}, {"alias": "", "up": True}, {"alias": "a"}, {}),
    ({"up": False}, {"up": True}, {"up": False}, {}),
]


@pytest.mark.parametrize(("wanted", "now", "first", "last"), MTU_UP)
def test_the_link_of_a_pf(
    wanted: dict[str, Any], now: dict[str, Any], first: dict[str, Any], last: dict[str, Any]
) -> None:
    """Up to another MAC only by way of down; to a smaller MTU only when the VFs are done."""
    found = stages(node(Pf(PF, netdev=link("a", **wanted))), node(Pf(PF, netdev=link("a", **now))))
    expected: dict[str, tuple[Action, ...]] = {}
    if "mac" in first:
        expected["take links down"] = (SetLink(PF, None, up=False),)
    if first:
        expected["prepare PFs"] = (SetLink(PF, None, **first),)
    if last:
        expected["finish PFs"] = (SetLink(PF, None, **last),)
    assert found == expected


def test_a_pf_that_is_down_is_up_for_its_vfs_and_one_that_is_up_stays() -> None:
    want = node(pf(vf(vlan=5), netdev=link("a", mtu=1500, up=False)))
    down = node(pf(vf(vlan=0), netdev=link("a", mtu=9000, up=False)))
    up = node(pf(vf(vlan=0), netdev=link("a", mtu=1500, up=True)))
    assert stages(want, down) == {
        "prepare PFs": (SetLink(PF, None, up=True),),
        "set VFs": (SetVf(PF, 0, vlan=5),),
        "finish PFs": (SetLink(PF, None, mtu=1500, up=False),),
    }
    assert stages(want, up) == {
        "set VFs": (SetVf(PF, 0, vlan=5),),
        "finish PFs": (SetLink(PF, None, up=False),),
    }
    # its interface is not there: what is not known is all set
    assert stages(want, node(pf(vf(vlan=0))))["prepare PFs"] == (
        SetLink(PF, None, name="a", mtu=1500, up=True),
    )


# the eswitch


def switchdev(**facts: Any) -> Pf:
    """One VF and its representor."""
    there = Representor("pf0vf0", link("rep0", mtu=1500, ethtool=FAST, sysctls=(), up=True))
    usual: dict[str, Any] = {
        "eswitch_mode": "switchdev",
        "inline_mode": "transport",
        "encap_mode": "basic",
        "params": (STEERING,),
        "representors": (there,),
    }
    return pf(vf(max_tx_rate=100), **usual | facts)


def test_an_eswitch_after_a_reload() -> None:
    want = node(switchdev())
    assert stages(want, after_reload(node(switchdev(params=())))) == {
        "set parameters": (SetParam(PF, STEERING),),
        "hold probing": (SetAutoprobe(PF, False),),
        "create VFs": (CreateVfs(PF, 1),),
        "set VFs": (SetVf(PF, 0, min_tx_rate=0, max_tx_rate=100),),
        "set eswitch": (SetEswitch(PF, eswitch_mode=EswitchMode.SWITCHDEV),),
        "allow probing": (SetAutoprobe(PF, True),),
        "bind VFs": (BindVf(PF, 0, "0000:01:10.0", DRIVER),),
        "set representors": (SetLink(PF, "pf0vf0", name="rep0", mtu=1500, up=True),),
        "set VFs late": (SetVf(PF, 0, min_tx_rate=0, max_tx_rate=100),),
    }


def test_an_eswitch_of_which_something_else_differs() -> None:
    other = Representor("pf0vf0", link("rep0", mtu=9000, ethtool=SLOW, sysctls=(), up=True))
    have = node(
        switchdev(
            inline_mode=InlineMode.LINK,
            encap_mode=None,
            params=(dataclasses.replace(STEERING, value="smfs"),),
            representors=(other,),
        )
    )
    assert stages(node(switchdev()), have) == {
        "set parameters": (SetParam(PF, STEERING),),
        "set eswitch": (
            SetEswitch(PF, inline_mode=InlineMode.TRANSPORT, encap_mode=EncapMode.BASIC),
        ),
        "set ethtool": (SetEthtool(PF, "pf0vf0", FAST),),
        "set representors": (SetLink(PF, "pf0vf0", mtu=1500),),
    }


def test_vfs_made_anew_make_representors_anew() -> None:
    """The mode is set again; what an old representor has says nothing of the new one."""
    have = node(dataclasses.replace(switchdev(), numvfs=2))
    found = stages(node(switchdev()), have)
    assert found["remove VFs"] == (CreateVfs(PF, 0),)
    assert found["set eswitch"] == (SetEswitch(PF, eswitch_mode=EswitchMode.SWITCHDEV),)
    assert found["set representors"] == (SetLink(PF, "pf0vf0", name="rep0", mtu=1500, up=True),)
    assert "set ethtool" not in found


def test_another_mode_unbinds_and_binds() -> None:
    have = node(switchdev(eswitch_mode=EswitchMode.LEGACY, representors=()))
    assert stages(node(switchdev()), have) == {
        "unbind VFs": (UnbindVf(PF, 0, "0000:01:10.0", DRIVER),),
        "set eswitch": (SetEswitch(PF, eswitch_mode=EswitchMode.SWITCHDEV),),
        "bind VFs": (BindVf(PF, 0, "0000:01:10.0", DRIVER),),
        "set representors": (SetLink(PF, "pf0vf0", name="rep0", mtu=1500, up=True),),
    }


# VFs


def test_a_vf_that_is_right_is_left_alone_and_one_attribute_is_one_action() -> None:
    here = vf(netdev=link("v0", mtu=1500, up=True, ethtool=FAST, sysctls=()), vlan=5, qos=1)
    assert stages(node(pf(here)), node(pf(here))) == {}
    other = vf(netdev=link("v0", mtu=9000, up=True, ethtool=SLOW, sysctls=()), vlan=6, qos=1)
    assert stages(node(pf(here)), node(pf(other))) == {
        "set VFs": (SetVf(PF, 0, vlan=5, qos=1),),
        "set ethtool": (SetEthtool(PF, 0, FAST),),
        "set VF netdevs": (SetLink(PF, 0, mtu=1500),),
    }


def test_what_goes_together_takes_the_other_from_the_kernel() -> None:
    """A VLAN is written with its QoS, a rate with the other: what is not known is as it is."""
    want = node(pf(vf(vlan=5, max_tx_rate=100)))
    have = node(pf(vf(vlan=6, qos=3, vlan_proto=VlanProtocol.AD, min_tx_rate=7, max_tx_rate=0)))
    assert stages(want, have) == {
        "set VFs": (SetVf(PF, 0, vlan=5, qos=3, vlan_proto=VlanProtocol.AD),),
        "set VFs late": (SetVf(PF, 0, min_tx_rate=7, max_tx_rate=100),),
    }


def test_another_drivers_vf_goes_by_its_override() -> None:
    want = node(pf(vf(driver="vfio-pci", driver_override="vfio-pci")))
    assert stages(want, node(pf(vf()))) == {
        "unbind VFs": (UnbindVf(PF, 0, "0000:01:10.0", DRIVER),),
        "set VFs": (OverrideDriver(PF, 0, "0000:01:10.0", "vfio-pci"),),
        "bind VFs": (BindVf(PF, 0, "0000:01:10.0", "vfio-pci", override=True),),
    }
    back = stages(node(pf(vf())), want)
    assert back == {
        "unbind VFs": (UnbindVf(PF, 0, "0000:01:10.0", "vfio-pci"),),
        "set VFs": (OverrideDriver(PF, 0, "0000:01:10.0", ""),),
        "bind VFs": (BindVf(PF, 0, "0000:01:10.0", DRIVER, override=False),),
    }


def test_an_address_is_the_snapshots_or_the_kernels_or_none() -> None:
    """netdevsim's VFs have none."""
    want = node(pf(vf(3, address=None), numvfs=4))
    assert stages(want, node(pf(vf(3, driver=NO_DRIVER), numvfs=4)))["bind VFs"] == (
        BindVf(PF, 3, "0000:01:10.6", DRIVER),
    )
    assert stages(want, node(pf(vf(3, address=None, driver=NO_DRIVER), numvfs=4)))["bind VFs"] == (
        BindVf(PF, 3, "", DRIVER),
    )
    assert stages(want, node(pf(autoprobe=False)))["bind VFs"] == (BindVf(PF, 3, "", DRIVER),)


def test_a_driver_that_is_not_known_is_not_touched() -> None:
    unknown, other = node(pf(vf(driver=None))), node(pf(vf(driver="vfio-pci")))
    assert stages(unknown, other) == {}


def test_a_driver_that_may_be_another_is_ensured() -> None:
    unknown, other = node(pf(vf(driver=None))), node(pf(vf(driver="vfio-pci")))
    none = node(pf(vf(driver=NO_DRIVER)))
    assert stages(other, unknown) == {"bind VFs": (BindVf(PF, 0, "0000:01:10.0", "vfio-pci"),)}
    assert stages(none, unknown) == {"unbind VFs": (UnbindVf(PF, 0, "0000:01:10.0", None),)}


def test_probing_that_may_be_on_is_held_and_put_back() -> None:
    want, have = node(Pf(PF, numvfs=1, autoprobe=True)), node(Pf(PF, numvfs=0))
    assert stages(want, have) == {
        "hold probing": (SetAutoprobe(PF, False),),
        "create VFs": (CreateVfs(PF, 1),),
        "put autoprobe back": (SetAutoprobe(PF, True),),
    }
    have = node(Pf(PF, numvfs=1))
    assert stages(want, have) == {"put autoprobe back": (SetAutoprobe(PF, True),)}


def test_a_number_of_vfs_that_is_not_known_is_ensured() -> None:
    for count, stage in ((0, "remove VFs"), (2, "create VFs")):
        found = stages(node(Pf(PF, numvfs=count)), node(Pf(PF)))
        assert found == {stage: (CreateVfs(PF, count),)}


@pytest.mark.parametrize(
    ("own", "now", "admin", "binds"),
    [
        (OWN, ADMIN, OWN, True),
        (OWN, OWN, OWN, False),
        (OWN, ADMIN, ZERO, False),
        (OWN, ADMIN, None, False),
        (None, ADMIN, OWN, False),
        (OWN, None, OWN, False),
    ],
)
def test_another_mac_takes_another_bind(
    own: Mac | None, now: Mac | None, admin: Mac | None, binds: bool
) -> None:
    """Only where the PF holds one: that reaches the interface at bind, and igb then keeps it."""
    want = vf(admin_mac=admin, netdev=link("v0", mac=own, up=True))
    have = vf(admin_mac=admin, netdev=link("v0", mac=now, up=True))
    found = stages(node(pf(want)), node(pf(have)))
    assert ("unbind VFs" in found) is binds
    assert ("bind VFs" in found) is binds
    if not binds and own is not None and own != now:
        assert found["set VF netdevs"] == (SetLink(PF, 0, mac=own, up=True),)
        assert found.get("take links down", ()) == (SetLink(PF, 0, up=False),)


def test_a_vf_of_mlx5_takes_its_own_mac_beside_the_admin_mac() -> None:
    """An admin MAC gives its RDMA device a node GUID: a temporary one would be wrong."""
    want = pf(vf(admin_mac=ADMIN, netdev=link("v0", mac=OWN)), eswitch_mode=EswitchMode.LEGACY)
    found = stages(node(want), node(pf(eswitch_mode=EswitchMode.LEGACY)))
    assert found["set VFs"] == (SetVf(PF, 0, admin_mac=ADMIN),)
    assert "set VFs late" not in found
    (link_action,) = found["set VF netdevs"]
    assert isinstance(link_action, SetLink)
    assert link_action.mac == OWN
    have = pf(vf(admin_mac=ADMIN, netdev=link("v0", mac=ADMIN)), eswitch_mode=EswitchMode.LEGACY)
    assert "unbind VFs" not in stages(node(want), node(have))


def test_a_vf_of_two_macs_is_bound_with_its_own_and_told_the_other_late() -> None:
    want = vf(admin_mac=ADMIN, max_tx_rate=10, netdev=link("v0", mac=OWN))
    found = stages(node(pf(want)), node(pf()))
    assert found["set VFs"] == (SetVf(PF, 0, admin_mac=OWN),)
    assert found["set VFs late"] == (SetVf(PF, 0, min_tx_rate=0, max_tx_rate=10, admin_mac=ADMIN),)
    for admin in (ZERO, None):
        plain = vf(admin_mac=admin, netdev=link("v0", mac=OWN))
        assert "set VFs late" not in stages(node(pf(plain)), node(pf()))


# names


def test_names_that_are_in_the_way() -> None:
    """Each that has another's name gets a third; one that is taken already is not chosen."""
    wanted = pf(vf(0, netdev=link("a")), vf(1, netdev=link("b")), netdev=link("p", up=True))
    now = pf(
        vf(0, netdev=link("b", up=True)),
        vf(1, netdev=link("natmp0", up=False)),
        netdev=link("a", up=True),
    )
    assert stages(node(wanted), node(now)) == {
        "take links down": (SetLink(PF, None, up=False), SetLink(PF, 0, up=False)),
        "free names": (SetLink(PF, None, name="natmp1"), SetLink(PF, 0, name="natmp2")),
        "prepare PFs": (SetLink(PF, None, name="p", up=True),),
        "set VF netdevs": (SetLink(PF, 0, name="a"), SetLink(PF, 1, name="b")),
    }


def test_a_name_of_a_vf_that_goes_needs_no_third() -> None:
    """The VFs are made anew: only the PF's interface can be in the way."""
    wanted = pf(vf(0, netdev=link("a")), vf(1, netdev=link("b")), netdev=link("p"))
    now = pf(vf(0, netdev=link("b", up=True)), netdev=link("a", up=True))
    found = stages(node(wanted), node(now))
    assert found["take links down"] == (SetLink(PF, None, up=False),)
    assert found["free names"] == (SetLink(PF, None, name="natmp0"),)


def test_a_link_that_is_bound_anew_is_not_taken_down() -> None:
    want = pf(vf(admin_mac=OWN, netdev=link("v0", mac=OWN, up=True)))
    have = pf(vf(admin_mac=OWN, netdev=link("v0", mac=ADMIN, up=True)))
    assert "take links down" not in stages(node(want), node(have))
    moved = pf(vf(netdev=link("v0", mac=OWN, up=True)), eswitch_mode=EswitchMode.SWITCHDEV)
    legacy = pf(vf(netdev=link("v0", mac=ADMIN, up=True)), eswitch_mode=EswitchMode.LEGACY)
    assert "take links down" not in stages(node(moved), node(legacy))


# sysctls, and what stands on interfaces


def test_sysctls_of_the_pf_come_before_those_of_vfs() -> None:
    wanted = (("ipv4.rp_filter", 2),)
    want = pf(vf(netdev=link("v0", sysctls=wanted)), netdev=link("p", sysctls=wanted))
    have = pf(vf(netdev=link("v0", sysctls=())), netdev=link("p", sysctls=()))
    defaults = (("ipv4.rp_filter", 1),)
    assert stages(node(want, sysctls=defaults), node(have, sysctls=defaults)) == {
        "set PF sysctls": (SetSysctls(PF, None, wanted),),
        "set sysctls": (SetSysctls(PF, 0, wanted),),
    }


def test_ethtool_of_a_pf() -> None:
    assert stages(
        node(Pf(PF, netdev=link("p", ethtool=FAST))), node(Pf(PF, netdev=link("p", ethtool=SLOW)))
    ) == {"set PF ethtool": (SetEthtool(PF, None, FAST),)}


def test_what_stood_on_a_vf_under_another_name() -> None:
    """What is there stays, whatever the interface is called meanwhile; the rest is the VF's."""
    want = node(pf(vf(netdev=link("v0"))), stack=Stack((VLAN,), addresses=(ADDRESS,)))
    now = dataclasses.replace(VLAN, parent="old")
    have = node(pf(vf(netdev=link("old"))), stack=Stack((now,)))
    found = stages(want, have)
    assert found["add addresses"] == (AddStacked(PF, 0, ADDRESS, "v0"),)
    assert "add children" not in found
    gone = plan(want, dataclasses.replace(have, stack=None))
    assert {str(s.name): s.actions for s in gone}["add children"] == (
        AddStacked(PF, 0, VLAN, "v0"),
    )
    assert [s.name for s in without_stacked(gone, ())] == ["set VF netdevs"]
    assert stages(dataclasses.replace(want, stack=None), have).keys() == {"set VF netdevs"}
    foreign = node(pf(vf(netdev=link("v1"))), stack=Stack((VLAN,), addresses=(ADDRESS,)))
    assert stages(foreign, node(pf(vf(netdev=link("v1"))), stack=Stack())) == {}


# VFs that belong into pods

POD = Namespace(4, 100, "b", (Holder(pid=7, started=1),), sysctls=(("ipv4.rp_filter", 0),))
OTHER_POD = Namespace(4, 200, "b", (Holder(pid=8, started=1),))


def inside(index: int, name: str, namespace: int = 100, **facts: Any) -> Vf:
    given: dict[str, Any] = {"mac": OWN, "mtu": 1500, "up": True, "ethtool": FAST, "sysctls": ()}
    return vf(index, inside=PodNetdev(namespace, link(name, **given | facts), carrier=True))


def pods(*vfs: Vf, namespaces: tuple[Namespace, ...] = (POD, OTHER_POD), **facts: Any) -> NodeState:
    return node(pf(*vfs, **facts), namespaces=namespaces)


BARE = dataclasses.replace(POD, stack=Stack(), sysctls=())


def of_stage(want: NodeState, have: NodeState, name: str) -> tuple[Action, ...]:
    return stages(want, have).get(name, ())


def test_each_goes_into_its_pod_and_is_set_up_there_ethtool_first() -> None:
    """Settings that several VFs share are their driver's: a pod need not be asked for those."""
    named = (("ipv4.rp_filter", 2),)
    want = pods(
        vf(0),
        inside(1, "net1", sysctls=named),
        inside(2, "net2", 200, ethtool=SLOW),
        inside(3, "net3", 200),
    )
    have = dataclasses.replace(after_reload(want), namespaces=())
    other = dataclasses.replace(OTHER_POD, stack=Stack())
    found = plan(want, have)
    (moves,) = [stage.actions for stage in found if stage.name == "move VFs"]
    assert moves == (
        MoveVf(PF, 1, "0000:01:10.2", BARE, "net1", carrier=True),
        MoveVf(PF, 2, "0000:01:10.4", other, "net2", carrier=True),
        MoveVf(PF, 3, "0000:01:10.6", other, "net3", carrier=True),
    )
    assert [(a.namespace.stack, a.namespace.sysctls) for a in moves if isinstance(a, MoveVf)] == [
        (Stack(), ()) for _ in range(3)
    ]
    up = {"mac": OWN, "mtu": 1500, "up": True}
    assert of_stage(want, have, "set up in pods") == (
        InPod(PF, 1, BARE, "net1", SetSysctls(PF, 1, named)),
        InPod(PF, 1, BARE, "net1", SetLink(PF, 1, **up)),  # type: ignore[arg-type] # shorthand
        InPod(PF, 2, other, "net2", SetEthtool(PF, 2, SLOW)),
        InPod(PF, 2, other, "net2", SetLink(PF, 2, **up)),  # type: ignore[arg-type] # shorthand
        InPod(PF, 3, other, "net3", SetLink(PF, 3, **up)),  # type: ignore[arg-type] # shorthand
    )


def test_settings_of_its_own_come_before_sysctls() -> None:
    want = pods(inside(0, "net1", sysctls=(("ipv4.rp_filter", 2),)))
    found = of_stage(want, after_reload(want), "set up in pods")
    assert [type(each.action) for each in found if isinstance(each, InPod)] == [
        SetEthtool,
        SetSysctls,
        SetLink,
    ]


def test_what_is_there_is_set_where_it_differs_and_goes_down_for_another_mac() -> None:
    want = pods(inside(0, "net1", sysctls=(("ipv4.rp_filter", 2),)), inside(1, "net2"))
    same = pods(inside(0, "net1", sysctls=(("ipv4.rp_filter", 2),)), inside(1, "net2"))
    assert stages(want, same) == {}
    other = pods(inside(0, "net1", mac=ADMIN, ethtool=SLOW), inside(1, "net2", mtu=9000))
    assert stages(want, other) == {
        "set up in pods": (
            InPod(PF, 0, BARE, "net1", SetSysctls(PF, 0, (("ipv4.rp_filter", 2),))),
            InPod(PF, 0, BARE, "net1", SetEthtool(PF, 0, FAST)),
            InPod(PF, 0, BARE, "net1", SetLink(PF, 0, up=False)),
            InPod(PF, 0, BARE, "net1", SetLink(PF, 0, mac=OWN, up=True)),
            InPod(PF, 1, BARE, "net2", SetLink(PF, 1, mtu=1500)),
        )
    }
    defaults = dataclasses.replace(POD, sysctls=(("ipv4.rp_filter", 1),))
    moved = pods(inside(0, "net1"), inside(1, "net2"), namespaces=(defaults, OTHER_POD))
    assert of_stage(pods(inside(0, "net1"), inside(1, "net2")), moved, "set up in pods") == (
        InPod(PF, 0, BARE, "net1", SetSysctls(PF, 0, (("ipv4.rp_filter", 0),))),
        InPod(PF, 1, BARE, "net2", SetSysctls(PF, 1, (("ipv4.rp_filter", 0),))),
    )


def test_one_that_somebody_put_elsewhere_is_theirs_and_the_next_is_ours() -> None:
    want = pods(vf(0), inside(1, "net1"), inside(2, "net2"))
    have = pods(vf(0), inside(1, "net1", 200, mtu=9000), inside(2, "net2", mtu=9000))
    assert stages(want, have) == {
        "set up in pods": (InPod(PF, 2, BARE, "net2", SetLink(PF, 2, mtu=1500)),)
    }


def test_the_address_of_one_that_moves() -> None:
    for address, now, expected in (
        (None, "0000:01:10.0", "0000:01:10.0"),
        (None, None, ""),
    ):
        want = pods(dataclasses.replace(inside(0, "net1"), address=address))
        (move,) = of_stage(want, pods(vf(0, address=now)), "move VFs")
        assert isinstance(move, MoveVf)
        assert move.address == expected
    want = pods(dataclasses.replace(inside(0, "net1"), address=None))
    (move,) = of_stage(want, after_reload(want), "move VFs")
    assert isinstance(move, MoveVf)
    assert move.address == ""


def test_what_stands_in_a_pod_is_of_the_vf_on_which_it_stands() -> None:
    """By whatever name that goes meanwhile; what stands on something else is not ours."""
    foreign = dataclasses.replace(VLAN, dev="x.5", parent="x")
    stack = Stack((dataclasses.replace(VLAN, parent="net1"), foreign), addresses=(ADDRESS,))
    full = dataclasses.replace(POD, stack=stack)
    want = pods(vf(0), inside(1, "net1"), namespaces=(full, OTHER_POD))
    found = of_stage(want, after_reload(want), "set up in pods")
    stood = [a.action.thing for a in found if isinstance(a, InPod) and hasattr(a.action, "thing")]
    assert stood == [stack.children[0], ADDRESS]
    renamed = Stack((dataclasses.replace(VLAN, parent="old"),))
    have = pods(
        vf(0), inside(1, "old"), namespaces=(dataclasses.replace(POD, stack=renamed), OTHER_POD)
    )
    assert of_stage(want, have, "set up in pods") == (
        InPod(PF, 1, BARE, "net1", SetLink(PF, 1, up=False)),
        InPod(PF, 1, BARE, "net1", SetLink(PF, 1, name="net1", up=True)),
        InPod(PF, 1, BARE, "net1", AddStacked(PF, 1, ADDRESS)),
    )


# What was made anew is known to be fresh, whatever it was before


def test_vfs_that_are_made_anew_are_set_from_the_beginning() -> None:
    here = vf(vlan=5, netdev=link("v0", mtu=9000, up=True))
    assert stages(node(pf(here)), node(pf(here, numvfs=2))) == {
        "remove VFs": (CreateVfs(PF, 0),),
        "hold probing": (SetAutoprobe(PF, False),),
        "create VFs": (CreateVfs(PF, 1),),
        "set VFs": (SetVf(PF, 0, vlan=5, qos=0, vlan_proto=VlanProtocol.Q),),
        "allow probing": (SetAutoprobe(PF, True),),
        "bind VFs": (BindVf(PF, 0, "0000:01:10.0", DRIVER),),
        "set VF netdevs": (SetLink(PF, 0, name="v0", mtu=9000, up=True),),
    }


def test_an_interface_that_is_made_anew_is_set_from_the_beginning() -> None:
    """By another bind; where there is no driver to be bound, by the VF itself (netdevsim)."""
    wanted = link("v0", mtu=9000, up=True)
    bound = stages(node(pf(vf(netdev=wanted))), node(pf(vf(driver="other", netdev=wanted))))
    assert bound["set VF netdevs"] == (SetLink(PF, 0, name="v0", mtu=9000, up=True),)
    simple = Vf(0, netdev=wanted)
    made = stages(node(pf(simple)), node(pf()))
    assert made["set VF netdevs"] == (SetLink(PF, 0, name="v0", mtu=9000, up=True),)


@pytest.mark.parametrize("changed", [{"numvfs": 2}, {"eswitch_mode": "legacy"}])
def test_one_that_was_in_its_pod_is_moved_again(changed: dict[str, Any]) -> None:
    want = pods(inside(0, "net1"), eswitch_mode=EswitchMode.SWITCHDEV)
    have = pods(inside(0, "net1"), **{"eswitch_mode": "switchdev"} | changed)
    assert of_stage(want, have, "move VFs") == (
        MoveVf(PF, 0, "0000:01:10.0", BARE, "net1", carrier=True),
    )


def test_autoprobe_that_is_held_and_is_to_stay_off() -> None:
    want = node(pf(vf(driver=NO_DRIVER), autoprobe=False))
    assert stages(want, node(pf())) == {
        "hold probing": (SetAutoprobe(PF, False),),
        "create VFs": (CreateVfs(PF, 1),),
    }


def test_each_interface_has_sysctls_of_its_own() -> None:
    wanted = (("ipv4.rp_filter", 2),)
    want = pf(vf(netdev=link("v0", sysctls=wanted)), netdev=link("p", sysctls=wanted))
    have = pf(vf(netdev=link("v0", sysctls=())), netdev=link("p", sysctls=wanted))
    defaults = (("ipv4.rp_filter", 1),)
    assert stages(node(want, sysctls=defaults), node(have, sysctls=defaults)) == {
        "set sysctls": (SetSysctls(PF, 0, wanted),)
    }


def test_one_that_is_missing_hides_no_other() -> None:
    want = pf(vf(0, netdev=link("a")), vf(1, netdev=link("b")))
    have = pf(vf(0), vf(1, netdev=link("a")))
    assert stages(node(want), node(have))["free names"] == (SetLink(PF, 1, name="natmp0"),)
