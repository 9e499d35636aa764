"""The node: observed at a fixed price, and waited for by name."""

from __future__ import annotations

import dataclasses
import errno
import signal
from collections.abc import Iterator
from typing import Any, Final

import pytest

from nodeagent.errors import KernelError, Stopped, UnavailableError, WaitTimeout
from nodeagent.kernel.events import StopSignal
from nodeagent.kernel.rtnl import Link
from nodeagent.node.locate import ifindex_of, link_of, links_by_device
from nodeagent.node.node import Node
from nodeagent.node.observe import observe
from nodeagent.node.settle import (
    await_each,
    outstanding,
    unsettled,
    wait_for_pfs,
    wait_settled,
    watching,
)
from nodeagent.settings import Settings
from nodeagent.state import model
from nodeagent.state.addresses import Mac
from nodeagent.state.eswitch import EncapMode, EswitchAttributes, EswitchMode, InlineMode
from nodeagent.state.model import NO_DRIVER, DeviceHandle, Netdev, NodeState, Param, Pf, Target, Vf
from nodeagent.state.vf import LinkState, VlanProtocol
from tests.support.fake_kernel import PF1, PF2, ZERO
from tests.support.fake_node import FakeNode, FakeRtnl, fake_node
from tests.support.fake_rules import Fault
from tests.support.fake_sysctls import DEFAULTS

