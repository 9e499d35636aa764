"""The sidecar of a driver container that reloads by itself: saves and restores the node's state.

The driver container builds, installs and reloads, and holds the lock for its life; the sidecar
never reloads. In the same pod it opens a snapshot before the driver container starts (as an init
container). Whenever the driver container sets its ready flag, the sidecar restores the open
snapshot, verifies the node, and sets a flag of its own. When the driver container removes its flag
(it restarts, or its pod ends), the sidecar opens another snapshot at once, long before a build or a
reload can end. If that is too late, because the sidecar was killed or got no processor while the
driver was unloaded, it opens the last verified snapshot again.

As a companion, in a pod of its own beside the Network Operator's driver pods, it may also start
while the driver container is at work: see `_catch_up`.

An open snapshot is never overwritten, and closed only after the node was verified.
"""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Final

from nodeagent import durable, machine
from nodeagent.agent import cluster_processes, hold
from nodeagent.agent.lifecycle import alive
from nodeagent.agent.requirements import open_snapshot_of_here, require_root
from nodeagent.driver.nic import NicDriver
from nodeagent.errors import AgentError, ConfigError, KernelError, Stopped, StorageError
from nodeagent.kernel.events import FileWatch, StopSignal, wait_until_clear
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.modes import Mode
from nodeagent.node import cni
from nodeagent.node.node import Node
from nodeagent.node.observe import observe
from nodeagent.plan.comparison import differences
from nodeagent.plan.taken import ours
from nodeagent.record.journal import Journal, Note, Record, RunMode, Step
from nodeagent.record.lock import lock, lock_holders
from nodeagent.reload import vf_addresses
from nodeagent.restore import put_back
from nodeagent.settings import Settings
from nodeagent.snapshot import take_snapshot
from nodeagent.state.model import Snapshot

log = logging.getLogger(__name__)

_FLAG_TIMEOUT: Final = 7 * 86400.0
_FLAG_RESYNC: Final = 600.0
"""Seconds between two looks without an event; inotify reports changes in the shared directory."""


def prepare(settings: Settings) -> None:
    """Open a snapshot, unless one is open, before the driver container starts.

    BusyError while an earlier driver container still holds the lock. Without a driver there is
    nothing to save.
    """
    require_root("reads the settings of VFs")
    _check(settings)
    with StopSignal() as stop, lock(settings.driver_lock_path):
        journal = Journal(settings)
        journal.clear_ready()
        if not _keep(settings, journal, stop):
            raise KernelError(
                f"{settings.driver_module} was unloaded while its state was being saved",
                hint="another program reloads it: stop that; the next start of this container "
                "saves the state again",
            )


def run(settings: Settings) -> int:
    """Restore whenever the driver container is ready; 0 after SIGTERM if the node is verified.

    A lock of its own tells a driver container that is nodeagent, too, that VFs in pods are put back
    here.
    """
    require_root("writes the settings of VFs")
    _check(settings)
    shares_lock = settings.lock_path == settings.driver_lock_path
    with StopSignal() as stop, nullcontext() if shares_lock else lock(settings.lock_path):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, hold.STOP_SIGNALS)
        journal = Journal(settings)
        try:
            journal.clear_ready()
            with lock(settings.work_path):
                cni.sweep(settings)
            _catch_up(settings, journal)
            while True:
                with ExitStack() as held:
                    with alive(settings, stop):
                        _await(settings.driver_ready_path, None, stop, "be there")
                        flag = held.enter_context(durable.held_flag(settings.driver_ready_path))
                        _restore_and_announce(settings, journal, stop)
                    journal.set_ready()
                    log.info("ready: %s", journal.ready_path)
                    # 0, which no file has: it was gone again
                    _await(settings.driver_ready_path, flag or 0, stop, "go")
                log.info("the driver container has removed its flag: it restarts, or ends")
                journal.clear_ready()
                hold.reap()  # cluster processes, which the holder would do; no other child runs now
                cluster_processes.before_reload(settings)
                # without `stop`: at the end of a pod SIGTERM comes when the flag is removed
                if not _open_again(settings, journal) and not _keep(settings, journal, None):
                    _open_again(settings, journal)
        except Stopped:
            if journal.is_ready() or _is_unharmed(settings, journal):
                return 0
            raise
        finally:
            journal.clear_ready()


def _catch_up(settings: Settings, journal: Journal) -> None:
    """At the start, open a snapshot for a reload of the driver container that may be in progress.

    If the driver container's flag is missing, a reload is to come or in progress, or there is no
    driver container yet. The present state is saved if it is complete: the driver is the one that
    was loaded at the last verification, or nothing holds the lock. Otherwise a driver container may
    have restored half of it. A node without VFs is not saved either: after a boot another program
    creates them, and a restore would remove them.
    """
    verified = _verified(journal)
    if _open_again(settings, journal) or durable.flag(settings.driver_ready_path) is not None:
        return
    driver = NicDriver(settings, Mode.PRECOMPILED, None)
    tree = Sysfs(driver.sysfs)
    pfs = tree.physical_functions(settings.driver_module)
    if journal.has_open_snapshot() or not any(tree.functions(pf.bus, pf.name) for pf in pfs):
        return
    unchanged = verified is not None and _loading(verified) == str(driver.loading())
    if not unchanged and lock_holders(settings.driver_lock_path):
        log.warning(
            "the driver container is at work, and nothing was verified before: the state of the "
            "VFs is not known, and is not restored"
        )
        return
    if not _keep(settings, journal, None):
        _open_again(settings, journal)


