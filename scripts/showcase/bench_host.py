"""scripts/bench on this machine: real `nodeagent` processes that wait, help and say status.

Nothing is reloaded and no device is touched: there are no packages, so that a process whose flag
has come ends there. All files are in a temporary directory.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from showcase.procfs import switches

ROOT = Path(__file__).resolve().parent.parent.parent
WAITING = "waiting for the driver toolkit's done flag "
CALLS = 20
WARM_UP = 2
NO_MODULE = "nodeagent_bench"


@dataclass(frozen=True)
class Agent:
    """A running `nodeagent run sources` whose files are in `directory`."""

    process: subprocess.Popen[str]
    directory: Path
    flag: Path
    """The done flag that it waits for, as its log says."""


@contextmanager
def agent(directory: Path) -> Iterator[Agent]:
    """A process that waits for the toolkit's flag."""
    (directory / "shared").mkdir(parents=True)
    (directory / "sources").mkdir()
    (directory / "sources" / "install.pl").touch()
    process = subprocess.Popen(
        [sys.executable, "-m", "nodeagent", "--log-format", "json", "run", "sources"],
        env=environment(directory),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        flag = Path(_wait_for(process, WAITING).removeprefix(WAITING))
        yield Agent(process, directory, flag)
    finally:
        process.kill()
        process.communicate()


def environment(directory: Path) -> dict[str, str]:
    """Settings that keep every file below `directory`, and every device out of it."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "DRIVER_MODULE": NO_MODULE,
        "NVIDIA_NIC_DRIVER_VER": "25.07-0.9.7.0",
        "NVIDIA_NIC_DRIVER_PATH": str(directory / "sources"),
        "DTK_OCP_DRIVER_BUILD": "true",
        "DTK_OCP_NIC_SHARED_DIR": str(directory / "shared"),
        "OFED_BLACKLIST_MODULES_FILE": str(directory / "blacklist.conf"),
        "STATE_DIR": str(directory / "state"),
        "DRIVER_READY_PATH": str(directory / "ready"),
        "LOCK_FILE_PATH": str(directory / "lock"),
    }


def hand_over(directory: Path, trials: int) -> list[float]:
    """Milliseconds from the done flag's existence to the end of the build step on record.

    Each trial is a process of its own. The clock is read right before the flag is made by another
    process, this one; the end is the journal's, both CLOCK_BOOTTIME.
    """
    found = []
    for number in range(trials):
        with agent(directory / f"trial-{number}") as waiting:
            # so that it has gone to sleep, and not at a beat of ours
            time.sleep(random.uniform(0.05, 0.15))  # noqa: S311 # no secret
            made = time.clock_gettime(time.CLOCK_BOOTTIME)
            waiting.flag.touch()
            waiting.process.communicate(timeout=30)
            found.append(round((_build_done(waiting.directory) - made) * 1000, 1))
    return found


@contextmanager
def asleep(directory: Path) -> Iterator[Callable[[float], dict[str, float]]]:
    """One process that waits for the toolkit's flag, while others work.

    Yields a function that waits until that many seconds have passed since, and gives the context
    switches a minute.
    """
    with agent(directory) as waiting:
        time.sleep(2)  # the interpreter's start is over
        pid = waiting.process.pid
        before, began = switches(pid), time.monotonic()

        def result(seconds: float) -> dict[str, float]:
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            count, passed = switches(pid) - before, time.monotonic() - began
            return {"switches": count, "seconds": round(passed, 1)}

        yield result


def calls(directory: Path) -> dict[str, float]:
    """Median milliseconds of `nodeagent --help` and `nodeagent status`, warm."""
    directory.mkdir()
    return {
        " ".join(arguments): _median_ms([sys.executable, "-m", "nodeagent", *arguments], directory)
        for arguments in (["--help"], ["status"])
    }


def _median_ms(argv: list[str], directory: Path) -> float:
    seconds = []
    for _ in range(WARM_UP + CALLS):
        began = time.monotonic()
        subprocess.run(argv, env=environment(directory), check=False, capture_output=True)
        seconds.append(time.monotonic() - began)
    return round(statistics.median(seconds[WARM_UP:]) * 1000, 1)


def _wait_for(process: subprocess.Popen[str], beginning: str) -> str:
    """The first message of the log that begins so; ends the bench when the process ends before."""
    said = []
    for line in process.stderr or ():
        said.append(line)
        message: str = json.loads(line)["message"]
        if message.startswith(beginning):
            return message
    sys.exit(f"bench: nodeagent ended without saying {beginning!r}:\n{''.join(said)}")


def _build_done(directory: Path) -> float:
    records = map(json.loads, (directory / "state" / "journal.jsonl").read_text().splitlines())
    # failed: nobody has built packages here, which is found out right after the wait
    ends = (r["clock"] for r in records if (r["kind"], r["name"]) == ("failed", "build"))
    return float(next(ends))
