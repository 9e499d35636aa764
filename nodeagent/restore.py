"""Restore a snapshot, plan by plan, and verify that nothing differs from it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Final

from nodeagent.errors import RestoreFailed
from nodeagent.node import cni
from nodeagent.node.attempt import Attempt
from nodeagent.node.auxiliary import probe_again
from nodeagent.node.fatal import in_fatal_error, without_failed
from nodeagent.node.links import set_vfs
from nodeagent.node.locate import is_hung
from nodeagent.node.managers import await_managers, managed_netdevs
from nodeagent.node.namespaces import reachable
from nodeagent.node.node import Node
from nodeagent.node.observe import observe
from nodeagent.node.perform import perform
from nodeagent.node.settle import wait_for_pfs
from nodeagent.node.silent import planned
from nodeagent.node.sysctls import await_ipv6
from nodeagent.node.takings import Takings
from nodeagent.plan import dcb, driverinit, ethtool, lag, rates, subfunctions, tuning, vdpa
from nodeagent.plan.actions import Stage
from nodeagent.plan.comparison import Difference, differences
from nodeagent.plan.left_behind import LeftBehind
from nodeagent.plan.plan import plan
from nodeagent.plan.remarks import shared_macs
from nodeagent.plan.stack import without_stacked
from nodeagent.record.journal import Journal, Note, Step
from nodeagent.state.model import DeviceHandle, NodeState, Snapshot, Target

log = logging.getLogger(__name__)

MAX_PLANS: Final = 3
"""The number of plans of a restore: what udev has named differently, or a driver has changed by
itself, is planned again."""


def put_back(node: Node, journal: Journal, snapshot: Snapshot, *, wait_first: bool = False) -> None:
    """Restore a snapshot and verify the node. The caller closes the snapshot.

    `wait_first`: wait for the PFs, because another program has just reloaded the driver.
    """
    with journal.step(Step.RESTORE):
        if wait_first:
            wait_for_pfs(node, snapshot.state)
        try:
            takings = restore(node, snapshot.state)
        finally:
            note_vf_times(node, journal)
        journal.note(Note.VFS_BACK)
    with journal.step(Step.VERIFY):
        for each in verify(node, snapshot.state, takings):
            pod = "" if each.namespace is None else each.namespace.pod
            journal.note(Note.POD_INTERFACE_LOST, uid=pod, message=str(each))


def note_vf_times(node: Node, journal: Journal) -> None:
    """Record when each VF went and came back; before `vfs-back`, which ends the window."""
    if facts := node.vf_times.taken():
        journal.note(Note.VF_TIMES, **facts)


def restore(node: Node, want: NodeState) -> Takings:
    """Plan, perform and observe again, until nothing differs.

    VFs that another program has taken since the snapshot are left alone, and returned.

    An interface that NetworkManager or systemd-networkd manages is set up again by that program:
    addresses, routes and the like are restored only after it has finished, as far as they are
    missing then.

    Raises RestoreFailed with a line for each failed action and each attribute that differs, if a
    plan could not be performed or MAX_PLANS plans were not enough; at once if the driver is not
    loaded (any more).
    """
    attempt = Attempt(node, Takings(want))
    probe_again(node)
    failures: dict[str, None] = {}
    if others := managed_netdevs(want):
        now = _compared(attempt, want)
        stages = plan(now.attainable, now.have)
        failures |= dict.fromkeys(perform(attempt, without_stacked(stages, others)))
        await_managers(node, others)
    for number in range(MAX_PLANS):
        _check_loaded(node, want)
        now, stages = _planned(attempt, want)
        if not stages and await_ipv6(node, now.attainable):
            now, stages = _planned(attempt, want)
        if not stages:
            break
        if number:
            ours = without_failed(node, now.ours, now.failed)
            attempt.conflicts.check(differences(ours, now.have), failures)
        for pf in now.have.pfs:
            attempt.conflicts.note_found(str(pf.handle), "driver", now.have.driver)
        failures |= dict.fromkeys(perform(attempt, stages))
    else:
        now = _compared(attempt, want)
        attempt.conflicts.check(differences(now.ours, now.have), failures, is_last=True)
    known = (now.failed, node.hung_calls.lines(), attempt.silent, attempt.without_lag)
    is_whole = not (stages or any(known))
    left = () if is_whole else _undone(now)
    if left:
        raise RestoreFailed(
            f"{len(left)} attributes could not be restored",
            dict.fromkeys(
                (
                    *in_fatal_error(node, want),
                    *failures,
                    *node.hung_calls.lines(),
                    *map(str, left),
                )
            ),
            hint="the snapshot stays open: remove the cause, of which dmesg may say more, and "
            "start again, or see `verify`",
        )
    return attempt.takings


def _check_loaded(node: Node, want: NodeState) -> None:
    """RestoreFailed if the driver of the PFs is not loaded: nothing can be restored then."""
    if not all(node.sysfs.has_driver(pf.handle.bus, want.driver) for pf in want.pfs):
        raise RestoreFailed(
            f"{want.driver} is not loaded",
            (),
            hint="the snapshot stays open: find out what has unloaded it (dmesg, `modprobe -r`, a "
            "driver container), and start again, which loads the installed driver",
        )


@dataclass(frozen=True)
class _Compared:
    """The node as it is, and the snapshot: the part that is ours to restore, and the part of that
    which can be restored now. `behind`: VFs that stay in the host's namespace. `failed`: devices
    whose driver has not recovered from a fatal error.
    """

    have: NodeState
    ours: NodeState
    attainable: NodeState
    behind: tuple[LeftBehind, ...]
    failed: frozenset[DeviceHandle]


def _compared(attempt: Attempt, want: NodeState) -> _Compared:
    """Observe the node. What we have written to VFs that are taken by now is undone."""
    node = attempt.node
    wanted, behind = reachable(node, want)
    have = observe(node)
    ours, attainable = attempt.takings.look(wanted, have)
    if attempt.takings.found:
        records = cni.records(node.settings.cni_data_dir) or {}
        actions = attempt.takings.given_back(have, records)
        for _, text in set_vfs(attempt, actions, node.stops):
            log.warning("%s", text)
    with node.devlink() as devlink:
        failed = devlink.in_fatal_error()
    return _Compared(have, ours, without_failed(node, attainable, failed), behind, failed)


def _planned(attempt: Attempt, want: NodeState) -> tuple[_Compared, tuple[Stage, ...]]:
    """Observe the node, and plan what is left to do."""
    now = _compared(attempt, want)
    return now, planned(attempt, _without_hung(attempt, now.attainable), now.have)


def _undone(now: _Compared) -> tuple[Difference, ...]:
    """What is not as it was; what the driver has chosen is named."""
    found = differences(now.ours, now.have)
    for each in found:
        if each.is_drivers:
            log.warning("chosen by the driver, left as it is: %s", each)
    return tuple(each for each in found if not each.is_drivers)


def _without_hung(attempt: Attempt, want: NodeState) -> NodeState:
    """`want` without the PFs and VFs on which a call hangs in the kernel.

    Without a LAG that has not come, too: its RDMA device is another one than the port's.
    """
    node, absent = attempt.node, attempt.without_lag
    want = replace(
        want,
        pfs=tuple(replace(p, lag=None, rdma=None) if p.handle in absent else p for p in want.pfs),
    )
    pfs = (
        replace(pf, vfs=tuple(v for v in pf.vfs if not is_hung(node, Target(pf.handle, v.index))))
        for pf in want.pfs
        if not is_hung(node, Target(pf.handle))
    )
    return want.with_pfs(tuple(pfs))


def verify(node: Node, want: NodeState, takings: Takings | None = None) -> tuple[LeftBehind, ...]:
    """Observe the node once more; RestoreFailed names every difference.

    `takings`: the VFs that were taken by the end of the restore. Returns the VFs that were not
    moved into their pods, because those are gone.
    """
    now = _compared(Attempt(node, takings or Takings(want)), want)
    have, behind = now.have, now.behind
    left = _undone(now)
    if fatal := tuple(in_fatal_error(node, want)):
        raise RestoreFailed(
            "the state of this node cannot be verified",
            (*fatal, *map(str, left)),
            hint="the snapshot stays open: start again, which has the driver recover; if the error "
            "comes back (dmesg), the card may need a reset",
        )
    if left:
        raise RestoreFailed(
            f"{len(left)} attributes are not as they were",
            map(str, left),
            hint="the snapshot stays open: start again, or see `nodeagent plan`",
        )
    for offered in (driverinit, ethtool, dcb, subfunctions, rates, lag, tuning, vdpa):
        for gone in offered.no_longer_offered(want, have):
            log.warning("the driver no longer has it: %s", gone)
    for on in subfunctions.without_interface(want):
        log.warning("%s: its interface was in another namespace, and is not moved there", on)
    for shared in shared_macs(have):
        log.warning("VFs share a MAC, as they did before: %s", shared)
    for left_behind in behind:
        log.warning("%s", left_behind)
    return behind
