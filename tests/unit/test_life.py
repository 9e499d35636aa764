"""Whether an agent lives, seen from the host and from a second container of the pod."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeagent.agent import life, status
from nodeagent.driver.nic import NicDriver
from nodeagent.kernel.heart import Heart
from nodeagent.modes import Mode
from nodeagent.record import journal as journals
from nodeagent.record.journal import Journal, Note
from nodeagent.record.lock import lock
from nodeagent.record.timeline import Result
from nodeagent.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(NicDriver, "srcversions", lambda _self: ())
    return dataclasses.replace(
        Settings(),
        ready_path=tmp_path / "ready",
        lock_path=tmp_path / "lock",
        state_dir=tmp_path / "state",
    )


@pytest.fixture
def seen_from(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Say where this process is: on the host, or in a second container of the pod."""

    def say(where: str) -> None:
        monkeypatch.setattr(life, "sees_the_host", lambda: where == "host")
        if where != "host":
            monkeypatch.setattr(life, "lock_holders", lambda _path: ())

    return say


def beat(settings: Settings, *, ago: float = 0) -> None:
    with Heart(settings.beat_path):
        pass
    uptime = int(time.clock_gettime(time.CLOCK_BOOTTIME) - ago)
    settings.beat_path.write_bytes(b"%010d\n" % uptime)


def result(settings: Settings) -> Result:
    return life.runs(settings, Journal(settings))[1][-1].result


def begun(settings: Settings) -> Journal:
    journal = Journal(settings)
    journal.note(Note.RUN, mode="precompiled")
    journal._record(journals.RecordKind.START, "restart", {})
    return journal


def test_at_work_in_another_container(settings: Settings, seen_from: Callable[[str], None]) -> None:
    seen_from("second container")
    journal = begun(settings)
    beat(settings, ago=settings.beat_limit / 2)
    assert result(settings) == Result.RUNNING
    found = status.look(settings, NicDriver(settings, Mode.PRECOMPILED, None))
    assert (found.phase, found.agent) == ("running in restart", life.HIDDEN_PID)
    beat(settings, ago=settings.beat_limit + 2)
    assert result(settings) == Result.CUT_SHORT
    beat(settings)
    journal.note(Note.FAILED, message="no")
    assert result(settings) == Result.FAILED
    found = status.look(settings, NicDriver(settings, Mode.PRECOMPILED, None))
    assert (found.agent, found.hidden) == (None, True)


def test_on_the_host_the_lock_is_the_truth(
    settings: Settings, seen_from: Callable[[str], None]
) -> None:
    """One that was killed is seen at once, however lately it has beaten."""
    seen_from("host")
    begun(settings)
    beat(settings)
    assert result(settings) == Result.CUT_SHORT
    with lock(settings.lock_path):
        assert result(settings) == Result.RUNNING


def test_a_run_before_a_reboot_is_over(
    settings: Settings, seen_from: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen_from("second container")
    begun(settings)
    beat(settings)
    monkeypatch.setattr(life, "boot_id", lambda: "another")
    assert result(settings) == Result.CUT_SHORT


@pytest.mark.parametrize("text", [b"", b"soon\n", b"9999999999\n", b"123"])
def test_a_beat_that_is_none(settings: Settings, text: bytes) -> None:
    """Nothing, rubbish, one of before a reboot, half of one."""
    settings.beat_path.write_bytes(text)
    settings.beat_path.chmod(0o644)
    assert life.last_beat(settings) is None


def test_a_lock_of_another_pid_namespace_is_hidden(tmp_path: Path) -> None:
    """The kernel's part: what this module is there for. Needs root, for a namespace."""
    path = tmp_path / "lock"
    code = (
        "from pathlib import Path; from nodeagent.agent import life; "
        "from nodeagent.record.lock import lock_holders; "
        f"print(lock_holders(Path({str(path)!r})), life.sees_the_host())"
    )
    looking = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    with lock(path):
        done = subprocess.run(
            looking, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
        )
    if done.returncode:
        pytest.skip(f"no PID namespace here: {done.stderr.strip()[-200:]}")
    assert done.stdout == "() False\n"
