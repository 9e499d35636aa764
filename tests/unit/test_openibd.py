"""Running openibd: a small executable in its place."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.driver import openibd
from nodeagent.errors import Stopped, UnavailableError, WaitTimeout
from nodeagent.kernel import process
from nodeagent.kernel.events import StopSignal
from nodeagent.settings import Settings
from tests.support.host import CHROOT


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    script = tmp_path / "bin/chroot"
    script.parent.mkdir()
    script.write_text(CHROOT)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return replace(Settings(), driver_root=tmp_path, restart_timeout=5.0)


def install(settings: Settings, body: str) -> Path:
    script = openibd.script(settings)
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return script


def test_missing(settings: Settings) -> None:
    with pytest.raises(UnavailableError, match="there is no"):
        openibd.check(settings)


def test_not_executable(settings: Settings) -> None:
    install(settings, "").chmod(0o644)
    with pytest.raises(UnavailableError, match="not executable") as caught:
        openibd.check(settings)
    assert (caught.value.hint or "").startswith("chmod 755 ")


def test_output_is_streamed_to_the_log(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    install(
        settings,
        r"""printf 'Unloading HCA driver:   \033[60G[\033[1;32m  OK  \033[0;39m]\r\n\r\n'
        echo "verb $1"; echo trouble >&2; exit 1""",
    )
    openibd.check(settings)
    caplog.set_level(logging.INFO)
    finished = openibd.restart(settings, None)
    assert finished.returncode == 1
    assert set(caplog.messages) == {
        "openibd: Unloading HCA driver:   [  OK  ]",
        "openibd: verb restart",
        "openibd: trouble",
    }


def test_stop_lets_it_finish(settings: Settings, tmp_path: Path) -> None:
    """It is not even sent a signal: between unload and load the node has no driver."""
    loaded = tmp_path / "loaded"
    install(settings, f"trap 'echo hit > {tmp_path}/signalled' TERM; sleep 0.5; echo > {loaded}")
    with StopSignal() as stop:
        timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(Stopped):
            openibd.restart(settings, stop)
        timer.join()
    assert loaded.exists()
    assert not (tmp_path / "signalled").exists()


def test_only_the_deadline_kills_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ignores SIGTERM from its first moment: a trap of its own could come after the signal."""
    monkeypatch.setattr(process, "KILL_DELAY", 0.3)
    install(settings, "while :; do sleep 0.1; done")
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(WaitTimeout, match=r"openibd restart to end; .*SIGKILL ended it"):
            openibd.restart(replace(settings, restart_timeout=0.3), None)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process, and a /proc of ours in which it is openibd, among others that are not."""
    with subprocess.Popen(["/bin/sh", "-c", "read x"], stdin=subprocess.PIPE) as process:
        for pid, line in (
            (process.pid, b"/bin/bash\0/etc/init.d/openibd\0restart\0"),
            (1, b"/sbin/init\0"),
            (2, b""),
            (3, b"vi\0-R\0/etc/init.d/openibd\0"),
        ):
            path = tmp_path / f"proc/{pid}/cmdline"
            path.parent.mkdir(parents=True)
            path.write_bytes(line)
        yield process


def test_an_openibd_that_runs_is_waited_for(
    settings: Settings,
    other: subprocess.Popen[bytes],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What an agent that was killed alone leaves behind: its unload and our load would mix."""
    assert other.stdin is not None

    def end() -> None:
        assert other.stdin is not None
        (tmp_path / f"proc/{other.pid}/cmdline").unlink()
        other.stdin.close()

    threading.Timer(0.2, end).start()
    began = time.monotonic()
    openibd.await_running(settings, None, tmp_path / "proc")
    assert 0.15 < time.monotonic() - began < 3
    assert f"openibd is running already (process {other.pid})" in caplog.text


def test_one_that_does_not_end_is_named(
    settings: Settings, other: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    with pytest.raises(WaitTimeout, match=f"the end of process {other.pid}"):
        openibd.await_running(replace(settings, restart_timeout=0.2), None, tmp_path / "proc")


def test_one_that_has_just_ended_is_not_waited_for(settings: Settings, tmp_path: Path) -> None:
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    path = tmp_path / f"proc/{gone.pid}/cmdline"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"/etc/init.d/openibd\0restart\0")
    openibd.await_running(settings, None, tmp_path / "proc")


def test_the_shell_that_it_leaves_in_the_background_is_not_running(
    settings: Settings, tmp_path: Path
) -> None:
    """ib_set_node_desc, which waits for the host's name; before the script's end both count."""
    script = tmp_path / "openibd"
    script.write_text(
        "ib_set_node_desc() { read -r; }\n"
        "ib_set_node_desc <&3 >/dev/null 2>&1 &\n"
        "echo started; read -r\n"
    )
    listening, waiting = os.pipe()
    with subprocess.Popen(
        ["/bin/bash", script, "start"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.dup2(listening, 3),  # noqa: PLW1509 no threads here
        pass_fds=[3],
        start_new_session=True,
    ) as main:
        assert main.stdin is not None
        assert main.stdout is not None
        assert main.stdout.readline() == b"started\n"
        soon = replace(settings, restart_timeout=0.1)
        with pytest.raises(WaitTimeout, match=f"the end of process {main.pid}"):
            openibd.await_running(soon, None)
        main.stdin.write(b"\n")
        main.stdin.close()
        main.wait()
        openibd.await_running(soon, None)
    os.close(listening)
    os.close(waiting)


def test_a_restart_that_outlasts_the_grace_period_is_ended_by_us(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not by the kubelet, which would leave nobody to load a driver."""
    monkeypatch.setattr(process, "KILL_DELAY", 0.2)
    install(settings, "kill -TERM $PPID; trap '' TERM; while :; do sleep 0.1; done")
    began = time.monotonic()
    with StopSignal() as stop, pytest.raises(Stopped):
        openibd.restart(replace(settings, grace_period=20.5, restart_timeout=60.0), stop)
    assert time.monotonic() - began < 20
