"""Performing a plan on a node that reacts: every failure named, and the others done."""

from __future__ import annotations

import dataclasses
import errno
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from nodeagent.errors import Stopped
from nodeagent.kernel.events import StopSignal
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.node import devices, retry
from nodeagent.node.attempt import Attempt
from nodeagent.node.locate import device_of
from nodeagent.node.observe import observe
from nodeagent.node.perform import perform
from nodeagent.node.settle import await_netdevs, watching
from nodeagent.plan.actions import (
    BindPf,
    BindVf,
    CreateVfs,
    OverrideDriver,
    SetAutoprobe,
    SetEswitch,
    SetLink,
    SetParam,
    SetVf,
    Stage,
    UnbindVf,
)
from nodeagent.settings import Settings
from nodeagent.state.addresses import Mac
from nodeagent.state.eswitch import EncapMode, EswitchAttributes, EswitchMode, InlineMode
from nodeagent.state.model import DeviceHandle, NodeState, Param, Target
from nodeagent.state.vf import LinkState, VlanProtocol
from tests.support.fake_kernel import PF1, PF2
from tests.support.fake_node import FakeNode, fake_node
from tests.support.fake_rules import Fault, Write

HANDLE, OTHER = DeviceHandle("pci", PF1), DeviceHandle("pci", PF2)
PATIENT = dataclasses.replace(Settings(), vf_timeout=30.0, pf_timeout=30.0)
NO_RATES = "EINVAL: Invalid argument"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    """A PF without VFs, autoprobe off: what the middle of a restore looks like."""
    with fake_node(monkeypatch) as made:
        made.add_pf(PF1)
        made.tree.set("pci", PF1, "sriov_drivers_autoprobe", "0")
        yield made


def stage(*actions: object) -> Stage:
    return Stage("test", tuple(actions))  # type: ignore[arg-type] # a test's shorthand


def run(fake: FakeNode, *stages: Stage, settings: Settings = PATIENT) -> tuple[str, ...]:
    return perform(Attempt(fake.node(settings)), stages)


def bind(index: int) -> BindVf:
    return BindVf(HANDLE, index, f"0000:01:{16 + index // 4}.{2 * (index % 4)}", "mlx5_core")


def bound(fake: FakeNode, count: int) -> None:
    """That many VFs, bound and settled."""
    fake.create_vfs(fake.pfs[PF1], count)
    for index in range(count):
        fake.attach(fake.function(index), "mlx5_core")
    fake.settle()


# ensures: nothing is written that is already so


def test_an_empty_plan_writes_nothing(fake: FakeNode) -> None:
    assert run(fake) == ()
    assert fake.writes == []


def test_what_is_already_so_is_not_written(fake: FakeNode) -> None:
    bound(fake, 2)
    link = fake.link(PF1)
    actions = (
        BindPf(HANDLE, "mlx5_core"),
        SetAutoprobe(HANDLE, False),
        CreateVfs(HANDLE, 2),
        SetVf(HANDLE, 0, vlan=0, qos=0, vlan_proto=VlanProtocol.Q, trust=False, min_tx_rate=0),
        OverrideDriver(HANDLE, 1, fake.function(1), ""),
        bind(1),
        SetLink(HANDLE, None, name=link.name, mtu=1500, up=True, altnames=()),
        SetLink(HANDLE, 1, up=False, alias="", promisc=False),
    )
    assert run(fake, *map(stage, actions)) == ()
    assert fake.writes == []


def test_only_what_differs_is_written(fake: FakeNode) -> None:
    bound(fake, 1)
    assert (
        run(fake, stage(SetVf(HANDLE, 0, trust=True, spoofchk=True, link_state=LinkState.AUTO)))
        == ()
    )
    assert run(fake, stage(SetLink(HANDLE, 0, mtu=1400, up=False, txqueuelen=1000))) == ()
    assert fake.writes == [
        Write(f"{PF1} vf 0", "trust", True),
        Write(fake.function(0), "mtu", 1400),
    ]


def test_vlan_and_rates_go_out_as_a_whole(fake: FakeNode) -> None:
    bound(fake, 1)
    vlan = SetVf(HANDLE, 0, vlan=0, qos=3, vlan_proto=VlanProtocol.Q)
    rates = SetVf(HANDLE, 0, min_tx_rate=0, max_tx_rate=100)
    assert run(fake, stage(vlan), stage(rates)) == ()
    assert fake.writes == [
        Write(f"{PF1} vf 0", "vlan", (0, 3, "802.1Q")),
        Write(f"{PF1} vf 0", "rate", (0, 100)),
    ]


