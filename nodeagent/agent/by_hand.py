"""What an operator does by hand, with a command: take a snapshot, restore one, reload once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from nodeagent.agent import cluster_processes, probes
from nodeagent.agent.lifecycle import ensure_ready, flag_only_when_proven
from nodeagent.agent.probes import Probe
from nodeagent.agent.requirements import require_root
from nodeagent.driver.nic import NicDriver
from nodeagent.errors import BusyError
from nodeagent.kernel.events import StopSignal
from nodeagent.node import namespaces
from nodeagent.node.node import Node
from nodeagent.plan.left_behind import LeftBehind
from nodeagent.record.journal import Journal, lock
from nodeagent.restore import look, restore, take_snapshot, verify
from nodeagent.settings import Mode, Settings
from nodeagent.state.model import Snapshot


def reload_once(mode: Mode, settings: Settings, watched: Sequence[Probe] = ()) -> None:
    """What the agent does at its start, without staying: the ready flag stays as proof."""
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


def snapshot_now(settings: Settings, *, to_keep: bool = False) -> Snapshot:
    """The node as it is now; `to_keep`: KernelError where a device does not report its state."""
    require_root("reads the settings of VFs")
    with StopSignal() as stop, Node(settings, stop) as node:
        take = take_snapshot if to_keep else look
        return take(node, NicDriver(settings, Mode.PRECOMPILED, stop))


def restore_now(snapshot: Snapshot, settings: Settings) -> None:
    """Make the node what the snapshot says, and verify it. Neither flag nor snapshot is touched.

    BusyError while an agent is at work; one that is ready is no hindrance, and stays ready.
    """
    require_root("writes the settings of VFs")
    with StopSignal() as stop, _nobody_at_work(settings), Node(settings, stop) as node:
        takings = restore(node, snapshot.state)
        verify(node, snapshot.state, takings)


def reachable(snapshot: Snapshot, settings: Settings) -> tuple[Snapshot, tuple[LeftBehind, ...]]:
    """The snapshot without what belongs into namespaces that are gone; and what that is."""
    if not snapshot.state.namespaces:
        return snapshot, ()
    require_root("looks into the network namespaces of pods")
    with Node(settings) as node:
        state, left = namespaces.reachable(node, snapshot.state)
    return replace(snapshot, state=state), left


@contextmanager
def _nobody_at_work(settings: Settings) -> Iterator[None]:
    """Keep agents out while devices are changed by hand; one that is ready may stay."""
    with lock(settings.work_path), ExitStack() as held:
        try:
            held.enter_context(lock(settings.lock_path))
        except BusyError:
            if not Journal(settings).is_ready():
                raise
        yield
