"""Termination: remove what a running pod has left on the host, and put the host's driver back.

The ready flag is removed first. Then, if RESTORE_DRIVER_ON_POD_TERMINATION asks for it, the host's
own driver is loaded and the VFs are restored, in the same order and with the same proof as in a
reload. All that within the grace period: the snapshot stays open until the node is proven to be as
it was, so that the next start finishes what could not be finished in time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from nodeagent.driver import exports, inbox, openibd, udev_names
from nodeagent.driver.nic import NicDriver
from nodeagent.errors import AgentError, KernelError, UnavailableError, WaitTimeout
from nodeagent.kernel.events import StopSignal
from nodeagent.node import cni
from nodeagent.node.node import Node
from nodeagent.node.settle import wait_for_pfs
from nodeagent.record.journal import Journal, Step
from nodeagent.reload import (
    note_srcversions,
    opened_snapshot,
    salvage,
    take_vfs_away,
    vf_addresses,
    wanted_modules,
)
from nodeagent.restore import put_back
from nodeagent.settings import Mode, Settings
from nodeagent.state.model import Snapshot

log = logging.getLogger(__name__)


def clean_up(settings: Settings) -> None:
    """Remove the udev rule and the mounts. Each is tried; the first failure is raised."""
    verbs: tuple[Callable[[Settings], None], ...] = (udev_names.remove, exports.remove)
    failed: list[AgentError] = []
    for verb in verbs:
        try:
            verb(settings)
        except AgentError as error:
            failed.append(error)
    for another in failed[1:]:
        log.error("%s", another.message)
    if failed:
        raise failed[0]


def restore_driver(
    settings: Settings,
    journal: Journal,
    stop: StopSignal,
    *,
    sysfs: Path = Path("/sys"),
    proc: Path = Path("/proc"),
) -> None:
    """Load the host's own driver, unless it runs already, and restore the VFs.

    `stop` is the signal after the one that began the termination. Raises AgentError with the
    snapshot open, if it was taken.
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
            "the host's own driver is not put back: the grace period is nearly over",
            hint=f"TERMINATION_GRACE_PERIOD is {settings.grace_period:g} s: give the pod more, "
            "and say so there",
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
        snapshot = opened_snapshot(node, journal, driver)
        if not inbox.runs(driver):  # after a start that was stopped before the unload it does
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
        inbox.ensure(driver, before, stop, lambda: take_vfs_away(node, journal))
    except (KernelError, WaitTimeout):
        note_srcversions(journal, driver)
        salvage(node, journal, driver, snapshot, before)
        raise
    note_srcversions(journal, driver)
    wait_for_pfs(node, snapshot.state)
