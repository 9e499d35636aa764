"""The host's side of things: running its tools, telling the reader what is going on, errors."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

FAILED = 125
"""Exit status of everything that is the lab's own failure and not the command's, as docker has it."""

WORKS_WITHOUT_LAB = "linters and unit tests still work without the lab: scripts/test --no-lab"

_started = time.monotonic()


class LabError(Exception):
    """The lab cannot do what was asked. `hint` says what to do next, or what still works."""

    def __init__(self, message: str, *, hint: str = WORKS_WITHOUT_LAB) -> None:
        super().__init__(message)
        self.hint = hint


def say(message: str) -> None:
    """One line of progress on stderr, with the seconds since the start."""
    print(f"lab {time.monotonic() - _started:6.1f}s  {message}", file=sys.stderr, flush=True)


class Runner:
    """Runs the host's tools; what they print goes to one log file, not to the reader.

    Every tool gets a session of its own, so that `terminate()` (from another thread, or after a
    signal) ends it with all of its children: mmdebstrap and make have many.
    """

    def __init__(self, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._terminated = False

    def run(
        self,
        *argv: str | Path,
        what: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Run a tool to its end. LabError, with the end of what it printed, unless it exits 0."""
        with self.log.open("ab") as log:
            log.write(f"\n$ {' '.join(map(str, argv))}\n".encode())
            log.flush()
            start = log.tell()
            status = self._wait(argv, log.fileno(), cwd, env)
        if status:
            raise LabError(
                f"{what} failed: {' '.join(map(str, argv))} exited {status}\n"
                f"{_last_lines(self.log, start)}",
                hint=f"the whole log: {self.log}; then run it again. {WORKS_WITHOUT_LAB}",
            )

    def _wait(
        self,
        argv: Sequence[str | Path],
        output: int,
        cwd: Path | None,
        env: Mapping[str, str] | None,
    ) -> int:
        with self._lock:
            if self._terminated:
                raise LabError("stopped")
            try:
                process = subprocess.Popen(
                    argv,
                    cwd=cwd,
                    env={**os.environ, **(env or {}), "DEBIAN_FRONTEND": "noninteractive"},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            except OSError as error:
                raise LabError(f"cannot run {argv[0]}: {error.strerror}") from error
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def terminate(self) -> None:
        """End every running tool, and let none start any more."""
        with self._lock:
            self._terminated = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)


def output_of(*argv: str | Path, what: str) -> str:
    """What a quick tool prints on stdout. LabError unless it exits 0."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise LabError(f"{what}: cannot run {argv[0]}: {error.strerror}") from error
    if done.returncode:
        raise LabError(
            f"{what}: {' '.join(map(str, argv))} exited {done.returncode}: {done.stderr.strip()}"
        )
    return done.stdout


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


def _last_lines(path: Path, start: int, lines: int = 30) -> str:
    with path.open("rb") as log:
        log.seek(start)
        text = log.read().decode(errors="replace")
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])
