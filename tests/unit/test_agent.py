"""The agent's life: the flag only when proven, one agent a node, no signal lost."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from nodeagent import machine
from nodeagent import restore as restoring
from nodeagent.agent import by_hand, hold, lifecycle, requirements, termination
from nodeagent.errors import (
    AgentError,
    BusyError,
    ConfigError,
    DataError,
    KernelError,
    PermissionDenied,
    Stopped,
    StorageError,
    UnavailableError,
)
from nodeagent.kernel import process
from nodeagent.kernel.events import StopSignal, wait_until_clear
from nodeagent.modes import Mode
from nodeagent.record.gaps import VfTimes
from nodeagent.record.journal import Journal, unseal
from nodeagent.record.lock import lock
from nodeagent.settings import AfterReboot, Settings
from nodeagent.state.model import DeviceHandle, NodeState, Pf, Snapshot

ROOT = Path(lifecycle.__file__).resolve().parents[2]
SNAPSHOT = Snapshot(
    taken_at="2026-11-21T12:03:04Z",
    machine_id="a" * 32,
    boot_id="b",
    kernel="6.12",
    srcversions=(),
    state=NodeState("mlx5_core", (Pf(DeviceHandle("pci", "0000:01:00.0")),)),
)

Story = Callable[..., None]


class NoNode:
    """Stands where the node would: no unit test opens netlink sockets."""

    def __init__(self, settings: Settings, stop: StopSignal | None) -> None:
        self.settings = settings
        self.stop = stop
        self.vf_times = VfTimes()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


def proven(node: Any, journal: Journal, driver: Any, **hooks: Any) -> None:
    """A story that ends well."""
    journal.set_ready()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        nic_driver_ver="25.07-0.9.7.0",
        ready_path=tmp_path / "run/.ready",
        lock_path=tmp_path / "run/.lock",
        state_dir=tmp_path / "run/state",
        blacklist_file=tmp_path / "blacklist.conf",
    )


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch) -> Callable[[Story], None]:
    """Say what the story does."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(lifecycle, "Node", NoNode)
    monkeypatch.setattr(by_hand, "Node", NoNode)
    monkeypatch.setattr(machine, "machine_id", lambda: "a" * 32)
    return lambda told: monkeypatch.setattr(lifecycle, "reload", told)


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    child = signal.getsignal(signal.SIGCHLD)
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    signal.signal(signal.SIGCHLD, child)


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, str, list[str]]]:
    """What the agent became; the holder itself is not started."""
    calls: list[tuple[int, str, str, list[str]]] = []
    monkeypatch.setattr(hold, "become", lambda *call: calls.append(call))
    monkeypatch.setattr(hold, "until_stopped", lambda ready, log_format, then: 0)
    return calls


def test_when_proven_it_becomes_the_holder_with_lock_and_flag(
    settings: Settings,
    tell: Callable[[Story], None],
    became: list[tuple[int, str, str, list[str]]],
) -> None:
    tell(proven)
    assert lifecycle.run(Mode.PRECOMPILED, settings, "text") == 0
    ((lock_fd, ready, log_format, then),) = became
    assert (ready, log_format) == (str(settings.ready_path), "text")
    assert then[1:3] == ["-m", "nodeagent"]
    assert then[-3:] == ["terminate", "--lock-fd", str(lock_fd)]
    assert settings.ready_path.exists()
    names = [(record.kind, record.name) for record in Journal(settings).records()]
    assert names == [("note", "run"), ("note", "ready")]


