"""The agent's process from its start to its end: root, signals, lock, reload, ready, termination.

There are two locks. The driver container's lock (LOCK_FILE_PATH) admits one agent per node and is
held for the life of the process. The work lock beside it is held only while devices are changed, so
that an operator can restore by hand while an agent is ready, but not while one is at work.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from nodeagent import machine
from nodeagent.agent import cluster_processes, debug, drift, hold, probes
from nodeagent.agent.probes import Probe
from nodeagent.agent.requirements import open_snapshot_of_here, require_root
from nodeagent.driver import blacklist, builder, exports, openibd, tools, udev_names
from nodeagent.driver.nic import NicDriver
from nodeagent.errors import AgentError, Stopped
from nodeagent.kernel.events import StopSignal
from nodeagent.kernel.heart import Heart
from nodeagent.modes import Mode
from nodeagent.node import cni
from nodeagent.node.node import Node
from nodeagent.node.settle import bind_pfs
from nodeagent.record.journal import Journal, Note, RunMode
from nodeagent.record.lock import adopted, lock
from nodeagent.reload import reload
from nodeagent.settings import AfterReboot, Settings
from nodeagent.state.model import Snapshot

log = logging.getLogger(__name__)


def run(mode: Mode, settings: Settings, log_format: str, watched: Sequence[Probe] = ()) -> int:
    """Run the agent. If it becomes ready it does not return: the process becomes the holder.

    Raises AgentError (Stopped, too) with the ready flag removed and an open snapshot kept. The
    caller may have blocked SIGTERM and SIGINT, so that none is lost before there is a handler.
    """
    require_root("loads drivers and writes the settings of VFs")
    settings.check_mode(mode, whole_life=True)
    with StopSignal() as stop, lock(settings.lock_path) as lock_fd:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, hold.STOP_SIGNALS)
        journal = Journal(settings)
        with alive(settings, stop):
            try:
                with (
                    flag_only_when_proven(journal),
                    debug.commands_on_record(settings),
                    cluster_processes.around(settings),
                    probes.around(watched, journal),
                ):
                    ensure_ready(mode, settings, journal, stop)
            except AgentError as error:
                _end_early(settings, journal, error, stop)
                debug.pause(settings, error, stop)
                raise
            return _stay(lock_fd, settings, journal, stop, log_format)


def terminate(settings: Settings, lock_fd: int | None, since: float | None) -> None:
    """What the holder becomes on SIGTERM: clean up the host, and load its own driver if wanted.

    `lock_fd` is the inherited descriptor of the lock; None: another process calls this, and takes
    the lock. `since` is the time of the signal (CLOCK_MONOTONIC, seconds); a second signal ends the
    termination. Raises AgentError if something is left for the next start.
    """
    require_root("unloads drivers and writes the settings of VFs")
    held = lock(settings.lock_path) if lock_fd is None else adopted(lock_fd, settings.lock_path)
    with StopSignal(since=since) as stop, held:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, hold.STOP_SIGNALS)
        journal = Journal(settings)
        with (
            alive(settings, stop),
            flag_only_when_proven(journal),
            debug.commands_on_record(settings),
        ):
            journal.note(Note.RUN, mode=RunMode.TERMINATE)
            if (unfinished := open_snapshot_of_here(journal)) is not None:
                with lock(settings.work_path), Node(settings, stop) as node:
                    bind_pfs(node, unfinished.state)
            _terminate(settings, journal, stop, restore_driver=settings.restore_driver)
            journal.note(Note.TERMINATED)


def _terminate(
    settings: Settings, journal: Journal, stop: StopSignal, *, restore_driver: bool
) -> None:
    # imports psutil, which a start without a reload does not need
    from nodeagent.agent import termination  # noqa: PLC0415

    with lock(settings.work_path):
        try:
            termination.clean_up(settings)
        finally:
            if restore_driver:
                log.info("loading the host's own driver again")
                termination.restore_driver(settings, journal, stop)
            else:
                log.info("the loaded driver stays")


def _end_early(settings: Settings, journal: Journal, error: AgentError, stop: StopSignal) -> None:
    """Terminate after a start that failed or was stopped. Failures are only logged."""
    wanted = settings.restore_driver and isinstance(error, Stopped)
    if isinstance(error, Stopped):
        stop.again()
    try:
        _terminate(settings, journal, stop, restore_driver=wanted)
    except AgentError as another:
        log.error("%s", another.message)  # noqa: TRY400 # no trace: it is no bug


def build(settings: Settings) -> int:
    """Build the driver in the toolkit's container, then wait for a signal; 0.

    Needs no root and touches no device. The caller may have blocked signals, as for run().
    """
    with StopSignal() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, hold.STOP_SIGNALS)
        builder.run(settings, stop)
    return 0


@contextmanager
def alive(settings: Settings, stop: StopSignal) -> Iterator[None]:
    """Write the heartbeat in every wait that `stop` ends, ten times within BEAT_LIMIT."""
    with Heart(settings.beat_path, settings.beat_limit / 10) as heart, stop.accompanied(heart):
        yield


@contextmanager
def flag_only_when_proven(journal: Journal) -> Iterator[None]:
    """Remove the ready flag before the block, and again if the block fails."""
    journal.clear_ready()
    try:
        yield
    except BaseException as error:
        journal.clear_ready()
        if isinstance(error, AgentError):
            journal.note(Note.FAILED, message=error.message)
        raise


def ensure_ready(mode: Mode, settings: Settings, journal: Journal, stop: StopSignal) -> None:
    """Prepare the host, reload if necessary, restore, and set the ready flag."""
    if settings.bind_delay_sec is not None:
        log.warning("BIND_DELAY_SEC is ignored: nodeagent waits for events, not for time to pass")
    versions = {
        "driver": settings.nic_driver_ver or "as installed",
        "container": settings.nic_container_ver or "unknown",
    }
    log.info("start", extra={"mode": mode, **versions})
    tools.check(settings, mode)
    journal.note(Note.RUN, mode=mode, **versions)
    driver = NicDriver(settings, mode, stop)
    with lock(settings.work_path):
        openibd.await_running(settings, stop)
        blacklist.sweep(settings)
        cni.sweep(settings)
        udev_names.ensure(settings)
        if (snapshot := open_snapshot_of_here(journal)) is not None:
            _after_reboot(snapshot, settings, journal)
        with Node(settings, stop) as node:
            reload(
                node,
                journal,
                driver,
                before_snapshot=lambda: cluster_processes.before_snapshot(settings),
                without_vfs=lambda: cluster_processes.without_vfs(settings),
                before_ready=lambda: exports.ensure(settings),
            )
    journal.note(Note.READY)


def _after_reboot(snapshot: Snapshot, settings: Settings, journal: Journal) -> None:
    """Keep an open snapshot, or set it aside, if the node was rebooted in the middle of a reload.

    By default it is restored: an interrupted reload is no reason to lose VFs.
    """
    if snapshot.boot_id == machine.boot_id():
        return
    journal.note(Note.REBOOTED, taken_at=snapshot.taken_at)
    if settings.after_reboot == AfterReboot.SET_ASIDE:
        kept = journal.set_aside()
        log.warning(
            "the node has rebooted since the snapshot of %s: it is set aside as %s, and nothing "
            "is restored from it (OPEN_SNAPSHOT_AFTER_REBOOT)",
            snapshot.taken_at,
            kept,
        )
        return
    log.warning(
        "the node has rebooted since the snapshot of %s: restoring from it nevertheless, on the "
        "PFs that still exist (OPEN_SNAPSHOT_AFTER_REBOOT=set-aside would not)",
        snapshot.taken_at,
    )


def _stay(
    lock_fd: int, settings: Settings, journal: Journal, stop: StopSignal, log_format: str
) -> int:
    """Become the holder; 0 after a signal that arrived too late to stop the start.

    With WATCH_DRIFT this process watches until a signal arrives, and then terminates.

    The signals are blocked first: an earlier one is counted when sigmask returns, a later one is
    pending until the holder waits for it.
    """
    log.info("ready: %s", journal.ready_path)
    if settings.watch_drift:
        _watch_drift(settings, journal, stop)
    signal.pthread_sigmask(signal.SIG_BLOCK, hold.STOP_SIGNALS)
    ready = str(journal.ready_path)
    then = [sys.executable, "-m", "nodeagent", "--log-format", log_format]
    then += ["terminate", "--lock-fd", str(lock_fd)]
    if stop.requested:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, hold.STOP_SIGNALS)
        journal.clear_ready()
        stop.again()
        _terminate(settings, journal, stop, restore_driver=settings.restore_driver)
        return 0
    try:
        hold.become(lock_fd, ready, log_format, then)
    except OSError as error:
        log.warning("cannot become the holder, and stays as large as it is: %s", error)
    return hold.until_stopped(ready, log_format, then)


def _watch_drift(settings: Settings, journal: Journal, stop: StopSignal) -> None:
    """Watch until a stop. If that fails the agent stays ready."""
    try:
        with Node(settings, stop) as node:
            drift.watch(node, journal)
    except Stopped:
        return
    except AgentError as error:
        log.warning("drift is not watched: %s", error.message)
