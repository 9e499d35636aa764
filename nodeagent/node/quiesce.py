"""Quiesce: unbind the VFs, then the PFs, in parallel before the driver is unloaded.

An unload removes the devices of a driver one after the other (driver_detach(),
drivers/base/dd.c), and the removal of each VF waits for the NIC's firmware, half a second on a
ConnectX. The firmware serves several functions at once, so VFs are unbound in parallel. Then the
PFs are: each removes its own VFs, with a second of sleep (sriov_disable(), drivers/pci/iov.c), and
what is unloaded has no devices. If PFs stay bound, 0 is written to `sriov_numvfs` of all at once,
which some kernels do one after the other (6.12.95: sriov_numvfs_store() holds
pci_lock_rescan_remove()).

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
from nodeagent.plan.actions import CreateVfs, UnbindPf, UnbindVf
from nodeagent.settings import HoldOff, Quiesce
from nodeagent.state.model import DeviceHandle, NodeState

log = logging.getLogger(__name__)

XEN: Final = "xen-pciback"

Vfs = Mapping[int, tuple[str, str]]
"""The VFs of a PF by index: the function's name, and the driver it is bound to."""


def quiesce(node: Node, state: NodeState) -> tuple[DeviceHandle, ...]:
    """Unbind the driver's VFs, and remove the VFs of all PFs, right before the driver is unloaded.

    Returns the PFs to unbind next (`unbind_pfs`): those of `state` that are bound to the driver,
    none if one of them is held. They remove their VFs themselves, unless device plugins are to see
    before that there are none (HOLD_OFF=plugin).

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
    pfs = () if held or node.settings.quiesce is not Quiesce.AUTO else _bound(node, state)
    with_pf = () if HoldOff.PLUGIN in node.settings.hold_off else pfs
    removals = [CreateVfs(pf, 0) for pf in free if pf not in with_pf]
    _check(node, write_devices(attempt, removals))
    return pfs


def unbind_pfs(node: Node, pfs: tuple[DeviceHandle, ...]) -> None:
    """Unbind PFs from the driver; `nodeagent.node.settle.bind_pfs` binds them again.

    The caller has made sure that the driver can be unloaded: the kernel does not refuse an unbind.
    A refused write is logged; raises KernelError as quiesce() does.
    """
    driver = node.settings.driver_module
    _check(node, write_devices(Attempt(node), [UnbindPf(pf, driver) for pf in pfs]))


def _vfs(node: Node) -> dict[DeviceHandle, Vfs]:
    """The PFs of the driver that have VFs; without functions if VFs are not devices (netdevsim)."""
    sysfs = node.sysfs
    found: dict[DeviceHandle, Vfs] = {}
    for pf in sysfs.physical_functions(node.settings.driver_module):
        if sysfs.vf_count(*pf):
            names = sorted(sysfs.functions(*pf).items())
            found[pf] = {index: (name, sysfs.driver(pf.bus, name)) for index, name in names}
    return found


def _bound(node: Node, state: NodeState) -> tuple[DeviceHandle, ...]:
    """The PFs of `state` that are bound to the driver; none if VFs are not devices."""
    bound = node.sysfs.physical_functions(node.settings.driver_module)
    known = {pf.handle for pf in state.pfs}
    return tuple(pf for pf in bound if pf in known and node.sysfs.has_functions(pf.bus))


def _held(node: Node, found: Mapping[DeviceHandle, Vfs]) -> dict[DeviceHandle, list[str]]:
    """The PFs with VFs or subfunctions that processes have open, or VFs that they may have.

    Not all processes are visible without hostPID. A Xen guest has its VF without a process of this
    host.
    """
    owners = {
        pf.with_name(name): (pf, driver)
        for pf, vfs in found.items()
        for name, driver in vfs.values()
    }
    for pf in node.sysfs.physical_functions(node.settings.driver_module):
        owners |= dict.fromkeys(node.sysfs.subfunctions(*pf).values(), (pf, ""))
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
            f"the driver is not unloaded, because devices cannot be removed: {'; '.join(hung)}",
            hint="dmesg and /proc/PID/stack of the tasks in state D say what the kernel waits for; "
            "QUIESCE=off leaves the removal to openibd",
        )
    for _, text in failures:
        log.warning("%s; left to the unload", text)