HANDLE = DeviceHandle("pci", PF1)
LIMITS: Final[Any] = {
    **{f"{way}{ip}_max_size": 65536 for way in ("gso", "gro") for ip in ("", "_ipv4")},
    "gso_max_segs": 65535,
}
PATIENT = dataclasses.replace(Settings(), vf_timeout=30.0, pf_timeout=30.0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    with fake_node(monkeypatch) as made:
        yield made


def with_vfs(fake: FakeNode, count: int, pf: str = PF1) -> None:
    """A PF with bound and settled VFs."""
    fake.add_pf(pf)
    fake.create_vfs(fake.pfs[pf], count)
    fake.settle()


def observed(fake: FakeNode) -> NodeState:
    return observe(fake.node(PATIENT))


# observe


def test_a_node_without_such_devices(fake: FakeNode) -> None:
    assert observed(fake) == NodeState("mlx5_core", sysctls=tuple(sorted(DEFAULTS.items())))


def test_a_pf_as_it_is(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    assert observed(fake).pfs == (
        Pf(
            HANDLE,
            numvfs=0,
            autoprobe=True,
            netdev=Netdev(
                "ens1np0",
                mac=Mac("52:54:00:00:00:01"),
                mtu=1500,
                up=True,
                altnames=(),
                promisc=False,
                allmulti=False,
                txqueuelen=1000,
                group=0,
                alias="",
                sysctls=(),
                arp=True,
                multicast=True,
                **LIMITS,
            ),
        ),
    )


def test_a_vf_as_it_is(fake: FakeNode) -> None:
    with_vfs(fake, 2)
    vf = fake.pfs[PF1].vfs[1]
    vf.held = dataclasses.replace(
        vf.held, admin_mac=Mac("02:00:00:00:00:01"), vlan=100, qos=3, trust=True
    )
    link = fake.link("0000:01:10.2")
    (pf,) = observed(fake).pfs
    assert pf.vf(1) == Vf(
        index=1,
        address="0000:01:10.2",
        driver="mlx5_core",
        driver_override="",
        admin_mac=Mac("02:00:00:00:00:01"),
        vlan=100,
        qos=3,
        vlan_proto=VlanProtocol.Q,
        trust=True,
        spoofchk=True,
        link_state=LinkState.AUTO,
        min_tx_rate=0,
        max_tx_rate=0,
        query_rss=None,
        netdev=Netdev(
            "ens1np0v1",
            mac=Mac(link.mac or ""),
            mtu=1500,
            up=False,
            altnames=(),
            promisc=False,
            allmulti=False,
            txqueuelen=1000,
            group=0,
            alias="",
            sysctls=(),
            arp=True,
            multicast=True,
            **LIMITS,
        ),
    )


@pytest.mark.parametrize("pfs", [2, 8])
def test_the_price_grows_with_pfs_and_not_with_vfs(fake: FakeNode, pfs: int) -> None:
    """One dump of all links, one request a PF; devlink asks devices that have it and no others."""
    for number in range(pfs):
        with_vfs(fake, 7, f"0000:{number + 1:02x}:00.0")
    node = fake.node(PATIENT)
    state = observe(node)
    assert state.vf_count == sum(len(pf.vfs) for pf in state.pfs) == 7 * pfs
    assert all(vf.netdev is not None and vf.admin_mac for pf in state.pfs for vf in pf.vfs)
    assert node.rtnl.requests == 1 + pfs


def test_a_pf_without_vfs_is_not_asked_for_any(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    node = fake.node(PATIENT)
    observe(node)
    assert node.rtnl.requests == 1


def test_an_interface_that_goes_between_two_requests(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is read again: a driver that recovers removes its PF's interface at any time."""
    with_vfs(fake, 2)
    dump = FakeRtnl.links

    def gone_afterwards(rtnl: FakeRtnl) -> dict[int, Link]:
        found = dump(rtnl)
        for index, link in found.items():
            if link.device == PF1:
                del fake.links[index]
        return found

    monkeypatch.setattr(FakeRtnl, "links", gone_afterwards)
    (pf,) = observed(fake).pfs
    assert (pf.netdev, pf.numvfs) == (None, 2)


def test_looking_writes_nothing(fake: FakeNode) -> None:
    with_vfs(fake, 7)
    observed(fake)
    assert fake.writes == []


def test_a_vf_in_another_namespace_has_no_netdev(fake: FakeNode) -> None:
    with_vfs(fake, 2)
    fake.move_away(fake.function(0))
    (pf,) = observed(fake).pfs
    here, there = pf.vfs[1], pf.vfs[0]
    assert here.netdev is not None
    assert (there.driver, there.netdev) == ("mlx5_core", None)
    assert there.admin_mac is not None


def test_a_vf_on_vfio_pci_and_one_on_nothing(fake: FakeNode) -> None:
    with_vfs(fake, 3)
    for index in (0, 1):
        fake.release("pci", fake.function(index))
    fake.tree.set("pci", fake.function(0), "driver_override", "vfio-pci")
    fake.attach(fake.function(0), "vfio-pci")
    (pf,) = observed(fake).pfs
    facts = [(vf.driver, vf.driver_override, vf.netdev is None) for vf in pf.vfs]
    assert facts == [
        ("vfio-pci", "vfio-pci", True),
        (NO_DRIVER, "", True),
        ("mlx5_core", "", False),
    ]


def test_representors_are_neither_the_pfs_netdev_nor_a_vfs(fake: FakeNode) -> None:
    with_vfs(fake, 2)
    first = fake.link(PF1)
    for port in ("pf0vf0", "pf0vf1", "p0"):
        mac = f"02:00:00:00:00:0{len(fake.links)}"
        fake.add_link(f"rep-{port}", mac, bus="pci", device=PF1, phys_port_name=port)
    (pf,) = observed(fake).pfs
    assert pf.netdev is not None
    assert pf.netdev.name == first.name
    assert [each.port for each in pf.representors] == ["pf0vf0", "pf0vf1"]
    assert {vf.netdev.name for vf in pf.vfs if vf.netdev} == {"ens1np0v0", "ens1np0v1"}


def test_a_pf_without_an_interface_of_its_own_has_only_representors(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    fake.release("pci", PF1)
    fake.tree.drive("pci", PF1, "mlx5_core")
    fake.add_link("rep", ZERO, bus="pci", device=PF1, phys_port_name="pf0vf0")
    (pf,) = observed(fake).pfs
    assert pf.netdev is None
    assert [each.netdev.name for each in pf.representors] == ["rep"]


def test_a_device_without_sriov(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    for attribute in ("sriov_numvfs", "sriov_drivers_autoprobe"):
        (fake.tree.device(PF1) / attribute).unlink()
    (pf,) = observed(fake).pfs
    assert (pf.numvfs, pf.autoprobe, pf.vfs) == (None, None, ())
    assert pf.netdev is not None


def test_vfs_that_are_no_devices(fake: FakeNode) -> None:
    fake.add_pf("netdevsim1", bus="netdevsim")
    fake.create_vfs(fake.pfs["netdevsim1"], 3)
    (pf,) = observed(fake).pfs
    assert str(pf.handle) == "netdevsim/netdevsim1"
    assert (pf.numvfs, pf.autoprobe) == (3, None)
    assert [(vf.index, vf.address, vf.driver, vf.driver_override) for vf in pf.vfs] == [
        (index, None, None, None) for index in range(3)
    ]
    assert {vf.query_rss for vf in pf.vfs} == {False}


def test_vfs_that_their_pf_cannot_tell_of(fake: FakeNode) -> None:
    with_vfs(fake, 3)
    fake.without_info.add((PF1, 1))
    (pf,) = observed(fake).pfs
    known = pf.vf(1)
    assert known is not None
    assert (known.admin_mac, known.vlan, known.trust) == (None, None, None)
    assert known.netdev is not None
    assert pf.vf(2) != known


def test_functions_that_come_late_are_there_without_a_driver_known(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    fake.delays.functions = 1
    fake.create_vfs(fake.pfs[PF1], 2)
    (pf,) = observed(fake).pfs
    assert [(vf.address, vf.driver) for vf in pf.vfs] == [(None, None), (None, None)]
    assert pf.vfs[0].vlan == 0


def test_devlink_is_asked_for_our_devices_only(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    fake.add_pf(PF2)
    fake.pfs[PF2].eswitch = EswitchAttributes(
        eswitch_mode=EswitchMode.SWITCHDEV, inline_mode=InlineMode.LINK, encap_mode=EncapMode.BASIC
    )
    fake.pfs[PF2].params = {"flow_steering_mode": Param("flow_steering_mode", 5, "smfs")}
    first, second = observed(fake).pfs
    assert (first.eswitch_mode, first.params) == (None, ())
    assert (second.eswitch_mode, second.inline_mode, second.encap_mode) == (
        "switchdev",
        "link",
        "basic",
    )
    assert second.params == (model.Param("flow_steering_mode", 5, "smfs"),)


def test_pfs_in_order_and_other_interfaces_in_nobodys_way(fake: FakeNode) -> None:
    fake.add_pf(PF2)
    fake.add_pf(PF1)
    fake.add_link("dummy0", "02:00:00:00:00:99")
    assert [pf.handle.name for pf in observed(fake).pfs] == [PF1, PF2]


def test_what_cannot_be_is_an_error_with_a_hint_not_a_traceback(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    fake.add_pf(PF2)
    fake.change(fake.link(PF2).index, name="ens1np0")  # a rename in the middle of the dump
    with pytest.raises(UnavailableError, match="two netdevs have one name") as caught:
        observed(fake)
    assert caught.value.hint is not None


def test_a_pf_that_goes_while_it_is_looked_at(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_vfs(fake, 2)
    real = FakeRtnl.links

    def links(self: FakeRtnl) -> object:
        found = real(self)
        fake.unplug(PF1)
        return found

    monkeypatch.setattr(FakeRtnl, "links", links)
    assert observed(fake).pfs == ()


def test_a_pf_that_goes_between_the_list_and_the_question(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_vfs(fake, 2)
    real = FakeRtnl.vfs

    def vfs(self: FakeRtnl, index: int) -> object:
        fake.unplug(PF1)
        return real(self, index)

    monkeypatch.setattr(FakeRtnl, "vfs", vfs)
    assert observed(fake).pfs == ()


def test_a_pf_whose_interface_goes_again_and_again(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_vfs(fake, 2)

    def vfs(_: FakeRtnl, index: int) -> object:
        raise KernelError(f"cannot read the VFs of interface {index}", errno=errno.ENODEV)

    monkeypatch.setattr(FakeRtnl, "vfs", vfs)
    with pytest.raises(KernelError, match="cannot read the VFs of interface"):
        observed(fake)


# closing


def test_the_node_closes_its_socket(fake: FakeNode) -> None:
    with fake.node(PATIENT) as node:
        assert isinstance(node.rtnl, FakeRtnl)
    assert node.rtnl.closed


# waiting


def test_targets_have_names() -> None:
    assert str(Target(HANDLE, None)) == "pci/0000:01:00.0"
    assert str(Target(HANDLE, 3)) == "pci/0000:01:00.0 vf 3"
    assert str(Target(HANDLE, "pf0vf3")) == "pci/0000:01:00.0 representor pf0vf3"


def test_pfs_that_come_back_late_are_awaited_with_their_names(fake: FakeNode) -> None:
    for pf in (PF1, PF2):
        fake.add_pf(pf)
    fake.delays.netdev, fake.delays.rename = 3, 4
    state = observed(fake)
    fake.restart()
    assert observed(fake).pfs[0].netdev is None
    node = fake.node(PATIENT)
    wait_for_pfs(node, state)
    assert [pf.netdev.name for pf in observe(node).pfs if pf.netdev] == ["ens1np0", "ens2np0"]
    assert not fake.is_busy()


def test_the_one_that_does_not_come_back_is_named(fake: FakeNode) -> None:
    for pf in (PF1, PF2):
        fake.add_pf(pf)
    state = observed(fake)
    fake.never.add(PF2)
    fake.restart()
    with pytest.raises(WaitTimeout) as caught:
        wait_for_pfs(fake.node(PATIENT), state)
    assert caught.value.missing == ("pci/0000:02:00.0: no network interface",)
    assert "PFs" in caught.value.message


def test_a_pf_whose_probe_failed_is_probed_once_more(fake: FakeNode) -> None:
    """What firmware refused once; the wait is not spent on it."""
    for pf in (PF1, PF2):
        fake.add_pf(pf)
    state = observed(fake)
    fake.release("pci", PF2)
    node = fake.node(PATIENT)
    wait_for_pfs(node, state)
    assert [pf.netdev.name for pf in observe(node).pfs if pf.netdev] == ["ens1np0", "ens2np0"]


def test_a_pf_whose_probe_fails_again_is_not_awaited(
    fake: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    for pf in (PF1, PF2):
        fake.add_pf(pf)
    state = observed(fake)
    fake.release("pci", PF2)
    fake.plant(PF2, "drivers_probe", Fault())
    wait_for_pfs(fake.node(PATIENT), state)
    assert "pci/0000:02:00.0: the probe by mlx5_core failed" in caplog.text


def test_a_pf_that_never_had_an_interface_is_not_awaited(fake: FakeNode) -> None:
    state = NodeState("mlx5_core", (Pf(HANDLE, 0, True, None),))
    wait_for_pfs(fake.node(PATIENT), state)


def test_a_stop_ends_the_wait(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    state = observed(fake)
    fake.never.add(PF1)
    fake.restart()
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            wait_for_pfs(fake.node(PATIENT, stop), state)


def settled(fake: FakeNode, index: int | None, node: Node | None = None) -> str | None:
    return unsettled(node or fake.node(PATIENT), Target(HANDLE, index))


def test_the_life_of_a_vf_until_it_is_settled(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    fake.tree.set("pci", PF1, "sriov_drivers_autoprobe", "0")
    where = "pci/0000:01:00.0 vf 0"
    assert settled(fake, 0) == f"{where} (no such function)"
    fake.create_vfs(fake.pfs[PF1], 1)
    assert settled(fake, 0) == f"{where} (0000:01:10.0): bound to no driver"
    fake.attach(fake.function(0), "mlx5_core")
    assert settled(fake, 0) == f"{where} (0000:01:10.0): no network interface"
    fake.tick()
    assert settled(fake, 0) == f"{where} (0000:01:10.0): udev has not finished with its interface"
    fake.tick()
    assert settled(fake, 0) is None


def test_a_pf_that_is_gone_is_looked_for_by_a_rescan(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    fake.unplug(PF1)
    why = "is not on the bus any more: `echo 1 >/sys/bus/pci/rescan` looks for it"
    assert settled(fake, None) == f"pci/{PF1}: {why}"


def test_without_udevd_an_interface_is_settled_once_it_exists(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    fake.stop_udevd()
    fake.create_vfs(fake.pfs[PF1], 1)
    fake.tick()
    assert fake.link(fake.function(0)).name == "eth0"
    assert settled(fake, 0) is None


def test_udevd_that_dies_in_the_middle_is_not_waited_for(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    fake.delays.rename = 1000
    fake.create_vfs(fake.pfs[PF1], 1)
    fake.tick()
    assert settled(fake, 0) is not None
    fake.stop_udevd()
    assert settled(fake, 0) is None


def test_a_rename_that_finds_its_name_taken_is_settled(fake: FakeNode) -> None:
    """udevd gives up, and leaves an entry that says so by what it lacks."""
    fake.add_pf(PF1)
    fake.add_link("ens1np0v0", "02:00:00:00:00:99")
    fake.create_vfs(fake.pfs[PF1], 1)
    fake.settle()
    assert fake.link(fake.function(0)).name == "eth0"
    assert settled(fake, 0) is None


def test_udevs_broadcast_is_its_word_too(fake: FakeNode) -> None:
    """With other events in its queue the database says nothing of a rename that failed."""
    fake.add_pf(PF1)
    fake.add_link("ens1np0v0", "02:00:00:00:00:99")
    node = fake.node(PATIENT)
    with watching(node) as watches:
        fake.create_vfs(fake.pfs[PF1], 2)
        fake.delays.rename = 10_000  # one more event, and the queue is not empty for ages
        fake.udev_sees_rename(fake.link(PF1).index)
        fake.delays.rename = 1
        wait_settled(node, [Target(HANDLE, 0), Target(HANDLE, 1)], watches, "VFs", 30.0)
    assert settled(fake, 0) is not None


def test_vfs_that_do_not_come_are_all_named(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    fake.never |= {fake.function(1), fake.function(5)}
    node = fake.node(PATIENT)
    with watching(node) as watches:
        fake.create_vfs(fake.pfs[PF1], 7)
        with pytest.raises(WaitTimeout) as caught:
            wait_settled(node, [Target(HANDLE, n) for n in range(7)], watches, "VFs", 30.0)
    assert caught.value.missing == (
        "pci/0000:01:00.0 vf 1 (0000:01:10.2): no network interface",
        "pci/0000:01:00.0 vf 5 (0000:01:11.2): no network interface",
    )


def test_vfs_that_another_program_removes_are_not_waited_for(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    fake.never |= {fake.function(0), fake.function(1)}
    node = fake.node(PATIENT)
    with watching(node) as watches:
        fake.create_vfs(fake.pfs[PF1], 2)
        fake.later(3, lambda: fake.remove_vfs(fake.pfs[PF1]))
        before = fake.monotonic()
        wait_settled(node, [Target(HANDLE, 0), Target(HANDLE, 1)], watches, "VFs", 30.0)
    assert fake.monotonic() - before < 30


def test_nor_is_what_a_pf_had_that_has_lost_its_driver(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    node = fake.node(PATIENT)
    with watching(node) as watches:
        fake.later(3, lambda: fake.release("pci", PF1))
        before = fake.monotonic()
        wait_settled(node, [Target(HANDLE, "pf0vf0")], watches, "representors", 30.0)
    assert fake.monotonic() - before < 30


def test_nor_is_a_port_of_an_eswitch_that_another_sets_to_legacy_mode(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    pf = fake.pfs[PF1]
    pf.eswitch = EswitchAttributes(eswitch_mode=EswitchMode.SWITCHDEV)

    def to_legacy() -> None:
        pf.eswitch = EswitchAttributes(eswitch_mode=EswitchMode.LEGACY)

    node = fake.node(PATIENT)
    with watching(node) as watches:
        fake.later(3, to_legacy)
        before = fake.monotonic()
        wait_settled(node, [Target(HANDLE, "pf0vf0")], watches, "representors", 30.0)
    assert fake.monotonic() - before < 30


@pytest.mark.parametrize("whose", ["PF", "VF"])
def test_nor_is_what_belongs_to_a_function_in_a_fatal_error(fake: FakeNode, whose: str) -> None:
    fake.add_pf(PF1)
    fake.never.add(fake.function(0))
    fake.create_vfs(fake.pfs[PF1], 1)
    failed = PF1 if whose == "PF" else fake.function(0)
    node, targets = fake.node(PATIENT), [Target(HANDLE, 0)]
    with watching(node) as watches:
        fake.later(3, lambda: fake.in_fatal_error.add(failed))
        before = fake.monotonic()
        wait_settled(node, targets, watches, "VFs", 30.0)
        assert await_each(node, targets, lambda _: "no device", watches, "devices") == []
    assert fake.monotonic() - before < 30


def test_a_pf_that_is_not_on_the_bus_is_not_awaited(
    fake: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    for pf in (PF1, PF2):
        fake.add_pf(pf)
    state = observed(fake)
    fake.unplug(PF2)
    before = fake.monotonic()
    wait_for_pfs(fake.node(PATIENT), state)
    assert fake.monotonic() - before < 30
    assert "pci/0000:02:00.0: is not on the bus any more" in caplog.text


def test_an_interface_that_was_there_before_the_wait_needs_no_event(fake: FakeNode) -> None:
    with_vfs(fake, 7)
    node = fake.node(PATIENT)
    with watching(node) as watches:
        wait_settled(node, [Target(HANDLE, n) for n in range(7)], watches, "VFs", 30.0)


# a look that begins where the last one stopped


def test_a_look_costs_one_check_while_something_is_missing() -> None:
    missing = {Target(HANDLE, n) for n in range(300)}
    checks = 0

    def reason(target: object) -> str | None:
        nonlocal checks
        checks += 1
        return "missing" if target in missing else None

    look = outstanding([Target(HANDLE, n) for n in range(300)], reason)
    for n in range(300):
        assert next(iter(look())) == "missing"
        missing.discard(Target(HANDLE, n))
    assert list(look()) == []
    assert checks < 3 * 300


def test_a_whole_look_names_each_once_wherever_it_begins() -> None:
    targets = [Target(HANDLE, n) for n in range(4)]
    missing = {*targets[1:]}
    look = outstanding(targets, lambda target: str(target) if target in missing else None)
    assert next(look()) == str(targets[1])
    missing.discard(targets[1])
    assert next(look()) == str(targets[2])
    missing = {*targets}
    assert sorted(look()) == sorted(map(str, targets))


def test_what_came_and_went_again_is_missed() -> None:
    missing = {Target(HANDLE, 1)}
    look = outstanding(
        [Target(HANDLE, n) for n in range(3)],
        lambda target: "missing" if target in missing else None,
    )
    assert list(look()) == ["missing"]
    missing = {Target(HANDLE, 0)}
    assert list(look()) == ["missing"]
    missing = set()
    assert list(look()) == []


def test_an_interface_on_virtio_is_that_of_its_function(fake: FakeNode) -> None:
    """virtio-net with SR-IOV: its interface's parent is virtioN, on the VF."""
    with_vfs(fake, 1)
    link = fake.link("0000:01:10.0")
    place = fake.tree.root / "devices" / "0000:01:10.0" / "virtio3"
    place.mkdir(parents=True)
    bus = fake.tree.root / "bus" / "pci"
    (place.parent / "subsystem").symlink_to(bus)
    directory = fake.tree.root / "bus" / "virtio" / "devices"
    directory.mkdir(parents=True)
    (directory / "virtio3").symlink_to(place)
    fake.links[link.index] = dataclasses.replace(link, bus="virtio", device="virtio3")
    with fake.node(PATIENT) as node:
        target = Target(HANDLE, 0)
        assert link_of(node, target, links_by_device(node)) == fake.links[link.index]
        assert unsettled(node, target) is None


def test_a_pf_is_settled_when_its_own_interface_is_and_not_a_representor(fake: FakeNode) -> None:
    """A representor may have come first, and have the lower number."""
    fake.add_pf(PF1)
    own = fake.link(PF1)
    fake.links[own.index] = dataclasses.replace(own, phys_port_name="p0")
    fake.tree.hide(own)
    representor = fake.add_link("rep0", bus="pci", device=PF1, phys_port_name="pf0vf0")
    late = fake.add_link("late0", bus="pci", device=PF1, phys_port_name="p0")
    fake.udev_writes(late.index, "E:ID_RENAMING=1\n")
    del fake.links[own.index]
    with fake.node(PATIENT) as node:
        assert representor.index < late.index
        assert ifindex_of(node, Target(HANDLE, None)) == late.index
