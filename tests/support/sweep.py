"""Ended at every point in turn, and started again: what must be true each time.

A scene is a node and what nodeagent is to do with it; an undisturbed run shows how it ends and how
many points there are on the way. Then, for each place: the scene again, a run that gets a signal
from itself there, a run that gets none, and the same end, attribute by attribute. Points between
which nothing has changed are one place (`places`).

What is ended is what a container runs, `nodeagent run`, which stays once it is ready; what is left
alone is `nodeagent reload`, which does the same and ends.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from signal import SIGKILL
from typing import Any

from tests.support import lab
from tests.support.lab import PATIENCE, Nodeagent
from tests.support.zygote import Ended, Fork, Zygote

PARTS_OF_ADDRESS = ("family", "local", "prefixlen", "scope")
CHANGES_NOTHING = ("fsync", "append to")
"""What is announced by points, and the next start cannot tell whether it was done. Who is killed
loses nothing that was written, synced or not; and no start decides by the log of records."""


def places(points: Iterable[str]) -> list[int]:
    """Of the points of a run, those that leave different nodes when it is killed there.

    A point comes before what it announces: the first, and each whose predecessor changes something.
    """
    announced = {int(number): what for number, _, what in (line.partition(" ") for line in points)}
    return [
        number
        for number in sorted(announced)
        if not announced.get(number - 1, "").startswith(CHANGES_NOTHING)
    ]


@dataclass(frozen=True)
class Share:
    """What this node takes of a sweep: of `parts` nodes, it is number `part`, from 1."""

    part: int
    parts: int
    every_point: bool

    def of(self, numbers: Sequence[int]) -> Sequence[int]:
        """Every so many of them."""
        return numbers[self.part - 1 :: self.parts]

    def stretch(self, number: int) -> tuple[int, int]:
        """The first and the last of so many points, where they are to follow each other."""
        return (self.part - 1) * number // self.parts + 1, self.part * number // self.parts

    def kills(self, sweep: Sweep, first: int = 1, last: int | None = None) -> list[int]:
        """Where to kill a run from the first to the last point: at each place, or at each point."""
        end = len(sweep.points) if last is None else last
        numbers = range(1, end + 1) if self.every_point else places(sweep.points)
        return list(self.of([number for number in numbers if first <= number <= end]))


def everything() -> dict[str, Any]:
    """What lab.read() tells, and what stands on the interfaces: addresses, children, routes."""
    links = json.loads(lab.printed("ip", "-j", "addr", "show"))
    addresses = {
        link["ifname"]: sorted(
            [each.get(part) for part in PARTS_OF_ADDRESS]
            for each in link["addr_info"]
            if each["scope"] != "link"
        )
        for link in links
    }
    below = {link["ifname"]: link.get("link") for link in links}
    # whether there is carrier at this moment is nobody's setting
    routes = sorted(lab.printed("ip", "-4", "route", "show").replace(" linkdown", "").splitlines())
    return {"devices": lab.read(), "addresses": addresses, "below": below, "routes": routes}


@dataclass
class Sweep:
    """One scene. `prepare` makes it, `arguments` are nodeagent's, `end` is how it must end.

    `look` tells how it is, `settings` are environment variables. `points` are those of a run that
    is left alone until it stays ready, `ending` those of the last that had SIGTERM.
    """

    name: str
    agent: Nodeagent
    zygote: Zygote
    directory: Path
    prepare: Callable[[], object]
    arguments: tuple[str, ...] = ("run", "precompiled")
    next_start: tuple[str, ...] = ("reload", "precompiled")
    look: Callable[[], dict[str, Any]] = everything
    settings: dict[str, object] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)
    points: list[str] = field(default_factory=list)
    ending: list[str] = field(default_factory=list)
    _running: Fork = field(init=False)

    def undisturbed(self) -> None:
        """The run that all others are compared with, and one with what an earlier run has left."""
        self._make_scene()
        self.start_again()
        self.count_points()
        self.finish(f"{self.name}, undisturbed")

    def _make_scene(self) -> None:
        """As an agent that ended in order leaves it, who takes its sign of life along."""
        self.prepare()
        Path(f"{self.agent.environment['LOCK_FILE_PATH']}.beat").unlink(missing_ok=True)

    def count_points(self) -> None:
        """A run that is left alone until it stays or ends, for its points."""
        self._make_scene()
        self.start()
        self._await_end_or_stay()
        self.points = self.passed()
        ended = self.to_its_end()
        assert ended.status == 0, ended.log

    def start_again(self) -> None:
        """What the next start makes of the node, left alone; this is the end to compare with."""
        ended = self._run("", self.next_start)
        assert ended.status == 0, ended.log
        self.end = self.look()

    def passed(self) -> list[str]:
        """The points of the last run, by number: of two threads the later one may write first."""
        lines = (self.directory / "points").read_text().splitlines()
        return sorted(lines, key=lambda line: int(line.partition(" ")[0]))

    def killed_at(self, number: int) -> None:
        """Killed there, and started again."""
        self._make_scene()
        # threads come to their points in any order, and now and then one finds nothing to do
        late = {0} if number > len(self.points) - 3 else set()
        self._cut(f"KILL {number}", {-SIGKILL} | late)
        self.finish(f"{self.name}, killed at {self.last()}")

    def killed_twice(self, number: int, then: int) -> None:
        """Killed there, killed again while it mends that, and started again."""
        self._make_scene()
        self._cut(f"KILL {number}", {-SIGKILL})
        first = self.last()
        self._cut(f"KILL {then}", {-SIGKILL, 0})
        self.finish(f"{self.name}, killed at {first} and at {self.last()}")

    def terminated_at(self, number: int, killed: int = 0) -> int:
        """SIGTERM there; SIGKILL where it then comes to the second number; and started again.

        What ends by itself leaves no flag. Returns the last point up to which the run was as if no
        signal had come: SIGTERM at any from the first number to this one is noticed there.
        """
        self._make_scene()
        end = f"TERM {number}" + (f" KILL {killed}" if killed else "")
        status = self._cut(end, {-SIGKILL, 0, 1} if killed else {0, 1})
        what = f"{self.name}, SIGTERM at {number}, ended at {self.last()}"
        assert status == -SIGKILL or not self.agent.ready.exists(), what
        self.ending = self.passed()
        noticed = self._as_undisturbed()
        self.finish(what)
        assert noticed >= number, f"{what}: it was another run from {noticed + 1} on"
        return noticed

    def _as_undisturbed(self) -> int:
        """How many points of the last run were those of a run that is left alone, in that order."""
        pairs = zip(map(_timeless, self.passed()), map(_timeless, self.points), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def cut(self, end: str) -> None:
        """A run that something happens to, however it ends."""
        self._cut(end, {-SIGKILL, 0, 1, 71, 75, 143})

    def last(self) -> str:
        """The point at which it ended."""
        return (self.passed() or ["none"])[-1]

    def finish(self, what: str) -> None:
        """Started once more, and left alone."""
        ended = self._run("", self.next_start)
        assert ended.status == 0, f"{what}:\n{ended.log}"
        self.check_end(what)

    def check_end(self, what: str) -> None:
        """As after the undisturbed run, proven, with nothing left behind."""
        now = self.look()
        assert now == self.end, f"{what}: {_first_difference(self.end, now)}"
        assert self.agent.ready.exists(), what
        assert not self.agent.open_snapshot.exists(), what
        assert left_behind(self.agent) == [], what

    def _cut(self, end: str, expected: Iterable[int]) -> int:
        """A run that does not come to its end; the flag then says nothing that is not so."""
        ended = self._run(end)
        assert ended.status in expected, f"{self.name}, {end}: {ended}"
        if self.agent.ready.exists() and self.arguments[0] != "terminate":
            assert self.look() == self.end, f"{self.name}, {end}: ready, and it is not so"
        return ended.status

    def _run(self, end: str, arguments: tuple[str, ...] = ()) -> Ended:
        self.start(end, arguments)
        return self.to_its_end()

    def start(self, end: str = "", arguments: tuple[str, ...] = (), **settings: object) -> Fork:
        """Begin a run; `end` tells which signals it gets from itself, and where."""
        (self.directory / "points").unlink(missing_ok=True)
        (self.directory / "end").write_text(end)
        given = {"TRACE_POINTS": self.directory} | self.settings | settings
        self._running = self.zygote.start(*(arguments or self.arguments), **given)
        return self._running

    def to_its_end(self) -> Ended:
        """What became of the run; one that stays is ended by SIGTERM."""
        self._await_end_or_stay()
        self._running.terminate()
        return self.zygote.wait()

    def _await_end_or_stay(self) -> None:
        """Looked at twice a second: each look costs more than half a second of virtual time."""
        deadline = time.monotonic() + PATIENCE
        while not is_holder(self._running.pid):
            try:
                self._running.wait(0.5)
            except subprocess.TimeoutExpired:
                assert time.monotonic() < deadline, f"{self.name}: {self.zygote.log()}"
            else:
                return


def is_holder(pid: int) -> bool:
    """Whether the process is ready and stays: it is another program by then."""
    try:
        return b"hold.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _timeless(line: str) -> str:
    """A point without what differs from run to run: random names, numbers of processes."""
    return re.sub(r"\.[0-9A-Za-z_-]+\.tmp|[0-9]+(?=/ns/)", "*", line)


def swap_build() -> None:
    """Another build on disk than the loaded one. Their dependencies are the same: no depmod."""
    build = "B" if lab.loaded() == lab.srcversion_of("A") else "A"
    for module in sorted((lab.BUILDS / build).glob("mlx5_[ci]*.ko")):
        target = Path(lab.printed("modinfo", "-F", "filename", module.stem).strip())
        new = target.with_suffix(".new")
        shutil.copyfile(module, new)
        new.rename(target)


def left_behind(agent: Nodeagent) -> list[str]:
    """Temporary files, and files that only belong there during a reload."""
    places = (agent.state_dir, agent.ready.parent, Path("/etc/modprobe.d"), Path("/etc"))
    found = [str(path) for place in places for path in place.glob(".*.tmp")]
    return found + [str(lab.BLACKLIST)] * lab.BLACKLIST.exists()


def over(numbers: Sequence[int], do: Callable[[int], None], sweep: Sweep, how: str) -> None:
    """Do it for each number; one that fails does not hide the next. Says how many and how long."""
    began, failures = time.monotonic(), []
    for number in numbers:
        try:
            do(number)
        except AssertionError as error:
            failures.append(f"{number}: {error}")
    survived, took = len(numbers) - len(failures), time.monotonic() - began
    share = f"{len(numbers)} of its {len(sweep.points)} points"
    sys.stdout.write(f"{sweep.name}, {how}: {share}, {survived} survived, {took:.0f} s\n")
    assert not failures, "\n".join(failures)


def terminated(sweep: Sweep, share: Share) -> None:
    """SIGTERM at each point of a share's stretch, and then again with SIGKILL while it ends.

    The second for each run where every point is asked for, else for every other run.

    A SIGTERM is a note that is looked at in waits and between actions. A run that goes on for some
    points as if there were none would have done the same for one that came at any of these: they
    are counted as tried, and the next run's comes after them.
    """
    number_of_points = len(sweep.points)
    first, last = share.stretch(number_of_points)
    began, failures = time.monotonic(), []
    runs = tried = followed = 0
    number = first
    while number <= last:
        runs += 1
        try:
            noticed = sweep.terminated_at(number)
            tried += min(noticed, last) - number + 1
            ending = range(noticed + 1, len(sweep.ending) + 1)
            if ending and (share.every_point or runs % 2):
                followed += 1
                sweep.terminated_at(number, ending[runs % len(ending)])
        except AssertionError as error:
            failures.append(f"{number}: {error}")
            noticed = number
        number = noticed + 1
    took = time.monotonic() - began
    points = f"{last - first + 1} of its {number_of_points} points"
    sys.stdout.write(
        f"{sweep.name}, SIGTERM: {points}, {tried} survived, noticed at {runs} places; "
        f"{followed} with SIGKILL while it ended, {took:.0f} s\n"
    )
    assert not failures, "\n".join(failures)


def _first_difference(want: object, have: object, where: str = "") -> str:
    if isinstance(want, dict) and isinstance(have, dict):
        for key in {**want, **have}:
            if want.get(key) != have.get(key):
                return _first_difference(want.get(key), have.get(key), f"{where}/{key}")
    return f"{where}: want {want}, have {have}"
