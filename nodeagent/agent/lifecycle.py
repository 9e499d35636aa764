"""The agent's process from its start to its end: root, signals, lock, reload, ready, termination.

Two locks keep two agents from one node. The driver container's own (LOCK_FILE_PATH) is held for the
life of the process, as others rely on: one agent a node. The work lock beside it is held only while
devices are changed. So an operator can restore by hand while an agent that is ready holds the first
and touches nothing, but not while one is at work.
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
from nodeagent.agent.requirements import require_root, require_same_machine
from nodeagent.driver import blacklist, builder, exports, openibd, tools, udev_names
from nodeagent.driver.nic import NicDriver
from nodeagent.errors import AgentError, Stopped
from nodeagent.kernel.events import StopSignal
from nodeagent.kernel.heart import Heart
from nodeagent.node import cni
from nodeagent.node.node import Node
from nodeagent.record.journal import Journal, Note, RunMode, adopted, lock
from nodeagent.reload import reload
from nodeagent.settings import AfterReboot, Mode, Settings
from nodeagent.state.model import Snapshot

log = logging.getLogger(__name__)


def run(mode: Mode, settings: Settings, log_format: str, watched: Sequence[Probe] = ()) -> int:
    """The agent from its start on. When all is well it does not return: it becomes the holder.

    Raises AgentError, Stopped among them, with the ready flag gone and an open snapshot kept. The
    caller may have SIGTERM and SIGINT blocked, so that none is lost before there is a handler.
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
    """What the holder does on SIGTERM: remove the flag and what is left on the host; its driver.

    `lock_fd`: the descriptor that holds the lock; None: this is another process, and takes it.
    `since`: when the signal came (CLOCK_MONOTONIC, seconds); a second one ends this, too. Raises
    AgentError when something could not be done; the next start does it.
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
            _terminate(settings, journal, stop, restore_driver=settings.restore_driver)
            journal.note(Note.TERMINATED)


def _terminate(
    settings: Settings, journal: Journal, stop: StopSignal, *, restore_driver: bool
) -> None:
    # it imports psutil to look at every process, which no start without a reload needs
    from nodeagent.agent import termination  # noqa: PLC0415

    with lock(settings.work_path):
        try:
            termination.clean_up(settings)
        finally:
            if restore_driver:
                log.info("putting the host's own driver back")
                termination.restore_driver(settings, journal, stop)
            else:
                log.info("the loaded driver stays")


def _end_early(settings: Settings, journal: Journal, error: AgentError, stop: StopSignal) -> None:
    """Terminate after a start that failed or was stopped; log what fails: an error is under way."""
    wanted = settings.restore_driver and isinstance(error, Stopped)
    if isinstance(error, Stopped):
        stop.again()
    try:
        _terminate(settings, journal, stop, restore_driver=wanted)
    except AgentError as another:
        log.error("%s", another.message)  # noqa: TRY400 # no trace: it is no bug


def build(settings: Settings) -> int:
    """The toolkit's side: build the driver, hand it over, stay until a stop; then 0.

    Needs no root and touches no device. The caller may have signals blocked, as for run().
    """
    with StopSignal() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, hold.STOP_SIGNALS)
        builder.run(settings, stop)
    return 0


@contextmanager
def alive(settings: Settings, stop: StopSignal) -> Iterator[None]:
    """Write the sign of life in every wait that `stop` ends, ten times as often as BEAT_LIMIT."""
    with Heart(settings.beat_path, settings.beat_limit / 10) as heart, stop.accompanied(heart):
        yield


@contextmanager
def flag_only_when_proven(journal: Journal) -> Iterator[None]:
    """Remove the ready flag at first, and again when the block ends in an error of any kind."""
    journal.clear_ready()
    try:
        yield
    except BaseException as error:
        journal.clear_ready()
        if isinstance(error, AgentError):
            journal.note(Note.FAILED, message=error.message)
        raise


def ensure_ready(mode: Mode, settings: Settings, journal: Journal, stop: StopSignal) -> None:
    """Prepare the host, reload where that is due, restore, and set the ready flag."""
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
        if (snapshot := journal.open_snapshot()) is not None:
            hint = f"move {journal.open_path} away when this node came from a copy"
            require_same_machine(snapshot, machine.machine_id(), hint=hint)
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
    """Decide what becomes of a snapshot when the node has rebooted in the middle of a reload.

    By default it is restored: an interrupted reload is no reason to lose VFs, and a program that
    sets them up at boot finds them made.
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
        "the node has rebooted since the snapshot of %s: restoring from it all the same, on the "
        "PFs that are still here (OPEN_SNAPSHOT_AFTER_REBOOT=set-aside would not)",
        snapshot.taken_at,
    )


def _stay(
    lock_fd: int, settings: Settings, journal: Journal, stop: StopSignal, log_format: str
) -> int:
    """Become the holder; 0 after a signal that came too late to stop the start.

    With WATCH_DRIFT this process watches until a signal comes, and the holder then ends at once.

    The signals are blocked first: an earlier one has been counted when sigmask returns, a later one
    is pending until the holder asks for it.
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
        log.warning("cannot become the holder, and stay with all that is in memory: %s", error)
    return hold.until_stopped(ready, log_format, then)


def _watch_drift(settings: Settings, journal: Journal, stop: StopSignal) -> None:
    """Watch until a stop. Without a watch the agent stays ready all the same."""
    try:
        with Node(settings, stop) as node:
            drift.watch(node, journal)
    except Stopped:
        return
    except AgentError as error:
        log.warning("drift is not watched: %s", error.message)
