"""The command runner, with real processes."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.errors import KernelError, Stopped, UnavailableError, WaitTimeout
from nodeagent.kernel import process
from nodeagent.kernel.events import StopSignal
from nodeagent.kernel.process import run
from tests.support.descriptors import open_descriptors


def sh(script: str, *, timeout: float = 10) -> process.Finished:
    return run(["/bin/sh", "-c", script], timeout=timeout)


def terminate_me(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    return timer


def is_gone(pid: int) -> bool:
    """Gone, or a zombie (a container's PID 1 may leave those about), within a second."""
    for _ in range(100):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        if stat.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "KILL_DELAY", 0.3)


def test_result() -> None:
    finished = sh("echo out; echo err >&2; exit 3")
    assert finished.argv == ("/bin/sh", "-c", "echo out; echo err >&2; exit 3")
    assert (finished.returncode, finished.output, finished.errors) == (3, "out", "err")
    assert 0 < finished.seconds < 5


def test_death_by_a_signal_is_a_negative_returncode() -> None:
    assert sh("kill -9 $$").returncode == -9


def test_stdin_is_empty_and_the_session_its_own() -> None:
    finished = sh("cat; ps -o sid= -p $$ 2>/dev/null || awk '{print $6}' /proc/$$/stat")
    assert int(finished.output) != os.getsid(0)


def test_lines_come_while_the_command_runs() -> None:
    came: list[tuple[str, float]] = []
    started = time.monotonic()
    run(
        ["/bin/sh", "-c", "echo one; sleep 0.3; echo two"],
        timeout=5,
        on_line=lambda line: came.append((line, time.monotonic() - started)),
    )
    assert [line for line, _ in came] == ["one", "two"]
    assert came[1][1] - came[0][1] > 0.2


def test_lines_are_cleaned() -> None:
    lines: list[str] = []
    script = r"printf 'Unloading HCA driver: \033[60G[\033[1;32m  OK  \033[0;39m]\r\n\377z\nlast'"
    finished = run(["/bin/sh", "-c", script], timeout=5, on_line=lines.append)
    assert lines == ["Unloading HCA driver: [  OK  ]", "\ufffdz", "last"]
    assert finished.output == "\n".join(lines)


def test_a_character_cut_by_the_pipe_stays_whole() -> None:
    assert sh(r"printf '\303'; sleep 0.1; printf '\251\n'").output == "é"


def test_endless_output_is_bounded_and_its_end_kept() -> None:
    finished = sh("head -c 3000000 /dev/zero | tr '\\0' 'x'; echo; seq 1 200000", timeout=30)
    assert len(finished.output) <= process.MAX_OUTPUT
    assert finished.output.endswith("199999\n200000")


def test_both_streams_can_be_full_at_once() -> None:
    finished = sh("seq 1 100000 >&2 & seq 1 100000; wait")
    assert finished.output.splitlines()[-1] == finished.errors.splitlines()[-1] == "100000"


def test_environment_is_replaced() -> None:
    finished = run(["/bin/sh", "-c", "echo $A$HOME"], timeout=5, env={"A": "b"})
    assert finished.output == "b"


def test_missing_command_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnavailableError, match="cannot run modinfo") as caught:
        run(["modinfo", "x"], timeout=5)
    assert caught.value.hint == "install the package kmod"


