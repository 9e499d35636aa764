"""What a driver cannot be told is never wanted, also from a snapshot that an older version took."""

from __future__ import annotations

import dataclasses

import pytest

from nodeagent.plan.comparison import differences
from nodeagent.plan.plan import plan
from nodeagent.plan.unsettable import given_anew
from nodeagent.state.addresses import Mac
from nodeagent.state.eswitch import EswitchMode
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Pf, Representor, Vf
from nodeagent.state.stack import Child, Stack
from nodeagent.state.vf import LinkState


def node(driver: str, *, mac: str, query_rss: bool, mtu: int = 1500) -> NodeState:
    representor = Representor("pf0vf0", Netdev("enp1s0f0npf0vf0", mac=Mac(mac), mtu=mtu))
    pf = Pf(
        DeviceHandle("pci", "0000:01:00.0"),
        numvfs=1,
        eswitch_mode=EswitchMode.SWITCHDEV,
        vfs=(Vf(index=0, query_rss=query_rss),),
        representors=(representor,),
    )
    return NodeState(driver=driver, pfs=(pf,))


def test_mlx5_gives_representors_other_macs_and_has_no_query_rss() -> None:
    want = node("mlx5_core", mac="02:00:00:00:00:01", query_rss=False)
    have = node("mlx5_core", mac="02:00:00:00:00:02", query_rss=True)
    assert plan(want, have) == ()
    assert differences(want, have) == ()


@pytest.mark.parametrize(
    ("driver", "vlan", "differing"),
    [
        ("mlx5_core", "02:00:00:00:00:01", []),
        ("mlx5_core", "02:00:00:00:00:09", ["enp1s0f0npf0vf0.5", "enp1s0f0npf0vf0.5.6"]),
        ("netdevsim", "02:00:00:00:00:01", ["enp1s0f0npf0vf0.5", "enp1s0f0npf0vf0.5.6"]),
    ],
)
def test_a_vlan_on_a_representor_follows_its_mac(
    driver: str, vlan: str, differing: list[str]
) -> None:
    """Unless it was given one of its own, or the driver gives representors the same one again."""

    def with_vlans(state: NodeState, mac: str) -> NodeState:
        name = "enp1s0f0npf0vf0"
        children = (
            Child(dev=f"{name}.5", parent=name, kind="vlan", data=(("id", 5),), mac=Mac(mac)),
            Child(
                dev=f"{name}.5.6", parent=f"{name}.5", kind="vlan", data=(("id", 6),), mac=Mac(mac)
            ),
        )
        return dataclasses.replace(state, stack=Stack(children=children))

    want = with_vlans(node(driver, mac="02:00:00:00:00:01", query_rss=False), vlan)
    have = with_vlans(node(driver, mac="02:00:00:00:00:02", query_rss=False), "02:00:00:00:00:02")
    found = [str(each).partition(" child: ") for each in differences(want, have)]
    assert [target for target, is_child, _ in found if is_child] == differing


def test_all_else_of_a_representor_is_wanted() -> None:
    want = node("mlx5_core", mac="02:00:00:00:00:01", query_rss=False, mtu=9000)
    have = node("mlx5_core", mac="02:00:00:00:00:02", query_rss=False)
    (stage,) = plan(want, have)
    assert stage.name == "set representors"
    assert [each.attribute for each in differences(want, have)] == ["mtu"]


def test_another_driver_is_told_both() -> None:
    want = node("netdevsim", mac="02:00:00:00:00:01", query_rss=False)
    have = node("netdevsim", mac="02:00:00:00:00:02", query_rss=True)
    assert [each.attribute for each in differences(want, have)] == ["query_rss", "mac"]
    assert {stage.name for stage in plan(want, have)} == {"set VFs", "set representors"}


@pytest.mark.parametrize(("driver", "lines"), [("mlx5_core", 1), ("netdevsim", 0)])
def test_it_is_told_once_for_each_pf(driver: str, lines: int) -> None:
    state = node(driver, mac="02:00:00:00:00:01", query_rss=False)
    assert len(given_anew(state)) == lines
    without = dataclasses.replace(state, pfs=(dataclasses.replace(state.pfs[0], representors=()),))
    assert given_anew(without) == ()


@pytest.mark.parametrize(
    ("mode", "differing"), [(EswitchMode.SWITCHDEV, []), (EswitchMode.LEGACY, ["link_state"])]
)
def test_a_link_state_in_switchdev_mode_is_the_representors(
    mode: EswitchMode, differing: list[str]
) -> None:
    """VFs that were made in switchdev mode have auto, those that were there before it disable."""
    want, have = (
        NodeState(
            "mlx5_core",
            (
                Pf(
                    DeviceHandle("pci", "0000:01:00.0"),
                    numvfs=1,
                    eswitch_mode=mode,
                    vfs=(Vf(0, link_state=state),),
                ),
            ),
        )
        for state in (LinkState.AUTO, LinkState.DISABLE)
    )
    assert [each.attribute for each in differences(want, have)] == differing
