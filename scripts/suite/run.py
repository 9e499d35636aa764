"""Runs checks, as many at a time as there are lanes, and counts what they found."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from suite.checks import Check


@dataclass(frozen=True)
class Result:
    """How a check ended, and the tests in it. `work`: what it had of the processors, in seconds.

    `failures`: the name of each test that failed, and the line that says why.
    """

    check: Check
    good: bool
    seconds: float
    work: float
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: tuple[str, ...] = ()

    def __str__(self) -> str:
        word = "ok" if self.good else "FAILED"
        return f"{word:<7} {self.check.name:<15} {self.seconds:7.1f} s, at work {self.work:7.1f} s"


class Lanes:
    """Runs checks beside each other. Each line they print comes with the check's name before it.

    A check gets a process group of its own, so that `end` reaches its children as well; the
    session stays ours, by which a caller can tell what was left behind.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    def run(self, checks: Sequence[Check]) -> list[Result]:
        """All of them; they begin in the order given."""
        with ThreadPoolExecutor(self._number) as pool:
            return list(pool.map(self._run, checks))

    def end(self) -> None:
        """SIGTERM to all that runs; what has not begun does not begin any more."""
        with self._lock:
            self._ended = True
            for process in self._running:
                with suppress(ProcessLookupError):  # it has ended, and its lane has yet to say so
                    os.killpg(process.pid, signal.SIGTERM)

    def _run(self, check: Check) -> Result:
        began = time.monotonic()
        if check.junit is not None:
            check.junit.parent.mkdir(parents=True, exist_ok=True)
            self._say(f"--- {check.name}")
        status, work = self._to_its_end(check)
        result = judged(check, status, time.monotonic() - began, work)
        self._say(str(result))
        return result

    def _to_its_end(self, check: Check) -> tuple[int, float]:
        """Run it; its output is shown as it comes, that of a linter only when it failed.

        Its status, and what it and all that it waited for had of the processors, in seconds.
        """
        with self._lock:
            if self._ended:
                return -signal.SIGTERM, 0.0
            try:
                process = subprocess.Popen(
                    check.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    process_group=0,
                )
            except OSError as error:
                print(f"{check.name} | cannot run {check.argv[0]}: {error.strerror}", flush=True)
                return 127, 0.0
            self._running.add(process)
        kept: list[str] = []
        for line in process.stdout or ():
            if check.junit is not None:
                self._say(f"{check.name} | {line.rstrip()}")
            else:
                kept.append(line)
        _, ended, usage = os.wait4(process.pid, 0)
        status = process.returncode = os.waitstatus_to_exitcode(ended)
        with self._lock:
            self._running.discard(process)
        if status and kept:
            self._say("".join(kept).rstrip())
        return status, usage.ru_utime + usage.ru_stime

    def _say(self, text: str) -> None:
        with self._lock:
            print(text, flush=True)


def judged(check: Check, status: int, seconds: float, work: float = 0.0) -> Result:
    """What came of it. A report that is missing or says that something failed is a failure."""
    if check.junit is None:
        return Result(check, status == 0, seconds, work, failed=int(status != 0))
    suites = _suites(check.junit)
    number = _counted(suites)
    if number is None:
        why = f"exit status {status}, and no report that can be read"
        return Result(check, False, seconds, work, failed=1, failures=(why,))
    tests, failed, skipped = number
    good = status == 0 and not failed
    # One that ended badly and counted no failure must not look like "0 failed".
    failed = failed if good else max(failed, 1)
    passed = max(tests - failed - skipped, 0)
    named = tuple(_failures(suites))
    return Result(check, good, seconds, work, passed, failed, skipped, named)


def _suites(junit: Path) -> list[ET.Element]:
    """What pytest wrote; nothing without a report that can be read."""
    try:
        return list(ET.parse(junit).getroot().iter("testsuite"))  # noqa: S314 # pytest wrote it
    except (OSError, ET.ParseError):
        return []


def _counted(suites: Sequence[ET.Element]) -> tuple[int, int, int] | None:
    """Tests, failures and errors, skipped; None where no suite says it."""
    keys = ("tests", "failures", "errors", "skipped")
    try:
        read = [[int(suite.get(key, "0")) for key in keys] for suite in suites]
    except ValueError:
        return None
    if not read:
        return None
    tests, failures, errors, skipped = (sum(column) for column in zip(*read, strict=True))
    return tests, failures + errors, skipped


def _failures(suites: Sequence[ET.Element]) -> Iterator[str]:
    for case in (case for suite in suites for case in suite.iter("testcase")):
        for found in (*case.iter("failure"), *case.iter("error")):
            message = (found.get("message") or "?").splitlines()[0]
            yield f"{case.get('classname')}::{case.get('name')}: {message}"
