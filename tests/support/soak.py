"""Reloads without end, with a fault or a kill in each, drawn from a seed: what is lost is counted.

Run inside the emulated node by scripts/soak. Each cycle is an upgrade to the other build of the
driver under one or two troubles; then a start that is left alone, and the node must be what it was,
attribute by attribute.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.support import lab
from tests.support.lab import PF1, PF2, Nodeagent
from tests.support.sweep import Sweep, everything, swap_build
from tests.support.zygote import Zygote


class Soak:
    """The scene, and the troubles that can come to it."""

    def __init__(self, sweep: Sweep, chance: random.Random) -> None:
        self.sweep = sweep
        self.chance = chance
        self.troubles: dict[str, Callable[[], None]] = {
            "SIGKILL at a point": self.killed_at_a_point,
            "SIGTERM at a point": self.terminated_at_a_point,
            "SIGKILL at a moment": lambda: self.signalled(signal.SIGKILL),
            "SIGTERM at a moment": lambda: self.signalled(signal.SIGTERM),
            "SIGKILL twice": self.killed_twice,
            "openibd refuses": lambda: self.with_switches("fail=refuse"),
            "openibd cannot unload": lambda: self.with_switches("fail=unload"),
            "openibd cannot load": lambda: self.with_switches("fail=load"),
            "openibd does nothing": lambda: self.with_switches("nothing=1"),
            "openibd is slow, and SIGKILL": self.killed_while_it_is_slow,
            "udevd stops for a second": self.udevd_stops,
            "udevd is killed": self.udevd_is_killed,
        }

    def cycle(self) -> str:
        """One upgrade with one trouble; which that was."""
        name = self.chance.choice(sorted(self.troubles))
        self.sweep.prepare()
        self.troubles[name]()
        lab.SWITCHES.unlink(missing_ok=True)
        if lab.udevd_pid() is None:
            lab.start_udevd()
        self.sweep.finish(name)
        return name

    def point(self) -> int:
        return self.chance.randint(1, len(self.sweep.points))

    def killed_at_a_point(self) -> None:
        self.sweep.cut(f"KILL {self.point()}")

    def terminated_at_a_point(self) -> None:
        number = self.point()
        self.sweep.cut(f"TERM {number} KILL {number + self.chance.randint(1, 30)}")

    def killed_twice(self) -> None:
        self.killed_at_a_point()
        self.killed_at_a_point()

    def signalled(self, number: signal.Signals) -> None:
        run = self.sweep.start()
        timer = threading.Timer(self.chance.uniform(0, 8), lambda: run.send_signal(number))
        timer.start()
        self.sweep.to_its_end()
        timer.cancel()
        timer.join()

    def with_switches(self, switches: str) -> None:
        lab.SWITCHES.write_text(f"{switches}\n")
        self.sweep.start()
        self.sweep.to_its_end()

    def killed_while_it_is_slow(self) -> None:
        lab.SWITCHES.write_text("slow-start=2\n")
        self.signalled(signal.SIGKILL)

    def udevd_stops(self) -> None:
        self.beside(lambda pid: _stopped(pid, 1.0))

    def udevd_is_killed(self) -> None:
        self.beside(lambda _: lab.kill_udevd())

    def beside(self, do: Callable[[int], None]) -> None:
        """Do something to udevd in the middle of a run."""
        pid = lab.udevd_pid()
        assert pid is not None
        timer = threading.Timer(self.chance.uniform(1, 7), lambda: do(pid))
        timer.start()
        self.sweep.start(VF_TIMEOUT=15)
        self.sweep.to_its_end()
        timer.join()


def _stopped(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def main() -> int:
    """0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    given = parser.parse_args()
    end = time.monotonic() + given.minutes * 60
    troubles: Counter[str] = Counter()
    losses = 0
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "trace").mkdir()
        lab.clean("A")
        lab.make_vfs(PF1, 3, mtu=1600)
        lab.make_vfs(PF2, 1)
        agent = Nodeagent(directory)
        with Zygote(agent.environment, directory) as zygote:
            sweep = Sweep("soak", agent, zygote, directory / "trace", swap_build)
            before = everything()
            sweep.undisturbed()
            assert sweep.end == before
            soak = Soak(sweep, random.Random(given.seed))  # noqa: S311  no secret
            while time.monotonic() < end:
                try:
                    troubles[soak.cycle()] += 1
                except AssertionError as error:
                    losses += 1
                    sys.stdout.write(f"LOST: {error}\n")
                    break  # the node is not what it was: what follows would say nothing
    for each, count in sorted(troubles.items()):
        sys.stdout.write(f"{count:5} {each}\n")
    cycles = troubles.total() + losses
    sys.stdout.write(f"seed {given.seed}: {cycles} cycles, {cycles} faults, {losses} losses\n")
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())
