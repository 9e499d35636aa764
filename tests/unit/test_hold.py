"""Holding ready: no signal is lost, the flag goes first, and next to nothing stays in memory."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.agent import hold

ROOT = Path(hold.__file__).resolve().parents[2]

BECOME = """
import os, signal, sys
sys.path.insert(0, {root!r})
from nodeagent.agent import hold
signal.pthread_sigmask(signal.SIG_BLOCK, hold.STOP_SIGNALS)
fd = os.open({lock!r}, os.O_RDWR | os.O_CREAT)
if {early}:
    os.kill(os.getpid(), signal.SIGTERM)
print("becoming", flush=True)
hold.become(fd, {ready!r}, {log_format!r}, {then!r})
"""


class Agent:
    """A process that becomes the holder."""

    def __init__(
        self,
        tmp_path: Path,
        *,
        early: bool = False,
        log_format: str = "text",
        then: tuple[str, ...] = (),
    ) -> None:
        self.ready = tmp_path / "ready"
        self.ready.touch()
        code = BECOME.format(
            root=str(ROOT),
            lock=str(tmp_path / "lock"),
            early=early,
            ready=str(self.ready),
            log_format=log_format,
            then=[*then],
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def is_waiting(self) -> bool:
        """It is the holder, and in sigtimedwait(2): only there the kernel lets SIGTERM in."""
        proc = Path(f"/proc/{self.process.pid}")
        status = proc.joinpath("status").read_text()
        blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
        holder = b"hold.py" in proc.joinpath("cmdline").read_bytes()
        return holder and not blocked & 1 << (signal.SIGTERM - 1)

    def settled(self) -> Agent:
        """Wait until it waits. The wait of this test, not of the program."""
        deadline = time.monotonic() + 20
        while not self.is_waiting() and time.monotonic() < deadline:
            time.sleep(0.02)
        return self

    def status(self, name: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
        assert found
        return int(found[1])

    def ended(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=20)
        return self.process.returncode, errors.decode()


@pytest.fixture
def agents() -> Iterator[list[Agent]]:
    started: list[Agent] = []
    yield started
    for agent in started:
        if agent.process.poll() is None:
            agent.process.kill()
        agent.process.communicate()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_removes_the_flag_and_ends_well(
    tmp_path: Path, agents: list[Agent], stop: signal.Signals
) -> None:
    agents.append(agent := Agent(tmp_path).settled())
    assert agent.ready.exists()
    agent.process.send_signal(stop)
    status, errors = agent.ended()
    assert (status, agent.ready.exists()) == (0, False)
    assert re.fullmatch(
        rf"\d\d:\d\d:\d\d\.\d{{3}} INFO  {stop.name}: the ready flag is removed\n", errors
    )


def test_a_signal_before_the_execve_is_not_lost(tmp_path: Path, agents: list[Agent]) -> None:
    agents.append(agent := Agent(tmp_path, early=True))
    assert agent.ended()[0] == 0
    assert not agent.ready.exists()


def test_the_lock_stays_with_the_process(tmp_path: Path, agents: list[Agent]) -> None:
    agents.append(agent := Agent(tmp_path).settled())
    links = [str(fd.readlink()) for fd in Path(f"/proc/{agent.process.pid}/fd").iterdir()]
    assert str(tmp_path / "lock") in links


def test_it_is_small_and_sleeps(tmp_path: Path, agents: list[Agent]) -> None:
    agents.append(agent := Agent(tmp_path).settled())
    assert agent.status("VmRSS") <= 25 * 1024
    before = agent.status("voluntary_ctxt_switches")
    time.sleep(1)
    assert agent.status("voluntary_ctxt_switches") == before


THEN = """
import fcntl, os, signal, sys, time
fd, _, since = sys.argv[1:]
fcntl.flock(int(fd), fcntl.LOCK_EX | fcntl.LOCK_NB)
child = os.posix_spawn("/bin/false", ["false"], os.environ)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]),
      signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()),
      0 <= time.monotonic() - float(since) < 10, os.path.exists({ready!r}), file=sys.stderr)
