"""Quiesce: remove the VFs in parallel before the driver is unloaded.

An unload removes the devices of a driver one after the other (driver_detach(),
drivers/base/dd.c), and the removal of each VF waits for the NIC's firmware, half a second on a
ConnectX. The firmware serves several functions at once, so VFs are unbound in parallel. Then 0 is
written to `sriov_numvfs` of all PFs at once, and the driver is unloaded from PFs only. The kernel
sleeps for a second for each PF (sriov_disable(), drivers/pci/iov.c), in parallel or, if
sriov_numvfs_store() holds pci_lock_rescan_remove() (as in 6.12.95), one after the other.

In switchdev mode the representors are removed with the VFs, also from their bridges and bonds, as
in the unload; the eswitch keeps its mode until the PF itself is removed. VFs' interfaces are
removed in any network namespace.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.kernel import users
from nodeagent.kernel.sysfs import PASSED_THROUGH
from nodeagent.node.attempt import Attempt
from nodeagent.node.devices import write_devices
from nodeagent.node.failures import Failures
from nodeagent.node.locate import users_of
from nodeagent.node.node import Node
from nodeagent.plan.actions import CreateVfs, UnbindVf
from nodeagent.state.model import DeviceHandle

log = logging.getLogger(__name__)

XEN: Final = "xen-pciback"

Vfs = Mapping[int, tuple[str, str]]
"""The VFs of a PF by index: the function's name, and the driver it is bound to."""


def quiesce(node: Node) -> None:
    """Unbind the driver's VFs, and remove the VFs of all PFs, right before the driver is unloaded.

    A PF with a VF that a process has open (VFIO, UIO, vDPA) is left to the unload. A VF that is
    open through VFIO is removed only when the process closes it (vfio_unregister_group_dev(),
    drivers/vfio/vfio_main.c), and the write to `sriov_numvfs` would wait with the PF's lock held.
    Preflight finds such processes; one may have opened a VF since, or may lose it
    (POD_LOSSES=accept).

    A refused write is logged, and left to the unload. Raises KernelError if a write has not
    returned after VF_TIMEOUT: an unload would wait for the same device, and no signal ends it.
    """
    found = _vfs(node)
    held = _held(node, found)
    free = {pf: vfs for pf, vfs in found.items() if pf not in held}
    for pf, how in held.items():
        log.warning("%s keeps its VFs until the unload: %s", pf, "; ".join(how))
    attempt = Attempt(node)
    unbinds = [
        UnbindVf(pf, index, name, driver)
        for pf, vfs in free.items()
        for index, (name, driver) in vfs.items()
        if driver == node.settings.driver_module
    ]
    _check(node, write_devices(attempt, unbinds))
    _check(node, write_devices(attempt, [CreateVfs(pf, 0) for pf in free]))


def _vfs(node: Node) -> dict[DeviceHandle, Vfs]:
    """The PFs of the driver that have VFs; without functions if VFs are not devices (netdevsim)."""
    sysfs = node.sysfs
    found: dict[DeviceHandle, Vfs] = {}
    for pf in sysfs.physical_functions(node.settings.driver_module):
        if sysfs.vf_count(*pf):
            names = sorted(sysfs.functions(*pf).items())
            found[pf] = {index: (name, sysfs.driver(pf.bus, name)) for index, name in names}
    return found


def _held(node: Node, found: Mapping[DeviceHandle, Vfs]) -> dict[DeviceHandle, list[str]]:
    """The PFs with VFs that processes have open, or may have if not all processes are visible.

    A Xen guest has its VF without a process of this host.
    """
    owners = {
        pf.with_name(name): (pf, driver)
        for pf, vfs in found.items()
        for name, driver in vfs.values()
    }
    holders = users_of(node, {device: driver for device, (_, driver) in owners.items()})
    sees_all = users.sees_the_host(node.proc)
    held: dict[DeviceHandle, list[str]] = {}
    for device, (pf, driver) in owners.items():
        if device in holders:
            held.setdefault(pf, []).append(f"{device.name}: {holders[device]}")
        elif driver == XEN or (driver in PASSED_THROUGH and not sees_all):
            held.setdefault(pf, []).append(f"{device.name} is bound to {driver}")
    return held


def _check(node: Node, failures: Failures) -> None:
    """Log refusals; KernelError if a write has not returned."""
    if hung := node.hung_calls.lines():
        raise KernelError(
            f"the driver is not unloaded, because VFs cannot be removed: {'; '.join(hung)}",
            hint="dmesg and /proc/PID/stack of the tasks in state D say what the kernel waits for; "
            "QUIESCE=off leaves the removal to openibd",
        )
    for _, text in failures:
        log.warning("%s; left to the unload", text)
