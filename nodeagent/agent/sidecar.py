"""Beside a driver container that reloads by itself: saves the node's state and puts it back.

The driver container builds, installs and reloads, and holds the lock for its life; nodeagent cannot
reload here, so that the two never reload twice. In one pod with it, nodeagent opens a snapshot
before the driver container starts (as an init container). Whenever the driver container sets its
ready flag, nodeagent makes the node what the open snapshot says, verifies it, and sets a flag of
its own. When the driver container removes its flag (it restarts, or its pod ends), nodeagent opens
another snapshot at once, long before a build or a reload can end. Where that was too late, because
nodeagent was killed or got no processor while the driver was unloaded, it opens the snapshot again
that was verified last.

As a companion, in a pod of its own beside the Network Operator's driver pods, nodeagent may also
start while the driver container is at work: see `_catch_up`.

An open snapshot is never overwritten, and closed only when the node is proven.
"""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nodeagent import durable, machine
from nodeagent.agent import cluster_processes, hold
from nodeagent.agent.lifecycle import alive
from nodeagent.agent.requirements import require_root, require_same_machine
from nodeagent.driver.nic import NicDriver
from nodeagent.errors import AgentError, ConfigError, KernelError, Stopped, StorageError
from nodeagent.kernel.events import FileWatch, StopSignal, wait_until_clear
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.node import cni
from nodeagent.node.node import Node
from nodeagent.node.observe import observe
from nodeagent.plan.comparison import differences
from nodeagent.plan.taken import ours
from nodeagent.record.journal import Journal, Note, Record, RunMode, Step, lock, lock_holders
from nodeagent.reload import vf_addresses
from nodeagent.restore import put_back
from nodeagent.settings import Mode, Settings
from nodeagent.snapshot import take_snapshot
from nodeagent.state.model import Snapshot

log = logging.getLogger(__name__)

_FLAG_TIMEOUT: Final = 7 * 86400.0
_FLAG_RESYNC: Final = 600.0
"""Seconds. The flag's directory is a mount that both containers have: inotify tells of changes."""


def prepare(settings: Settings) -> None:
    """Open a snapshot, unless one is open, before the driver container starts.

    BusyError while an earlier driver container still holds the lock. Without a driver there is
    nothing to save, which is logged.
    """
    require_root("reads the settings of VFs")
    _check(settings)
    with StopSignal() as stop, lock(settings.lock_path):
        journal = Journal(settings)
        journal.clear_ready()
        if not _keep(settings, journal, stop):
            raise KernelError(
                f"{settings.driver_module} was unloaded while what it has was being saved",
                hint="something else reloads it: end that; the next start of this container looks "
                "again",
            )


def run(settings: Settings) -> int:
    """Restore whenever the driver container is ready; 0 after SIGTERM while the node was proven."""
    require_root("writes the settings of VFs")
    _check(settings)
    with StopSignal() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, hold.STOP_SIGNALS)
        journal = Journal(settings)
        try:
            journal.clear_ready()
            with lock(settings.work_path):
                cni.sweep(settings)
            _catch_up(settings, journal)
            while True:
                with alive(settings, stop):
                    flag = _await_flag(settings.driver_ready_path, stop)
                    _restore_and_announce(settings, journal, stop)
                journal.set_ready()
                log.info("ready: %s", journal.ready_path)
                _await_another(settings.driver_ready_path, flag, stop)
                log.info("the driver container's flag is gone: it restarts, or ends")
                journal.clear_ready()
                _reap()
                cluster_processes.before_reload(settings)
                # no stop ends this: when a pod ends, flag and SIGTERM come at the same moment
                if not _open_again(settings, journal) and not _keep(settings, journal, None):
                    _open_again(settings, journal)
        except Stopped:
            if journal.is_ready() or _is_unharmed(settings, journal):
                return 0
            raise
        finally:
            journal.clear_ready()


def _catch_up(settings: Settings, journal: Journal) -> None:
    """Open the snapshot that the driver container's reload calls for, when nodeagent starts in it.

    Without the driver container's flag a reload is to come, is under way, or there is no driver
    container yet. What is there is saved if it is whole: the driver is the one that was proven
    last, or nothing holds the lock. Else it may be what a driver container has restored half of,
    and putting that back would undo the other half. A node without VFs is left as it is, too: after
    a boot they are made by others, and these must not find them removed.
    """
    proven = _proven(journal)
    if _open_again(settings, journal) or durable.flag(settings.driver_ready_path) is not None:
        return
    driver = NicDriver(settings, Mode.PRECOMPILED, None)
    tree = Sysfs(driver.sysfs)
    pfs = tree.physical_functions(settings.driver_module)
    if journal.has_open_snapshot() or not any(tree.functions(pf.bus, pf.name) for pf in pfs):
        return
    unchanged = proven is not None and _loading(proven) == str(driver.loading())
    if not unchanged and lock_holders(settings.lock_path):
        log.warning(
            "the driver container is at work, and nothing was proven before: what the VFs were "
            "like is not known, and not put back"
        )
        return
    if not _keep(settings, journal, None):
        _open_again(settings, journal)


