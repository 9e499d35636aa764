"""Beside a driver container: who reloads, what is kept, and when the flag may be there."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nodeagent import machine
from nodeagent import restore as restoring
from nodeagent.agent import cluster_processes, sidecar
from nodeagent.cluster import after_reload
from nodeagent.driver.nic import NicDriver
from nodeagent.errors import BusyError, ConfigError, KernelError, RestoreFailed, Stopped
from nodeagent.kernel.events import StopSignal
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.record.journal import Journal
from nodeagent.record.lock import is_locked
from nodeagent.settings import Settings
from nodeagent.state.model import DeviceHandle, NodeState, Pf, Snapshot
from tests.unit.test_agent import NoNode

TAKEN = Snapshot(
    taken_at="2026-11-21T12:03:04Z",
    machine_id="",
    boot_id="b",
    kernel="6.12",
    srcversions=(),
    state=NodeState("mlx5_core", (Pf(DeviceHandle("pci", "0000:01:00.0")),)),
)


class Node(NoNode):
    """Is observed as what it has."""

    have = TAKEN.state


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "run").mkdir()
    return replace(
        Settings(),
        ready_path=tmp_path / "run/.nodeagent-ready",
        driver_ready_path=tmp_path / "run/.driver-ready",
        lock_path=tmp_path / "run/.nodeagent-lock",
        driver_lock_path=tmp_path / "run/.lock",
        state_dir=tmp_path / "state",
        cni_data_dir=tmp_path / "cni",
    )


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> list[NodeState]:
    """What has been restored; nothing may reload."""
    done: list[NodeState] = []

    def no_reload(*_: Any) -> None:
        pytest.fail("a sidecar reloaded the driver")

    monkeypatch.setattr(sidecar, "require_root", lambda _why: None)
    monkeypatch.setattr(sidecar, "Node", Node)
    monkeypatch.setattr(sidecar, "observe", lambda node: node.have)
    monkeypatch.setattr(sidecar, "vf_addresses", lambda _node, _journal: ())
    monkeypatch.setattr(restoring, "wait_for_pfs", lambda _node, _state: None)
    monkeypatch.setattr(NicDriver, "loading", lambda _self: 1)
    monkeypatch.setattr(NicDriver, "ensure_restarted", no_reload)
    monkeypatch.setattr(NicDriver, "ensure_built", no_reload)
    monkeypatch.setattr(sidecar, "take_snapshot", lambda _node, _driver: TAKEN)
    monkeypatch.setattr(restoring, "restore", lambda _node, want: done.append(want))
    monkeypatch.setattr(restoring, "verify", lambda _node, _want, _takings: ())
    return done


def when(is_so: Any, do: Any) -> threading.Thread:
    """Do something in the middle of the run, as soon as it is so."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if is_so():
                do()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def runs(settings: Settings, *steps: threading.Thread) -> None:
    """The sidecar, while these are at work, to a good end."""
    assert sidecar.run(settings) == 0
    for each in steps:
        each.join()


def terminate() -> None:
    os.kill(os.getpid(), StopSignal.SIGNALS[0])


def test_before_the_driver_container_starts(settings: Settings, restored: list[NodeState]) -> None:
    sidecar.prepare(settings)
    assert Journal(settings).open_snapshot() == TAKEN
    assert not settings.ready_path.exists()


def test_an_open_snapshot_stays(
    settings: Settings, restored: list[NodeState], monkeypatch: pytest.MonkeyPatch
) -> None:
    sidecar.prepare(settings)
    later = replace(TAKEN, taken_at="2026-11-22T00:00:00Z")
    monkeypatch.setattr(sidecar, "take_snapshot", lambda _node, _driver: later)
    sidecar.prepare(settings)
    assert Journal(settings).open_snapshot() == TAKEN


def test_while_a_driver_container_still_runs(settings: Settings, restored: list[NodeState]) -> None:
    with settings.driver_lock_path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BusyError):
            sidecar.prepare(settings)
    assert not Journal(settings).has_open_snapshot()