def test_the_requests_of_a_stage_do_not_grow_with_vfs_that_are_right(fake: FakeNode) -> None:
    bound(fake, 7)
    node = fake.node(PATIENT)
    perform(Attempt(node), [stage(*(SetVf(HANDLE, index, trust=False) for index in range(7)))])
    assert node.rtnl.requests == 1


# one action of each kind


def test_vfs_are_created_and_awaited(fake: FakeNode) -> None:
    fake.delays.functions = 3
    assert run(fake, stage(CreateVfs(HANDLE, 7))) == ()
    node = fake.node(PATIENT)
    assert all(device_of(node, Target(HANDLE, index)) for index in range(7))


def test_vfs_are_bound_without_probing_twice(fake: FakeNode) -> None:
    fake.create_vfs(fake.pfs[PF1], 7)
    fake.tree.set("pci", PF1, "sriov_drivers_autoprobe", "1")
    assert run(fake, stage(*map(bind, range(7)))) == ()
    assert [write.attribute for write in fake.writes] == ["bind"] * 7


def test_a_vf_goes_to_vfio_pci_by_its_override(fake: FakeNode) -> None:
    bound(fake, 1)
    function = fake.function(0)
    actions = (
        UnbindVf(HANDLE, 0, function, "mlx5_core"),
        OverrideDriver(HANDLE, 0, function, "vfio-pci"),
        BindVf(HANDLE, 0, function, "vfio-pci", override=True),
    )
    assert run(fake, *map(stage, actions)) == ()
    assert fake.tree.driver(function) == "vfio-pci"
    assert run(fake, stage(OverrideDriver(HANDLE, 0, function, ""))) == ()
    assert fake.node(PATIENT).sysfs.driver_override("pci", function) == ""


def test_a_pf_that_lost_its_driver_gets_it_back(fake: FakeNode) -> None:
    fake.release("pci", PF1)
    assert (
        run(fake, stage(BindPf(HANDLE, "mlx5_core")), stage(SetLink(HANDLE, None, up=True))) == ()
    )
    assert fake.link(PF1).up


def test_eswitch_and_parameters(fake: FakeNode) -> None:
    fake.pfs[PF1].eswitch = EswitchAttributes(
        eswitch_mode=EswitchMode.LEGACY, inline_mode=InlineMode.NONE, encap_mode=EncapMode.BASIC
    )
    fake.create_vfs(fake.pfs[PF1], 2)
    param = Param("flow_steering_mode", 5, "smfs")
    name = SetLink(HANDLE, "pf0vf1", name="rep1", up=True)
    plan = (
        SetParam(HANDLE, param),
        SetEswitch(HANDLE, eswitch_mode=EswitchMode.SWITCHDEV, inline_mode=InlineMode.LINK),
        name,
    )
    assert run(fake, *map(stage, plan)) == ()
    assert fake.pfs[PF1].eswitch == EswitchAttributes(
        eswitch_mode=EswitchMode.SWITCHDEV, inline_mode=InlineMode.LINK, encap_mode=EncapMode.BASIC
    )
    (pf,) = observe(fake.node(PATIENT)).pfs
    assert pf.params == (param,)
    netdev = pf.netdev_of("pf0vf1")
    assert netdev is not None
    assert (netdev.name, netdev.up) == ("rep1", True)


