"""What the story says in the log and on record, word by word: people search for these lines."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nodeagent import machine
from nodeagent import reload as story
from nodeagent import restore as restoring
from nodeagent import snapshot as looking
from nodeagent.driver.nic import NicDriver, SrcVersions
from nodeagent.errors import KernelError, RestoreFailed, WaitTimeout
from nodeagent.kernel.roce import RoceDefaults
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.node.hung_calls import HungCalls
from nodeagent.node.observe import observe
from nodeagent.plan import dcb, ethtool, remarks
from nodeagent.plan.left_behind import LeftBehind
from nodeagent.record.gaps import VfTimes
from nodeagent.record.journal import Journal
from nodeagent.settings import Settings
from nodeagent.state.addresses import Mac
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Pf, Snapshot, Target, Vf
from nodeagent.state.namespaces import Holder, Namespace
from nodeagent.state.stack import Stack
from tests.support.fake_kernel import PF1, PF2
from tests.support.fake_node import FakeNode, fake_node


class Driver:
    """A driver that is there; `version` is what ethtool would say."""

    loaded = True
    told = "25.10"

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.refusal: KernelError | None = None

    def is_loaded(self) -> bool:
        return self.loaded

    def loaded_is_installed(self) -> bool:
        return True

    def version(self) -> str:
        return self.told

    def ensure_companions(self, before: tuple[str, ...]) -> None:
        self.asked.append(before)
        if self.refusal is not None:
            raise self.refusal

    def companions(self) -> tuple[str, ...]:
        return ("mlx5_ib", "mlx5_vdpa")

    def modules_loaded(self) -> tuple[tuple[str, str], ...]:
        return (("mlx5_core", "A"),)

    def srcversions(self) -> tuple[Any, ...]:
        return ()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return dataclasses.replace(
        Settings(), state_dir=tmp_path, pf_timeout=30.0, vf_timeout=30.0, ready_path=tmp_path / "r"
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    with fake_node(monkeypatch) as made:
        made.add_pf(PF1)
        made.add_pf(PF2)
        made.create_vfs(made.pfs[PF1], 2)
        made.settle()
        yield made


def snapshot(fake: FakeNode, settings: Settings) -> Snapshot:
    with fake.node(settings) as node:
        state = observe(node)
    return Snapshot("t", "", "", "", (("mlx5_core", "A"), ("mlx5_ib", "B")), state)


def notes(settings: Settings) -> list[tuple[str, dict[str, str]]]:
    return [(record.name, dict(record.facts)) for record in Journal(settings).records()]


@pytest.mark.parametrize(("told", "recorded"), [("25.10", "25.10"), ("", "unknown")])
def test_the_drivers_version_is_on_record(
    fake: FakeNode, settings: Settings, told: str, recorded: str
) -> None:
    driver = Driver()
    driver.told = told
    with fake.node(settings) as node:
        taken = snapshot(fake, settings)
        story.restart(node, Journal(settings), cast("NicDriver", driver), taken)
    assert ("driver", {"version": recorded}) in notes(settings)
    # what was loaded when the snapshot was taken, and what has been since
    assert driver.asked == [("mlx5_core", "mlx5_ib", "mlx5_vdpa")]


def salvaged(fake: FakeNode, settings: Settings, driver: Driver, taken: Snapshot) -> None:
    with fake.node(settings) as node:
        story.salvage(
            node, Journal(settings), cast("NicDriver", driver), taken, ("mlx5_core", "mlx5_ib")
        )


SALVAGE = "the restart failed: restoring the VFs on the driver that is loaded"


def test_salvage_says_what_it_does_and_that_they_are_back(
    fake: FakeNode, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    taken = snapshot(fake, settings)
    fake.remove_vfs(fake.pfs[PF1])
    driver = Driver()
    salvaged(fake, settings, driver, taken)
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warnings == [SALVAGE]
    assert driver.asked == [("mlx5_core", "mlx5_ib")]
    assert ("vfs-back", {}) in notes(settings)
    assert fake.pfs[PF1].numvfs == 2


def test_salvage_goes_on_after_a_failure_which_it_logs(
    fake: FakeNode, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    taken = snapshot(fake, settings)
    fake.remove_vfs(fake.pfs[PF1])
    driver = Driver()
    driver.refusal = KernelError("cannot load mlx5_ib 100%")
    salvaged(fake, settings, driver, taken)
    errors = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert errors == ["cannot load mlx5_ib 100%"]
    assert fake.pfs[PF1].numvfs == 2
    assert [name for name, _ in notes(settings)] == ["vf-times"]


def test_salvage_waits_for_pfs_first(fake: FakeNode, settings: Settings) -> None:
    taken = snapshot(fake, settings)
    fake.remove_vfs(fake.pfs[PF1])
    fake.release("pci", PF1)
    fake.delays.netdev = 2
    fake.attach(PF1, "mlx5_core")
    salvaged(fake, settings, Driver(), taken)
    assert ("vfs-back", {}) in notes(settings)


def test_without_a_driver_salvage_does_nothing(
    fake: FakeNode, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Driver()
    driver.loaded = False
    salvaged(fake, settings, driver, snapshot(fake, settings))
    assert caplog.records == []
    assert driver.asked == []


def test_a_pf_whose_interface_never_comes_does_not_hold_up_the_others(
    fake: FakeNode, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    taken = snapshot(fake, settings)
    fake.remove_vfs(fake.pfs[PF1])
    fake.never.add(PF2)
    fake.release("pci", PF2)
    fake.attach(PF2, "mlx5_core")
    with fake.node(settings) as node, pytest.raises(WaitTimeout, match=PF2):
        story.restart(node, Journal(settings), cast("NicDriver", Driver()), taken)
    assert fake.pfs[PF1].numvfs == 2
    assert "; restoring the others" in caplog.text
    assert "could not be restored" in caplog.text


def test_what_verify_says(fake: FakeNode, settings: Settings) -> None:
    taken = snapshot(fake, settings)
    fake.remove_vfs(fake.pfs[PF1])
    with fake.node(settings) as node, pytest.raises(RestoreFailed) as caught:
        restoring.verify(node, taken.state)
    first, *lines = caught.value.message.splitlines()
    assert first == f"{len(lines)} attributes are not as they were"
    assert f"  pci/{PF1} numvfs: want 2, have 0" in lines
    assert caught.value.hint == "the snapshot stays open: start again, or see `nodeagent plan`"


def test_what_verify_warns_of(
    fake: FakeNode,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(ethtool, "no_longer_offered", lambda want, have: ("net0 rings.rx",))
    monkeypatch.setattr(dcb, "no_longer_offered", lambda want, have: ("net0 dcb ets",))
    monkeypatch.setattr(restoring, "shared_macs", lambda have: ("02:00: vf 1, vf 2",))
    with fake.node(settings) as node:
        restoring.verify(node, observe(node))
    assert [record.getMessage() for record in caplog.records] == [
        "the driver no longer has it: net0 rings.rx",
        "the driver no longer has it: net0 dcb ets",
        "VFs share a MAC, as they did before: 02:00: vf 1, vf 2",
    ]


def test_what_a_snapshot_warns_of(
    fake: FakeNode,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(remarks, "unseen", lambda state: ())
    with fake.node(settings) as node:
        state = dataclasses.replace(observe(node), stack=Stack(lost=("qdisc htb on net0",)))
        monkeypatch.setattr(looking, "observe", lambda _: state)
        taken = looking.take_snapshot(node, cast("NicDriver", Driver()))
    assert "qdisc htb on net0: the reload removes it, and it is not restored" in [
        record.getMessage() for record in caplog.records
    ]
    assert taken.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert taken.taken_at.endswith("+00:00")


def test_a_pf_whose_interface_is_elsewhere_is_told(
    fake: FakeNode, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody tells then what it holds for its VFs, which must not look like nothing being set."""
    fake.elsewhere |= {n for n, link in fake.links.items() if link.device == PF1}
    with fake.node(settings) as node:
        looking.take_snapshot(node, cast(NicDriver, Driver()))
    (said,) = [each for each in caplog.messages if "no interface in this" in each]
    assert said.startswith(f"pci/{PF1}: it has VFs")


