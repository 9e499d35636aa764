"""Take a snapshot, restore it plan by plan, and prove that nothing differs."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from nodeagent.driver.nic import NicDriver
from nodeagent.errors import KernelError, RestoreFailed
from nodeagent.machine import boot_id, machine_id
from nodeagent.node.attempt import Attempt
from nodeagent.node.auxiliary import probe_again
from nodeagent.node.locate import is_hung
from nodeagent.node.managers import await_managers, managed_netdevs
from nodeagent.node.namespaces import children_elsewhere, reachable
from nodeagent.node.node import Node
from nodeagent.node.observe import observe
from nodeagent.node.perform import perform
from nodeagent.node.settle import wait_for_pfs
from nodeagent.plan import rdma
from nodeagent.plan.comparison import differences
from nodeagent.plan.ethtool import no_longer_offered
from nodeagent.plan.left_behind import LeftBehind
from nodeagent.plan.plan import plan
from nodeagent.plan.remarks import headless, made_up, shared_macs, unseen
from nodeagent.plan.stack import without_stacked
from nodeagent.plan.unsettable import given_anew
from nodeagent.record.journal import POD_INTERFACE_LOST, Journal
from nodeagent.state.model import NodeState, Snapshot

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
        restore(node, snapshot.state)
        journal.note("vfs-back")
    with journal.step("verify"):
        for each in verify(node, snapshot.state):
            journal.note(POD_INTERFACE_LOST, uid=each.namespace.pod, message=str(each))


def restore(node: Node, want: NodeState) -> None:
    """Plan, perform, look again, until nothing is left to do.

    Where NetworkManager or systemd-networkd had set up an interface, it sets that up again: first
    all but what stands on interfaces is restored, and once the manager has finished, what it has
    left out is added.

    Raises RestoreFailed with a line for each failed action and each attribute that differs, when a
    plan could not be performed or MAX_PLANS plans were not enough.
    """
    attempt = Attempt(node)
    probe_again(node)
    failures: dict[str, None] = {}
    if others := managed_netdevs(want):
        wanted, _ = reachable(node, want)
        stages = plan(wanted, observe(node))
        failures |= dict.fromkeys(perform(attempt, without_stacked(stages)))
        await_managers(node, others)
    for number in range(MAX_PLANS):
        wanted, _ = reachable(node, want)
        have = observe(node)
        stages = plan(_without_hung(node, wanted), have)
        if not stages:
            break
        if number:
            attempt.conflicts.check(differences(wanted, have), failures)
        for pf in have.pfs:
            attempt.conflicts.note_found(str(pf.handle), "driver", have.driver)
        failures |= dict.fromkeys(perform(attempt, stages))
    else:
        wanted, _ = reachable(node, want)
        have = observe(node)
        attempt.conflicts.check(differences(wanted, have), failures, is_last=True)
    left = () if not stages and not node.hung_calls.lines() else differences(wanted, have)
    if left:
        raise RestoreFailed(
            f"{len(left)} attributes could not be restored",
            dict.fromkeys((*failures, *node.hung_calls.lines(), *map(str, left))),
            hint="the snapshot stays open: remove the cause and start again, or see `verify`",
        )


def _without_hung(node: Node, want: NodeState) -> NodeState:
    """`want` without the PFs and VFs on which a call hangs in the kernel: the others go on."""
    pfs = (
        replace(pf, vfs=tuple(v for v in pf.vfs if not is_hung(node, (pf.handle, v.index))))
        for pf in want.pfs
        if not is_hung(node, (pf.handle, None))
    )
    return replace(want, pfs=tuple(pfs))


def verify(node: Node, want: NodeState) -> tuple[LeftBehind, ...]:
    """Look at the node once more; RestoreFailed names every difference.

    Returns the VFs that could not be put back into their pods, because those are gone.
    """
    wanted, behind = reachable(node, want)
    have = observe(node)
    left = differences(wanted, have)
    if left:
        raise RestoreFailed(
            f"{len(left)} attributes are not as they were",
            map(str, left),
            hint="the snapshot stays open: start again, or see `nodeagent plan`",
        )
    for gone in no_longer_offered(want, have):
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
