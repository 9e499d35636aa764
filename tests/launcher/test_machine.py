"""The clock by which a machine counts as stalled."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import create_autospec

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from emulator.machine import Machine  # noqa: E402 - scripts/ is no installed package

SPIN = (sys.executable, "-c", "while True: pass")
WAITING = (sys.executable, "-c", "import time; print(flush=True); time.sleep(60)")


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    """What is started in it is killed at the end."""
    with ExitStack() as stack:
        yield stack


def start(processes: ExitStack, *argv: str) -> subprocess.Popen[bytes]:
    process = processes.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE))
    processes.callback(process.kill)
    return process


def machine_of(process: subprocess.Popen[bytes]) -> Machine:
    other = create_autospec(object)
    return Machine(process, other, other, other, other, Path(), Path())


def test_its_clock_stands_still_while_it_is_kept_waiting(processes: ExitStack) -> None:
    """One of four that share a processor has at most half of the time."""
    spinning = [start(processes, *SPIN) for _ in range(4)]
    for each in spinning:
        os.sched_setaffinity(each.pid, {min(os.sched_getaffinity(0))})
    machine = machine_of(spinning[0])
    began, at_work = time.monotonic(), machine.seconds_at_work()
    time.sleep(2)
    assert machine.seconds_at_work() - at_work < (time.monotonic() - began) / 2


def test_its_clock_runs_while_it_sleeps(processes: ExitStack) -> None:
    """A machine that waits for nothing stalls, whatever the host does."""
    waiting = start(processes, *WAITING)
    assert waiting.stdout
    waiting.stdout.readline()
    machine = machine_of(waiting)
    began, at_work = time.monotonic(), machine.seconds_at_work()
    time.sleep(1)
    assert machine.seconds_at_work() - at_work > (time.monotonic() - began) * 0.9
