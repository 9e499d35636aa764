"""The story, told on a node that reacts: with a driver of the test's own and the real journal.

What is held here above all: wherever the process is killed, the next start makes the node what it
was, from the first snapshot, and the ready flag is there only when that is proven.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from nodeagent import restore as restoring
from nodeagent.driver.nic import Loss, NicDriver, SrcVersions
from nodeagent.errors import (
    AgentError,
    DataError,
    KernelError,
    RestoreFailed,
    Stopped,
    UnavailableError,
    WaitTimeout,
)
from nodeagent.kernel.events import StopSignal
from nodeagent.node.node import Node
from nodeagent.node.observe import observe
from nodeagent.plan.comparison import differences
from nodeagent.plan.taken import attainable, taken, without
from nodeagent.record.journal import Journal
from nodeagent.reload import reload
from nodeagent.restore import restore, verify
from nodeagent.settings import Settings
from nodeagent.snapshot import take_snapshot
from nodeagent.state.addresses import Mac
from nodeagent.state.eswitch import EswitchAttributes, EswitchMode
from nodeagent.state.model import NO_DRIVER, DeviceHandle, Netdev, NodeState, Pf, Representor, Vf
from nodeagent.state.vf import LinkState, VlanProtocol
from tests.support.fake_kernel import PF1, PF2, Delays
from tests.support.fake_node import FakeNode, fake_node
from tests.support.fake_rules import Fault, Write
from tests.support.strategies import pairs, states, without_rdma


class Crash(BaseException):
    """SIGKILL: nothing of ours runs after it."""


class FakeDriver:
    """A driver in two builds, A loaded and B installed; its restart wipes the node."""

    def __init__(self, fake: FakeNode) -> None:
        self.fake = fake
        self.installed, self.loaded = "B", "A"
        self.restarts = 0
        self.refusal: AgentError | None = None
        self.companions_fail: AgentError | None = None
        self.auxiliary: tuple[str, ...] = ()
        self.loaded_again: tuple[str, ...] = ()
        self.unsafe: AgentError | None = None
        self.dependents_stay: AgentError | None = None
        self.build_fails: AgentError | None = None
        self.stop_refused: AgentError | None = None
        self.used: tuple[str, ...] = ()
        self.before_unload: list[Write] = []

    def ensure_built(self) -> None:
        self.fake.trace("build")
        if self.build_fails is not None:
            raise self.build_fails

    def srcversions(self) -> tuple[SrcVersions, ...]:
        return (SrcVersions("mlx5_core", self.installed, self.loaded),)

    def modules_loaded(self) -> tuple[tuple[str, str], ...]:
        return (("mlx5_core", self.loaded),)

    def companions(self) -> tuple[str, ...]:
        return ("mlx5_core", *self.auxiliary)

    def loaded_is_installed(self) -> bool:
        return self.loaded == self.installed

    def is_loaded(self) -> bool:
        return self.loaded != "none"

    def version(self) -> str:
        return "25.10"

    def ensure_companions(self, before: Iterable[str]) -> None:
        assert "mlx5_core" in before
        self.loaded_again = tuple(before)
        if self.companions_fail is not None:
            raise self.companions_fail

    def in_use(self) -> tuple[str, ...]:
        return self.used

    def check_reload_is_safe(self) -> tuple[Loss, ...]:
        if self.unsafe is not None:
            raise self.unsafe
        return ()

    def ensure_restarted(self, before_unload: Callable[[], None]) -> None:
        if self.loaded_is_installed():
            return
        if self.dependents_stay is not None:
            raise self.dependents_stay
        self.fake.trace("dependents are gone")
        before_unload()
        self.before_unload += self.fake.writes
        self.fake.writes.clear()
        self.fake.trace("before the restart")
        if self.stop_refused is not None:
            raise self.stop_refused
        self.restarts += 1
        self.fake.restart()
        if self.refusal is not None:
            raise self.refusal
        self.loaded = self.installed
        self.fake.trace("after the restart")


@dataclasses.dataclass
class Host:
    """One node with its disk: what outlives a process."""

    fake: FakeNode
    driver: FakeDriver
    settings: Settings
    without_vfs: Callable[[], None] = lambda: None

    @property
    def journal(self) -> Journal:
        return Journal(self.settings)

    def start(self, stop: StopSignal | None = None) -> None:
        """A process begins: new Node, new Journal."""
        with self.fake.node(self.settings, stop) as node:
            driver = cast(NicDriver, self.driver)
            reload(node, self.journal, driver, without_vfs=self.without_vfs)

    def state(self) -> NodeState:
        with self.fake.node(self.settings) as node:
            return observe(node)

    def restore(self, want: NodeState) -> None:
        with self.fake.node(self.settings) as node:
            restore(node, want)


def on_disk(fake: FakeNode, directory: Path) -> Host:
    settings = dataclasses.replace(
        Settings(),
        vf_timeout=30.0,
        pf_timeout=30.0,
        state_dir=directory / "state",
        ready_path=directory / "ready",
    )
    return Host(fake, FakeDriver(fake), settings)


def mac(number: int) -> Mac:
    return Mac(f"02:00:00:00:00:{number:02x}")


def vf(number: int, **facts: object) -> Vf:
    """A VF with everything set that igb takes."""
    made = Vf(
        index=number,
        driver="mlx5_core",
        driver_override="",
        admin_mac=mac(number),
        vlan=100 + number,
        qos=number,
        vlan_proto=VlanProtocol.Q,
        trust=True,
        spoofchk=False,
        link_state=LinkState.AUTO,
        min_tx_rate=0,
        max_tx_rate=0,
        netdev=Netdev(
            f"net{number}",
            mac=mac(number),
            mtu=1400,
            up=True,
            altnames=(f"alt{number}",),
            promisc=False,
            allmulti=False,
        ),
    )
    return dataclasses.replace(made, **facts)  # type: ignore[arg-type] # a test's shorthand


def full_node() -> NodeState:
    """Every kind of VF on one PF, and a PF that is down and has none."""
    netdev = Netdev(
        "uplink0",
        mac=Mac("52:54:00:00:00:01"),
        mtu=9000,
        up=True,
        altnames=(),
        promisc=False,
        allmulti=True,
        txqueuelen=2000,
        group=3,
        alias="a",
    )
    vfs = (
        vf(0, max_tx_rate=100),
        vf(1, driver=NO_DRIVER, netdev=None),
        vf(2, driver="vfio-pci", driver_override="vfio-pci", netdev=None),
        vf(
            3, netdev=Netdev("own", mac=mac(0x33), mtu=1500, up=False)
        ),  # a MAC from before the admin MAC
        vf(4, admin_mac=mac(4), vlan=0, qos=0, trust=False, spoofchk=True),
    )
    second = Netdev("uplink1", mac=Mac("52:54:00:00:00:02"), mtu=3000, up=False)
    return NodeState(
        "mlx5_core",
        (
            Pf(DeviceHandle("pci", PF1), 5, False, netdev, vfs),
            Pf(DeviceHandle("pci", PF2), 0, True, second),
        ),
    )


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    with fake_node(monkeypatch) as fake:
        fake.set_up(full_node())
        yield on_disk(fake, tmp_path)


# the story


def test_the_fake_begins_as_it_was_told(host: Host) -> None:
    assert differences(full_node(), host.state()) == ()


def test_everything_is_back_as_it_was(host: Host) -> None:
    before = host.state()
    host.start()
    assert host.state() == dataclasses.replace(before, pfs=_with_new_addresses(before, host))
    assert host.driver.restarts == 1
    assert host.journal.is_ready()
    assert not host.journal.has_open_snapshot()
    closed = host.journal.last_snapshot()
    assert closed is not None
    assert closed.state == before
    assert closed.srcversions == (("mlx5_core", "A"),)


def _with_new_addresses(state: NodeState, host: Host) -> tuple[Pf, ...]:
    """The same: function addresses are the same after a reload on the same slots."""
    assert [vf.address for pf in state.pfs for vf in pf.vfs] == [
        host.fake.function(index) for index in range(5)
    ]
    return state.pfs


def test_every_vf_is_bound_once(host: Host) -> None:
    host.start()
    binds = [write.target for write in host.fake.written("bind", "drivers_probe")]
    assert sorted(binds) == [host.fake.function(index) for index in (0, 2, 3, 4)]
    assert host.fake.written("unbind") == []


def test_nothing_to_do_writes_nothing_and_asks_nothing(host: Host) -> None:
    host.driver.loaded = "B"
    host.start()
    assert host.journal.is_ready()
    assert host.fake.writes == []
    assert host.driver.restarts == 0
    assert not host.journal.has_open_snapshot()
    assert host.journal.last_snapshot() is None


@pytest.mark.parametrize("loaded", ["A", "B"], ids=["to reload", "nothing to reload"])
def test_a_pf_in_a_fatal_error_is_neither_saved_nor_ready(host: Host, loaded: str) -> None:
    """What its driver tells of its VFs is not what they had."""
    host.driver.loaded = loaded
    host.fake.in_fatal_error = {PF1}
    with pytest.raises(UnavailableError, match=f"pci/{PF1}: the firmware has had a fatal error"):
        host.start()
    assert not host.journal.is_ready()
    assert not host.journal.has_open_snapshot()
    assert host.driver.restarts == 0
    host.fake.in_fatal_error.clear()
    host.start()
    assert host.journal.is_ready()


def test_a_fatal_error_while_the_node_is_observed(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver has recovered by the end of it, and has counted one more."""
    host.fake.fatal_errors = {PF1: 2}

    def observed(node: Node) -> NodeState:
        host.fake.fatal_errors[PF1] += 1
        return observe(node)

    monkeypatch.setattr("nodeagent.snapshot.observe", observed)
    with pytest.raises(UnavailableError, match=f"of pci/{PF1} has had a fatal error meanwhile"):
        host.start()
    assert not host.journal.has_open_snapshot()