def _keep(settings: Settings, journal: Journal, stop: StopSignal | None) -> bool:
    """Open a snapshot, unless one is open. False if the driver was unloaded meanwhile."""
    if journal.has_open_snapshot():
        log.info("a snapshot is open: the reload that it was taken for is not finished")
        return True
    driver = NicDriver(settings, Mode.PRECOMPILED, stop)
    loading = driver.loading()
    if loading is None:
        log.info("%s is not loaded: there is nothing to save", settings.driver_module)
        return True
    with lock(settings.work_path), Node(settings, stop) as node, journal.step(Step.SNAPSHOT):
        snapshot = take_snapshot(node, driver)
        if driver.loading() != loading:
            return False
        journal.save(snapshot)
    log.info("snapshot: %s", snapshot.state.counts)
    return True


def _open_again(settings: Settings, journal: Journal) -> bool:
    """Open the last verified snapshot, if the driver was reloaded since and none is open.

    That happens when the driver container reloads while nodeagent is killed, or gets no processor.
    Changes after the verification are lost. Not after a reboot, which removes VFs as well.
    """
    verified = _verified(journal)
    if journal.has_open_snapshot() or verified is None:
        return False
    loading = NicDriver(settings, Mode.PRECOMPILED, None).loading()
    if _loading(verified) in {"None", str(loading)}:
        return False
    snapshot = journal.last_snapshot()
    if snapshot is None or snapshot.taken_at != verified.facts.get("snapshot"):
        return False
    log.warning(
        "%s was reloaded, or is being reloaded, unobserved: restoring the snapshot of %s",
        *(settings.driver_module, snapshot.taken_at),
    )
    with lock(settings.work_path):
        journal.save(snapshot)
    return True


def _verified(journal: Journal) -> Record | None:
    """The note of the last verification, if it was made in this boot."""
    found = journal.last_note(Note.READY)
    return found if found is not None and found.boot == machine.boot_id() else None


def _loading(verified: Record) -> str:
    """NicDriver.loading() at that time, as text."""
    return verified.facts.get("loading", "None")


def _is_unharmed(settings: Settings, journal: Journal) -> bool:
    """Whether a snapshot is open and the node does not differ from it: then it is closed.

    At the end of a pod the driver container's flag is removed, and a snapshot opened for nothing.
    """
    snapshot = journal.open_snapshot()
    if snapshot is None:
        return False
    with Node(settings, None) as node:
        now = observe(node)
        if differences(ours(snapshot.state, now), now):
            return False
    journal.close_snapshot()
    return True


def _restore_and_announce(settings: Settings, journal: Journal, stop: StopSignal) -> None:
    """Restore; announce it and restart device plugins if the driver was reloaded.

    The driver container's flag may be removed and set again without a reload. A failure is always
    announced.
    """
    before = _verified(journal)
    had_snapshot = journal.has_open_snapshot()
    try:
        _restore_open_snapshot(settings, journal, stop)
    except Stopped:
        raise
    except AgentError:
        cluster_processes.after_reload(settings)
        raise
    now = _verified(journal)
    was_loaded_anew = before is None or now is None or _loading(before) != _loading(now)
    if had_snapshot and was_loaded_anew:
        cluster_processes.after_reload(settings)


def _restore_open_snapshot(settings: Settings, journal: Journal, stop: StopSignal) -> None:
    """Restore and verify the open snapshot. If there is none, save the node's state.

    SR-IOV CNI is held off only during the restore (HOLD_OFF): the driver container may take hours
    to become ready, and pods that end would wait for their DEL until then.

    By the note, `_open_again` finds out whether the driver was reloaded since.
    """
    journal.note(Note.RUN, mode=RunMode.SIDECAR)
    driver = NicDriver(settings, Mode.PRECOMPILED, stop)
    loading = driver.loading()
    with lock(settings.work_path), Node(settings, stop) as node:
        snapshot = open_snapshot_of_here(journal)
        if snapshot is not None:
            with cni.held_off(node, vf_addresses(node, journal)):
                put_back(node, journal, snapshot, wait_first=True)
        else:
            log.info("no snapshot is open: nothing to restore")
            snapshot = None if loading is None else _saved_as_it_is(node, driver, journal)
    journal.close_snapshot()
    taken_at = "" if snapshot is None else snapshot.taken_at
    journal.note(Note.READY, loading=str(loading), snapshot=taken_at)


def _saved_as_it_is(node: Node, driver: NicDriver, journal: Journal) -> Snapshot | None:
    """Save the node's state as the last snapshot; None, with a warning, if that fails."""
    try:
        with journal.step(Step.SNAPSHOT):
            return journal.save_as_last(take_snapshot(node, driver))
    except (KernelError, StorageError) as error:
        log.warning("the state of this node is not saved: %s", error.message)
        return None


def _await(path: Path, flag: int | None, stop: StopSignal, what: str) -> None:
    """Return when the driver container's flag is no longer `flag`; None: there is none."""

    def same() -> Iterator[Path]:
        if durable.flag(path) == flag:
            yield path

    with FileWatch(path) as watch:
        if next(same(), None) is not None:
            log.info("waiting for %s to %s", path, what)
        what = f"the driver container's flag to {what}"
        wait_until_clear(
            same,
            watch,
            stop,
            what=what,
            timeout=_FLAG_TIMEOUT,
            resync=_FLAG_RESYNC,
            notice=math.inf,
        )


def _check(settings: Settings) -> None:
    if settings.ready_path == settings.driver_ready_path:
        raise ConfigError(
            f"DRIVER_READY_PATH is {settings.ready_path}, the driver container's own flag",
            hint="beside a driver container, nodeagent's flag is another file: set "
            "DRIVER_READY_PATH=/run/mellanox/drivers/.nodeagent-ready",
        )