def test_what_cannot_be_executed(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/nowhere/sh\n")
    with pytest.raises(UnavailableError, match="Permission denied"):
        run([str(script)], timeout=5)
    script.chmod(0o755)
    with pytest.raises(UnavailableError, match="interpreter"):
        run([str(script)], timeout=5)


def test_timeout_ends_the_whole_group(quick: None) -> None:
    pids: list[int] = []
    with pytest.raises(
        WaitTimeout, match=r"timed out after 0.3 s waiting for /bin/sh -c .*SIGTERM"
    ):
        run(
            ["/bin/sh", "-c", "sleep 60 & echo $!; echo $$; wait"],
            timeout=0.3,
            on_line=lambda line: pids.append(int(line)),
        )
    assert len(pids) == 2
    assert all(is_gone(pid) for pid in pids)


@pytest.fixture
def deaf() -> Iterator[None]:
    """What is started now ignores SIGTERM from its first instruction: that is inherited."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


def test_timeout_kills_what_ignores_sigterm(quick: None, deaf: None) -> None:
    started = time.monotonic()
    with pytest.raises(WaitTimeout, match="ignored SIGTERM; SIGKILL"):
        sh("sleep 60", timeout=0.3)
    assert 0.6 <= time.monotonic() - started < 10


def test_timeout_kills_what_outlives_the_leader(quick: None) -> None:
    pids: list[int] = []
    script = "(trap '' TERM; echo ready >&2; while :; do sleep 0.1; done) & echo $!; sleep 60"
    with pytest.raises(WaitTimeout):
        run(
            ["/bin/sh", "-c", script],
            timeout=2,
            on_line=lambda line: pids.append(int(line)) if line.isdigit() else None,
        )
    assert is_gone(pids[0])


def test_a_flood_of_output_does_not_hold_up_the_deadline(quick: None) -> None:
    started = time.monotonic()
    with pytest.raises(WaitTimeout):
        sh("while :; do echo x; done", timeout=0.3)
    assert time.monotonic() - started < 5


def test_an_end_at_the_deadline_is_an_end() -> None:
    assert sh("exit 0", timeout=5).returncode == 0


def test_grandchild_that_keeps_the_pipe_does_not_hang_us() -> None:
    started = time.monotonic()
    finished = sh("sleep 5 & echo $!; echo last")
    assert time.monotonic() - started < 4
    pid, last = finished.output.splitlines()
    assert last == "last"
    os.kill(int(pid), signal.SIGKILL)


def test_grandchild_that_goes_on_writing_does_not_hang_us() -> None:
    started = time.monotonic()
    finished = sh("(while echo x; do :; done) & echo last")
    assert time.monotonic() - started < 5
    assert "last" in finished.output


def test_closed_output_is_not_the_end() -> None:
    finished = sh("exec >&- 2>&-; sleep 0.3; exit 4")
    assert finished.returncode == 4
    assert finished.seconds >= 0.3


def test_stop_ends_the_command() -> None:
    pids: list[int] = []

    def stop_once_it_runs(line: str) -> None:
        pids.append(int(line))
        os.kill(os.getpid(), signal.SIGTERM)

    with StopSignal() as stop:
        started = time.monotonic()
        with pytest.raises(Stopped):
            run(
                ["/bin/sh", "-c", "sleep 60 & echo $!; wait"],
                timeout=30,
                stop=stop,
                on_line=stop_once_it_runs,
            )
        assert time.monotonic() - started < 5
    assert is_gone(pids[0])


def test_patient_run_finishes_before_it_stops(tmp_path: Path) -> None:
    done = tmp_path / "done"
    with StopSignal() as stop:
        timer = terminate_me(0.1)
        with pytest.raises(Stopped):
            run(
                ["/bin/sh", "-c", f"sleep 0.5; echo loaded > {done}"],
                timeout=30,
                stop=stop,
                stop_grace=60,
            )
        timer.join()
    assert done.read_text() == "loaded\n"


def test_patience_ends_at_the_deadline(quick: None) -> None:
    with StopSignal() as stop:
        timer = terminate_me(0.1)
        started = time.monotonic()
        with pytest.raises(Stopped):
            run(["/bin/sleep", "60"], timeout=0.5, stop=stop, stop_grace=60)
        assert 0.5 <= time.monotonic() - started < 5
        timer.join()


def test_nothing_is_started_after_a_stop(tmp_path: Path) -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            run(["/bin/touch", str(tmp_path / "x")], timeout=5, stop=stop, stop_grace=60)
    assert not (tmp_path / "x").exists()


def test_a_bug_in_on_line_leaves_no_process() -> None:
    pids: list[int] = []

    def broken(line: str) -> None:
        pids.append(int(line))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(["/bin/sh", "-c", "echo $$; sleep 60"], timeout=5, on_line=broken)
    assert is_gone(pids[0])


def test_an_old_kernel_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def pidfd_open(pid: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    with pytest.raises(KernelError) as caught:
        sh("sleep 60; true")
    assert "Linux 5.3" in (caught.value.hint or "")


def test_no_descriptor_is_left() -> None:
    before = open_descriptors()
    for _ in range(10):
        sh("true")
    with pytest.raises(UnavailableError):
        run(["/nowhere"], timeout=1)
    assert open_descriptors() == before


def test_waiting_for_a_silent_command_does_not_wake_up() -> None:
    code = (
        "import re, time; from pathlib import Path; from nodeagent.kernel.process import run\n"
        "def switches(): return int(re.search(r'^voluntary_ctxt_switches:\\s+(\\d+)',"
        " Path('/proc/self/status').read_text(), re.M)[1])\n"
        "before = switches(); run(['/bin/sleep', '1'], timeout=9); print(switches() - before)"
    )
    finished = run([sys.executable, "-c", code], timeout=20)
    assert finished.errors == ""
    assert int(finished.output) <= 5  # the start itself: the pipe that says whether exec worked
