"""The status of this node, from files, /proc and /sys. It takes no lock and uses no netlink.

`ready` is whether the ready flag exists; everything else explains it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Final, TypeVar

from nodeagent.agent import life
from nodeagent.agent.life import Life
from nodeagent.driver.nic import NicDriver, SrcVersions
from nodeagent.errors import AgentError, Stopped
from nodeagent.kernel import lag
from nodeagent.kernel.events import EndWatch, FileWatch, StopSignal, Watch, wait_until_clear
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.record.journal import Journal, RunMode
from nodeagent.record.timeline import SUCCEEDED, Result, Run
from nodeagent.render import Cell, Marked, Screen, table, visible, wrapped
from nodeagent.settings import Settings
from nodeagent.state.model import Snapshot

T = TypeVar("T")

_RESYNC: Final = 60.0
"""Seconds between two looks of a watch if there is no event."""
_HIDDEN_RESYNC: Final = 5.0
"""The same if the agent is in another container."""


@dataclass(frozen=True)
class OpenSnapshot:
    """The size of the snapshot of a reload in progress."""

    taken_at: str
    pfs: int
    vfs: int


@dataclass(frozen=True)
class Status:
    """`agent` is the process that holds the lock, or None; 0 for one in another container.

    `hidden`: a holder in another container would not be visible in this one.
    `lags` has a line for each PF that reports its card's LAG, `missing` one for each thing that
    keeps the node from being ready or cannot be read.
    """

    ready: bool
    phase: str
    agent: int | None
    hidden: bool
    srcversions: tuple[SrcVersions, ...]
    lags: tuple[str, ...]
    open_snapshot: OpenSnapshot | None
    missing: tuple[str, ...]


def look(settings: Settings, driver: NicDriver) -> Status:
    """The present status. What cannot be read becomes a line of `missing`, not an error."""
    journal = Journal(settings)
    unreadable: list[str] = []
    ready = _tried(journal.is_ready, unreadable) or False
    versions = _tried(driver.srcversions, unreadable) or ()
    found = _tried(lambda: life.runs(settings, journal), unreadable)
    seen, runs = found or (life.look(settings), ())
    snapshot = _tried(journal.open_snapshot, unreadable)
    last = next((run for run in reversed(runs) if not _only_cleaned_up(run)), None)
    return Status(
        ready=ready,
        phase=_phase(ready, last, alive=seen.pid is not None),
        agent=_agent(seen, runs),
        hidden=seen.pid is None and not seen.sees_all,
        srcversions=versions,
        lags=tuple(_lags(settings)),
        open_snapshot=None if snapshot is None else _in_numbers(snapshot),
        missing=(*unreadable, *(() if ready else _missing(settings, versions, snapshot, last))),
    )


def watch(settings: Settings, driver: NicDriver, show: Callable[[Status], None]) -> Status:
    """Show the present status and each later one, until SIGTERM or SIGINT; return the last one.

    It changes with files (the ready flag, the snapshot, the journal) and with the end of the
    process that holds the lock. The end of an agent in another container makes no event: its
    heartbeat is read every few seconds.
    """
    files = (settings.ready_path, Journal(settings).records_path)
    now = look(settings, driver)
    with ExitStack() as held:
        stop = held.enter_context(StopSignal())
        watches: list[Watch] = [stop, *(held.enter_context(FileWatch(path)) for path in files)]
        while True:
            show(now)
            shown = now

            def unchanged(shown: Status = shown) -> Iterator[str]:
                nonlocal now
                now = look(settings, driver)
                if now == shown:
                    yield "a change"

            with _its_end(shown.agent) as end:
                resync = _HIDDEN_RESYNC if shown.agent == life.HIDDEN_PID else _RESYNC
                try:
                    wait_until_clear(
                        unchanged,
                        *watches,
                        *([end] if end else ()),
                        what="a change",
                        timeout=math.inf,
                        resync=resync,
                    )
                except Stopped:
                    return now


def _its_end(agent: int | None) -> AbstractContextManager[Watch | None]:
    """A watch of the end of the agent; None if no agent is visible."""
    try:
        return EndWatch(agent) if agent else nullcontext()
    except ProcessLookupError:  # it has ended: the next look notices that
        return nullcontext()


def lines(status: Status, screen: Screen) -> list[str]:
    """The status as the command prints it."""
    return list(_lines(status, screen))


def _tried(read: Callable[[], T], unreadable: list[str]) -> T | None:
    try:
        return read()
    except AgentError as error:
        unreadable.append(error.message)
        return None


def _lags(settings: Settings) -> Iterator[str]:
    for pf in Sysfs().physical_functions(settings.driver_module):
        if (found := lag.read(pf)) is not None:
            yield f"{pf} {found}"


def _only_cleaned_up(run: Run) -> bool:
    """Whether it is a termination that did not change the driver, and thus not the node."""
    return run.mode == RunMode.TERMINATE and run.result == Result.TERMINATED and not run.phases


def _phase(ready: bool, last: Run | None, *, alive: bool) -> str:
    """The present step, or the result of the last run."""
    if ready:
        return "ready"
    if last is None:
        return "working, nothing on record yet" if alive else "no run on record"
    steps = [phase for phase in last.phases if phase.result in {last.result, Result.RUNNING}]
    where = f" in {steps[-1].name}" if steps else ""
    if last.result in SUCCEEDED:
        return "stopped"
    return f"{last.result}{where}"


def _missing(
    settings: Settings, versions: Sequence[SrcVersions], snapshot: Snapshot | None, last: Run | None
) -> Iterator[str]:
    yield f"{settings.ready_path} is not there"
    driver = settings.driver_module
    if driver not in {each.module for each in versions}:
        yield f"{driver} is neither installed nor loaded, as far as nodeagent can see"
    for each in versions:
        if each.module == driver and each.loaded is None:
            yield f"{each.module} is not loaded, or was built without srcversion"
        elif each.loaded is not None and each.installed != each.loaded:
            yield f"{each.module} is loaded as {each.loaded}, installed is {each.installed}"
    if snapshot is not None:
        yield "a reload is in progress: the VFs are not verified to be as they were"
    if last is not None and last.message:
        yield f"the last run {last.result}: {last.message}"


def _in_numbers(snapshot: Snapshot) -> OpenSnapshot:
    state = snapshot.state
    return OpenSnapshot(snapshot.taken_at, len(state.pfs), state.vf_count)


def _lines(status: Status, screen: Screen) -> Iterator[str]:
    yield f"phase     {visible(status.phase)}"
    yield f"ready     {'yes' if status.ready else 'no'}"
    yield f"agent     {_agent_line(status)}"
    if status.open_snapshot is not None:
        known = status.open_snapshot
        yield f"snapshot  open, taken {known.taken_at}: {known.pfs} PFs, {known.vfs} VFs"
    yield from (f"lag       {each}" for each in status.lags)
    if status.srcversions:
        rows = [_row(each) for each in status.srcversions]
        yield from ("", *table(("srcversion", "installed", "loaded"), rows, screen))
    if status.missing:
        yield from ("", "not ready:" if not status.ready else "could not be read:")
        for reason in status.missing:
            yield from wrapped(reason, screen, indent="  ")


def _row(each: SrcVersions) -> tuple[Cell, ...]:
    loaded = each.loaded or "-"
    same = each.installed == each.loaded
    return each.module, each.installed or "-", loaded if same else Marked(loaded)


def _agent(seen: Life, runs: Sequence[Run]) -> int | None:
    """The lock's holder; if none is visible, HIDDEN_PID while a run is running."""
    if seen.pid is None and runs and runs[-1].result == Result.RUNNING:
        return life.HIDDEN_PID
    return seen.pid


def _agent_line(status: Status) -> str:
    if status.agent == life.HIDDEN_PID:
        return "at work in another container, by its heartbeat"
    if status.agent is not None:
        return f"process {status.agent}"
    if status.hidden:
        return "none in this container; processes of other containers are not visible"
    return "none: no process holds the lock"