def test_nothing_to_do_is_said(
    fake: FakeNode, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    driver = Driver()
    driver.ensure_built = lambda: None  # type: ignore[attr-defined] # nothing to build
    with fake.node(settings) as node:
        story.reload(node, Journal(settings), cast("NicDriver", driver))
    assert "the loaded driver is the installed one and nothing is left to restore" in [
        record.getMessage() for record in caplog.records
    ]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"/host/etc/machine-id": b"host\n", "/etc/machine-id": b"own\n"}, "host"),
        ({"/etc/machine-id": b"own\n"}, "own"),
        ({"/etc/machine-id": b"\xff\n"}, "�"),
        ({}, ""),
    ],
)
def test_the_machine_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, bytes], found: str
) -> None:
    def below(path: str) -> Path:
        return tmp_path / path.lstrip("/")

    for name, content in files.items():
        below(name).parent.mkdir(parents=True, exist_ok=True)
        below(name).write_bytes(content)
    monkeypatch.setattr(machine, "Path", below)
    assert machine.machine_id() == found


def test_of_an_empty_node_there_is_nothing_to_restore(fake: FakeNode, settings: Settings) -> None:
    with fake.node(settings) as node:
        restoring.restore(node, NodeState("mlx5_core", ()))
    assert fake.writes == []