@pytest.mark.parametrize("loaded", ["A", "B"], ids=["to reload", "nothing to reload"])
def test_fatal_errors_that_the_driver_has_recovered_from_are_said(
    host: Host, caplog: pytest.LogCaptureFixture, loaded: str
) -> None:
    """Before nodeagent started: what its VFs had is lost by then."""
    host.driver.loaded = loaded
    host.fake.fatal_errors = {PF1: 2, "0000:01:10.0": 1}
    host.start()
    (said,) = (each.message for each in caplog.records if "fatal error" in each.message)
    assert said.startswith(
        f"pci/{PF1}: its firmware has had fatal errors since its driver began (2)"
    )
    assert host.journal.is_ready()


def test_a_second_start_has_nothing_to_do(host: Host) -> None:
    host.start()
    host.fake.writes.clear()
    before = host.state()
    host.start()
    assert host.fake.writes == []
    assert host.driver.restarts == 1
    assert host.journal.is_ready()
    assert host.state() == before


def test_the_flag_goes_first_and_comes_last_and_the_snapshot_is_there_all_the_time(
    host: Host,
) -> None:
    host.journal.set_ready()
    seen = []

    def trace(step: str) -> None:
        assert not host.journal.is_ready()
        assert host.journal.has_open_snapshot() == (step != "build")
        seen.append(step)

    host.fake.trace = trace
    host.start()
    moments = [step for step in seen if "Write(" not in step]
    assert moments == ["build", "dependents are gone", "before the restart", "after the restart"]
    assert len(seen) > 20


