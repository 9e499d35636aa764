"""Beside a driver container that reloads by itself: what it loses is kept and put back.

Who does what, so that the two never reload twice: the driver container builds, installs and
reloads, and holds the lock for its life; nodeagent has no way to a reload here. Before the driver
container starts (an init container), it opens a snapshot. Whenever the driver container says ready,
it makes the node what the open snapshot says, proves it, and sets a flag of its own. When the
driver container's flag goes (it starts anew in the same pod), another snapshot is opened at once:
long before a build or a reload can end.

An open snapshot is never overwritten, and closed only when the node is proven.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nodeagent import agent, durable, hold
from nodeagent import reload as story
from nodeagent.driver.nic import NicDriver
from nodeagent.errors import ConfigError, Stopped
from nodeagent.journal import Journal, lock
from nodeagent.kernel.events import FileWatch, StopSignal, wait_until_clear
from nodeagent.settings import Settings
from nodeagent.sriov.differences import differences
from nodeagent.sriov.node import Node

log = logging.getLogger(__name__)

_LONG: Final = 7 * 86400.0
_RESYNC: Final = 600.0
"""The flag's directory is a mount that both containers have: inotify tells of every change."""


def prepare(settings: Settings) -> None:
    """Open a snapshot, unless one is open: the driver container has not started yet.

    BusyError while a driver container of before still holds the lock. Without a driver there is
    nothing to keep, which is said.
    """
    agent.require_root("reads the settings of VFs")
    _check(settings)
    with StopSignal() as stop, lock(settings.lock_path):
        journal = Journal(settings)
        journal.clear_ready()
        _keep(settings, journal, stop)


def run(settings: Settings) -> int:
    """Restore whenever the driver container says ready; 0 after SIGTERM while all was proven."""
    agent.require_root("writes the settings of VFs")
    _check(settings)
    with StopSignal() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, hold.STOPPING)
        journal = Journal(settings)
        try:
            while True:
                journal.clear_ready()
                with agent.alive(settings, stop):
                    _await(settings.driver_ready_path, stop, there=True)
                    _put_back(settings, journal, stop)
                journal.set_ready()
                log.info("ready: %s", journal.ready_path)
                _await(settings.driver_ready_path, stop, there=False)
                log.info("the driver container's flag is gone: it starts anew, or ends")
                journal.clear_ready()
                # to its end: when the pod ends, the flag and SIGTERM come at the same moment
                _keep(settings, journal, None)
        except Stopped:
            if journal.is_ready() or _is_unharmed(settings, journal):
                return 0
            raise
        finally:
            journal.clear_ready()


def _keep(settings: Settings, journal: Journal, stop: StopSignal | None) -> None:
    if journal.has_open_snapshot():
        log.info("a snapshot is open: the reload that it was taken for is not over")
        return
    driver = NicDriver(settings, "precompiled", stop)
    if not driver.is_loaded():
        log.info("%s is not loaded: there is nothing to keep", settings.driver_module)
        return
    with lock(settings.work_path), Node(settings, stop) as node, journal.step("snapshot"):
        snapshot = journal.save(story.take_snapshot(node, driver))
    log.info("snapshot: %d PFs, %d VFs", len(snapshot.state.pfs), snapshot.state.vf_count)


def _is_unharmed(settings: Settings, journal: Journal) -> bool:
    """A snapshot is open and nothing of it is lost: it is closed, and the next pod takes its own.

    When the pod ends, the driver container's flag goes, too, and that opens one.
    """
    snapshot = journal.open_snapshot()
    if snapshot is None:
        return False
    with Node(settings, None) as node:
        if differences(snapshot.state, node.observe()):
            return False
    journal.close_snapshot()
    return True


def _put_back(settings: Settings, journal: Journal, stop: StopSignal) -> None:
    """What the open snapshot says, proven; without one, nothing is touched."""
    journal.note("run", mode="sidecar")
    with lock(settings.work_path):
        snapshot = journal.open_snapshot()
        if snapshot is None:
            log.info("no snapshot is open: nothing to put back")
            journal.note("ready")
            return
        hint = f"move {journal.open_path} away when this node came from a copy"
        agent.check_same_machine(snapshot, story.machine_id(), hint=hint)
        with Node(settings, stop) as node:
            with journal.step("restore"):
                node.wait_for_pfs(snapshot.state)
                story.restore(node, snapshot.state)
            with journal.step("verify"):
                story.verify(node, snapshot.state)
    journal.close_snapshot()
    journal.note("ready")


def _await(flag: Path, stop: StopSignal, *, there: bool) -> None:
    """Return when the driver container's flag is there, or is not."""

    def wrong() -> Iterator[Path]:
        if durable.is_flag(flag) != there:
            yield flag

    with FileWatch(flag) as watch:
        if next(wrong(), None) is not None:
            log.info("waiting until %s is %s", flag, "there" if there else "gone")
        what = f"the driver container's flag to be {'there' if there else 'gone'}"
        wait_until_clear(wrong, watch, stop, what=what, timeout=_LONG, resync=_RESYNC)


def _check(settings: Settings) -> None:
    if settings.ready_path == settings.driver_ready_path:
        raise ConfigError(
            f"DRIVER_READY_PATH is {settings.ready_path}, the driver container's own flag",
            hint="beside a driver container, nodeagent's flag is another file: set "
            "DRIVER_READY_PATH=/run/mellanox/drivers/.nodeagent-ready",
        )