def test_the_srcversions_on_record(settings: Settings) -> None:
    """Two checkpoints; what is not there is `none`."""

    class Two(Driver):
        def srcversions(self) -> tuple[Any, ...]:
            return (SrcVersions("mlx5_core", "B", "A"), SrcVersions("ib_core", None, None))

    story.note_srcversions(Journal(settings), cast("NicDriver", Two()))
    assert notes(settings) == [
        ("srcversion", {"checkpoint": "installed", "mlx5_core": "B", "ib_core": "none"}),
        ("srcversion", {"checkpoint": "loaded", "mlx5_core": "A", "ib_core": "none"}),
    ]


def test_what_is_said_when_something_is_left(fake: FakeNode, settings: Settings) -> None:
    taken = snapshot(fake, settings)
    fake.remove_vfs(fake.pfs[PF1])
    fake.missing.add(fake.function(1))
    with fake.node(settings) as node, pytest.raises(RestoreFailed) as caught:
        restoring.restore(node, taken.state)
    assert caught.value.hint == (
        "the snapshot stays open: remove the cause, of which dmesg may say more, and start again, "
        "or see `verify`"
    )


def test_what_pods_lost_is_on_record(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the name by which the cluster's side looks for it, with the pod and in words."""
    pod = Namespace(4, 100, "b", (Holder(pid=7, started=1),), pod="8f3c3f0a")
    vf = Target(DeviceHandle("pci", "0000:01:00.0"), 3)
    gone = LeftBehind(vf, "net1", pod, "nobody holds it")
    monkeypatch.setattr(restoring, "verify", lambda *_: (gone,))
    journal = Journal(settings)
    monkeypatch.setattr(restoring, "restore", lambda *_: None)
    taken = Snapshot("t", "", "", "", (), NodeState("mlx5_core", ()))
    restoring.put_back(cast("Any", SimpleNamespace(vf_times=VfTimes())), journal, taken)
    (record,) = (each for each in journal.records() if each.name == "pod-interface-lost")
    assert (record.kind, record.name) == ("note", "pod-interface-lost")
    assert record.facts == {"uid": "8f3c3f0a", "message": str(gone)}


def node_that_is(state: NodeState, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A node that is observed as that, with a child in a pod, and whose PFs stay away."""

    def away(*_: object) -> None:
        raise WaitTimeout("the PFs", ["enp1s0"], 3)

    monkeypatch.setattr(restoring, "observe", lambda _: state)
    monkeypatch.setattr(restoring, "in_fatal_error", lambda *_: ())
    monkeypatch.setattr(looking, "observe", lambda _: state)
    monkeypatch.setattr(looking, "without_fatal_error", lambda _: nullcontext())
    monkeypatch.setattr(looking, "children_in_other_namespaces", lambda *_: ("VLAN x on enp1s0",))
    monkeypatch.setattr(looking, "unsaved", lambda _node, _state: ("rps_cpus of enp1s0",))
    monkeypatch.setattr(story, "wait_for_pfs", away)
    devlink = SimpleNamespace(in_fatal_error=frozenset)
    return SimpleNamespace(
        hung_calls=HungCalls(),
        sysfs=Sysfs(Path("/nowhere")),
        roce=RoceDefaults(()),
        devlink=lambda: nullcontext(devlink),
    )


def test_what_a_snapshot_cannot_hold_is_said_word_by_word(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    zero, own = Mac("00:00:00:00:00:00"), Mac("02:00:00:00:00:01")
    vfs = (
        Vf(0, driver="mlx5_core"),
        Vf(1, driver="mlx5_core", admin_mac=zero, netdev=Netdev("v1", mac=own)),
    )
    pod = Namespace(4, 100, "b", (Holder(pid=7, started=1),), stack=Stack(lost=("qdisc tbf",)))
    pf = Pf(DeviceHandle("pci", "0000:01:00.0"), 2, vfs=vfs)
    stack = Stack(lost=("nexthop 7",))
    state = NodeState("mlx5_core", (pf,), stack, namespaces=(pod,))
    taken = looking.take_snapshot(node_that_is(state, monkeypatch), cast("NicDriver", Driver()))
    away = "the reload removes it, and it is not restored"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "pci/0000:01:00.0 vf 0: its interface is in a namespace that is not visible "
            "(a pod's?): the settings at its PF are restored, but the interface will be in the "
            "host's namespace",
        ),
        (
            "WARNING",
            "pci/0000:01:00.0: it has VFs and no interface in this network namespace: their "
            "settings (MACs, VLANs, rates) cannot be read, and are not restored",
        ),
        (
            "INFO",
            "pci/0000:01:00.0 vf 1 02:00:00:00:00:01: the driver generated this MAC; the interface "
            "gets the same one again",
        ),
        ("WARNING", f"nexthop 7: {away}"),
        ("WARNING", f"VLAN x on enp1s0: {away}"),
        ("WARNING", f"rps_cpus of enp1s0: {away}"),
        ("WARNING", f"qdisc tbf in {pod}: the reload removes it, and it is not restored"),
    ]
    assert taken.state == state
    caplog.clear()
    bare = dataclasses.replace(state, pfs=(), stack=None, namespaces=())
    looking.take_snapshot(node_that_is(bare, monkeypatch), cast("NicDriver", Driver()))
    assert [record.getMessage() for record in caplog.records] == [
        f"{lost} enp1s0: {away}" for lost in ("VLAN x on", "rps_cpus of")
    ]


def test_a_pf_that_stays_away_is_said_and_the_others_are_restored(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = NodeState("mlx5_core", ())

    def refuse(*_: object) -> None:
        raise KernelError("cannot do it 100%")

    monkeypatch.setattr(story, "restore", refuse)
    taken = Snapshot("t", "", "", "", (), state)
    with pytest.raises(WaitTimeout) as caught:
        story.restart(
            node_that_is(state, monkeypatch),
            Journal(settings),
            cast("NicDriver", Driver()),
            taken,
        )
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"{caught.value}; restoring the others"),
        ("ERROR", "cannot do it 100%"),
    ]


def test_what_a_manager_is_to_do_it_does_before_the_rest_is_looked_at(
    fake: FakeNode, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The VFs are there and set up when it is waited for; what it left missing is added then."""
    taken = snapshot(fake, settings)
    fake.remove_vfs(fake.pfs[PF1])
    seen: list[tuple[object, object, int]] = []

    def wait(node: object, others: object) -> None:
        seen.append((node, others, fake.pfs[PF1].numvfs))
        fake.remove_vfs(fake.pfs[PF1])

    monkeypatch.setattr(restoring, "managed_netdevs", lambda want: ("all of", len(want.pfs)))
    monkeypatch.setattr(restoring, "await_managers", wait)
    with fake.node(settings) as node:
        restoring.restore(node, taken.state)
    assert seen == [(node, ("all of", 2), 2)]
    assert fake.pfs[PF1].numvfs == 2


def test_a_vf_that_stays_here_is_told_and_returned(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = Namespace(4, 100, "b", (Holder(pid=7, started=1),))
    vf = Target(DeviceHandle("pci", "0000:01:00.0"), 3)
    gone = LeftBehind(vf, "net1", pod, "nobody holds it")
    state = NodeState("mlx5_core", ())

    monkeypatch.setattr(restoring, "reachable", lambda _, want: (want, (gone,)))
    assert restoring.verify(node_that_is(state, monkeypatch), state) == (gone,)
    assert [record.getMessage() for record in caplog.records] == [str(gone)]