def test_what_changes_after_the_restore_is_found_and_there_is_no_flag(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SR-IOV operator's loop, a person: ready means proven, not done."""

    def restored(node: Node, want: NodeState) -> None:
        restore(node, want)
        vf = host.fake.pfs[PF1].vfs[4]
        vf.held = dataclasses.replace(vf.held, trust=True)

    monkeypatch.setattr(restoring, "restore", restored)
    with pytest.raises(RestoreFailed) as caught:
        host.start()
    assert caught.value.failures == (f"pci/{PF1} vf 4 trust: want False, have True",)
    assert not host.journal.is_ready()
    assert host.journal.has_open_snapshot()


def test_from_the_first_snapshot_on_there_is_an_open_one_or_the_flag(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at any fsync, what is on disk says that there is work to do, or that it is done."""
    seen = []

    def fsync(_: int) -> None:
        seen.append(host.journal.has_open_snapshot() or host.journal.is_ready())

    monkeypatch.setattr(os, "fsync", fsync)
    host.start()
    assert all(seen[seen.index(True) :])


def test_a_reload_that_is_not_safe_touches_nothing(host: Host) -> None:
    host.driver.unsafe = UnavailableError("no openibd")
    before = host.state()
    with pytest.raises(UnavailableError):
        host.start()
    assert host.state() == before
    assert host.driver.restarts == 0
    assert not host.journal.has_open_snapshot()
    assert not host.journal.is_ready()


def test_the_steps_are_on_record(host: Host) -> None:
    host.start()
    records = host.journal.records()
    assert [record.name for record in records if record.kind == "done"] == [
        "build",
        "preflight",
        "snapshot",
        "quiesce",
        "unbind",
        "restart",
        "restore",
        "verify",
    ]
    notes = [record.name for record in records if record.kind == "note"]
    assert [name for name in notes if name.startswith("vfs")] == ["vfs-gone", "vfs-back"]
    loaded = [record.facts for record in records if record.facts.get("checkpoint") == "loaded"]
    assert [facts["mlx5_core"] for facts in loaded] == ["A", "B"]


def test_a_vf_in_another_namespace_comes_back_in_ours_and_is_named(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.fake.move_away(host.fake.function(0))
    before = host.state()
    host.start()
    assert differences(before, host.state()) == ()
    assert f"pci/{PF1} vf 0: its interface is in a namespace that is not visible" in caplog.text


# what goes wrong


def test_what_is_refused_is_named_the_others_are_right_and_the_next_start_finishes(
    host: Host,
) -> None:
    before = host.state()
    host.fake.plant(f"{PF1} vf 1", "trust", Fault(errno.EPERM))
    with pytest.raises(RestoreFailed) as caught:
        host.start()
    assert f"pci/{PF1} vf 1: cannot set its trust: EPERM: Operation not permitted" in (
        caught.value.failures
    )
    assert [str(each) for each in differences(before, host.state())] == [
        f"pci/{PF1} vf 1 trust: want True, have False"
    ]
    assert not host.journal.is_ready()
    assert host.journal.has_open_snapshot()
    host.fake.faults.clear()
    host.start()
    assert host.state() == before
    assert host.driver.restarts == 1
    assert host.journal.is_ready()
    assert not host.journal.has_open_snapshot()


def test_a_write_that_was_silently_ignored_is_found(host: Host) -> None:
    host.fake.plant(f"{PF1} vf 0", "spoofchk", Fault())
    with pytest.raises(RestoreFailed) as caught:
        host.start()
    assert caught.value.failures == (
        f"pci/{PF1} vf 0 spoofchk: nodeagent set it to False, and now it is True",
        f"pci/{PF1} vf 0 spoofchk: want False, have True",
    )
    assert not host.journal.is_ready()


def test_a_write_that_was_refused_once_is_done_in_the_next_round(host: Host) -> None:
    before = host.state()
    for index in (0, 3, 4):
        host.fake.plant(host.fake.function(index), "bind", Fault(errno.EBUSY, times=1))
    host.start()
    assert host.state() == before
    assert host.journal.is_ready()


def test_a_vf_that_never_gets_its_netdev(host: Host) -> None:
    before = host.state()
    host.fake.never.add(host.fake.function(0))
    with pytest.raises(RestoreFailed) as caught:
        host.start()
    assert f"pci/{PF1} vf 0 netdev: want net0, have missing" in caught.value.failures
    assert {each.target for each in differences(before, host.state())} == {f"pci/{PF1} vf 0"}
    assert host.journal.has_open_snapshot()
    assert not host.journal.is_ready()
    host.fake.never.clear()
    host.fake.release("pci", host.fake.function(0))  # what an engineer does
    host.start()
    assert host.state() == before
    assert host.driver.restarts == 1


@pytest.mark.parametrize("refused", ["sriov_numvfs", "eswitch"])
@pytest.mark.parametrize(("netdev", "rename"), [(0, 2), (2, 0), (2, 2)])
def test_what_came_late_but_came_is_waited_for_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: str, netdev: int, rename: int
) -> None:
    """In the first round there is nothing to wait for; in the second it is on its way."""
    with fake_node(monkeypatch, igb=False) as fake:
        uplink = Netdev("uplink0", mac=Mac("52:54:00:00:00:01"), mtu=1500, up=True)
        unbound = vf(0, driver=NO_DRIVER, netdev=None)
        representor = Representor("pf0vf0", Netdev("rep0", mtu=1400, up=True))
        pf = Pf(
            DeviceHandle("pci", PF1),
            1,
            True,
            uplink,
            (unbound,),
            eswitch_mode=EswitchMode.SWITCHDEV,
        )
        fake.set_up(NodeState("mlx5_core", (dataclasses.replace(pf, representors=(representor,)),)))
        host = on_disk(fake, tmp_path)
        before = host.state()
        fake.delays = Delays(0, netdev, rename, 0)
        fake.plant(PF1, refused, Fault(errno.EBUSY, times=1))
        if refused == "eswitch":
            fake.pfs[PF1].eswitch = EswitchAttributes(eswitch_mode=EswitchMode.LEGACY)
            fake.update_representors(fake.pfs[PF1])
        else:
            fake.restart()
            fake.settle()
        host.restore(before)
        assert differences(before, host.state()) == ()


def test_a_name_that_somebody_else_has_taken(host: Host) -> None:
    host.driver.fake.add_link("taken", "02:00:00:00:00:99")
    before = host.state()
    want = dataclasses.replace(before, pfs=tuple(_renamed(pf, "taken") for pf in before.pfs))
    with pytest.raises(RestoreFailed) as caught:
        host.restore(want)
    assert any("another interface has that name" in line for line in caught.value.failures)
    assert f"pci/{PF1} vf 0 name: want taken, have net0" in caught.value.failures


def _renamed(pf: Pf, name: str) -> Pf:
    """The PF with its first VF's netdev called `name`."""
    if not pf.vfs or pf.vfs[0].netdev is None:
        return pf
    first = dataclasses.replace(pf.vfs[0], netdev=dataclasses.replace(pf.vfs[0].netdev, name=name))
    return dataclasses.replace(pf, vfs=(first, *pf.vfs[1:]))


def test_a_pf_that_does_not_come_back(host: Host) -> None:
    before = host.state()
    host.fake.never.add(PF2)
    with pytest.raises(WaitTimeout, match=f"pci/{PF2}: no network interface"):
        host.start()
    assert host.journal.has_open_snapshot()
    assert not host.journal.is_ready()
    host.fake.never.clear()
    host.fake.release("pci", PF2)
    host.fake.attach(PF2, "mlx5_core")
    host.start()
    assert host.state() == before
    assert host.driver.restarts == 1


def test_damage_is_never_taken_for_intent(host: Host) -> None:
    """The restart fails with the VFs gone: the first snapshot is what counts ever after."""
    before = host.state()
    host.driver.refusal = KernelError("openibd did not bring in the installed driver")
    for _ in range(3):
        with pytest.raises(KernelError, match="openibd"):
            host.start()
    saved = host.journal.open_snapshot()
    assert saved is not None
    assert saved.state == before
    host.driver.refusal = None
    host.start()
    assert host.state() == before
    assert host.driver.restarts == 4


def test_a_failed_restart_leaves_the_vfs_as_they_were_on_the_old_driver(host: Host) -> None:
    before = host.state()
    host.driver.refusal = KernelError("openibd did not bring in the installed driver")
    with pytest.raises(KernelError, match="openibd did not"):
        host.start()
    assert host.state() == before
    assert host.journal.has_open_snapshot()
    assert not host.journal.is_ready()


def test_a_failed_restart_that_left_no_driver_touches_nothing_more(host: Host) -> None:
    host.driver.refusal = KernelError("this node has NO NIC driver")
    host.driver.loaded = "none"
    with pytest.raises(KernelError, match="NO NIC driver"):
        host.start()
    assert host.fake.writes == []
    assert host.journal.has_open_snapshot()


def test_a_module_that_came_after_the_snapshot_comes_back_too(host: Host) -> None:
    """A first attempt was refused; the second one takes it away."""
    host.driver.refusal = KernelError("no")
    with pytest.raises(KernelError):
        host.start()
    host.driver.refusal = None
    host.driver.auxiliary = ("mlx5_vdpa",)
    host.start()
    assert host.driver.loaded_again == ("mlx5_core", "mlx5_vdpa")


def test_what_fails_after_a_failed_restart_does_not_hide_it(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.driver.refusal = KernelError("openibd did not bring in the installed driver")
    host.driver.companions_fail = KernelError("mlx5_ib did not load")
    host.fake.plant(f"{PF1} vf 1", "trust", Fault(errno.EPERM))
    with pytest.raises(KernelError, match="openibd did not"):
        host.start()
    assert "mlx5_ib did not load" in caplog.text
    assert f"pci/{PF1} vf 1 trust: want True, have False" in caplog.text
    assert host.fake.tree.driver(host.fake.function(0)) == "mlx5_core"


def test_a_stop_during_the_restart_is_no_failure_of_it(host: Host) -> None:
    before = host.state()
    host.driver.refusal = Stopped()
    with pytest.raises(Stopped):
        host.start()
    assert host.fake.writes == []
    assert host.journal.has_open_snapshot()
    host.driver.refusal = None
    host.start()
    assert host.state() == before


def test_a_write_that_blocks_is_named_and_the_next_start_finishes(host: Host) -> None:
    before = host.state()
    function = host.fake.function(0)
    fault = host.fake.plant(function, "bind", Fault(held=threading.Event()))
    hasty = dataclasses.replace(host.settings, vf_timeout=0.3)
    with pytest.raises(RestoreFailed) as caught:
        dataclasses.replace(host, settings=hasty).start()
    assert any("still blocked in the kernel" in line for line in caught.value.failures)
    assert host.journal.has_open_snapshot()
    assert fault.held is not None
    fault.held.set()
    host.fake.faults.clear()
    host.start()
    assert host.state() == before


def test_another_driver_is_installed_before_the_work_is_finished(host: Host) -> None:
    before = host.state()
    host.fake.plant(f"{PF1} vf 1", "trust", Fault(errno.EPERM))
    with pytest.raises(RestoreFailed):
        host.start()
    host.fake.faults.clear()
    host.driver.installed = "C"
    host.start()
    assert host.state() == before
    assert host.driver.restarts == 2


def test_a_damaged_snapshot_is_an_error_and_nothing_is_touched(host: Host) -> None:
    host.settings.state_dir.mkdir()
    (host.settings.state_dir / "open-snapshot.json").write_text("{")
    before = host.state()
    with pytest.raises(DataError, match=r"open-snapshot\.json"):
        host.start()
    assert host.state() == before
    assert host.fake.writes == []
    assert host.driver.restarts == 0
    assert not host.journal.is_ready()


def test_restore_of_what_is_so_writes_nothing(host: Host) -> None:
    host.restore(host.state())
    assert host.fake.writes == []


def test_without_the_driver_nothing_is_tried_or_waited_for(host: Host) -> None:
    """Another program has unloaded it."""
    before = host.state()
    for pf in host.fake.pfs.values():
        host.fake.release_pf(pf)
    host.fake.tree.remove_driver("pci", "mlx5_core")
    began = host.fake.monotonic()
    with pytest.raises(RestoreFailed, match="mlx5_core is not loaded"):
        host.restore(before)
    assert host.fake.writes == []
    assert host.fake.monotonic() - began < 1


def test_verify_names_every_difference(host: Host) -> None:
    before = host.state()
    host.fake.change(host.fake.link(PF1).index, mtu=1500)
    host.fake.pfs[PF1].vfs[0].held = dataclasses.replace(host.fake.pfs[PF1].vfs[0].held, vlan=7)
    with host.fake.node(host.settings) as node, pytest.raises(RestoreFailed) as caught:
        verify(node, before)
    assert caught.value.failures == (
        f"pci/{PF1} mtu: want 9000, have 1500",
        f"pci/{PF1} vf 0 vlan: want 100, have 7",
    )
    assert host.fake.writes == []


def test_a_snapshot_says_when_and_where(host: Host) -> None:
    with host.fake.node(host.settings) as node:
        snapshot = take_snapshot(node, cast(NicDriver, host.driver))
    assert snapshot.kernel == os.uname().release
    assert snapshot.taken_at.endswith("+00:00")
    assert snapshot.srcversions == (("mlx5_core", "A"),)
    assert snapshot.state == host.state()


# killed anywhere


class Killer:
    """Counts the steps of a run, and ends it at one of them and at each that follows."""

    def __init__(self, at: int, end: Callable[[], None]) -> None:
        self.at, self.end = at, end
        self.count = 0

    def __call__(self, _: object) -> None:
        self.count += 1
        if self.count >= self.at:
            self.end()


def _crash() -> None:
    raise Crash


def small_node() -> NodeState:
    netdev = Netdev("uplink0", mac=Mac("52:54:00:00:00:01"), mtu=3000, up=True)
    vfs = (
        vf(0, max_tx_rate=100),
        vf(1, driver="vfio-pci", driver_override="vfio-pci", netdev=None),
        vf(2, netdev=Netdev("own", mac=mac(0x33), mtu=1500, up=True)),
    )
    return NodeState("mlx5_core", (Pf(DeviceHandle("pci", PF1), 3, False, netdev, vfs),))


def test_killed_at_every_step_the_next_start_makes_it_what_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before and after every write and every restart, and at every fsync of the journal."""
    at = 0
    was_killed = True
    while was_killed:
        at += 1
        with fake_node(monkeypatch) as fake:
            fake.set_up(small_node())
            host = on_disk(fake, tmp_path / str(at))
            before = host.state()
            killer = Killer(at, _crash)
            fake.trace = killer
            monkeypatch.setattr(os, "fsync", killer)
            with suppress(Crash):
                host.start()
            was_killed = killer.count >= at
            fake.trace = lambda _: None
            monkeypatch.setattr(os, "fsync", lambda _: None)
            if was_killed and host.journal.is_ready():
                assert differences(before, host.state()) == (), f"ready, but not so: kill {at}"
            host.start()
            assert host.state() == before, f"killed at step {at}"
            assert host.journal.is_ready()
            assert not host.journal.has_open_snapshot()
            assert host.driver.restarts <= 2
    assert at > 80


def test_stopped_at_every_step_the_next_start_makes_it_what_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    at = 0
    was_stopped = True
    while was_stopped:
        at += 3
        with fake_node(monkeypatch) as fake, StopSignal() as stop:
            fake.set_up(small_node())
            host = on_disk(fake, tmp_path / str(at))
            before = host.state()
            killer = Killer(at, lambda: None)

            def trace(step: str, killer: Killer = killer) -> None:
                killer(step)
                if killer.count == killer.at:
                    signal.raise_signal(signal.SIGTERM)

            fake.trace = trace
            try:
                host.start(stop)
            except Stopped:
                assert not host.journal.is_ready()
                assert host.journal.has_open_snapshot()
            was_stopped = killer.count >= at
            fake.trace = lambda _: None
            host.start()
            assert host.state() == before, f"stopped at step {at}"
            assert host.journal.is_ready()
    assert at > 60


# any node


def test_50_vfs_that_are_no_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """netdevsim takes every attribute; its VFs have neither functions nor netdevs.

    It is bound to a driver called mlx5_core here, which takes no query_rss.
    """
    with fake_node(monkeypatch, igb=False) as fake:
        fake.add_pf("netdevsim1", bus="netdevsim", totalvfs=64)
        vfs = tuple(
            vf(
                index % 8,
                index=index,
                driver=None,
                driver_override=None,
                netdev=None,
                vlan_proto="802.1ad" if index % 2 else "802.1Q",
                link_state=("auto", "enable", "disable")[index % 3],
                min_tx_rate=10,
                max_tx_rate=1000 + index,
                query_rss=False,
            )
            for index in range(50)
        )
        netdev = Netdev("eni1np1", mac=Mac("52:54:00:00:00:01"), mtu=3000, up=True)
        fake.give(
            Pf(
                DeviceHandle("netdevsim", "netdevsim1"),
                50,
                None,
                netdev,
                vfs,
                eswitch_mode=EswitchMode.LEGACY,
            )
        )
        host = on_disk(fake, tmp_path)
        before = host.state()
        assert before.pfs[0].vfs[7].max_tx_rate == 1007
        host.start()
        assert host.state() == before
        assert host.journal.is_ready()


relaxed = hypothesis_settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@given(states(stacked=False))
@relaxed
def test_whatever_the_node_is_like_a_reload_leaves_it_so(
    monkeypatch: pytest.MonkeyPatch, state: NodeState
) -> None:
    with fake_node(monkeypatch, igb=False) as fake:
        fake.set_up(state)
        host = on_disk(fake, fake.udev_run)
        before = host.state()
        assert differences(state, before) == ()
        fake.restart()
        host.restore(before)
        assert differences(before, host.state()) == ()
        fake.writes.clear()
        host.restore(before)
        assert fake.writes == []


@given(states(stacked=False))
@relaxed
def test_whatever_an_igb_node_is_like_a_reload_leaves_it_so(
    monkeypatch: pytest.MonkeyPatch, state: NodeState
) -> None:
    """No rate without carrier, no MAC from a PF that is down, and none but the administrator's."""
    state = as_igb(state)
    with fake_node(monkeypatch) as fake:
        fake.set_up(state)
        host = on_disk(fake, fake.udev_run)
        before = host.state()
        assert differences(state, before) == ()
        fake.restart()
        host.restore(before)
        assert differences(before, host.state()) == ()


@given(pairs())
@relaxed
def test_from_any_state_to_any_other(
    monkeypatch: pytest.MonkeyPatch, pair: tuple[NodeState, NodeState]
) -> None:
    """Not after a reload, but after somebody has been at it: VFs fewer, renamed; those that were
    given to another driver stay there, and what can be had without them is."""
    # nothing stands on the fake node's interfaces
    want, have = (without_rdma(dataclasses.replace(each, stack=None)) for each in pair)
    with fake_node(monkeypatch, igb=False) as fake:
        fake.set_up(have)
        for pf in want.pfs:
            if pf.handle.name not in fake.pfs:
                fake.add_pf(pf.handle.name)
                if pf.eswitch_mode is not None:
                    fake.pfs[pf.handle.name].eswitch = EswitchAttributes(
                        eswitch_mode=EswitchMode.LEGACY
                    )
        host = on_disk(fake, fake.udev_run)
        before = host.state()
        theirs = {each.target: each for each in taken(want, before)}
        # VFs that stay because another has one of them may have names that are wanted
        with suppress(RestoreFailed) if theirs else nullcontext():
            host.restore(want)
        after = host.state()
        left = differences(attainable(without(want, theirs), before, theirs), after)
        assert {each.attribute for each in left} <= ({"name"} if theirs else set())
        for target in theirs:
            assert after.vf(target) == before.vf(target)


def as_igb(state: NodeState) -> NodeState:
    """The node as far as igb can be like it."""

    def learned(each: Vf) -> Mac | None:
        """A VF that was given no MAC has told its PF the one that it made up."""
        is_set = each.admin_mac is not None and not each.admin_mac.is_zero
        return each.admin_mac if is_set or each.netdev is None else each.netdev.mac

    def igb_vf(each: Vf) -> Vf:
        return dataclasses.replace(
            each,
            admin_mac=learned(each),
            vlan_proto=VlanProtocol.Q,
            link_state=LinkState.AUTO,
            min_tx_rate=0,
            node_guid=None,
            port_guid=None,
            driverinit=None,
        )

    def igb_pf(pf: Pf) -> Pf:
        vfs = tuple(map(igb_vf, pf.vfs))
        return Pf(pf.handle, pf.numvfs, pf.autoprobe, pf.netdev, vfs)

    return dataclasses.replace(state, pfs=tuple(map(igb_pf, state.pfs)))


@given(states(stacked=False), st.data())
@relaxed
def test_however_late_odd_and_busy_the_node_is_it_is_what_it_was(
    monkeypatch: pytest.MonkeyPatch, state: NodeState, data: st.DataObject
) -> None:
    """udev gives each the name that another had, or is dead; what is late is late."""
    with fake_node(monkeypatch, igb=False) as fake:
        fake.set_up(state)
        host = on_disk(fake, fake.udev_run)
        before = host.state()
        ticks = st.integers(0, 3)
        fake.delays = data.draw(st.builds(Delays, ticks, ticks, ticks, ticks), label="delays")
        ours = (link for link in fake.links.values() if link.index not in fake.elsewhere)
        devices = sorted({link.device for link in ours if link.device})
        names = data.draw(st.permutations([fake.link(device).name for device in devices]))
        fake.names.update(zip(devices, names, strict=True))
        if data.draw(st.booleans(), label="no udevd"):
            fake.stop_udevd()
        busy = data.draw(st.lists(st.sampled_from([*BUSY, None]), max_size=3), label="busy")
        for number, attribute in enumerate(busy):
            if attribute is not None and before.pfs:
                pf = before.pfs[0].handle.name
                target = fake.function(number, pf) if attribute in {"bind", "mtu"} else pf
                fake.plant(target, attribute, Fault(errno.EBUSY, times=1))
        fake.restart()
        host.restore(before)
        assert differences(before, host.state()) == ()


BUSY = ("bind", "mtu", "sriov_numvfs", "sriov_drivers_autoprobe", "eswitch", "name")
