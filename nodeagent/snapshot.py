"""Take a snapshot of the node: the state that a reload would lose, the time and the machine.

Not in restore.py: the commands that only look need none of its imports.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from datetime import UTC, datetime

from nodeagent.driver.nic import NicDriver
from nodeagent.errors import KernelError
from nodeagent.kernel.modules import is_loaded
from nodeagent.machine import boot_id, machine_id
from nodeagent.node import tuning
from nodeagent.node.fatal import without_fatal_error
from nodeagent.node.locate import device_of
from nodeagent.node.namespaces import children_in_other_namespaces
from nodeagent.node.node import Node
from nodeagent.node.observe import observe
from nodeagent.node.unsaved import unsaved
from nodeagent.state.model import Snapshot, Target

log = logging.getLogger(__name__)


def take_snapshot(node: Node, driver: NicDriver) -> Snapshot:
    """The node's present state, to be restored later.

    KernelError if a device does not report its state; UnavailableError if a PF is in a fatal error,
    or has one meanwhile.
    """
    with without_fatal_error(node):
        snapshot = _in_effect(node, look(node, driver))
    if hung := node.hung_calls.lines():
        raise KernelError(
            f"cannot save the state of this node: {'; '.join(hung)}",
            hint="a driver or a virtual machine keeps the device's lock: dmesg and "
            "/proc/PID/stack of the tasks in state D say which",
        )
    for pf in snapshot.state.pfs:
        if pf.numvfs is None and node.sysfs.functions(pf.handle.bus, pf.handle.name):
            raise KernelError(
                f"cannot save the state of {pf.handle}: it has VFs, and its sriov_numvfs is "
                "not a number",
                hint="`cat` it: the device may be failing, see dmesg",
            )
    return snapshot


def _in_effect(node: Node, snapshot: Snapshot) -> Snapshot:
    """The snapshot without the driverinit parameters of instances that were never reloaded.

    devlink reports the values that were set, but a driver uses those from its start until its
    instance is reloaded. These instances have the driver's defaults, now and after the next bind.
    """
    if all(pf.driverinit is None for pf in snapshot.state.pfs):
        return snapshot
    with node.devlink() as devlink:
        fresh = {each for each, instance in devlink.instances().items() if instance.reloads == 0}
    pfs = (
        replace(
            pf,
            driverinit=None if pf.handle in fresh else pf.driverinit,
            vfs=tuple(
                replace(vf, driverinit=None)
                if pf.handle.with_name(vf.address or "") in fresh
                else vf
                for vf in pf.vfs
            ),
            subfunctions=pf.subfunctions
            and tuple(
                replace(each, driverinit=None)
                if device_of(node, Target(pf.handle, each.own_port)) in fresh
                else each
                for each in pf.subfunctions
            ),
        )
        for pf in snapshot.state.pfs
    )
    return replace(snapshot, state=replace(snapshot.state, pfs=tuple(pfs)))


def look(node: Node, driver: NicDriver) -> Snapshot:
    """The node's present state, to be compared only: what a device does not report is unknown."""
    state = observe(node)
    # only the remarks need these imports
    from nodeagent.plan import lag, rdma  # noqa: PLC0415
    from nodeagent.plan.remarks import headless, made_up, unseen  # noqa: PLC0415
    from nodeagent.plan.subfunctions import without_interface  # noqa: PLC0415
    from nodeagent.plan.unsettable import given_anew  # noqa: PLC0415

    for vf in unseen(state):
        log.warning(
            "%s: its interface is in a namespace that is not visible (a pod's?): the settings at "
            "its PF are restored, but the interface will be in the host's namespace",
            vf,
        )
    for pf in headless(state):
        log.warning(
            "%s: it has VFs and no interface in this network namespace: their settings (MACs, "
            "VLANs, rates) cannot be read, and are not restored",
            pf,
        )
    for vf in made_up(state):
        log.info("%s: the driver generated this MAC; the interface gets the same one again", vf)
    for line in lag.unknown(state):
        log.warning("%s is not known: debugfs, which reports it, is not mounted", line)
    for line in given_anew(state):
        log.info("%s: they change in a reload", line)
    if is_loaded("rdma_cm", node.sysfs.root) and not node.roce.exist():
        log.warning("defaults for RoCE (mode, ToS) are not known: configfs is not mounted")
    for on in without_interface(state):
        log.warning(
            "%s: its interface is in another namespace (a pod's?): the reload takes it away, and "
            "it comes back in the host's namespace",
            on,
        )
    stacked = state.stack.lost if state.stack is not None else ()
    told = tuning.lost(node, [pf.handle for pf in state.pfs])
    others = (*told, *children_in_other_namespaces(node, state), *unsaved(node, state))
    for lost in (*rdma.soft(state), *stacked, *others):
        log.warning("%s: the reload removes it, and it is not restored", lost)
    for namespace in state.namespaces:
        for lost in namespace.stack.lost:
            log.warning("%s in %s: the reload removes it, and it is not restored", lost, namespace)
    return Snapshot(
        taken_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        machine_id=machine_id(),
        boot_id=boot_id(),
        kernel=os.uname().release,
        srcversions=driver.modules_loaded(),
        state=state,
    )
