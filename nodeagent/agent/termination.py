"""Termination: remove what the pod has left on the host, and load the host's own driver again.

The ready flag is removed first. With RESTORE_DRIVER_ON_POD_TERMINATION the host's own driver is
loaded then, and the VFs are restored and verified as in a reload, all within the grace period. The
snapshot stays open until the node is verified, so that the next start finishes what is left.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from nodeagent.cleanup import afterwards
from nodeagent.driver import exports, inbox, openibd, udev_names
from nodeagent.driver.nic import NicDriver
from nodeagent.errors import KernelError, UnavailableError, WaitTimeout
from nodeagent.kernel.events import StopSignal
from nodeagent.modes import Mode
from nodeagent.node import cni
from nodeagent.node.node import Node
from nodeagent.node.settle import wait_for_pfs
from nodeagent.record.journal import Journal, Step
from nodeagent.reload import (
    bound_again,
    ensure_snapshot,
    note_srcversions,
    remove_vfs,
    salvage,
    vf_addresses,
    wanted_modules,
)
from nodeagent.restore import put_back
from nodeagent.settings import Settings
from nodeagent.state.model import Snapshot

log = logging.getLogger(__name__)


def clean_up(settings: Settings) -> None:
    """Remove the udev rule and the mounts. A failure of one does not stop the other."""
    with afterwards(lambda: exports.remove(settings)):
        udev_names.remove(settings)


def restore_driver(
    settings: Settings,
    journal: Journal,
    stop: StopSignal,
    *,
    sysfs: Path = Path("/sys"),
    proc: Path = Path("/proc"),
) -> None:
    """Load the host's own driver, unless it is loaded already, and restore the VFs.

    `stop` notices a signal after the one that began the termination. If AgentError is raised, the
    snapshot stays open, if it was taken.
    """
    driver = NicDriver(settings, Mode.PRECOMPILED, stop, sysfs, proc)
    if inbox.runs(driver) and not journal.has_open_snapshot():
        log.info("the host's own driver runs already")
        return
    left = openibd.time_left(settings, stop)
    if left:
        openibd.await_running(replace(settings, restart_timeout=left), stop)
        left = openibd.time_left(settings, stop)
    if not left:
        raise UnavailableError(
            "the host's own driver is not loaded again: the grace period is nearly over",
            hint=f"TERMINATION_GRACE_PERIOD is {settings.grace_period:g} s: raise it together with "
            "the pod's terminationGracePeriodSeconds",
        )
    if not inbox.runs(driver):
        with journal.step(Step.PREFLIGHT):
            inbox.check_is_safe(driver)
        left = openibd.time_left(settings, stop)
    hurried = replace(
        settings,
        vf_timeout=min(settings.vf_timeout, left),
        pf_timeout=min(settings.pf_timeout, left),
    )
    with Node(hurried, stop) as node:
        _restore_driver(node, journal, driver, stop)


def _restore_driver(node: Node, journal: Journal, driver: NicDriver, stop: StopSignal) -> None:
    with cni.held_off(node, vf_addresses(node, journal)):
        snapshot = ensure_snapshot(node, journal, driver)
        if not inbox.runs(driver):  # it does after a start that was stopped before the unload
            with journal.step(Step.INBOX):
                _restart(node, journal, driver, snapshot, stop)
        put_back(node, journal, snapshot)
    journal.close_snapshot()


def _restart(
    node: Node, journal: Journal, driver: NicDriver, snapshot: Snapshot, stop: StopSignal
) -> None:
    note_srcversions(journal, driver)
    before = wanted_modules(driver, snapshot)
    try:
        with bound_again(node, snapshot):
            inbox.ensure(driver, before, stop, lambda: remove_vfs(node, journal, driver, snapshot))
    except (KernelError, WaitTimeout):
        note_srcversions(journal, driver)
        salvage(node, journal, driver, snapshot, before)
        raise
    note_srcversions(journal, driver)
    wait_for_pfs(node, snapshot.state)
