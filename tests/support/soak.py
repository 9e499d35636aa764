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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support import lab
from tests.support.lab import PCI, PF1, PF2, Nodeagent
from tests.support.sweep import Sweep, everything, swap_build
from tests.support.zygote import Zygote


class Soak:
    """The scene, and the troubles that can come to it."""

    def __init__(self, sweep: Sweep, chance: random.Random, log: Path) -> None:
        self.sweep = sweep
        self.log = log
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
            "the disk is full": self.disk_is_full,
            "somebody sets numvfs": lambda: self.with_others(_others_numvfs, 1),
            "somebody renames a VF": lambda: self.with_others(_rename, 3),
            "somebody retags a VF": lambda: self.with_others(_retag, 3),
            "somebody gives a VF to vfio-pci": lambda: self.with_others(_take, 1),
            "somebody takes the PF out": lambda: self.with_others(_take_out, 1),
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

    def disk_is_full(self) -> None:
        """From some moment on, to the end of that run."""
        junk = self.sweep.agent.state_dir / "junk"
        timer = threading.Timer(self.chance.uniform(0, 8), lambda: _fill(junk))
        timer.start()
        self.sweep.zygote.call(*self.sweep.arguments)
        timer.cancel()
        timer.join()
        junk.unlink(missing_ok=True)

    def with_others(self, do: Callable[[], None], times: int) -> None:
        """Somebody else is at work while VFs are set up: what he does after ready would be his."""
        self.log.write_text("")  # what the run before this one has said
        self.sweep.zygote.start(*self.sweep.arguments, VF_TIMEOUT=15)
        ended = threading.Event()
        pauses = [self.chance.uniform(0, 0.1) for _ in range(self.chance.randint(1, times))]

        def work() -> None:
            while "create VFs" not in self.log.read_text():
                if ended.wait(0.02):
                    return
            for pause in pauses:
                with suppress(OSError, AssertionError, ValueError):
                    do()
                time.sleep(pause)

        thread = threading.Thread(target=work)
        thread.start()
        self.sweep.zygote.wait()
        ended.set()
        thread.join()

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


def _fill(junk: Path) -> None:
    with suppress(OSError), junk.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _others_numvfs() -> None:
    for count in ("0", "1"):
        (PCI / PF1 / "sriov_numvfs").write_text(count)


def _rename() -> None:
    lab.ip(f"link set {lab.name(lab.vf(PF1, 1))} name stolen")


def _retag() -> None:
    lab.ip(f"link set {lab.name(PF1)} vf 2 vlan 999")


def _take() -> None:
    lab.give_to("vfio-pci", lab.vf(PF1, 1))


def _take_out() -> None:
    (PCI / PF1 / "remove").write_text("1")
    Path("/sys/bus/pci/rescan").write_text("1")


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """A disk of its own at a directory, so that it can be full."""
    path.mkdir(mode=0o700)
    lab.sh(f"mount -t tmpfs -o size=20m,mode=0700 none {path}")
    try:
        yield
    finally:
        lab.sh(f"umount {path}")


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
        with _disk(agent.state_dir), Zygote(agent.environment, directory) as zygote:
            sweep = Sweep("soak", agent, zygote, directory / "trace", swap_build)
            before = everything()
            sweep.undisturbed()
            assert sweep.end == before
            chance = random.Random(given.seed)  # noqa: S311  no secret
            soak = Soak(sweep, chance, directory / "zygote.log")
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
