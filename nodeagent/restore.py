"""Take a snapshot, restore it plan by plan, and prove that nothing differs."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from nodeagent.driver.nic import NicDriver
from nodeagent.errors import KernelError, RestoreFailed
from nodeagent.machine import boot_id, machine_id
from nodeagent.node import cni
from nodeagent.node.attempt import Attempt
from nodeagent.node.auxiliary import probe_again
from nodeagent.node.links import set_vfs
from nodeagent.node.locate import is_hung
from nodeagent.node.managers import await_managers, managed_netdevs
from nodeagent.node.namespaces import children_elsewhere, reachable
from nodeagent.node.node import Node
from nodeagent.node.observe import observe
from nodeagent.node.perform import perform
from nodeagent.node.settle import wait_for_pfs
from nodeagent.node.silent import planned_for
from nodeagent.node.takings import Takings
from nodeagent.plan import dcb, ethtool, rdma
from nodeagent.plan.comparison import differences
from nodeagent.plan.left_behind import LeftBehind
from nodeagent.plan.plan import plan
from nodeagent.plan.remarks import headless, made_up, shared_macs, unseen
from nodeagent.plan.stack import without_stacked
from nodeagent.plan.unsettable import given_anew
from nodeagent.record.journal import POD_INTERFACE_LOST, Journal
from nodeagent.state.model import NodeState, Snapshot, Target

log = logging.getLogger(__name__)

MAX_PLANS: Final = 3
"""How many plans one restore performs: what udev has named differently, or a driver has changed by
itself, is planned again."""


def put_back(node: Node, journal: Journal, snapshot: Snapshot, *, wait_first: bool = False) -> None:
    """Restore a snapshot and verify the node, as steps on record; the caller closes the snapshot.

    `wait_first`: the PFs may still be on their way, as after a reload by another program.
    """
    with journal.step("restore"):
        if wait_first:
            wait_for_pfs(node, snapshot.state)
        takings = restore(node, snapshot.state)
        journal.note("vfs-back")
    with journal.step("verify"):
        for each in verify(node, snapshot.state, takings):
            pod = "" if each.namespace is None else each.namespace.pod
            journal.note(POD_INTERFACE_LOST, uid=pod, message=str(each))


def restore(node: Node, want: NodeState) -> Takings:
    """Plan, perform, look again, until nothing is left to do.

    VFs that others have taken since the snapshot are left to them; they are what is returned.

    Where NetworkManager or systemd-networkd had set up an interface, it sets that up again: first
    all but what stands on interfaces is restored, and once the manager has finished, what it has
    left out is added.

    Raises RestoreFailed with a line for each failed action and each attribute that differs, when a
    plan could not be performed or MAX_PLANS plans were not enough.
    """
    attempt = Attempt(node, Takings(want))
    probe_again(node)
    failures: dict[str, None] = {}
    if others := managed_netdevs(want):
        now = _compared(attempt, want)
        stages = plan(now.attainable, now.have)
        failures |= dict.fromkeys(perform(attempt, without_stacked(stages)))
        await_managers(node, others)
    for number in range(MAX_PLANS):
        now = _compared(attempt, want)
        stages = plan(*planned_for(attempt, _without_hung(node, now.attainable), now.have))
        if not stages:
            break
        if number:
            attempt.conflicts.check(differences(now.ours, now.have), failures)
        for pf in now.have.pfs:
            attempt.conflicts.note_found(str(pf.handle), "driver", now.have.driver)
        failures |= dict.fromkeys(perform(attempt, stages))
    else:
        now = _compared(attempt, want)
        attempt.conflicts.check(differences(now.ours, now.have), failures, is_last=True)
    is_whole = not stages and not node.hung_calls.lines() and not attempt.silent
    left = () if is_whole else differences(now.ours, now.have)
    if left:
        raise RestoreFailed(
            f"{len(left)} attributes could not be restored",
            dict.fromkeys((*failures, *node.hung_calls.lines(), *map(str, left))),
            hint="the snapshot stays open: remove the cause and start again, or see `verify`",
        )
    return attempt.takings


@dataclass(frozen=True)
class _Compared:
    """The node as it is; what of a snapshot is ours to restore, and what of that can be had."""

    have: NodeState
    ours: NodeState
    attainable: NodeState
    behind: tuple[LeftBehind, ...]


def _compared(attempt: Attempt, want: NodeState) -> _Compared:
    """Look at the node. VFs that others have by now are theirs, and get back what we took."""
    node = attempt.node
    wanted, behind = reachable(node, want)
    have = observe(node)
    ours, attainable = attempt.takings.look(wanted, have)
    if attempt.takings.found:
        records = cni.records(node.settings.cni_data_dir) or {}
        actions = attempt.takings.given_back(have, records)
        for _, text in set_vfs(attempt, actions, node.stops):
            log.warning("%s", text)
    return _Compared(have, ours, attainable, behind)


def _without_hung(node: Node, want: NodeState) -> NodeState:
    """`want` without the PFs and VFs on which a call hangs in the kernel: the others go on."""
    pfs = (
        replace(pf, vfs=tuple(v for v in pf.vfs if not is_hung(node, Target(pf.handle, v.index))))
        for pf in want.pfs
        if not is_hung(node, Target(pf.handle))
    )
    return replace(want, pfs=tuple(pfs))


def verify(node: Node, want: NodeState, takings: Takings | None = None) -> tuple[LeftBehind, ...]:
    """Look at the node once more; RestoreFailed names every difference.

    `takings`: the VFs that others had taken by the end of the restore. Returns the VFs that could
    not be put back into their pods, because those are gone.
    """
    now = _compared(Attempt(node, takings or Takings(want)), want)
    have, behind = now.have, now.behind
    left = differences(now.ours, have)
    if left:
        raise RestoreFailed(
            f"{len(left)} attributes are not as they were",
            map(str, left),
            hint="the snapshot stays open: start again, or see `nodeagent plan`",
        )
    for gone in (*ethtool.no_longer_offered(want, have), *dcb.no_longer_offered(want, have)):
        log.warning("the driver does not have it any more: %s", gone)
    for shared in shared_macs(have):
        log.warning("VFs share a MAC, as they did before: %s", shared)
    for each in behind:
        log.warning("%s", each)
    return behind


def take_snapshot(node: Node, driver: NicDriver) -> Snapshot:
    """The node's state now, with the time and the machine, to be restored later.

    KernelError where a device does not report its state: it could not be restored.
    """
    snapshot = look(node, driver)
    if hung := node.hung_calls.lines():
        raise KernelError(
            f"cannot save the state of this node: {'; '.join(hung)}",
            hint="a driver or a virtual machine keeps the device's lock: dmesg and "
            "/proc/PID/stack of the tasks in state D say which",
        )
    for pf in snapshot.state.pfs:
        if pf.numvfs is None and node.sysfs.functions(pf.handle.bus, pf.handle.name):
            raise KernelError(
                f"cannot save the state of {pf.handle}: it has VFs, and its sriov_numvfs holds "
                "no number",
                hint="`cat` it: the device may be failing, see dmesg",
            )
    return snapshot


def look(node: Node, driver: NicDriver) -> Snapshot:
    """The same, to be compared only: what a device does not report is unknown in it."""
    state = observe(node)
    for vf in unseen(state):
        log.warning(
            "%s: its interface is in a namespace that can't be seen (a pod's?); what its PF holds "
            "for it is restored, the interface comes back in the host's namespace",
            vf,
        )
    for pf in headless(state):
        log.warning(
            "%s: it has VFs and no interface in this network namespace: what it holds for them "
            "(MACs, VLANs, rates) is not known, and not put back",
            pf,
        )
    for vf in made_up(state):
        log.info("%s: its driver made this MAC up, and it is restored as its interface's own", vf)
    for line in given_anew(state):
        log.info("%s: they will be other ones after a reload", line)
    stacked = state.stack.lost if state.stack is not None else ()
    for lost in (*rdma.soft(state), *stacked, *children_elsewhere(node, state)):
        log.warning("%s: the reload takes it away, and it is not put back", lost)
    for namespace in state.namespaces:
        for lost in namespace.stack.lost:
            log.warning("%s in %s: the reload takes it away for good", lost, namespace)
    return Snapshot(
        taken_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        machine_id=machine_id(),
        boot_id=boot_id(),
        kernel=os.uname().release,
        srcversions=driver.modules_loaded(),
        state=state,
    )
