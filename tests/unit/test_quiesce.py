"""Before an unload: VFs are unbound and removed, except where that would wait for their holders."""

from __future__ import annotations

import dataclasses
import errno
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.errors import KernelError, Stopped, UnavailableError
from nodeagent.kernel.events import StopSignal
from nodeagent.node import quiesce as quiescing
from nodeagent.node.observe import observe
from nodeagent.node.quiesce import quiesce, unbind_pfs
from nodeagent.settings import HoldOff, Quiesce, Settings
from nodeagent.state.eswitch import EswitchMode
from nodeagent.state.model import NO_DRIVER, DeviceHandle, NodeState, Pf, Vf
from tests.support.fake_kernel import PF1, PF2
from tests.support.fake_node import FakeNode, fake_node
from tests.support.fake_rules import Fault
from tests.unit.test_reload import Crash, Host, full_node, on_disk, vf

HASTY = Settings(vf_timeout=0.3, quiesce=Quiesce.VFS)
PFS_TOO = dataclasses.replace(HASTY, quiesce=Quiesce.AUTO)
ON_VFIO = Vf(2, driver="vfio-pci", driver_override="vfio-pci", netdev=None)


def two_pfs(*vfs: Vf) -> NodeState:
    """Both PFs have VF 0 and 1 on the driver; the first has `vfs` besides."""
    first, second = (DeviceHandle("pci", pf) for pf in (PF1, PF2))
    ours = vf(0), vf(1)
    others = vf(0, netdev=None), vf(1, netdev=None)
    mode = EswitchMode.LEGACY
    return NodeState(
        "mlx5_core",
        (
            Pf(first, 2 + len(vfs), True, None, (*ours, *vfs), eswitch_mode=mode),
            Pf(second, 2, True, None, others, eswitch_mode=mode),
        ),
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    with fake_node(monkeypatch) as fake:
        yield fake


@pytest.fixture
def host(fake: FakeNode, tmp_path: Path) -> Host:
    fake.set_up(full_node())
    return on_disk(fake, tmp_path)


def quiesced(fake: FakeNode, settings: Settings = HASTY) -> list[tuple[str, str]]:
    """What is written: targets and attributes."""
    with fake.node(settings) as node:
        state = observe(node)
        fake.writes.clear()
        unbind_pfs(node, quiesce(node, state))
    return [(write.target, write.attribute) for write in fake.writes]


def has_vfs(fake: FakeNode) -> dict[str, int]:
    return {name: pf.numvfs for name, pf in fake.pfs.items()}


def kill_before_the_unload(host: Host) -> None:
    """Start a reload that ends between the quiesce and openibd."""

    def trace(step: str) -> None:
        if step == "before the restart":
            raise Crash

    host.fake.trace = trace
    with pytest.raises(Crash):
        host.start()
    host.fake.trace = lambda _: None


def test_ours_are_unbound_and_then_all_removed(fake: FakeNode) -> None:
    """One on no driver and one of vfio-pci, which no process has open, go without an unbind."""
    fake.set_up(two_pfs(ON_VFIO, Vf(3, driver=NO_DRIVER, driver_override="")))
    written = quiesced(fake)
    ours = {(fake.function(n, pf), "unbind") for pf in (PF1, PF2) for n in range(2)}
    assert set(written[:4]) == ours
    assert set(written[4:]) == {(PF1, "sriov_numvfs"), (PF2, "sriov_numvfs")}
    assert has_vfs(fake) == {PF1: 0, PF2: 0}


def test_pfs_are_unbound_after_their_vfs_and_take_them_along(fake: FakeNode) -> None:
    """Without a write to sriov_numvfs, which the kernel may do for one PF after the other."""
    fake.set_up(two_pfs(ON_VFIO))
    written = quiesced(fake, PFS_TOO)
    assert set(written[:4]) == {
        (fake.function(n, pf), "unbind") for pf in (PF1, PF2) for n in (0, 1)
    }
    assert set(written[4:]) == {(PF1, "unbind"), (PF2, "unbind")}
    assert has_vfs(fake) == {PF1: 0, PF2: 0}


def test_vfs_are_removed_before_their_pfs_for_device_plugins_to_see(fake: FakeNode) -> None:
    fake.set_up(two_pfs())
    written = quiesced(fake, dataclasses.replace(PFS_TOO, hold_off=(HoldOff.PLUGIN,)))
    assert set(written[4:6]) == {(PF1, "sriov_numvfs"), (PF2, "sriov_numvfs")}
    assert set(written[6:]) == {(PF1, "unbind"), (PF2, "unbind")}


def test_a_pf_that_the_snapshot_lacks_stays_bound(fake: FakeNode) -> None:
    """Nothing would bind it again."""
    fake.set_up(two_pfs())
    with fake.node(PFS_TOO) as node:
        state = observe(node)
        known = dataclasses.replace(state, pfs=state.pfs[:1])
        assert quiesce(node, known) == (DeviceHandle("pci", PF1),)
    assert has_vfs(fake) == {PF1: 2, PF2: 0}


def test_without_vfs_nothing_is_written(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    assert quiesced(fake) == []


def test_vfs_that_are_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_node(monkeypatch, igb=False) as fake:
        fake.create_vfs(fake.add_pf("netdevsim1", bus="netdevsim"), 3)
        assert quiesced(fake) == [("netdevsim1", "sriov_numvfs")]
        assert has_vfs(fake) == {"netdevsim1": 0}


def test_a_pf_with_a_vf_that_is_open_is_left_alone(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And all PFs stay bound: openibd may wait for the one, or refuse."""
    fake.set_up(two_pfs(ON_VFIO))
    function = DeviceHandle("pci", fake.function(2))
    monkeypatch.setattr(quiescing, "users_of", lambda *_: {function: "qemu (pid 7) holds it"})
    written = quiesced(fake, PFS_TOO)
    assert {target[:7] for target, _ in written} == {PF2[:7]}
    assert (PF2, "unbind") not in written
    assert has_vfs(fake) == {PF1: 3, PF2: 0}
    assert f"pci/{PF1} keeps its VFs until the unload: {function.name}: qemu (pid 7)" in caplog.text


@pytest.mark.parametrize(
    ("driver", "sees_all", "goes"),
    [
        ("vfio-pci", False, False),
        ("vfio-pci", True, True),
        ("xen-pciback", True, False),
        ("mlx5_core", False, True),
    ],
)
def test_what_may_be_held_counts_as_held(
    fake: FakeNode, driver: str, sees_all: bool, goes: bool
) -> None:
    """Without the host's processes nobody knows who has a VF of VFIO; a guest of Xen has none."""
    fake.tree.make_driver("pci", driver)
    netdev = vf(2).netdev if driver == "mlx5_core" else None
    fake.set_up(two_pfs(vf(2, driver=driver, netdev=netdev)))
    if not sees_all:
        (fake.proc / "self/ns/pid").unlink()
    quiesced(fake)
    assert has_vfs(fake) == {PF1: 0 if goes else 3, PF2: 0}


def test_what_is_refused_is_left_to_the_unload(
    fake: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    fake.set_up(two_pfs())
    fake.plant(fake.function(0), "unbind", Fault(errno.EPERM))
    fake.plant(PF2, "sriov_numvfs", Fault(errno.EPERM))
    quiesced(fake)
    assert has_vfs(fake) == {PF1: 0, PF2: 2}
    assert f"pci/{PF1} vf 0: cannot write" in caplog.text
    assert f"pci/{PF2}: cannot write '0'" in caplog.text
    assert caplog.text.count("left to the unload") == 2


# in a reload


def test_it_begins_when_the_snapshot_is_there_and_ends_before_the_unload(host: Host) -> None:
    seen = []

    def trace(step: str) -> None:
        if "unbind" in step or step == "before the restart":
            assert host.journal.has_open_snapshot()
            seen.append(host.driver.restarts)

    host.fake.trace = trace
    host.start()
    assert seen[:2] == [0, 0]
    assert ("unbind", host.fake.function(0)) in {
        (write.attribute, write.target) for write in host.driver.before_unload
    }


def test_who_waits_for_it_is_called_between_it_and_the_unload(host: Host) -> None:
    seen = []
    host.settings = dataclasses.replace(host.settings, hold_off=(HoldOff.PLUGIN,))
    host.without_vfs = lambda: seen.append((has_vfs(host.fake), host.driver.restarts))
    host.start()
    assert seen == [({PF1: 0, PF2: 0}, 0)]


def test_pfs_stay_bound_where_the_unload_would_be_refused(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel refuses the unload of a module that is in use, and no unbind."""
    before = host.state()
    host.driver.used = ("mlx5_ib is in use (reference count 1)",)
    host.start()
    assert host.state() == before
    unbound = [w.target for w in host.driver.before_unload if w.attribute == "unbind"]
    assert sorted(unbound) == sorted(host.fake.function(index) for index in (0, 3, 4))
    assert "the PFs stay bound until the unload, which may fail: mlx5_ib is in use" in caplog.text
    assert "unbind" not in {record.name for record in host.journal.records()}


def test_pfs_are_bound_again_where_openibd_refuses(host: Host) -> None:
    before = host.state()
    host.driver.stop_refused = KernelError("openibd refuses")
    with pytest.raises(KernelError, match="openibd refuses"):
        host.start()
    unbound = [w.target for w in host.driver.before_unload if w.attribute == "unbind"]
    assert set(unbound[-2:]) == {PF1, PF2}
    assert host.state() == before
    assert host.journal.has_open_snapshot()


def test_pfs_are_bound_again_where_it_was_stopped_and_nothing_unloaded(host: Host) -> None:
    """A stop ends the start, without a restore; the node keeps its interfaces."""
    host.driver.stop_refused = Stopped()
    with pytest.raises(Stopped):
        host.start()
    assert [str(pf.handle) for pf in host.state().pfs] == [f"pci/{PF1}", f"pci/{PF2}"]


@pytest.mark.parametrize("then", ["refused", "nothing to reload", "no build", "restore by hand"])
def test_pfs_of_a_killed_process_are_bound_by_the_next_whatever_it_does(
    host: Host, then: str
) -> None:
    before = host.state()

    kill_before_the_unload(host)
    assert host.state().pfs == ()
    match then:
        case "refused":
            host.driver.unsafe = UnavailableError("no openibd")
            with pytest.raises(UnavailableError):
                host.start()
        case "nothing to reload":
            host.driver.installed = host.driver.loaded
            host.start()
        case "no build":
            host.driver.build_fails = UnavailableError("no network")
            with pytest.raises(UnavailableError):
                host.start()
            assert [pf.handle for pf in host.state().pfs] == [pf.handle for pf in before.pfs]
            return
        case _:
            snapshot = host.journal.open_snapshot()
            assert snapshot is not None
            host.restore(snapshot.state)
    assert host.driver.restarts == 0
    assert host.state() == before


def test_off_leaves_it_to_the_unload(host: Host) -> None:
    called: list[str] = []
    off = dataclasses.replace(host.settings, quiesce=Quiesce.OFF)
    before = host.state()
    dataclasses.replace(host, settings=off, without_vfs=lambda: called.append("no")).start()
    assert host.driver.before_unload == []
    assert called == []
    assert host.state() == before
    assert "quiesce" not in {record.name for record in host.journal.records()}


def test_what_refuses_before_the_unload_costs_no_vf(host: Host) -> None:
    before = host.state()
    host.driver.dependents_stay = KernelError("cannot unload the module nvme_rdma")
    with pytest.raises(KernelError, match="nvme_rdma"):
        host.start()
    assert host.state() == before
    assert host.fake.writes == []


def test_vfs_of_a_killed_process_come_back_where_the_next_reload_is_refused(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """They were removed, and the old driver is still loaded."""
    before = host.state()

    kill_before_the_unload(host)
    assert has_vfs(host.fake) == {PF1: 0, PF2: 0}
    host.driver.unsafe = UnavailableError("no openibd")
    with pytest.raises(UnavailableError, match="no openibd"):
        host.start()
    assert host.driver.restarts == 0
    assert host.state() == before
    assert "the reload is refused: restoring the VFs on the driver that is loaded" in caplog.text
    host.driver.unsafe = None
    host.start()
    assert host.state() == before
    assert host.driver.restarts == 1


def test_a_stop_right_before_it_costs_no_vf(host: Host) -> None:
    before = host.state()
    with StopSignal() as stop:

        def trace(step: str) -> None:
            if step == "dependents are gone":
                signal.raise_signal(signal.SIGTERM)

        host.fake.trace = trace
        with pytest.raises(Stopped):
            host.start(stop)
    assert host.driver.restarts == 0
    assert host.state() == before


def test_a_removal_that_hangs_stops_the_reload_and_the_others_come_back(host: Host) -> None:
    """An unload would hang there, too, and no signal could end it."""
    before = host.state()
    fault = host.fake.plant(host.fake.function(0), "unbind", Fault(held=threading.Event()))
    hasty = dataclasses.replace(host.settings, vf_timeout=0.3)
    with pytest.raises(KernelError, match="the driver is not unloaded") as caught:
        dataclasses.replace(host, settings=hasty).start()
    assert f"pci/{PF1} vf 0: still blocked in the kernel" in caught.value.message
    assert host.driver.restarts == 0
    assert host.journal.has_open_snapshot()
    left = [vf for vf in host.state().pfs[0].vfs if vf.index]
    assert left == list(before.pfs[0].vfs[1:])
    assert fault.held is not None
    fault.held.set()
    host.fake.faults.clear()
    host.start()
    assert host.state() == before
    assert host.driver.restarts == 1
