"""The host's side of things: running its tools, telling the reader what is going on, errors."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

FAILED = 125
"""Exit status when the lab itself failed and not the command, as docker has it."""

WORKS_WITHOUT_LAB = "linters and unit tests still work without the lab: scripts/test --no-lab"

CONTAINED = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation=unchanged"),
)
PROGRESS_SECONDS = 30
LOGS = 20
"""How many logs of failed tools are kept."""

_started = time.monotonic()


class LabError(Exception):
    """The lab cannot do what was asked. `hint` says what to do next, or what still works."""

    def __init__(self, message: str, *, hint: str = WORKS_WITHOUT_LAB) -> None:
        super().__init__(message)
        self.hint = hint


def say(message: str) -> None:
    """One line of progress on stderr, with the seconds since the start."""
    print(f"lab {time.monotonic() - _started:6.1f}s  {message}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Tool:
    """A command and how it is run; `ending` is the signal that ends it."""

    argv: Sequence[str]
    ending: signal.Signals
    cwd: Path | None
    env: Mapping[str, str]


class Runner:
    """Runs the host's tools; what they print goes to a log file each, not to the reader.

    A tool runs in a PID namespace of its own, which the kernel clears when its first process dies,
    and that one dies with `terminate()` or with this process, even by SIGKILL (PR_SET_PDEATHSIG):
    mmdebstrap and make have many children, and none of them may write on into a later build.
    Nothing less than SIGKILL will do: the first process of a namespace cannot end itself by a
    signal (kill(2)), which make tries on and on when it gets SIGTERM, and unshare waits for it.
    """

    def __init__(self, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        for old in sorted(logs.iterdir(), key=lambda log: log.stat().st_mtime)[:-LOGS]:
            old.unlink(missing_ok=True)
        self.logs = logs
        self._running: dict[subprocess.Popen[bytes], signal.Signals] = {}
        """Tools with the signal that ends each."""
        self._lock = threading.Lock()
        self._terminated = False

    def run(
        self,
        *argv: object,
        what: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        contained: bool = True,
        progress: bool = False,
    ) -> None:
        """Run a tool to its end. LabError, with the end of its log, unless it exits 0.

        Only the log of a tool that failed is kept. A tool that is not `contained` gets SIGTERM when
        it has to stop, and time: dpkg on the host must not be killed. With `progress`, the last
        line of its log is shown now and then.
        """
        words = [str(word) for word in argv]
        log = self.logs / f"{what.replace(' ', '-')}.{time.time_ns()}.log"
        with log.open("wb") as output:
            tool = Tool(
                [*(CONTAINED if contained else ()), *words],
                signal.SIGKILL if contained else signal.SIGTERM,
                cwd,
                env or {},
            )
            status = self._wait(tool, output, log if progress else None)
        if status:
            raise LabError(
                f"{what} failed: {' '.join(words)} exited {status}\n{_last_lines(log)}",
                hint=f"the whole log: {log}; then run it again. {WORKS_WITHOUT_LAB}",
            )
        log.unlink()

    def _wait(self, tool: Tool, output: IO[bytes], shown: Path | None) -> int:
        with self._lock:
            if self._terminated:
                raise LabError("stopped")
            try:
                process = subprocess.Popen(
                    tool.argv,
                    cwd=tool.cwd,
                    env={**os.environ, **tool.env, "DEBIAN_FRONTEND": "noninteractive"},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            except OSError as error:
                raise LabError(f"cannot run {tool.argv[0]}: {error.strerror}") from error
            self._running[process] = tool.ending
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(PROGRESS_SECONDS if shown else None)
                if shown:
                    say(f"    {_last_lines(shown, 1).strip()}")
        except BaseException:
            _end(process, tool.ending)
            process.wait()
            raise
        finally:
            with self._lock:
                del self._running[process]

    def terminate(self) -> None:
        """End every running tool, and let none start any more with this runner."""
        with self._lock:
            self._terminated = True
            for process, ending in self._running.items():
                _end(process, ending)


def _end(process: subprocess.Popen[bytes], ending: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, ending)


def output_of(*argv: object, what: str) -> str:
    """What a quick tool prints on stdout. LabError unless it exits 0."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise LabError(f"{what}: cannot run {argv[0]}: {error.strerror}") from error
    if done.returncode:
        raise LabError(f"{what}: {' '.join(words)} exited {done.returncode}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """An exclusive flock(2) on a file or directory; without `wait`, BlockingIOError if taken."""
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def terminated_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the stack like Ctrl-C does: whatever is held is let go."""

    def interrupt(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_lines(log: Path, lines: int = 30) -> str:
    text = log.read_text(errors="replace")
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])