def _keep(settings: Settings, journal: Journal, stop: StopSignal | None) -> bool:
    """Open a snapshot, unless one is open. False when the driver was unloaded meanwhile."""
    if journal.has_open_snapshot():
        log.info("a snapshot is open: the reload that it was taken for is not over")
        return True
    driver = NicDriver(settings, Mode.PRECOMPILED, stop)
    loading = driver.loading()
    if loading is None:
        log.info("%s is not loaded: there is nothing to keep", settings.driver_module)
        return True
    with lock(settings.work_path), Node(settings, stop) as node, journal.step(Step.SNAPSHOT):
        snapshot = take_snapshot(node, driver)
        if driver.loading() != loading:
            return False
        journal.save(snapshot)
    log.info("snapshot: %d PFs, %d VFs", len(snapshot.state.pfs), snapshot.state.vf_count)
    return True


def _open_again(settings: Settings, journal: Journal) -> bool:
    """Open the snapshot that was verified last, if the driver was reloaded since and none is open.

    That happens when the driver container reloads while nodeagent is killed, or gets no processor.
    What was changed after the verify is not known. After a reboot VFs are gone for another reason.
    """
    proven = _proven(journal)
    if journal.has_open_snapshot() or proven is None:
        return False
    loading = NicDriver(settings, Mode.PRECOMPILED, None).loading()
    if _loading(proven) in {"None", str(loading)}:
        return False
    snapshot = journal.last_snapshot()
    if snapshot is None or snapshot.taken_at != proven.facts.get("snapshot"):
        return False
    log.warning(
        "%s was reloaded, or is being reloaded, unobserved: putting back what was saved at %s",
        *(settings.driver_module, snapshot.taken_at),
    )
    with lock(settings.work_path):
        journal.save(snapshot)
    return True


def _proven(journal: Journal) -> Record | None:
    """The record of the last proof, if the node has not been rebooted since."""
    found = journal.last_note(Note.READY)
    return found if found is not None and found.boot == machine.boot_id() else None


def _loading(proven: Record) -> str:
    """NicDriver.loading() of that moment, as text."""
    return proven.facts.get("loading", "None")


def _is_unharmed(settings: Settings, journal: Journal) -> bool:
    """Whether a snapshot is open and nothing of it is lost: then it is closed.

    The end of a pod removes the driver container's flag, too, and that opens a snapshot. The next
    pod takes its own.
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
    """Restore, then announce it and restart device plugins if the driver was loaded anew.

    A flag that went and came back without a reload leaves the device plugins as they are. A failure
    is announced in any case.
    """
    before = _proven(journal)
    had_snapshot = journal.has_open_snapshot()
    try:
        _restore_open_snapshot(settings, journal, stop)
    except Stopped:
        raise
    except AgentError:
        cluster_processes.after_reload(settings)
        raise
    now = _proven(journal)
    was_loaded_anew = before is None or now is None or _loading(before) != _loading(now)
    if had_snapshot and was_loaded_anew:
        cluster_processes.after_reload(settings)


def _reap() -> None:
    """Take the exit statuses of cluster processes that have ended: here is no holder to do it.

    No other process of ours runs at this moment.
    """
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _restore_open_snapshot(settings: Settings, journal: Journal, stop: StopSignal) -> None:
    """Restore and verify the open snapshot. Without one touch nothing, and save the node's state.

    SR-IOV CNI is held off for the restore alone (HOLD_OFF): the driver container may take hours to
    become ready, and until then a pod that ends would wait for its DEL.

    The note lets `_open_again` tell whether the driver was reloaded since.
    """
    journal.note(Note.RUN, mode=RunMode.SIDECAR)
    driver = NicDriver(settings, Mode.PRECOMPILED, stop)
    loading = driver.loading()
    with lock(settings.work_path), Node(settings, stop) as node:
        snapshot = journal.open_snapshot()
        if snapshot is not None:
            hint = f"move {journal.open_path} away when this node came from a copy"
            require_same_machine(snapshot, machine.machine_id(), hint=hint)
            with cni.held_off(node, vf_addresses(node, journal)):
                put_back(node, journal, snapshot, wait_first=True)
        else:
            log.info("no snapshot is open: nothing to put back")
            snapshot = None if loading is None else _saved_as_it_is(node, driver, journal)
    journal.close_snapshot()
    taken_at = "" if snapshot is None else snapshot.taken_at
    journal.note(Note.READY, loading=str(loading), snapshot=taken_at)


def _saved_as_it_is(node: Node, driver: NicDriver, journal: Journal) -> Snapshot | None:
    """The node's state, as the last snapshot; None, with a warning, where it cannot be saved."""
    try:
        with journal.step(Step.SNAPSHOT):
            return journal.save_as_last(take_snapshot(node, driver))
    except (KernelError, StorageError) as error:
        log.warning("the state of this node is not saved: %s", error.message)
        return None


def _await_flag(path: Path, stop: StopSignal) -> tuple[int, int]:
    """Return the driver container's flag once it is there."""
    _await(path, None, stop, "be there")
    return durable.flag(path) or (0, 0)  # it is gone again: the next wait sees that


def _await_another(path: Path, flag: tuple[int, int], stop: StopSignal) -> None:
    """Return when that flag is gone, also when another one is there already."""
    _await(path, flag, stop, "go")


def _await(path: Path, flag: tuple[int, int] | None, stop: StopSignal, what: str) -> None:
    """Return when the driver container's flag is another one than that."""

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