"""


def test_it_becomes_what_it_is_told_to(tmp_path: Path, agents: list[Agent]) -> None:
    """The flag is gone by then; lock and blocked signals are handed on, SIGCHLD is as usual."""
    code = THEN.format(ready=str(tmp_path / "ready"))
    lock_fd = "3"  # the first that the process opens
    agents.append(agent := Agent(tmp_path, then=(sys.executable, "-c", code, lock_fd)).settled())
    assert str(Path(f"/proc/{agent.process.pid}/fd/3").readlink()) == str(tmp_path / "lock")
    agent.process.terminate()
    status, errors = agent.ended()
    assert (status, errors.splitlines()[-1]) == (0, "1 True True False")


def test_what_it_cannot_become_is_said(tmp_path: Path, agents: list[Agent]) -> None:
    agents.append(agent := Agent(tmp_path, then=("/nowhere/python",)).settled())
    agent.process.terminate()
    status, errors = agent.ended()
    assert status == 1
    assert "cannot terminate in order: /nowhere/python: No such file" in errors
    assert not agent.ready.exists()


def test_a_flag_that_is_gone_already_is_no_trouble(tmp_path: Path, agents: list[Agent]) -> None:
    agents.append(agent := Agent(tmp_path).settled())
    agent.ready.unlink()
    agent.process.terminate()
    assert agent.ended()[0] == 0


def test_a_flag_that_cannot_be_removed_is_said(tmp_path: Path, agents: list[Agent]) -> None:
    agents.append(agent := Agent(tmp_path, log_format="json").settled())
    agent.ready.unlink()
    agent.ready.mkdir()
    agent.process.terminate()
    status, errors = agent.ended()
    assert status == 1
    said = json.loads(errors)
    assert (said["level"], said["message"]) == (
        "error",
        f"cannot remove {agent.ready}: Is a directory",
    )


def test_orphans_are_reaped(tmp_path: Path, agents: list[Agent]) -> None:
    """What a container's PID 1 inherits; a child of the holder ends before and after the execve."""
    code = (
        "import os, signal, subprocess, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from nodeagent.agent import hold\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, hold.STOP_SIGNALS)\n"
        "subprocess.Popen(['true']); subprocess.Popen(['sh', '-c', 'read x'])\n"
        f"lock = os.open({str(tmp_path / 'lock')!r}, os.O_RDWR | os.O_CREAT)\n"
        "hold.become(lock, '/none', 'text', [])"
    )
    agent = Agent.__new__(Agent)
    agent.ready = tmp_path / "ready"
    agent.process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    agents.append(agent.settled())
    children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children")
    assert len(children.read_text().split()) == 1
    assert agent.process.stdin is not None
    agent.process.stdin.close()
    deadline = time.monotonic() + 10
    while children.read_text().split() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert children.read_text() == ""
    agent.process.stdin = None
    agent.process.terminate()
    assert agent.ended()[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [(), ("--help",), ("77", "/run/ready", "text"), ("x", "/r", "text"), ("9" * 40, "/r", "text")],
)
def test_by_hand_it_says_what_it_is(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nodeagent.agent.hold", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 64
    assert done.stderr.startswith("error: this is what `nodeagent run` becomes")
    assert "Traceback" not in done.stderr


def test_it_imports_next_to_nothing() -> None:
    code = f"import runpy, sys; runpy.run_path({hold.__file__!r}); print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-I", "-S", "-c", code], text=True).split()
    assert not {"json", "logging", "click", "pathlib", "subprocess", "nodeagent"} & set(loaded)


def test_a_holder_whose_file_is_gone_does_not_become_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "__file__", "/nowhere/hold.py")
    with pytest.raises(FileNotFoundError):
        hold.become(0, "/ready", "text", [])
