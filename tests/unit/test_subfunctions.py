"""Subfunctions: saved, made again after a reload, or named where a driver makes none."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

import pytest

from nodeagent.driver.nic import NicDriver
from nodeagent.errors import RestoreFailed
from nodeagent.kernel.devlink import Port
from nodeagent.modes import Mode
from nodeagent.node.observe import observe
from nodeagent.plan.comparison import differences
from nodeagent.plan.lines import lines
from nodeagent.plan.plan import after_reload, plan
from nodeagent.plan.subfunctions import no_longer_offered
from nodeagent.plan.unsettable import settable
from nodeagent.restore import restore, verify
from nodeagent.settings import Settings
from nodeagent.snapshot import take_snapshot
from nodeagent.state.addresses import Mac
from nodeagent.state.eswitch import EswitchAttributes, EswitchMode
from nodeagent.state.model import (
    DeviceHandle,
    Netdev,
    NodeState,
    Param,
    Pf,
    Representor,
    Subfunction,
    Vf,
)
from nodeagent.state.stack import Address, Child, Nexthop, Route, Stack
from tests.support.fake_kernel import DRIVER, PF1
from tests.support.fake_node import FakeNode, fake_node

PF = DeviceHandle("pci", PF1)
PORT = "pf0sf88"
MAC = Mac("02:00:00:00:00:88")
NO_ROCE = Param("enable_roce", 6, False)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    """A PF in switchdev mode with a VF and two subfunctions, the second one not active."""
    with fake_node(monkeypatch, igb=False) as fake:
        pf = fake.add_pf()
        pf.subfunctions = {}
        fake.give(Pf(PF, 1, True, Netdev("p"), (Vf(0),), eswitch_mode=EswitchMode.SWITCHDEV))
        with fake.node(Settings()).devlink() as devlink:
            devlink.add_subfunction(PF, Subfunction(PORT, 0))
            devlink.add_subfunction(PF, Subfunction("pf0sf9", 0))
            devlink.set_function(Port(PF, 100), {"hw_addr": MAC, "active": True})
            fake.settle()
            device = DeviceHandle("auxiliary", fake.subfunction_of(PF1, PORT))
            devlink.reload(device, [NO_ROCE])
        fake.settle()
        fake.change(fake.link(device.name).index, name="sf88", mtu=1400, up=True)
        yield fake


def saved(fake: FakeNode) -> NodeState:
    """What a snapshot has of the node."""
    node = fake.node(Settings())
    return take_snapshot(node, NicDriver(node.settings, Mode.PRECOMPILED, None)).state


def reload(fake: FakeNode, *, makes: bool = True) -> None:
    """The driver starts anew, in legacy mode; perhaps it is one without subfunctions."""
    fake.restart()
    pf = fake.pfs[PF1]
    assert pf.eswitch is not None
    pf.eswitch = dataclasses.replace(pf.eswitch, eswitch_mode=EswitchMode.LEGACY)
    pf.subfunctions = {} if makes else None
    fake.settle()


def test_they_are_made_again(fake: FakeNode) -> None:
    want = saved(fake)
    (pf,) = want.pfs
    assert [each.port for each in pf.representors] == ["pf0sf88", "pf0sf9", "pf0vf0"]
    (first, second) = pf.subfunctions or ()
    assert (first.port, first.hw_addr, first.active, first.roce) == (PORT, MAC, True, True)
    assert first.netdev is not None
    assert (first.netdev.name, first.netdev.mtu) == ("sf88", 1400)
    assert NO_ROCE in (first.driverinit or ())
    assert (second.port, second.active, second.driverinit) == ("pf0sf9", False, None)
    reload(fake)
    node = fake.node(Settings())
    restore(node, want)
    verify(node, want)
    assert fake.skipped == 0, "waited for something in vain"
    assert {each.index for each in observe(node).pfs[0].subfunctions or ()} == {100, 101}


def test_one_in_a_fatal_error_is_named_and_what_ends_it(fake: FakeNode) -> None:
    """Its PF is well."""
    want, node = saved(fake), fake.node(Settings())
    device = fake.subfunction_of(PF1, PORT)
    fake.in_fatal_error = {device}
    with pytest.raises(RestoreFailed, match=rf"sf88: .*auxiliary/{device} reporter.* inactive"):
        verify(node, want)


def test_nothing_of_one_in_a_fatal_error_is_set(fake: FakeNode) -> None:
    """Nor of a VF. What their PF has is restored, and their own when they are well."""
    subfunction, vf = fake.subfunction_of(PF1, PORT), fake.function(0)
    fake.attach(vf, DRIVER)
    fake.settle()
    want, node = saved(fake), fake.node(Settings())
    for device in (PF1, subfunction, vf):
        fake.change(fake.link(device).index, mtu=1280)
    fake.in_fatal_error, fake.never_recovers = {subfunction, vf}, {subfunction, vf}
    with pytest.raises(RestoreFailed, match="could not be restored") as failed:
        restore(node, want)
    assert f"pci/{PF1} subfunction sf88: the firmware has had a fatal error" in str(failed.value)
    assert f"pci/{PF1} vf 0: the firmware has had a fatal error" in str(failed.value)
    assert [fake.link(device).mtu for device in (PF1, subfunction, vf)] == [1500, 1280, 1280]
    fake.in_fatal_error.clear()
    restore(node, want)
    verify(node, want)


def test_vdpa_devices_are_named_whatever_they_are_called(
    fake: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    bus = fake.tree.root / "bus/vdpa"
    (bus / "devices/blue").mkdir(parents=True)
    name = fake.subfunction_of(PF1, PORT)
    for function, device in (("pci", fake.function(0)), ("auxiliary", name)):
        below = fake.tree.device(device, function) / "blue"
        below.mkdir()
        (below / "subsystem").symlink_to(bus)
    saved(fake)
    for device in (f"pci/{fake.function(0)}", f"auxiliary/{name}"):
        assert f"the vDPA device blue of {device}: the reload removes it" in caplog.text


def test_what_a_killed_restore_has_left_is_finished(fake: FakeNode) -> None:
    """A port that is not active yet, and one whose driver has not been reloaded yet."""
    want = saved(fake)
    for is_active in (False, True):
        reload(fake)
        node = fake.node(Settings())
        with node.devlink() as devlink:
            devlink.set_eswitch(PF, EswitchAttributes(eswitch_mode=EswitchMode.SWITCHDEV))
            devlink.add_subfunction(PF, Subfunction(PORT, 0))
            devlink.set_function(Port(PF, 100), {"active": is_active})
        fake.settle()
        restore(node, want)
        verify(node, want)


def test_a_driver_that_makes_none(fake: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    """They are named; the node is ready."""
    want = saved(fake)
    reload(fake, makes=False)
    node = fake.node(Settings())
    restore(node, want)
    verify(node, want)
    assert fake.skipped == 0, "waited for something in vain"
    named = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert [each for each in named if "subfunction" in each] == [
        f"the driver no longer has it: {PF} subfunction pf0sf88 "
        f"(hw_addr {MAC} roce enable state active)",
        f"the driver no longer has it: {PF} subfunction pf0sf9 "
        "(hw_addr 00:00:00:00:00:00 roce enable state inactive)",
    ]


def test_one_that_is_refused_is_an_error_and_nothing_of_it_is_waited_for(fake: FakeNode) -> None:
    want = saved(fake)
    reload(fake)
    fake.refused_settings = {PORT}
    with pytest.raises(RestoreFailed) as failed:
        restore(fake.node(Settings()), want)
    assert f"{PF} subfunction {PORT}: cannot add it: EINVAL: Invalid argument" in (
        failed.value.failures
    )
    assert fake.skipped == 0


def test_the_plan_is_lines_for_a_shell(fake: FakeNode) -> None:
    want = saved(fake)
    have = after_reload(want)
    text = lines(plan(want, have), want, have)
    at = text.index("# add subfunctions")
    assert text[at + 1 : at + 3] == [
        f"devlink port add {PF} flavour pcisf pfnum 0 sfnum 88; "
        f"devlink port function set {PF}/100 hw_addr {MAC} roce enable",
        f"devlink port add {PF} flavour pcisf pfnum 0 sfnum 9; "
        f"devlink port function set {PF}/101 roce enable",
    ]
    (start,) = text[text.index("# start subfunctions") + 1 :][:1]
    assert start.startswith(f"devlink port function set {PF}/100 state active; sf=$(basename ")
    assert start.endswith(
        "devlink dev param set auxiliary/$sf name enable_roce value false cmode driverinit; "
        "devlink dev param set auxiliary/$sf name event_eq_size value 4096 cmode driverinit; "
        "devlink dev reload auxiliary/$sf"
    )
    (own,) = (line for line in text if line.startswith("ip link set dev sf88 "))
    assert " mtu 1400 name sf88 up" in own


def test_another_controllers() -> None:
    """A DPU's host has the function: its port is made here, and its driver is not."""
    far = Subfunction("c1pf0sf3", 5, MAC, active=True)
    mode = EswitchMode.SWITCHDEV
    want = NodeState(DRIVER, (Pf(PF, 0, subfunctions=(far,), eswitch_mode=mode),))
    have = NodeState(DRIVER, (Pf(PF, 0, subfunctions=(), eswitch_mode=mode),))
    assert lines(plan(want, have), want, have) == [
        "# add subfunctions",
        f"devlink port add {PF} flavour pcisf controller 1 pfnum 0 sfnum 3; "
        f"devlink port function set {PF}/5 hw_addr {MAC}",
        "# start subfunctions",
        f"devlink port function set {PF}/5 state active",
    ]


