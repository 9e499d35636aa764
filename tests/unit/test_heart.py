"""The sign of life: it comes from the waits themselves, and from nothing else."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.agent import debug, lifecycle
from nodeagent.errors import ConfigError, Stopped, StorageError, WaitTimeout
from nodeagent.kernel import process
from nodeagent.kernel.events import StopSignal, wait_until_clear
from nodeagent.kernel.heart import Heart
from nodeagent.settings import Settings


def boottime() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))


class Counting(Heart):
    """A heart that counts its beats: a second is too coarse for a test."""

    beats = 0

    def _beat(self) -> None:
        super()._beat()
        self.beats += 1


def test_a_disk_that_takes_no_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start it is an error; later it is said, and what is under way goes on."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Heart(tmp_path / "beat", 0.05) as heart:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(WaitTimeout):
            wait_until_clear(lambda: ["it"], heart, what="it", timeout=0.3)
    assert "cannot write the sign of life: No space left on device" in caplog.text
    with pytest.raises(StorageError, match=r"cannot write the sign of life .*: No space left"):
        Heart(tmp_path / "beat")


def test_it_beats_when_it_is_made(tmp_path: Path) -> None:
    with Heart(tmp_path / "beat"):
        text = (tmp_path / "beat").read_text()
    assert len(text) == 11
    assert boottime() - 1 <= int(text) <= boottime()


def test_a_wait_beats_and_a_hang_does_not(tmp_path: Path) -> None:
    with StopSignal() as stop, Counting(tmp_path / "beat", 0.02) as heart, stop.accompanied(heart):
        assert heart.beats == 1
        time.sleep(0.1)  # the main thread is in a call that does not return
        assert heart.beats == 1
        with pytest.raises(WaitTimeout):
            wait_until_clear(lambda: ["it"], stop, what="never", timeout=0.3)
        assert 5 <= heart.beats <= 20


def test_a_running_command_beats(tmp_path: Path) -> None:
    with StopSignal() as stop, Counting(tmp_path / "beat", 0.02) as heart, stop.accompanied(heart):
        process.run(["/bin/sleep", "0.3"], timeout=10, stop=stop)
        assert heart.beats >= 5


def test_the_pause_of_debug_mode_beats(tmp_path: Path) -> None:
    """`probe live` must not kill a container in which somebody looks around."""
    settings = replace(Settings(), debug=True, debug_sleep=0.3)
    with StopSignal() as stop, Counting(tmp_path / "beat", 0.02) as heart, stop.accompanied(heart):
        debug.pause(settings, ConfigError("no"), stop)
        assert heart.beats >= 5


def test_no_beat_once_it_is_left(tmp_path: Path) -> None:
    with StopSignal() as stop:
        with Counting(tmp_path / "beat", 0.02) as heart, stop.accompanied(heart):
            pass
        with pytest.raises(WaitTimeout):
            wait_until_clear(lambda: ["it"], stop, what="never", timeout=0.1)
        assert heart.beats == 1


def test_a_signal_still_stops_a_wait_that_beats(tmp_path: Path) -> None:
    with StopSignal() as stop, Heart(tmp_path / "beat", 0.02) as heart, stop.accompanied(heart):
        os.kill(os.getpid(), StopSignal.SIGNALS[0])
        with pytest.raises(Stopped):
            wait_until_clear(lambda: ["it"], stop, what="never", timeout=10)


def test_an_older_beat_is_written_over_whole(tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    beat.write_text("9999999999\n")
    with Heart(beat):
        assert int(beat.read_text()) <= boottime()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "beat").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="sign of life"):
        Heart(tmp_path / "beat")
    assert not (tmp_path / "elsewhere").exists()


def test_the_agent_beats_ten_times_within_the_limit(tmp_path: Path) -> None:
    settings = replace(Settings(), lock_path=tmp_path / "lock", beat_limit=0.2)
    with StopSignal() as stop, lifecycle.alive(settings, stop):
        first = settings.beat_path.stat().st_mtime_ns
        with pytest.raises(WaitTimeout):
            wait_until_clear(lambda: ["it"], stop, what="never", timeout=0.2)
        assert settings.beat_path.stat().st_mtime_ns > first