def test_an_eswitch_that_takes_its_mode_only_without_vfs(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ice: they are removed and made again, unbound as they were."""
    monkeypatch.setattr("nodeagent.node.devices.has", lambda *_: False)
    fake.pfs[PF1].eswitch = EswitchAttributes(eswitch_mode=EswitchMode.LEGACY)
    fake.create_vfs(fake.pfs[PF1], 2)
    fake.plant(PF1, "eswitch", Fault(errno.EOPNOTSUPP, times=1))
    assert run(fake, stage(SetEswitch(HANDLE, eswitch_mode=EswitchMode.SWITCHDEV))) == ()
    assert [write.value for write in fake.written("sriov_numvfs")] == ["0", "2"]
    assert fake.pfs[PF1].eswitch == EswitchAttributes(eswitch_mode=EswitchMode.SWITCHDEV)


@pytest.mark.parametrize(("times", "mode"), [(2, EswitchMode.SWITCHDEV), (99, EswitchMode.LEGACY)])
def test_mlx5_means_busy_by_einval_and_keeps_its_vfs(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch, times: int, mode: EswitchMode
) -> None:
    """mlx5_esw_try_lock(): asked again; removing the VFs would take what legacy holds for them."""
    monkeypatch.setattr(retry, "BUSY_TIMEOUT", 1.0)
    fake.pfs[PF1].eswitch = EswitchAttributes(eswitch_mode=EswitchMode.LEGACY)
    fake.create_vfs(fake.pfs[PF1], 2)
    fake.plant(PF1, "eswitch", Fault(errno.EINVAL, times=times))
    failures = run(fake, stage(SetEswitch(HANDLE, eswitch_mode=EswitchMode.SWITCHDEV)))
    assert fake.written("sriov_numvfs") == []
    assert fake.pfs[PF1].eswitch == EswitchAttributes(eswitch_mode=mode)
    assert [each for each in failures if "cannot set the eswitch: EINVAL" in each] == [*failures]
    assert bool(failures) is (mode is EswitchMode.LEGACY)


# failures: named, and the others done


def test_one_bind_is_refused_and_the_others_are_done(fake: FakeNode) -> None:
    fake.create_vfs(fake.pfs[PF1], 7)
    fake.tree.set("pci", PF1, "sriov_drivers_autoprobe", "1")
    fake.plant(fake.function(3), "bind", Fault(errno.EBUSY))
    (failure,) = run(fake, stage(*map(bind, range(7))))
    assert failure.startswith(f"pci/{PF1} vf 3: cannot write '{fake.function(3)}' to ")
    assert failure.endswith("bind: EBUSY: Device or resource busy")
    drivers = [fake.tree.driver(fake.function(index)) for index in range(7)]
    assert drivers == ["mlx5_core"] * 3 + [None] + ["mlx5_core"] * 3


def test_a_bind_that_returns_0_and_does_nothing(fake: FakeNode) -> None:
    fake.create_vfs(fake.pfs[PF1], 2)
    fake.tree.set("pci", PF1, "sriov_drivers_autoprobe", "1")
    fake.plant(fake.function(0), "bind", Fault())
    assert run(fake, stage(bind(0), bind(1))) == (
        f"pci/{PF1} vf 0: the bind of 0000:01:10.0 to mlx5_core left it bound to none",
    )
    assert fake.tree.driver(fake.function(1)) == "mlx5_core"


def test_a_bind_while_autoprobe_is_off(fake: FakeNode) -> None:
    fake.create_vfs(fake.pfs[PF1], 1)
    (failure,) = run(fake, stage(bind(0)))
    assert "ENODEV: No such device" in failure


def test_fewer_vfs_than_were_asked_for(fake: FakeNode) -> None:
    fake.plant(PF1, "sriov_numvfs", Fault(count=4))
    failures = run(fake, stage(CreateVfs(HANDLE, 7)))
    # and nobody waits for those that were not made: the next look at the node misses them
    assert failures == (f"pci/{PF1}: the kernel took numvfs 7 and reports 4",)


def test_more_vfs_than_there_can_be(fake: FakeNode) -> None:
    failure, *_ = run(fake, stage(CreateVfs(HANDLE, 8)))
    assert "cannot write '8' to" in failure
    assert "ERANGE" in failure


def test_what_depends_on_a_pf_without_its_driver_is_not_tried(fake: FakeNode) -> None:
    """Nor are VFs that could not be made: the PF's own failure says why."""
    fake.plant(PF1, "drivers_probe", Fault())
    fake.release("pci", PF1)
    actions = (
        BindPf(HANDLE, "mlx5_core"),
        SetParam(HANDLE, Param("flow_steering_mode", 5, "smfs")),
        CreateVfs(HANDLE, 2),
        SetVf(HANDLE, 1, trust=True),
        SetEswitch(HANDLE, eswitch_mode=EswitchMode.SWITCHDEV),
        bind(1),
        SetLink(HANDLE, None, mtu=9000),
    )
    assert run(fake, *map(stage, actions)) == (
        f"pci/{PF1}: the probe by mlx5_core failed; dmesg says why",
    )


def test_a_pf_whose_firmware_does_not_start_is_probed_once(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe takes two minutes then, in which the VFs of other PFs are not made either."""
    fake.release("pci", PF1)
    probed: list[str] = []

    def probe(_: Sysfs, __: str, name: str) -> None:
        probed.append(name)
        fake.skipped += 120

    monkeypatch.setattr(Sysfs, "probe", probe)
    monkeypatch.setattr(devices, "time", SimpleNamespace(monotonic=fake.monotonic))
    with fake.node(Settings()) as node:
        for _ in range(2):
            (failure,) = perform(Attempt(node), [stage(BindPf(HANDLE, "mlx5_core"))])
            assert failure.startswith(f"pci/{PF1}: the probe by mlx5_core failed: the firmware")
    assert probed == [PF1]


def test_vfs_that_could_not_be_made_are_not_bound(fake: FakeNode) -> None:
    fake.plant(PF1, "sriov_numvfs", Fault(errno.EINVAL))
    failures = run(fake, stage(CreateVfs(HANDLE, 2)), stage(bind(0), bind(1)))
    assert [text.partition(":")[0] for text in failures] == ["pci/0000"]
    assert "cannot write '2' to" in failures[0]


def test_functions_that_never_come_are_named(fake: FakeNode) -> None:
    fake.missing |= {fake.function(1), fake.function(2)}
    failures = run(fake, stage(CreateVfs(HANDLE, 4)))
    assert failures == tuple(f"pci/{PF1} vf {n}: has not appeared after 30 s" for n in (1, 2))


def test_a_function_that_points_to_another_pf_is_not_touched(fake: FakeNode) -> None:
    bound(fake, 1)
    physfn = fake.tree.device(fake.function(0)) / "physfn"
    physfn.unlink()
    physfn.symlink_to(f"../{PF2}")
    actions = (UnbindVf(HANDLE, 0, fake.function(0), "mlx5_core"), SetLink(HANDLE, 0, mtu=1400))
    failures = run(fake, *map(stage, actions))
    assert failures[0] == f"pci/{PF1} vf 0: has no function that points back to its PF"
    assert fake.writes == []


def test_a_vf_that_somebody_else_took_meanwhile_is_left_alone(fake: FakeNode) -> None:
    bound(fake, 1)
    fake.release("pci", fake.function(0))
    fake.attach(fake.function(0), "vfio-pci")
    unbind = UnbindVf(HANDLE, 0, fake.function(0), "mlx5_core")
    assert run(fake, stage(unbind)) == (
        f"pci/{PF1} vf 0: is bound to vfio-pci by now, not to mlx5_core: left alone",
    )


def test_a_pf_whose_unbind_is_under_way_is_probed_at_its_end(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its link is gone by then; drivers_probe does nothing, and a read of sriov_numvfs waits."""
    fake.release("pci", PF1)
    probe, numvfs, over = Sysfs.probe, Sysfs.numvfs, threading.Event()

    def read(sysfs: Sysfs, bus: str, name: str) -> int | None:
        over.set()
        return numvfs(sysfs, bus, name)

    def probe_if_over(sysfs: Sysfs, bus: str, name: str) -> None:
        if over.is_set():
            probe(sysfs, bus, name)

    monkeypatch.setattr(Sysfs, "numvfs", read)
    monkeypatch.setattr(Sysfs, "probe", probe_if_over)
    assert run(fake, stage(BindPf(HANDLE, "mlx5_core"))) == ()


def test_a_pf_that_can_have_fewer_vfs_than_before(fake: FakeNode) -> None:
    fake.tree.set("pci", PF1, "sriov_totalvfs", "7")
    (refused,) = run(fake, stage(CreateVfs(HANDLE, 8)))
    assert refused.startswith(f"pci/{PF1}: cannot have 8 VFs: sriov_totalvfs is 7 by now; ")
    assert f"`mlxconfig -d {PF1} set NUM_OF_VFS=8`" in refused


def test_a_pf_that_is_gone(fake: FakeNode) -> None:
    """Nothing waits for its VFs, so that the others have theirs at once."""
    fake.unplug(PF1)
    actions = (BindPf(HANDLE, "mlx5_core"), CreateVfs(HANDLE, 2), SetVf(HANDLE, 0, trust=True))
    rescan = "`echo 1 >/sys/bus/pci/rescan` looks for it"
    assert run(fake, *map(stage, actions)) == (f"pci/{PF1}: is not on the bus any more: {rescan}",)


def test_a_pf_that_goes_between_the_list_and_the_question(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its failure is one among others: the VFs of the other PF are set."""
    fake.add_pf(PF2)
    for pf in (PF1, PF2):
        fake.create_vfs(fake.pfs[pf], 1)
    node = fake.node(PATIENT)
    real = node.rtnl.vfs

    def vfs(index: int) -> object:
        if index == fake.link(PF2).index:
            return real(index)
        fake.release("pci", PF1)
        return real(index)

    monkeypatch.setattr(node.rtnl, "vfs", vfs)
    failures = perform(
        Attempt(node), [stage(SetVf(HANDLE, 0, trust=True), SetVf(OTHER, 0, trust=True))]
    )
    assert len(failures) == 1
    assert failures[0].startswith(f"pci/{PF1}: cannot read the VFs of interface")
    assert fake.pfs[PF2].vfs[0].held.trust is True


def test_a_refused_message_is_taken_apart_and_the_part_is_named(fake: FakeNode) -> None:
    fake.create_vfs(fake.pfs[PF1], 2)
    everything = {
        "admin_mac": Mac("02:00:00:00:00:01"),
        "vlan": 100,
        "qos": 3,
        "vlan_proto": "802.1Q",
        "spoofchk": False,
        "link_state": "enable",
        "query_rss": True,
        "trust": True,
    }
    actions = [SetVf(HANDLE, index, **everything) for index in range(2)]  # type: ignore[arg-type]
    failures = run(fake, stage(*actions))
    assert failures == tuple(
        f"pci/{PF1} vf {index}: cannot set its {part}: EOPNOTSUPP: Operation not supported"
        for index in range(2)
        for part in ("link state", "query_rss")
    )
    for vf in fake.pfs[PF1].vfs.values():
        held = vf.held
        assert (held.admin_mac, held.vlan, held.qos) == ("02:00:00:00:00:01", 100, 3)
        assert (held.spoofchk, held.trust) == (False, True)


def test_a_refused_link_message_is_taken_apart(fake: FakeNode) -> None:
    bound(fake, 1)
    fake.add_link("taken", "02:00:00:00:00:99")
    change = SetLink(HANDLE, 0, name="taken", mtu=1400, alias="rack 4", up=True)
    assert run(fake, stage(change)) == (
        f"pci/{PF1} vf 0: cannot set its name: EEXIST: File exists; "
        "another interface has that name",
    )
    link = fake.link(fake.function(0))
    assert (link.mtu, link.alias, link.up) == (1400, "rack 4", True)


def test_a_mac_that_the_administrator_has_forbidden(fake: FakeNode) -> None:
    bound(fake, 1)
    assert run(fake, stage(SetVf(HANDLE, 0, admin_mac=Mac("02:00:00:00:00:01")))) == ()
    (failure,) = run(fake, stage(SetLink(HANDLE, 0, mac=Mac("02:00:00:00:00:02"), mtu=1400)))
    assert failure.startswith(f"pci/{PF1} vf 0: cannot set its MAC: EADDRNOTAVAIL")
    assert fake.link(fake.function(0)).mtu == 1400


def test_a_vf_without_an_index_there(fake: FakeNode) -> None:
    fake.create_vfs(fake.pfs[PF1], 1)
    (failure,) = run(fake, stage(SetVf(HANDLE, 0, trust=True), SetVf(HANDLE, 5, trust=True)))
    assert failure == f"pci/{PF1} vf 5: cannot set its trust: EINVAL: Invalid argument"
    assert fake.pfs[PF1].vfs[0].held.trust is True


def test_a_driver_without_an_eswitch(fake: FakeNode) -> None:
    actions = (
        SetEswitch(HANDLE, eswitch_mode=EswitchMode.SWITCHDEV),
        SetParam(HANDLE, Param("x", 3, 1)),
    )
    first, second = run(fake, *map(stage, actions))
    assert first.startswith(f"pci/{PF1}: cannot set the eswitch: EOPNOTSUPP")
    assert second.startswith(f"pci/{PF1}: cannot set the devlink parameter x: EOPNOTSUPP")


def test_an_eswitch_is_refused_while_vfs_are_bound_and_they_stay(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "BUSY_TIMEOUT", 0.1)
    fake.pfs[PF1].eswitch = EswitchAttributes(eswitch_mode=EswitchMode.LEGACY)
    bound(fake, 2)
    (failure,) = run(fake, stage(SetEswitch(HANDLE, eswitch_mode=EswitchMode.SWITCHDEV)))
    assert "cannot set the eswitch: EBUSY" in failure
    assert fake.written("sriov_numvfs") == []


def test_a_write_that_is_silently_ignored_is_no_failure_here(fake: FakeNode) -> None:
    """That the node is not as wanted is found by looking at it, which is verify's work."""
    fake.create_vfs(fake.pfs[PF1], 1)
    fake.plant(f"{PF1} vf 0", "trust", Fault())
    assert run(fake, stage(SetVf(HANDLE, 0, trust=True))) == ()
    assert fake.pfs[PF1].vfs[0].held.trust is False


def test_a_write_that_blocks_for_ever(fake: FakeNode) -> None:
    fake.create_vfs(fake.pfs[PF1], 2)
    fake.tree.set("pci", PF1, "sriov_drivers_autoprobe", "1")
    fault = fake.plant(fake.function(0), "bind", Fault(held=threading.Event()))
    hasty = dataclasses.replace(Settings(), vf_timeout=0.5)
    (failure,) = run(fake, stage(bind(0), bind(1)), settings=hasty)
    assert failure == (
        f"pci/{PF1} vf 0: still blocked in the kernel after 0.5 s; its thread is left there"
    )
    assert fake.tree.driver(fake.function(1)) == "mlx5_core"
    assert fault.held is not None


# waits


def test_a_rate_waits_for_carrier(fake: FakeNode) -> None:
    fake.create_vfs(fake.pfs[PF1], 1)
    fake.change(fake.link(PF1).index, up=False, carrier=False)
    fake.delays.carrier = 5
    rate = SetVf(HANDLE, 0, min_tx_rate=0, max_tx_rate=100)
    assert run(fake, stage(SetLink(HANDLE, None, up=True)), stage(rate)) == ()
    assert fake.pfs[PF1].vfs[0].held.max_tx_rate == 100


def test_a_rate_without_carrier_says_so(fake: FakeNode) -> None:
    fake.create_vfs(fake.pfs[PF1], 1)
    fake.change(fake.link(PF1).index, carrier=False)
    rate = SetVf(HANDLE, 0, min_tx_rate=0, max_tx_rate=100, trust=True)
    assert run(fake, stage(rate)) == (
        f"pci/{PF1}: no carrier, for its VFs' rates, after 30 s",
        f"pci/{PF1} vf 0: cannot set its rate: {NO_RATES}",
    )
    assert fake.pfs[PF1].vfs[0].held.trust is True


def test_no_rate_needs_no_carrier(fake: FakeNode) -> None:
    fake.create_vfs(fake.pfs[PF1], 1)
    fake.change(fake.link(PF1).index, carrier=False)
    assert run(fake, stage(SetVf(HANDLE, 0, trust=True))) == ()


def test_an_interface_is_set_up_only_after_its_rename(fake: FakeNode) -> None:
    """The failure of the field report: eth0 set up in the middle could not be renamed."""
    fake.create_vfs(fake.pfs[PF1], 1)
    fake.tree.set("pci", PF1, "sriov_drivers_autoprobe", "1")
    fake.delays.netdev, fake.delays.rename = 3, 7
    assert run(fake, stage(bind(0)), stage(SetLink(HANDLE, 0, mtu=1400, up=True))) == ()
    link = fake.link(fake.function(0))
    assert (link.name, link.mtu, link.up) == ("ens1np0v0", 1400, True)


def test_a_vf_whose_attribute_was_refused_still_waits_for_its_rename(fake: FakeNode) -> None:
    """Its netdev comes all the same, and must not be set up while it is still eth0."""
    fake.create_vfs(fake.pfs[PF1], 1)
    fake.tree.set("pci", PF1, "sriov_drivers_autoprobe", "1")
    fake.delays.netdev, fake.delays.rename = 3, 7
    actions = (SetVf(HANDLE, 0, query_rss=True), bind(0), SetLink(HANDLE, 0, mtu=1400, up=True))
    (failure,) = run(fake, *map(stage, actions))
    assert "query_rss" in failure
    fake.settle()
    link = fake.link(fake.function(0))
    assert (link.name, link.mtu, link.up) == ("ens1np0v0", 1400, True)


def test_a_pf_whose_vfs_lack_carrier_still_waits_for_its_own_rename(fake: FakeNode) -> None:
    fake.create_vfs(fake.pfs[PF1], 1)
    fake.change(fake.link(PF1).index, carrier=False)
    rate = SetVf(HANDLE, 0, min_tx_rate=0, max_tx_rate=100)
    failures = run(fake, stage(rate), stage(SetLink(HANDLE, None, mtu=3000)))
    assert len(failures) == 2
    assert fake.link(PF1).mtu == 3000


def test_a_vf_whose_netdev_never_comes_is_named_and_the_others_are_right(fake: FakeNode) -> None:
    fake.create_vfs(fake.pfs[PF1], 3)
    fake.tree.set("pci", PF1, "sriov_drivers_autoprobe", "1")
    fake.never.add(fake.function(1))
    links = [SetLink(HANDLE, index, mtu=1400, up=True) for index in range(3)]
    failures = run(fake, stage(*map(bind, range(3))), stage(*links))
    assert failures == (f"pci/{PF1} vf 1 ({fake.function(1)}): no network interface after 30 s",)
    assert all(fake.link(fake.function(index)).up for index in (0, 2))


def test_one_that_is_still_being_renamed_at_the_deadline_is_left_alone(fake: FakeNode) -> None:
    fake.create_vfs(fake.pfs[PF1], 2)
    fake.tree.set("pci", PF1, "sriov_drivers_autoprobe", "1")
    run(fake, stage(bind(0), bind(1)))
    fake.tick()
    late = fake.link(fake.function(1)).index
    fake.settle()
    (fake.udev_run / "data" / f"n{late}").unlink()
    (fake.udev_run / "queue").touch()
    links = [SetLink(HANDLE, index, mtu=1400, up=True) for index in range(2)]
    (failure,) = run(fake, stage(*links))
    assert failure == (
        f"pci/{PF1} vf 1 ({fake.function(1)}): udev has not finished with its interface after 30 s"
    )
    assert fake.link(fake.function(0)).up
    assert not fake.link(fake.function(1)).up


def test_nobody_waits_twice_for_what_is_known_to_be_lost(fake: FakeNode) -> None:
    """A bind that failed was told: no time-out follows it, in no stage."""
    fake.create_vfs(fake.pfs[PF1], 2)
    fake.tree.set("pci", PF1, "sriov_drivers_autoprobe", "1")
    fake.plant(fake.function(0), "bind", Fault(errno.EIO))
    links = [SetLink(HANDLE, index, mtu=1400) for index in range(2)]
    failures = run(fake, stage(bind(0), bind(1)), stage(*links), stage(*links))
    assert len(failures) == 1
    assert "EIO" in failures[0]
    assert fake.link(fake.function(1)).mtu == 1400


def test_nor_for_one_whose_driver_lets_go_of_it_meanwhile(fake: FakeNode) -> None:
    """A probe that fails holds the driver's link until its end."""
    bound(fake, 1)
    fake.release("pci", fake.function(0))
    fake.never.add(fake.function(0))
    fake.tree.drive("pci", fake.function(0), "mlx5_core")
    fake.later(3, lambda: fake.release("pci", fake.function(0)))
    before = fake.monotonic()
    node = fake.node(PATIENT)
    with watching(node) as watches:
        assert await_netdevs(Attempt(node), [Target(HANDLE, 0)], watches, {Target(HANDLE, 0)}) == []
    assert fake.monotonic() - before < PATIENT.vf_timeout


def test_nor_for_a_pf_that_another_program_unbinds(fake: FakeNode) -> None:
    fake.never.add(PF1)
    fake.release("pci", PF1)
    fake.tree.drive("pci", PF1, "mlx5_core")
    fake.later(3, lambda: fake.release("pci", PF1))
    before = fake.monotonic()
    node = fake.node(PATIENT)
    with watching(node) as watches:
        assert await_netdevs(Attempt(node), [Target(HANDLE)], watches, set()) == []
    assert fake.monotonic() - before < PATIENT.vf_timeout


def test_nor_for_an_interface_that_did_not_come_the_first_time(fake: FakeNode) -> None:
    bound(fake, 1)
    fake.release("pci", fake.function(0))
    fake.never.add(fake.function(0))
    fake.tree.drive("pci", fake.function(0), "mlx5_core")
    link = SetLink(HANDLE, 0, mtu=1400)
    assert len(run(fake, *[stage(link)] * 3)) == 1


def test_without_udevd_nothing_is_waited_for_but_the_interface(fake: FakeNode) -> None:
    fake.stop_udevd()
    fake.create_vfs(fake.pfs[PF1], 1)
    fake.tree.set("pci", PF1, "sriov_drivers_autoprobe", "1")
    link = SetLink(HANDLE, 0, name="mine", up=True)
    assert run(fake, stage(bind(0)), stage(link)) == ()
    assert fake.link(fake.function(0)).name == "mine"


# names


def test_names_are_swapped_in_one_stage(fake: FakeNode) -> None:
    bound(fake, 2)
    links = SetLink(HANDLE, 0, name="ens1np0v1"), SetLink(HANDLE, 1, name="ens1np0v0")
    assert run(fake, stage(*links)) == ()
    names = [fake.link(fake.function(index)).name for index in range(2)]
    assert names == ["ens1np0v1", "ens1np0v0"]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_names_in_a_ring_though_udevd_gives_each_its_paths_name_back_at_once(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Between any two messages of a batch, as an altname of what was renamed."""
    bound(fake, count)
    monkeypatch.setattr(fake, "udev_sees_rename", fake._udev_follows)
    wanted = [f"ens1np0v{(index + 1) % count}" for index in range(count)]
    links = (SetLink(HANDLE, n, name=name, altnames=()) for n, name in enumerate(wanted))
    assert run(fake, stage(*links)) == ()
    found = [fake.link(fake.function(index)) for index in range(count)]
    assert [link.name for link in found] == wanted
    assert all(link.altnames == () for link in found)


def test_an_altname_of_another_of_ours_makes_way(fake: FakeNode) -> None:
    bound(fake, 2)
    fake.change(fake.link(fake.function(0)).index, altnames=("mine",))
    assert run(fake, stage(SetLink(HANDLE, 1, name="mine"))) == ()
    assert fake.link(fake.function(1)).name == "mine"
    assert "mine" not in (fake.link(fake.function(0)).altnames or ())


@pytest.mark.parametrize("holder", [0, 1])
def test_an_altname_in_the_way_that_nobody_wants(fake: FakeNode, holder: int) -> None:
    """Two reasons for it to go, and it goes once: the second time is ENOENT."""
    bound(fake, 2)
    fake.change(fake.link(fake.function(holder)).index, altnames=("mine",))
    links = SetLink(HANDLE, 0, name="mine", altnames=()), SetLink(HANDLE, 1, altnames=())
    assert run(fake, stage(*links)) == ()
    assert fake.link(fake.function(0)).name == "mine"


def test_altnames_are_what_they_should_be_and_nothing_else(fake: FakeNode) -> None:
    bound(fake, 1)
    fake.change(fake.link(fake.function(0)).index, altnames=("a", "b"))
    assert run(fake, stage(SetLink(HANDLE, 0, altnames=("b", "c d")))) == ()
    assert fake.link(fake.function(0)).altnames == ("b", "c d")
    values = [write.value for write in fake.written("altname")]
    assert values == [("a", False), ("c d", True)]


def test_an_altname_that_udevd_gives_at_the_same_moment_is_no_failure(fake: FakeNode) -> None:
    bound(fake, 2)

    def trace(step: str) -> None:
        if step.startswith("before") and "altname" in step:
            fake.trace = lambda _: None
            fake.change(fake.link(fake.function(0)).index, altnames=("path",))

    fake.trace = trace
    assert run(fake, stage(SetLink(HANDLE, 0, mtu=1400, altnames=("path",)))) == ()
    (failure,) = run(fake, stage(SetLink(HANDLE, 1, altnames=("path",))))
    assert failure.startswith(f"pci/{PF1} vf 1: ")
    assert "EEXIST" in failure


# stopping


def test_a_stop_comes_between_two_stages_and_the_running_one_is_finished(fake: FakeNode) -> None:
    fake.create_vfs(fake.pfs[PF1], 3)
    with StopSignal() as stop:

        def trace(step: str) -> None:
            if step.startswith("before") and "vf 1" in step:
                signal.raise_signal(signal.SIGTERM)

        fake.trace = trace
        first = stage(*(SetVf(HANDLE, index, trust=True) for index in range(3)))
        second = stage(*(SetVf(HANDLE, index, spoofchk=False) for index in range(3)))
        with pytest.raises(Stopped):
            perform(Attempt(fake.node(PATIENT, stop)), [first, second])
    assert [vf.held.trust for vf in fake.pfs[PF1].vfs.values()] == [True] * 3
    assert fake.written("spoofchk") == []


def test_a_stop_ends_a_wait_in_the_middle_of_a_stage(fake: FakeNode) -> None:
    fake.create_vfs(fake.pfs[PF1], 1)
    fake.tree.set("pci", PF1, "sriov_drivers_autoprobe", "1")
    fake.delays.netdev = 3
    with StopSignal() as stop:
        fake.later(2, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Stopped):
            perform(
                Attempt(fake.node(PATIENT, stop)),
                [stage(bind(0)), stage(SetLink(HANDLE, 0, up=True))],
            )
    fake.settle()
    assert not fake.link(fake.function(0)).up


def test_a_stop_that_is_there_already_touches_nothing(fake: FakeNode) -> None:
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            perform(Attempt(fake.node(PATIENT, stop)), [stage(CreateVfs(HANDLE, 2))])
    assert fake.writes == []


# bugs are not failures


def test_a_bug_in_an_action_is_raised(fake: FakeNode) -> None:
    def trace(step: str) -> None:
        raise ZeroDivisionError(step)

    fake.trace = trace
    with pytest.raises(ZeroDivisionError):
        run(fake, stage(CreateVfs(HANDLE, 2)))


def test_the_fakes_node_is_one_that_the_model_can_hold(fake: FakeNode) -> None:
    bound(fake, 7)
    assert isinstance(observe(fake.node(PATIENT)), NodeState)
