"""The runs on record: phases, durations, srcversions, and how long the VFs were gone.

It reads the steps and notes of the journal (record/journal.py). Others are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from nodeagent.record import gaps
from nodeagent.record.gaps import Gaps, Moment, VfGap
from nodeagent.record.journal import Note, Record, RecordKind
from nodeagent.render import Screen, table, visible


class Result(StrEnum):
    """The results of a phase (`done` …) and of a run (`ready`, `terminated` …)."""

    DONE = "done"
    READY = "ready"
    TERMINATED = "terminated"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    """Stopped by a signal."""
    RUNNING = "running"
    CUT_SHORT = "cut short"
    """Killed, or ended by a reboot."""


SUCCEEDED: Final = frozenset({Result.READY, Result.TERMINATED})
"""The results of a run that was successful."""


class CheckpointKind(StrEnum):
    """The modules whose srcversions a checkpoint has."""

    INSTALLED = "installed"
    """The modules on disk, from modinfo(8)."""
    LOADED = "loaded"
    """Those in the kernel, from /sys/module."""


@dataclass(frozen=True)
class Phase:
    """One step of a run. `at` is ISO 8601 in UTC; `seconds` is None if the end is not on record."""

    name: str
    at: str
    seconds: float | None
    result: Result
    message: str


@dataclass(frozen=True)
class Checkpoint:
    """The srcversions at one moment: pairs of module and srcversion, or `none` if it has none."""

    name: CheckpointKind
    at: str
    srcversions: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Window:
    """The time during which the VFs were gone. It can span several runs if one was killed."""

    gone: str
    back: str | None
    seconds: float | None
    vfs: tuple[VfGap, ...] = ()
    """The VFs that were unbound or bound during that time, by name."""
    gaps: Gaps | None = None


@dataclass(frozen=True)
class Echoes:
    """The result of a `--probe`: `gap` is the longest time without an answer; it began `at`."""

    target: str
    sent: int
    lost: int
    gap: float
    at: str


@dataclass(frozen=True)
class Run:
    """One process of the agent. `driver` is the version of the driver."""

    run: str
    at: str
    mode: str
    driver: str
    result: Result
    message: str
    seconds: float
    phases: tuple[Phase, ...]
    checkpoints: tuple[Checkpoint, ...]
    windows: tuple[Window, ...]
    drifts: tuple[str, ...] = ()
    """With WATCH_DRIFT: one line for each change of the node while the agent was ready."""
    drifting: tuple[tuple[str, str], ...] = ()
    """Pairs of target and attribute that have drifted and are not as they were again."""
    echoes: tuple[Echoes, ...] = ()

    @property
    def date(self) -> str:
        """Its beginning, for people."""
        return self.at.replace("T", " ").replace("Z", " UTC")

    @property
    def outcome(self) -> str:
        """`ready after 81.2 s`, `running for 4.0 s`."""
        preposition = "for" if self.result == Result.RUNNING else "after"
        return f"{self.result} {preposition} {in_seconds(self.seconds)}"


def in_seconds(seconds: float | None, unknown: str = "-") -> str:
    """A duration, for people."""
    return unknown if seconds is None else f"{seconds:.1f} s"


def runs_of(records: Sequence[Record], *, now: float | None = None) -> tuple[Run, ...]:
    """Every run on record, oldest first.

    `now` is the present CLOCK_BOOTTIME if an agent is alive, else None. It decides whether an
    unfinished last run is `running` or `cut short`.
    """
    names = list(dict.fromkeys(record.run for record in records))
    windows = list(_windows(records))
    runs = []
    for name in names:
        own = [record for record in records if record.run == name]
        its = tuple(window for run, window in windows if run == name)
        runs.append(_run(own, its, now if name == names[-1] else None))
    return tuple(runs)


def key_checkpoints(found: Iterable[Checkpoint]) -> dict[str, Checkpoint]:
    """The checkpoints that a report shows, as far as they are on record."""
    by_kind: dict[CheckpointKind, list[Checkpoint]] = {kind: [] for kind in CheckpointKind}
    for each in found:
        by_kind[each.name].append(each)
    loaded = by_kind[CheckpointKind.LOADED]
    moments = {
        "loaded before": loaded[:1],
        "installed": by_kind[CheckpointKind.INSTALLED][-1:],
        "loaded after": loaded[1:][-1:],
    }
    return {moment: looks[0] for moment, looks in moments.items() if looks}


def lines(runs: Iterable[Run], screen: Screen) -> list[str]:
    """The timeline as text."""
    shown: list[str] = []
    for run in runs:
        shown += [""] if shown else []
        shown += _run_lines(run, screen)
    return shown


def _run(records: Sequence[Record], windows: tuple[Window, ...], now: float | None) -> Run:
    first, last = records[0], records[-1]
    notes = {record.name: record for record in records if record.kind == RecordKind.NOTE}
    end = notes.get(Note.READY, last)  # later notes are of the time when it was ready
    facts = notes[Note.RUN].facts if Note.RUN in notes else {}
    phases = tuple(_phases(records, now))
    result, message = _result(notes, phases, alive=now is not None)
    return Run(
        run=first.run,
        at=first.at,
        mode=facts.get("mode", ""),
        driver=facts.get("driver", ""),
        result=result,
        message=message,
        seconds=round((now if result == Result.RUNNING and now else end.clock) - first.clock, 3),
        phases=phases,
        checkpoints=tuple(checkpoints(records)),
        windows=windows,
        drifts=tuple(_drifts(records)),
        drifting=tuple(_drifting(records)),
        echoes=tuple(_echoes(records)),
    )


def _drifts(records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        facts = record.facts
        where = f"{record.at}  {facts.get('target', '?')} {facts.get('attribute', '?')}"
        if record.is_note(Note.DRIFT):
            yield f"{where}: was {facts.get('want', '?')}, is {facts.get('have', '?')}"
        elif record.is_note(Note.DRIFT_OVER):
            yield f"{where}: as it was"


def _drifting(records: Sequence[Record]) -> list[tuple[str, str]]:
    found: dict[tuple[str, str], bool] = {}
    for record in records:
        if record.is_note(Note.DRIFT, Note.DRIFT_OVER):
            key = record.facts.get("target", "?"), record.facts.get("attribute", "?")
            found[key] = record.is_note(Note.DRIFT)
    return [key for key, is_open in found.items() if is_open]


def _result(
    notes: dict[str, Record], phases: Sequence[Phase], *, alive: bool
) -> tuple[Result, str]:
    if Note.FAILED in notes:
        return Result.FAILED, notes[Note.FAILED].facts.get("message", "")
    if Note.READY in notes:
        return Result.READY, ""
    if Note.TERMINATED in notes:
        return Result.TERMINATED, ""
    if phases and phases[-1].result in {Result.FAILED, Result.INTERRUPTED}:
        return phases[-1].result, phases[-1].message
    return (Result.RUNNING if alive else Result.CUT_SHORT), ""


def _phases(records: Sequence[Record], now: float | None) -> Iterator[Phase]:
    for at, record in enumerate(records):
        if record.kind != RecordKind.START:
            continue
        later = records[at + 1 :]
        ends = (r for r in later if r.name == record.name and r.kind in _RESULTS)
        end = next(ends, None)
        if end is not None:
            seconds: float | None = round(end.clock - record.clock, 3)
            message = end.facts.get("message", "")
            yield Phase(record.name, record.at, seconds, _RESULTS[end.kind], message)
        elif now is not None:
            yield Phase(record.name, record.at, round(now - record.clock, 3), Result.RUNNING, "")
        else:
            yield Phase(record.name, record.at, None, Result.CUT_SHORT, "")


_LONGEST_GAP: Final = 1e9
"""Seconds. A record that says more is damaged."""

_RESULTS: Final = {
    RecordKind.DONE: Result.DONE,
    RecordKind.FAILED: Result.FAILED,
    RecordKind.INTERRUPTED: Result.INTERRUPTED,
}


def checkpoints(records: Iterable[Record]) -> Iterator[Checkpoint]:
    """The checkpoints on record, in order."""
    for record in records:
        if record.is_note(Note.SRCVERSION):
            versions = dict(record.facts)
            with suppress(KeyError, ValueError):
                kind = CheckpointKind(versions.pop("checkpoint"))
                yield Checkpoint(kind, record.at, tuple(versions.items()))


def _echoes(records: Sequence[Record]) -> Iterator[Echoes]:
    for record in records:
        if record.is_note(Note.PROBE):
            facts = record.facts
            with suppress(KeyError, ValueError):
                sent, lost, gap = int(facts["sent"]), int(facts["lost"]), float(facts["gap"])
                began = datetime.fromisoformat(facts["at"])
                if 0 <= gap < _LONGEST_GAP and began.tzinfo is not None:  # False for NaN
                    yield Echoes(facts["target"], sent, lost, gap, facts["at"])


def _windows(records: Sequence[Record]) -> Iterator[tuple[str, Window]]:
    """Each window with the run in which it ended, or in which it began if it has not ended."""
    gone: Record | None = None
    times: dict[str, dict[str, float]] = {}
    for record in records:
        if record.is_note(Note.VFS_GONE):
            gone = gone or record
        elif record.is_note(Note.VF_TIMES) and gone is not None:
            # of a VF that was gone before an earlier run was killed, the first GONE is kept
            since = _between(gone, record) - record.clock
            for vf, fact in record.facts.items():
                own = times.setdefault(vf, {})
                found = {name: since + at for name, at in gaps.moments(fact).items()}
                own |= found | {name: own[name] for name in own if name == Moment.GONE}
        elif record.is_note(Note.VFS_BACK) and gone is not None:
            yield record.run, _window(gone, record, times)
            gone, times = None, {}
    if gone is not None:
        yield gone.run, _window(gone, None, times)


def _window(gone: Record, back: Record | None, times: dict[str, dict[str, float]]) -> Window:
    vfs = tuple(gaps.gap(vf, times[vf]) for vf in sorted(times, key=_natural))
    at, seconds = (None, None) if back is None else (back.at, _between(gone, back))
    return Window(gone.at, at, seconds, vfs, gaps.summary(vfs))


def _natural(name: str) -> tuple[str, int]:
    """A sort key: `pci/0000:01:00.0 vf 10` is after `vf 9`."""
    pf, _, number = name.rpartition(" ")
    return (pf, int(number)) if number.isdecimal() else (name, 0)


def _between(first: Record, second: Record) -> float:
    """Seconds between two records; across a reboot, by the wall clock."""
    if first.boot == second.boot:
        return round(second.clock - first.clock, 3)
    wall = datetime.fromisoformat(second.at) - datetime.fromisoformat(first.at)
    return round(wall.total_seconds(), 3)


def _run_lines(run: Run, screen: Screen) -> Iterator[str]:
    yield f"run {visible(run.run)}  {visible(run.mode)}  {run.date}  {run.outcome}"
    rows = [(p.name, _time(p.at), f"{in_seconds(p.seconds):>9}", p.result) for p in run.phases]
    yield from table(("phase", "start", "duration", "result"), rows, screen, indent="  ")
    if run.checkpoints:
        yield from table(*_srcversion_table(run.checkpoints), screen, indent="  ")
    for window in run.windows:
        yield f"  VFs gone from {_time(window.gone)} to {_back(window)}"
        if window.gaps is not None:
            found = window.gaps
            middle, most, worst = map(in_seconds, (found.median, found.p95, found.worst))
            yield (
                f"  a VF's gap: median {middle}, 95th percentile {most}, "
                f"worst {worst} ({visible(found.vf)})"
            )
        if window.vfs:
            yield from table(("VF", *_MOMENTS), map(_vf_row, window.vfs), screen, indent="  ")
    yield from (f"  drift {visible(line)}" for line in run.drifts)
    if run.echoes:
        cells = [
            (
                visible(e.target),
                f"{e.sent:>5}",
                f"{e.lost:>5}",
                f"{in_seconds(e.gap):>11}",
                _time(e.at),
            )
            for e in run.echoes
        ]
        headers = ("echoes to", " sent", " lost", "longest gap", "from")
        yield from table(headers, cells, screen, indent="  ")
    if run.message:
        yield from (f"  {visible(line)}" for line in run.message.splitlines())


_MOMENTS: Final = ("    gone", "   bound", " settled", "  set up", "  in pod", "     gap")


def _vf_row(vf: VfGap) -> tuple[str, ...]:
    """Its moments, in seconds since the first VFs were removed."""
    numbers = (vf.gone, vf.bound, vf.settled, vf.set_up, vf.in_pod, vf.seconds)
    return (visible(vf.vf), *(f"{in_seconds(each):>8}" for each in numbers))


def _srcversion_table(
    found: Sequence[Checkpoint],
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """One row per module: its srcversion as installed, as loaded at first, and at last."""
    moments = ("installed", "loaded before", "loaded after")
    key = key_checkpoints(found)
    looks = [dict(key[moment].srcversions) if moment in key else {} for moment in moments]
    rows: list[tuple[str, ...]] = []
    for module in dict.fromkeys(name for each in found for name, _ in each.srcversions):
        row = tuple(look.get(module, "-") for look in looks)
        if set(row) - {"none", "-"}:
            rows.append((module, *row))
    return ("srcversion", *moments), rows


def _back(window: Window) -> str:
    if window.back is None:
        return "now: they are not back"
    return f"{_time(window.back)}: {in_seconds(window.seconds)}"


def _time(at: str) -> str:
    return at.partition("T")[2].removesuffix("Z").removesuffix("+00:00")