def test_a_snapshot_of_before_that_has_their_representors() -> None:
    """They are wanted no more."""
    have = NodeState(DRIVER, (Pf(PF, 0),))
    lost = Representor(PORT, Netdev("sf88"))
    vf0 = Representor("pf0vf0", Netdev("vf0"))
    pfs = (Pf(PF, 0, representors=(lost, vf0)),)
    assert [str(each) for each in differences(NodeState(DRIVER, pfs), have)] == [
        f"pci/{PF1} representor pf0vf0 netdev: want vf0, have missing"
    ]
    assert list(no_longer_offered(NodeState(DRIVER, pfs), have)) == []


def test_a_route_over_one_that_does_not_come_is_not_wanted() -> None:
    """Nor is one from its address, nor what is on its interface; all else is."""
    lost = Representor(PORT, Netdev("sf88"))
    vf0 = Representor("pf0vf0", Netdev("vf0"))
    child = Child(dev="sf88.7", parent="sf88", kind="vlan", data=(("id", 7),))
    both = Route("10.7.0.0/16", (Nexthop("vf0"), Nexthop("sf88.7")))
    one = Route("10.8.0.0/16", (Nexthop("vf0"),))
    of_its_address = Route("10.9.0.0/16", (Nexthop("vf0"),), src="10.7.0.1")
    address = Address("sf88", "10.7.0.1/24")
    stack = Stack(children=(child,), addresses=(address,), routes=(both, one, of_its_address))
    want = NodeState(DRIVER, (Pf(PF, 0, representors=(lost, vf0)),), stack)
    wanted = settable(want, NodeState(DRIVER, (Pf(PF, 0),))).stack
    assert wanted is not None
    assert list(wanted.things()) == [one]


@pytest.mark.parametrize("port", ["pf0vf1", "pf0", "p0", "pf0sf"])
def test_no_subfunction(port: str) -> None:
    with pytest.raises(ValueError, match="not a subfunction"):
        Subfunction(port, 0)