def test_without_a_driver_there_is_nothing_to_keep(
    settings: Settings, restored: list[NodeState], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NicDriver, "loading", lambda _self: None)
    sidecar.prepare(settings)
    assert not Journal(settings).has_open_snapshot()


def test_it_restores_when_the_driver_container_is_ready_and_not_before(
    settings: Settings, restored: list[NodeState]
) -> None:
    sidecar.prepare(settings)
    settings.ready_path.touch()  # of a run that was killed
    seen: list[tuple[bool, int]] = []

    def driver_is_ready() -> None:
        seen.append((settings.ready_path.exists(), len(restored)))
        settings.driver_ready_path.touch()

    first = when(settings.beat_path.exists, driver_is_ready)
    third = when(lambda: restored and settings.ready_path.exists(), terminate)
    runs(settings, first, third)
    assert seen == [(False, 0)]
    assert restored == [TAKEN.state]
    assert not settings.ready_path.exists()
    assert not Journal(settings).has_open_snapshot()
    assert Journal(settings).last_snapshot() == TAKEN


def test_when_the_driver_container_starts_anew(
    settings: Settings, restored: list[NodeState]
) -> None:
    """Its flag goes: another snapshot, no flag of ours, and the same again when it is back."""
    settings.driver_ready_path.touch()
    journal = Journal(settings)
    steps = [
        when(settings.ready_path.exists, settings.driver_ready_path.unlink),
        when(
            lambda: journal.has_open_snapshot() and not settings.ready_path.exists(),
            settings.driver_ready_path.touch,
        ),
        when(lambda: restored and settings.ready_path.exists(), terminate),
    ]
    runs(settings, *steps)
    assert restored == [TAKEN.state]