def test_the_signals_are_blocked_when_it_becomes_the_holder(
    settings: Settings, tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(proven)
    masks: list[object] = []
    monkeypatch.setattr(
        hold, "become", lambda *_: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    )
    monkeypatch.setattr(hold, "until_stopped", lambda *_: 0)
    lifecycle.run(Mode.PRECOMPILED, settings, "text")
    assert {signal.SIGTERM, signal.SIGINT} <= masks[0]  # type: ignore[operator] # a set of signals


def test_a_flag_from_before_is_gone_while_working(
    settings: Settings, tell: Callable[[Story], None], became: list[object]
) -> None:
    seen: list[bool] = []
    settings.ready_path.parent.mkdir()
    settings.ready_path.touch()
    tell(lambda node, journal, driver, **hooks: seen.append(journal.is_ready()))
    lifecycle.run(Mode.PRECOMPILED, settings, "text")
    assert seen == [False]


@pytest.mark.parametrize("error", [KernelError("no driver"), Stopped(), ZeroDivisionError()])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_error_takes_the_flag_with_it(
    settings: Settings, tell: Callable[[Story], None], error: Exception, when: str
) -> None:
    def told(node: Any, journal: Journal, driver: Any, **hooks: Any) -> None:
        if when == "after":
            journal.set_ready()
        raise error

    tell(told)
    with pytest.raises(type(error)):
        lifecycle.run(Mode.PRECOMPILED, settings, "text")
    assert not settings.ready_path.exists()
    with lock(settings.lock_path):
        pass


def test_a_failure_is_on_record(settings: Settings, tell: Callable[[Story], None]) -> None:
    def told(node: Any, journal: Journal, driver: Any, **hooks: Any) -> None:
        raise KernelError("no driver")

    tell(told)
    with pytest.raises(KernelError):
        by_hand.reload_once(Mode.PRECOMPILED, settings)
    last = Journal(settings).records()[-1]
    assert (last.name, last.facts) == ("failed", {"message": "no driver"})


def test_a_reload_by_hand_leaves_the_flag(
    settings: Settings, tell: Callable[[Story], None]
) -> None:
    tell(proven)
    by_hand.reload_once(Mode.PRECOMPILED, dataclasses.replace(settings, nic_driver_ver=None))
    assert settings.ready_path.exists()
    with lock(settings.lock_path):
        pass


# Signals


def test_a_signal_while_waiting_ends_the_start(
    settings: Settings, tell: Callable[[Story], None]
) -> None:
    def told(node: Any, journal: Journal, driver: Any, **hooks: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until_clear(lambda: ["a VF"], node.stop, what="VFs", timeout=20)

    tell(told)
    with pytest.raises(Stopped):
        lifecycle.run(Mode.PRECOMPILED, settings, "text")
    assert not settings.ready_path.exists()


def test_a_signal_after_ready_and_before_holding_removes_the_flag_and_ends_well(
    settings: Settings, tell: Callable[[Story], None], became: list[object]
) -> None:
    def told(node: Any, journal: Journal, driver: Any, **hooks: Any) -> None:
        journal.set_ready()
        os.kill(os.getpid(), signal.SIGTERM)

    tell(told)
    assert lifecycle.run(Mode.PRECOMPILED, settings, "text") == 0
    assert not settings.ready_path.exists()
    assert became == []


def test_a_signal_that_was_blocked_before_there_was_a_handler_is_not_lost(
    settings: Settings, tell: Callable[[Story], None]
) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, hold.STOP_SIGNALS)
    os.kill(os.getpid(), signal.SIGTERM)

    def told(node: Any, journal: Journal, driver: Any, **hooks: Any) -> None:
        wait_until_clear(lambda: ["a VF"], node.stop, what="VFs", timeout=20)

    tell(told)
    with pytest.raises(Stopped):
        lifecycle.run(Mode.PRECOMPILED, settings, "text")


def test_without_the_execve_it_holds_as_it_is(
    settings: Settings,
    tell: Callable[[Story], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def cannot(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise OSError(8, "Exec format error")

    tell(proven)
    monkeypatch.setattr(hold, "become", cannot)
    ended: list[list[str]] = []

    def told(then: list[str], _: str) -> int:
        ended.append(then)
        return 0

    monkeypatch.setattr(hold, "_become_the_agent", told)
    assert lifecycle.run(Mode.PRECOMPILED, settings, "text") == 0
    assert not settings.ready_path.exists()
    assert "cannot become the holder" in caplog.text
    assert "terminate" in ended[0]


WHOLE_LIFE = """
import os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from nodeagent.agent import lifecycle
from nodeagent import logs
from nodeagent.modes import Mode
from nodeagent.settings import Settings

class NoNode:
    def __init__(self, settings, stop): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass

logs.configure(log_format="text", verbose=False)
os.geteuid = lambda: 0
lifecycle.Node = NoNode
lifecycle.reload = lambda node, journal, driver, **hooks: journal.set_ready()
run = Path({run!r})
run.mkdir()
python = run / "python"  # what it becomes in the end is told, and not done
script = "#!/bin/sh\\ntest $1 = -m && exec echo now: $* >&2\\nexec " + sys.executable
python.write_text(script + " $*\\n")
python.chmod(0o755)
sys.executable = str(python)
lifecycle.run(Mode.PRECOMPILED, Settings(nic_driver_ver="1", ready_path=run / "ready",
    lock_path=run / "lock", state_dir=run / "state", blacklist_file=run / "b/b.conf"), "text")
"""


def test_a_whole_life(tmp_path: Path) -> None:
    code = WHOLE_LIFE.format(root=str(ROOT), run=str(tmp_path / "run"))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        while b"ready:" not in (line := process.stderr.readline()):
            assert line, "it ended before it was ready"
        with pytest.raises(BusyError, match=str(process.pid)), lock(tmp_path / "run/lock"):
            pass
        process.terminate()
        assert process.wait(timeout=20) == 0
        said = process.stderr.read()
        assert b"SIGTERM: the ready flag is removed" in said
        assert b"now: -m nodeagent --log-format text terminate --lock-fd " in said
        assert not (tmp_path / "run/ready").exists()
    finally:
        process.kill()
        process.communicate()


def test_whenever_sigterm_comes_no_flag_is_left(tmp_path: Path) -> None:
    """From the start of the interpreter until it holds; before there is a handler it just ends."""
    for trial in range(10):
        run = tmp_path / f"run{trial}"
        code = WHOLE_LIFE.format(root=str(ROOT), run=str(run))
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=trial * 0.04)
        process.terminate()
        process.communicate(timeout=20)
        assert process.returncode in {0, 1, -signal.SIGTERM}
        assert not (run / "ready").exists(), trial


# The end


def test_what_the_holder_becomes_cleans_up(
    settings: Settings, tell: Callable[[Story], None], tmp_path: Path
) -> None:
    rule = tmp_path / "77.rules"
    rule.touch()
    given = replace(settings, udev_rules_file=rule, drivers_mount=tmp_path / "drivers")
    with lock(settings.lock_path) as fd:
        ours = os.dup(fd)
    Journal(settings).set_ready()
    lifecycle.terminate(given, ours, time.monotonic())
    assert not rule.exists()
    assert not settings.ready_path.exists()
    names = [(record.kind, record.name) for record in Journal(settings).records()]
    assert names == [("note", "run"), ("note", "terminated")]


def test_a_descriptor_that_is_not_the_lock_is_refused(
    settings: Settings, tell: Callable[[Story], None], tmp_path: Path
) -> None:
    Journal(settings).set_ready()
    with (tmp_path / "other").open("w") as other, lock(settings.lock_path):
        with pytest.raises(BusyError):
            lifecycle.terminate(settings, other.fileno(), None)
        with pytest.raises(BusyError):
            lifecycle.terminate(settings, None, None)
    assert settings.ready_path.exists()


@pytest.mark.parametrize(
    "case",
    [(True, Stopped(), 1), (True, KernelError("no"), 0), (False, Stopped(), 0)],
)
def test_a_start_that_is_stopped_puts_the_drivers_back_and_a_failed_one_does_not(
    settings: Settings,
    tell: Callable[[Story], None],
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[bool, AgentError, int],
) -> None:
    """A container that fails is started again: a reload each time would hurt."""
    asked, error, times = case
    done: list[str] = []
    monkeypatch.setattr(termination, "restore_driver", lambda *_: done.append("restored"))

    def told(node: Any, journal: Journal, driver: Any, **hooks: Any) -> None:
        raise error

    tell(told)
    with pytest.raises(type(error)):
        lifecycle.run(Mode.PRECOMPILED, replace(settings, restore_driver=asked), "text")
    assert len(done) == times


# Debug mode


def failing_after_a_command(node: Any, journal: Journal, driver: Any, **hooks: Any) -> None:
    process.run(["/bin/sh", "-c", "exit 3"], timeout=10)
    raise KernelError("the kernel said no")


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_debug_mode_records_commands_and_waits_after_a_failure(
    seconds: float, settings: Settings, tell: Callable[[Story], None], tmp_path: Path
) -> None:
    tell(failing_after_a_command)
    given = replace(
        settings, debug=True, debug_log_file=tmp_path / "commands.log", debug_sleep=seconds
    )
    began = time.monotonic()
    with pytest.raises(KernelError, match="the kernel said no"):
        lifecycle.run(Mode.PRECOMPILED, given, "text")
    assert time.monotonic() - began >= seconds
    first, second = (tmp_path / "commands.log").read_text().splitlines()
    assert first.endswith("Z running /bin/sh -c 'exit 3'")
    assert " /bin/sh exited 3 after " in second
    assert not settings.ready_path.exists()


def test_a_signal_ends_the_pause_at_once(
    settings: Settings, tell: Callable[[Story], None], tmp_path: Path
) -> None:
    tell(failing_after_a_command)
    given = replace(settings, debug=True, debug_log_file=tmp_path / "log", debug_sleep=600.0)
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KernelError):
        lifecycle.run(Mode.PRECOMPILED, given, "text")
    timer.join()
    assert time.monotonic() - began < 20


def test_a_stop_is_no_failure_to_look_at(
    settings: Settings, tell: Callable[[Story], None], tmp_path: Path
) -> None:
    def stopped(node: Any, journal: Journal, driver: Any, **hooks: Any) -> None:
        raise Stopped

    tell(stopped)
    given = replace(settings, debug=True, debug_log_file=tmp_path / "log", debug_sleep=600.0)
    with pytest.raises(Stopped):
        lifecycle.run(Mode.PRECOMPILED, given, "text")


def test_a_debug_log_that_is_a_link_is_refused(
    settings: Settings, tell: Callable[[Story], None], tmp_path: Path
) -> None:
    tell(proven)
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    given = replace(settings, debug=True, debug_log_file=tmp_path / "log", debug_sleep=0.0)
    with pytest.raises(StorageError, match="cannot open the debug log"):
        lifecycle.run(Mode.PRECOMPILED, given, "text")
    assert not (tmp_path / "elsewhere").exists()


def test_without_debug_mode_there_is_neither(
    settings: Settings, tell: Callable[[Story], None], tmp_path: Path
) -> None:
    tell(failing_after_a_command)
    given = replace(settings, debug_log_file=tmp_path / "log", debug_sleep=600.0)
    with pytest.raises(KernelError):
        lifecycle.run(Mode.PRECOMPILED, given, "text")
    assert not (tmp_path / "log").exists()


# Who may do what


def test_a_second_agent_is_refused_and_disturbs_nothing(
    settings: Settings, tell: Callable[[Story], None]
) -> None:
    tell(proven)
    Journal(settings).set_ready()
    with lock(settings.lock_path), pytest.raises(BusyError):
        lifecycle.run(Mode.PRECOMPILED, settings, "text")
    assert settings.ready_path.exists()
    assert Journal(settings).records() == ()


@pytest.mark.parametrize(
    "call",
    [
        lambda settings: lifecycle.run(Mode.PRECOMPILED, settings, "text"),
        lambda settings: by_hand.reload_once(Mode.PRECOMPILED, settings),
        by_hand.snapshot_now,
        lambda settings: by_hand.restore_now(SNAPSHOT, settings),
    ],
)
def test_without_root_it_says_what_for(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    call: Callable[[Settings], object],
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PermissionDenied, match=r"needs root: it (loads|reads|writes)"):
        call(settings)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_version_touches_nothing(
    settings: Settings, tell: Callable[[Story], None], tmp_path: Path
) -> None:
    tell(proven)
    with pytest.raises(ConfigError, match="NVIDIA_NIC_DRIVER_VER"):
        lifecycle.run(Mode.PRECOMPILED, dataclasses.replace(settings, nic_driver_ver=None), "text")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch, tell: Callable[[Story], None]) -> list[str]:
    """What was done to the node by hand."""
    done: list[str] = []
    monkeypatch.setattr(restoring, "restore", lambda node, want: done.append("restore"))
    monkeypatch.setattr(restoring, "verify", lambda node, want, takings: done.append("verify"))
    return done


def test_restoring_by_hand_beside_an_agent_that_is_ready(
    settings: Settings, restored: list[str]
) -> None:
    Journal(settings).set_ready()
    Journal(settings).save(SNAPSHOT)
    with lock(settings.lock_path):
        by_hand.restore_now(SNAPSHOT, settings)
    assert restored == ["restore", "verify"]
    assert Journal(settings).is_ready()
    assert Journal(settings).has_open_snapshot()


def test_not_beside_one_that_is_at_work(settings: Settings, restored: list[str]) -> None:
    with lock(settings.lock_path), pytest.raises(BusyError):
        by_hand.restore_now(SNAPSHOT, settings)
    assert restored == []


def test_two_hands_do_not_meet(settings: Settings, restored: list[str]) -> None:
    Journal(settings).set_ready()
    with lock(settings.lock_path.with_name(".lock.work")), pytest.raises(BusyError):
        by_hand.restore_now(SNAPSHOT, settings)
    assert restored == []


def test_an_error_of_the_restore_itself_is_not_taken_for_a_busy_lock(
    settings: Settings, restored: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(node: Any, want: NodeState) -> None:
        raise BusyError("the device is busy")

    monkeypatch.setattr(restoring, "restore", busy)
    Journal(settings).set_ready()
    with pytest.raises(BusyError, match="the device is busy"):
        by_hand.restore_now(SNAPSHOT, settings)


# What it refuses, sweeps and says


def test_an_open_snapshot_of_another_machine_stops_the_start(
    settings: Settings, tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(proven)
    monkeypatch.setattr(machine, "machine_id", lambda: "f" * 32)
    Journal(settings).save(SNAPSHOT)
    with pytest.raises(DataError, match="taken on another machine") as caught:
        lifecycle.run(Mode.PRECOMPILED, settings, "text")
    assert str(settings.state_dir) in (caught.value.hint or "")
    assert not settings.ready_path.exists()
    assert Journal(settings).has_open_snapshot()


@pytest.mark.parametrize(("theirs", "ours"), [("", "a"), ("a", ""), ("a", "a")])
def test_a_snapshot_without_an_id_fits_any_machine(theirs: str, ours: str) -> None:
    requirements.require_same_machine(
        dataclasses.replace(SNAPSHOT, machine_id=theirs), ours, hint=""
    )


def test_a_stale_blacklist_is_swept(
    settings: Settings, tell: Callable[[Story], None], became: list[object]
) -> None:
    settings.blacklist_file.write_text("")
    tell(proven)
    lifecycle.run(Mode.PRECOMPILED, settings, "text")
    assert not settings.blacklist_file.exists()


@pytest.mark.parametrize(("given", "warnings"), [(None, 0), ("4", 1)])
def test_bind_delay_is_ignored_with_one_warning(
    settings: Settings,
    tell: Callable[[Story], None],
    caplog: pytest.LogCaptureFixture,
    given: str | None,
    warnings: int,
) -> None:
    tell(proven)
    by_hand.reload_once(Mode.PRECOMPILED, dataclasses.replace(settings, bind_delay_sec=given))
    found = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len([r for r in found if "BIND_DELAY_SEC" in r.message]) == warnings == len(found)


def test_a_node_without_devices_is_told_so() -> None:
    requirements.require_devices(SNAPSHOT)
    empty = dataclasses.replace(SNAPSHOT, state=NodeState("mlx5_core"))
    with pytest.raises(UnavailableError, match="bound to the driver mlx5_core"):
        requirements.require_devices(empty)


# A reboot in the middle of a reload


@pytest.fixture
def rebooted(settings: Settings) -> Snapshot:
    """An open snapshot of an earlier boot of this machine."""
    taken = Snapshot(
        taken_at="2026-11-21T00:00:00+00:00",
        machine_id="",
        boot_id="00000000-0000-0000-0000-000000000000",
        kernel="6.1",
        srcversions=(),
        state=NodeState("mlx5_core", ()),
    )
    Journal(settings).save(taken)
    return taken


def test_after_a_reboot_the_snapshot_is_kept_and_that_is_said(
    settings: Settings,
    rebooted: Snapshot,
    tell: Callable[[Story], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[Snapshot | None] = []

    def story(node: Any, journal: Journal, driver: Any, **hooks: Any) -> None:
        seen.append(journal.open_snapshot())
        journal.set_ready()

    tell(story)
    by_hand.reload_once(Mode.PRECOMPILED, settings)
    assert seen == [rebooted]
    assert "the node has rebooted since the snapshot of 2026-11-21T00:00:00" in caplog.text
    assert "rebooted" in [record.name for record in Journal(settings).records()]


def test_or_it_is_set_aside(
    settings: Settings,
    rebooted: Snapshot,
    tell: Callable[[Story], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[bool] = []

    def story(node: Any, journal: Journal, driver: Any, **hooks: Any) -> None:
        seen.append(journal.has_open_snapshot())
        journal.set_ready()

    tell(story)
    by_hand.reload_once(Mode.PRECOMPILED, replace(settings, after_reboot=AfterReboot.SET_ASIDE))
    assert seen == [False]
    aside = settings.state_dir / "set-aside-snapshot.json"
    assert unseal(aside.read_bytes(), str(aside), sealed=True) == rebooted
    assert f"set aside as {aside}" in caplog.text


def test_in_the_same_boot_there_is_nothing_to_say(
    settings: Settings, tell: Callable[[Story], None], caplog: pytest.LogCaptureFixture
) -> None:
    tell(proven)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    Journal(settings).save(Snapshot("t", "", boot, "6.1", (), NodeState("mlx5_core", ())))
    by_hand.reload_once(Mode.PRECOMPILED, settings)
    assert "rebooted" not in caplog.text
