"""The timeline as a report in Markdown, in the usual form of an upgrade report.

It has the srcversion at each checkpoint, then the phases of each run, then a table of all
durations. Times are UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from nodeagent.record.journal import Step
from nodeagent.record.timeline import Run, in_seconds, key_checkpoints
from nodeagent.render import visible

_MEANING: Final[Mapping[str, str]] = {
    Step.BUILD: "the driver was built, or found built, and installed",
    Step.PREFLIGHT: "nothing was found that would make the reload fail or do harm",
    Step.SNAPSHOT: "the node's SR-IOV state was saved before the driver was unloaded",
    Step.QUIESCE: "the VFs were unbound, side by side, before the driver was unloaded",
    Step.UNBIND: "the PFs were unbound, side by side, and their VFs removed with them",
    Step.RESTART: "the old driver was unloaded and the installed one loaded",
    Step.INBOX: "the host's own driver was loaded again",
    Step.RESTORE: "every PF and VF was restored from the snapshot",
    Step.VERIFY: "the node was compared with the snapshot: nothing differs",
}


def lines(runs: Sequence[Run], driver: str) -> list[str]:
    """The report, line by line. `driver` is the module whose srcversions are tracked."""
    return [*_tracking(runs, driver), *_runs(runs), *_summary(runs)]


def _tracking(runs: Sequence[Run], driver: str) -> Iterator[str]:
    yield f"## {driver} srcversion tracking"
    yield ""
    yield from _row("checkpoint", "time", "srcversion")
    yield "|---|---|---|"
    for number, run in enumerate(runs, 1):
        for moment, look in key_checkpoints(run.checkpoints).items():
            srcversion = dict(look.srcversions).get(driver, "none")
            yield from _row(f"run {number}: {moment}", _clock(look.at), f"`{srcversion}`")
    yield ""


def _runs(runs: Sequence[Run]) -> Iterator[str]:
    for number, run in enumerate(runs, 1):
        what = " ".join(filter(None, (run.mode, run.driver)))
        yield f"## Run {number}: {visible(what)}, {run.result} after {in_seconds(run.seconds)}"
        yield ""
        yield f"### {_clock(run.at)} -- start"
        yield ""
        for phase in run.phases:
            took = "" if phase.seconds is None else f" ({phase.seconds:.1f} s)"
            yield f"### {_clock(phase.at)} -- {phase.name}: {phase.result}{took}"
            yield ""
            text = phase.message or _MEANING.get(phase.name, "")
            yield from (f"- {visible(line.strip())}" for line in text.splitlines())
            yield ""
        for window in run.windows:
            back = "not back yet" if window.back is None else f"back {_clock(window.back)}"
            yield f"VFs gone {_clock(window.gone)}, {back}."
            yield ""


def _summary(runs: Sequence[Run]) -> Iterator[str]:
    yield "## Timing summary"
    yield ""
    yield from _row("event", "time", "duration")
    yield "|---|---|---|"
    for number, run in enumerate(runs, 1):
        took = [(phase.name, phase.at, phase.seconds) for phase in run.phases]
        took += [("no VFs", window.gone, window.seconds) for window in run.windows]
        for name, at, seconds in took:
            yield from _row(f"run {number}: {name}", _clock(at), in_seconds(seconds, "--"))
        whole = f"**run {number}: start to {run.result}**"
        yield from _row(whole, _clock(run.at), in_seconds(run.seconds))


def _row(*cells: str) -> Iterator[str]:
    yield f"| {' | '.join(visible(cell).replace('|', '/') for cell in cells)} |"


def _clock(at: str) -> str:
    return at.partition("T")[2].partition(".")[0].removesuffix("Z")