def test_a_restore_that_fails_sets_no_flag_and_keeps_the_snapshot(
    settings: Settings, restored: list[NodeState], monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(_node: Any, _want: Any, _takings: Any) -> None:
        raise RestoreFailed("1 attribute differs", [])

    sidecar.prepare(settings)
    settings.driver_ready_path.touch()
    monkeypatch.setattr(restoring, "verify", differs)
    with pytest.raises(RestoreFailed):
        sidecar.run(settings)
    assert not settings.ready_path.exists()
    assert Journal(settings).open_snapshot() == TAKEN


def test_sigterm_before_it_was_ready(settings: Settings, restored: list[NodeState]) -> None:
    stopping = when(settings.beat_path.exists, terminate)
    with pytest.raises(Stopped):
        sidecar.run(settings)
    stopping.join()


@pytest.mark.parametrize("lost", [False, True])
def test_both_containers_end(
    settings: Settings,
    restored: list[NodeState],
    monkeypatch: pytest.MonkeyPatch,
    lost: bool,
) -> None:
    """The flag goes, which opens a snapshot; it stays open only if something of it is lost."""
    settings.driver_ready_path.touch()
    journal = Journal(settings)
    if lost:
        monkeypatch.setattr(Node, "have", NodeState("mlx5_core", ()))
    steps = [
        when(settings.ready_path.exists, settings.driver_ready_path.unlink),
        when(journal.has_open_snapshot, terminate),
    ]
    if lost:
        with pytest.raises(Stopped):
            sidecar.run(settings)
    else:
        runs(settings, *steps)
    assert journal.has_open_snapshot() == lost
    assert not settings.ready_path.exists()


def test_sigterm_while_the_snapshot_is_taken(
    settings: Settings, restored: list[NodeState], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both containers end at once: what the driver container's end has begun is brought to its."""
    settings.driver_ready_path.touch()

    def taken(node: Node, _driver: NicDriver) -> Snapshot:
        if not settings.driver_ready_path.exists():
            terminate()
        if node.stop is not None:
            node.stop.drain()
        return TAKEN

    monkeypatch.setattr(sidecar, "take_snapshot", taken)
    gone = when(settings.ready_path.exists, settings.driver_ready_path.unlink)
    assert sidecar.run(settings) == 0
    gone.join()
    assert not Journal(settings).has_open_snapshot()
    assert not settings.ready_path.exists()


def test_one_flag_for_two_is_refused(settings: Settings, restored: list[NodeState]) -> None:
    same = replace(settings, ready_path=settings.driver_ready_path)
    for command in (sidecar.prepare, sidecar.run):
        with pytest.raises(ConfigError, match="the driver container's own flag"):
            command(same)


def test_a_lock_of_its_own_says_that_it_is_there(
    settings: Settings, restored: list[NodeState]
) -> None:
    """A driver container that is nodeagent, too, asks for it (COMPANION_LOCK_PATH)."""
    settings.driver_ready_path.touch()
    held = []

    def looks() -> None:
        held.append((is_locked(settings.lock_path), is_locked(settings.driver_lock_path)))
        terminate()

    runs(settings, when(settings.ready_path.exists, looks))
    assert held == [(True, False)]
    assert not is_locked(settings.lock_path)


def test_without_one_the_lock_is_the_driver_containers(
    settings: Settings, restored: list[NodeState]
) -> None:
    settings = replace(settings, lock_path=settings.driver_lock_path)
    with settings.driver_lock_path.open("w") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        settings.driver_ready_path.touch()
        a_life(settings)


LATER = replace(TAKEN, taken_at="2026-11-22T00:00:00Z")


def a_life(settings: Settings) -> None:
    """From the driver container's flag to ready to SIGTERM."""
    runs(settings, when(settings.ready_path.exists, terminate))


def test_what_is_there_when_nothing_is_to_be_put_back_is_saved(
    settings: Settings, restored: list[NodeState]
) -> None:
    settings.driver_ready_path.touch()
    a_life(settings)
    assert restored == []
    assert Journal(settings).last_snapshot() == TAKEN
    assert not Journal(settings).has_open_snapshot()


def test_where_that_cannot_be_saved_it_is_ready_all_the_same(
    settings: Settings,
    restored: list[NodeState],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def silent(_node: Any, _driver: Any) -> None:
        raise KernelError("no answer")

    monkeypatch.setattr(sidecar, "take_snapshot", silent)
    settings.driver_ready_path.touch()
    a_life(settings)
    assert "the state of this node is not saved: no answer" in caplog.text


@pytest.mark.parametrize("now", [2, None])
def test_a_reload_that_nobody_saw(
    settings: Settings, restored: list[NodeState], monkeypatch: pytest.MonkeyPatch, now: int | None
) -> None:
    """nodeagent was killed; the driver container reloads, and it is over, or in the middle."""
    settings.driver_ready_path.touch()
    a_life(settings)
    monkeypatch.setattr(NicDriver, "loading", lambda _self: now)
    monkeypatch.setattr(sidecar, "take_snapshot", lambda _node, _driver: LATER)
    a_life(settings)
    assert restored == [TAKEN.state]
    assert Journal(settings).last_snapshot() == TAKEN


def test_one_that_it_was_too_slow_to_see(
    settings: Settings, restored: list[NodeState], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flag is another one by the time that it looks, and so is the driver."""
    settings.driver_ready_path.touch()
    loadings = iter([1])
    monkeypatch.setattr(NicDriver, "loading", lambda _self: next(loadings, 2))
    other = settings.driver_ready_path.with_name("other")
    other.touch()
    steps = [
        when(settings.ready_path.exists, lambda: other.rename(settings.driver_ready_path)),
        when(lambda: restored and settings.ready_path.exists(), terminate),
    ]
    runs(settings, *steps)
    assert restored == [TAKEN.state]


def test_a_flag_that_is_seen_before_touch_has_set_its_times(
    settings: Settings,
    restored: list[NodeState],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """touch(1) creates a file, and then sets its times: it is the same flag."""
    flag, restore = settings.driver_ready_path, sidecar._restore_and_announce

    def restore_then_touch(*arguments: Any) -> None:
        restore(*arguments)
        os.utime(flag, (1, 1))

    monkeypatch.setattr(sidecar, "_restore_and_announce", restore_then_touch)
    flag.touch()
    with caplog.at_level("INFO"):
        runs(settings, when(lambda: f"waiting for {flag} to go" in caplog.text, terminate))
    assert "has removed its flag" not in caplog.text


def test_one_that_goes_while_it_is_looked_at(
    settings: Settings, restored: list[NodeState], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was seen of it is half of it: not saved. An init container says so and ends."""
    settings.driver_ready_path.touch()
    a_life(settings)
    loadings = iter([1, 1])
    monkeypatch.setattr(NicDriver, "loading", lambda _self: next(loadings, None))
    monkeypatch.setattr(sidecar, "take_snapshot", lambda _node, _driver: LATER)
    steps = [
        when(settings.ready_path.exists, settings.driver_ready_path.unlink),
        when(Journal(settings).has_open_snapshot, settings.driver_ready_path.touch),
        when(lambda: restored and settings.ready_path.exists(), terminate),
    ]
    runs(settings, *steps)
    assert restored == [TAKEN.state]
    Path(settings.state_dir / "last-snapshot.json").unlink()
    loadings = iter([1])
    with pytest.raises(KernelError, match="was unloaded while its state was being saved"):
        sidecar.prepare(settings)
    assert not Journal(settings).has_open_snapshot()


def test_after_a_reboot_or_without_that_snapshot_nothing_is_opened_again(
    settings: Settings, restored: list[NodeState], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.driver_ready_path.touch()
    a_life(settings)
    monkeypatch.setattr(NicDriver, "loading", lambda _self: 2)
    monkeypatch.setattr(machine, "boot_id", lambda: "another")
    a_life(settings)
    monkeypatch.undo()
    monkeypatch.setattr(sidecar, "require_root", lambda _why: None)
    monkeypatch.setattr(NicDriver, "loading", lambda _self: 3)
    (settings.state_dir / "last-snapshot.json").unlink()
    monkeypatch.setattr(sidecar, "Node", Node)
    monkeypatch.setattr(sidecar, "observe", lambda node: node.have)
    monkeypatch.setattr(restoring, "wait_for_pfs", lambda _node, _state: None)
    monkeypatch.setattr(sidecar, "take_snapshot", lambda _node, _driver: LATER)
    a_life(settings)
    assert restored == []


# As a companion: no init container, and the driver container lives and dies by itself.


@pytest.fixture
def with_vfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's one PF has a VF, in sysfs."""
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (tmp_path / "sys/bus/pci/devices/0000:01:00.1").mkdir()
    (device / "virtfn0").symlink_to("../0000:01:00.1")
    driver = tmp_path / "sys/bus/pci/drivers/mlx5_core"
    driver.mkdir(parents=True)
    (driver / "0000:01:00.0").symlink_to(device)
    monkeypatch.setattr(sidecar, "Sysfs", lambda _root: Sysfs(tmp_path / "sys"))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cluster processes that were started."""
    started: list[str] = []
    for name in ("before_reload", "after_reload"):
        monkeypatch.setattr(cluster_processes, name, lambda _s, name=name: started.append(name))
    return started


def ready_then_end(settings: Settings) -> None:
    """The driver container is ready once the companion waits for it."""
    first = when(settings.beat_path.exists, settings.driver_ready_path.touch)
    runs(settings, first, when(settings.ready_path.exists, terminate))


def test_the_companion_starts_before_there_is_a_driver_container(
    settings: Settings, restored: list[NodeState], with_vfs: None
) -> None:
    ready_then_end(settings)
    assert restored == [TAKEN.state]


def test_after_a_boot_without_vfs_nothing_is_saved_that_would_remove_those_to_come(
    settings: Settings, restored: list[NodeState]
) -> None:
    ready_then_end(settings)
    assert restored == []


def test_the_companion_starts_in_the_middle_of_a_first_reload(
    settings: Settings,
    restored: list[NodeState],
    with_vfs: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is there may be what the driver container has restored half of: not saved, and said."""
    with settings.driver_lock_path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ready_then_end(settings)
    assert restored == []
    assert "nothing was verified before" in caplog.text


def test_the_companion_was_away_when_the_flag_went_and_the_driver_is_still_there(
    settings: Settings,
    restored: list[NodeState],
    with_vfs: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A build is under way: what was proven is loaded still, so what is there now is whole."""
    settings.driver_ready_path.touch()
    a_life(settings)
    settings.driver_ready_path.unlink()
    settings.beat_path.unlink(missing_ok=True)
    monkeypatch.setattr(sidecar, "take_snapshot", lambda _node, _driver: LATER)
    with settings.driver_lock_path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ready_then_end(settings)
    assert restored == [LATER.state]
    assert Journal(settings).last_snapshot() == LATER


def flag_goes_and_comes(settings: Settings, journal: Journal) -> list[threading.Thread]:
    return [
        when(settings.ready_path.exists, settings.driver_ready_path.unlink),
        when(
            lambda: journal.has_open_snapshot() and not settings.ready_path.exists(),
            settings.driver_ready_path.touch,
        ),
    ]


@pytest.mark.parametrize("reloads", [False, True])
def test_device_plugins_are_restarted_only_after_a_reload(
    settings: Settings,
    restored: list[NodeState],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    reloads: bool,
) -> None:
    settings.driver_ready_path.touch()
    journal = Journal(settings)
    if reloads:
        # at first, for the snapshot (before, after it); then it is another one
        monkeypatch.setattr(
            NicDriver, "loading", lambda _self: 2 if journal.has_open_snapshot() else 1
        )
    steps = flag_goes_and_comes(settings, journal)
    runs(settings, *steps, when(lambda: restored and settings.ready_path.exists(), terminate))
    assert told == ["before_reload", *(["after_reload"] if reloads else [])]


def test_a_restore_that_fails_is_announced(
    settings: Settings,
    restored: list[NodeState],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def differs(_node: Any, _want: Any, _takings: Any) -> None:
        raise RestoreFailed("1 attribute differs", [])

    sidecar.prepare(settings)
    settings.driver_ready_path.touch()
    monkeypatch.setattr(restoring, "verify", differs)
    with pytest.raises(RestoreFailed):
        sidecar.run(settings)
    assert told == ["after_reload"]


def test_a_driver_container_that_crashes_in_a_loop(
    settings: Settings, restored: list[NodeState], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its flag does not come back for several of its lives: the first snapshot stays."""
    settings.driver_ready_path.touch()
    journal = Journal(settings)

    def crash() -> None:
        settings.driver_ready_path.unlink()
        monkeypatch.setattr(sidecar, "take_snapshot", lambda _node, _driver: LATER)

    def come_and_go() -> None:
        for _ in range(3):
            settings.driver_ready_path.touch()
            settings.driver_ready_path.unlink()
        settings.driver_ready_path.touch()

    taken = journal.has_open_snapshot
    steps = [when(settings.ready_path.exists, crash), when(taken, come_and_go)]
    runs(settings, *steps, when(lambda: restored and settings.ready_path.exists(), terminate))
    assert not journal.has_open_snapshot()
    assert restored  # once or more often: each life that the flag was seen in is one


def test_one_snapshot_for_two_reloads_is_two_restarts_of_the_device_plugins(
    settings: Settings, restored: list[NodeState], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was proven last is put back again: it is due again, and not for a proof alone."""
    settings.driver_ready_path.touch()
    a_life(settings)
    journal, directory = Journal(settings), settings.state_dir
    first = after_reload.due(journal, directory)
    (directory / "plugins-restarted").write_text(f"{first}\n")
    a_life(settings)
    assert after_reload.due(journal, directory) == ""
    monkeypatch.setattr(NicDriver, "loading", lambda _self: 2)
    a_life(settings)
    assert restored == [TAKEN.state]
    assert after_reload.due(journal, directory) not in {"", first}
