"""Operations of commands run by hand: take a snapshot, restore one, reload once.

Each imports what changes the node when it is called, so that commands that only look start quickly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nodeagent.agent.requirements import open_snapshot_of_here, require_root
from nodeagent.driver.nic import NicDriver
from nodeagent.errors import BusyError
from nodeagent.kernel.events import StopSignal
from nodeagent.modes import Mode
from nodeagent.node import namespaces
from nodeagent.node.node import Node
from nodeagent.plan.left_behind import LeftBehind
from nodeagent.record.journal import Journal
from nodeagent.record.lock import lock
from nodeagent.settings import Settings
from nodeagent.snapshot import look, take_snapshot
from nodeagent.state.model import NodeState, Snapshot

if TYPE_CHECKING:
    from nodeagent.agent.probes import Probe
    from nodeagent.driver.findings import Finding
    from nodeagent.plan.actions import Stage


def reload_once(mode: Mode, settings: Settings, watched: Sequence[Probe] = ()) -> None:
    """Do what the agent does at its start, and return. The ready flag stays."""
    from nodeagent.agent import cluster_processes, probes
    from nodeagent.agent.lifecycle import ensure_ready, flag_only_when_proven

    require_root("loads drivers and writes the settings of VFs")
    settings.check_mode(mode, whole_life=False)
    with StopSignal() as stop, lock(settings.lock_path):
        journal = Journal(settings)
        with (
            flag_only_when_proven(journal),
            cluster_processes.around(settings),
            probes.around(watched, journal),
        ):
            ensure_ready(mode, settings, journal, stop)


@dataclass(frozen=True)
class Forecast:
    """What `reload` would do now. `why` has a line for each reason to reload, or is empty.

    `unfinished` is the time of the open snapshot, if there is one: the reload would restore it.
    """

    why: tuple[str, ...]
    unfinished: str | None
    findings: tuple[Finding, ...]
    want: NodeState
    have: NodeState
    """The node as it would be before the restore."""

    @property
    def blocks(self) -> bool:
        """Whether a finding refuses the reload."""
        return any(each.blocks for each in self.findings)

    @property
    def stages(self) -> Sequence[Stage]:
        """What the restore would do."""
        from nodeagent.plan.plan import plan

        return plan(self.want, self.have)


def forecast(mode: Mode, settings: Settings) -> Forecast:
    """What `reload_once` would do. Changes nothing, and raises what that would raise at its start.

    Nothing is built: in mode `sources` the forecast is about the driver that is installed now.
    """
    from nodeagent.driver.preflight import Preflight
    from nodeagent.plan.plan import after_reload

    require_root("looks at every process and reads the settings of VFs")
    settings.check_mode(mode, whole_life=False)
    journal, driver = Journal(settings), NicDriver(settings, mode, None)
    unfinished = open_snapshot_of_here(journal)
    why = driver.outdated()
    now = snapshot_now(settings, to_keep=unfinished is None).state
    want = now if unfinished is None else _attainable(unfinished, now, settings)
    return Forecast(
        why,
        None if unfinished is None else unfinished.taken_at,
        Preflight(settings).findings() if why else (),
        want,
        after_reload(want) if why else now,
    )


def _attainable(wanted: Snapshot, now: NodeState, settings: Settings) -> NodeState:
    """The part of a snapshot that a restore would restore: no pods that are gone, no taken VFs."""
    from nodeagent.plan.taken import restorable

    want = reachable(wanted, settings)[0].state
    return restorable(want, now)


def snapshot_now(settings: Settings, *, to_keep: bool = False) -> Snapshot:
    """A snapshot of the node; with `to_keep`, KernelError if a device does not report its state."""
    require_root("reads the settings of VFs")
    with StopSignal() as stop, Node(settings, stop) as node:
        take = take_snapshot if to_keep else look
        return take(node, NicDriver(settings, Mode.PRECOMPILED, stop))


def restore_now(snapshot: Snapshot, settings: Settings) -> None:
    """Restore the snapshot and verify the node. The ready flag and the open snapshot stay.

    BusyError while an agent is changing devices; one that is ready stays ready.
    """
    from nodeagent.restore import restore, verify

    require_root("writes the settings of VFs")
    with StopSignal() as stop, _no_agent_at_work(settings), Node(settings, stop) as node:
        takings = restore(node, snapshot.state)
        verify(node, snapshot.state, takings)


def reachable(snapshot: Snapshot, settings: Settings) -> tuple[Snapshot, tuple[LeftBehind, ...]]:
    """The snapshot without the VFs of namespaces that are gone, and these VFs."""
    if not snapshot.state.namespaces:
        return snapshot, ()
    require_root("looks into the network namespaces of pods")
    with Node(settings) as node:
        state, left = namespaces.reachable(node, snapshot.state)
    return replace(snapshot, state=state), left


@contextmanager
def _no_agent_at_work(settings: Settings) -> Iterator[None]:
    """Hold the locks, so that no agent starts meanwhile. One that is ready keeps its lock."""
    with lock(settings.work_path), ExitStack() as held:
        try:
            held.enter_context(lock(settings.lock_path))
        except BusyError:
            if not Journal(settings).is_ready():
                raise
        yield
