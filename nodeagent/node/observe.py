"""The present state of the node, as a `NodeState`.

Reading it costs one rtnetlink dump for the node and two requests per PF (VFs and DCB), however many
VFs there are; the rest are sysfs links. `nodeagent.plan.plan` decides what to change.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from nodeagent.errors import KernelError, UnavailableError
from nodeagent.kernel import lag, managers, vf_guids
from nodeagent.kernel.devlink import Cmode
from nodeagent.kernel.rtnl import Link, VfInfo
from nodeagent.kernel.sysctls import SysctlTables
from nodeagent.node import cni, namespaces, tuning
from nodeagent.node.locate import (
    LinksByDevice,
    by_device,
    device_of,
    is_representor,
    link_of,
    rdma_devices,
    users_of,
)
from nodeagent.node.netdev import netdev_of
from nodeagent.node.node import Node
from nodeagent.state.attributes import given
from nodeagent.state.dcb import Dcb
from nodeagent.state.eswitch import EswitchMode
from nodeagent.state.ethtool import Setting
from nodeagent.state.model import (
    DeviceHandle,
    ManagerName,
    Netdev,
    NodeState,
    Pf,
    RdmaDevice,
    Representor,
    Subfunction,
    Target,
    Vdpa,
    Vf,
)
from nodeagent.state.stack import Stack

log = logging.getLogger(__name__)

MAX_LOOKS: Final = 3
"""The number of looks at a node in which an interface goes between the dump of all and its own."""


class LockedAttributes(NamedTuple):
    """Attributes that the kernel reads under the device's lock; None if not known."""

    numvfs: int | None = None
    driver_override: str | None = None


UNKNOWN: Final = LockedAttributes()


class Look(NamedTuple):
    """What is read for all PFs at once.

    `ethtool` and `managers` (the managers that have set up an interface) are by ifindex, `dcb` is
    by PF. `devlink` has, by device, fields of `Pf` or `Vf`.
    """

    devices: LinksByDevice
    ethtool: Mapping[int, tuple[Setting, ...]]
    dcb: Mapping[DeviceHandle, Dcb]
    sysctls: SysctlTables
    rdma: Mapping[DeviceHandle, RdmaDevice]
    managers: Mapping[int, ManagerName]
    locked: Mapping[DeviceHandle, LockedAttributes]
    devlink: Mapping[DeviceHandle, Mapping[str, Any]]
    vdpa: Mapping[DeviceHandle, tuple[Vdpa, ...]]
    any_can_have_vdpa: bool

    def netdev(self, link: Link | None) -> Netdev | None:
        """A link as a value."""
        if link is None:
            return None
        return netdev_of(link, self.ethtool, self.sysctls, self.managers)


def observe(node: Node) -> NodeState:
    """The state of every PF bound to the driver, and of its VFs.

    If a call on a device hangs (`nodeagent.node.hung_calls`), its number of VFs, or its driver
    override, is not known. If an interface goes meanwhile, as in a driver's recovery, all is read
    again. UnavailableError if a device reports an invalid value.
    """
    for _ in range(MAX_LOOKS - 1):
        try:
            return _observed(node)
        except KernelError as error:
            if error.errno != errno.ENODEV:
                raise
            log.debug("reading the node again: %s", error.message)
    return _observed(node)


def _observed(node: Node) -> NodeState:
    # the state of a VF that a CNI is changing is of no use
    cni.await_idle(node, (each for each in functions(node) if each not in node.locked_records))
    links = node.rtnl.links()
    driver = node.settings.driver_module
    # once more: that wait may be long, and a PF that goes now has a link, and is left out
    found = node.sysfs.physical_functions(driver)
    look = _look(node, links, found)
    try:
        pfs = [_pf(node, look, DeviceHandle(*each)) for each in found]
        state = _with_namespaces(node, driver, sorted(pfs, key=lambda pf: pf.handle))
        state = _with_users(node, _with_records(node, state))
        state = dataclasses.replace(state, sysctls=look.sysctls.defaults)
        return dataclasses.replace(state, stack=_stack(node, state, links, look.sysctls))
    except ValueError as error:
        raise UnavailableError(
            f"cannot make sense of the PFs of {driver}: {error}",
            hint="something may be changing them right now; try again",
        ) from error


def functions(node: Node) -> Iterator[str]:
    """The PCI address of each VF."""
    for pf in node.sysfs.physical_functions(node.settings.driver_module):
        yield from node.sysfs.functions(*pf).values()


def numvfs(node: Node, pf: DeviceHandle) -> int | None:
    """The number of VFs of a PF; None without SR-IOV, or while a call on the device hangs."""
    return _locked_attributes(node, [pf]).get(pf, UNKNOWN).numvfs


def _with_records(node: Node, state: NodeState) -> NodeState:
    """The state with SR-IOV CNI's records of VFs in pods."""
    directory = node.settings.cni_data_dir
    records = cni.records(directory)
    if not records:
        return state

    def recorded(_: Target, vf: Vf) -> Vf:
        record = records.get(vf.address or "")
        if record is None:
            return vf
        path = cni.namespace_of(directory, record.address)
        given_to = None if path is None else node.namespaces.at(path)
        is_in = None if vf.inside is None else vf.inside.namespace
        # a pod that ended without a DEL leaves its record, and another pod may have the VF now
        places = {given_to, is_in} - {None}
        return dataclasses.replace(vf, cni=record.kept) if len(places) == 1 else vf

    return state.with_vfs(recorded)


def _with_users(node: Node, state: NodeState) -> NodeState:
    """The state with the processes that have VFs open."""
    drivers = {
        on.pf.with_name(vf.address): vf.driver for on, vf in state.vfs() if vf.address is not None
    }
    found = users_of(node, drivers)
    if not found:
        return state

    def used(on: Target, vf: Vf) -> Vf:
        return dataclasses.replace(vf, used_by=found.get(on.pf.with_name(vf.address or "")))

    return state.with_vfs(used)


def _look(node: Node, links: Mapping[int, Link], pfs: Collection[DeviceHandle]) -> Look:
    devices = by_device(node, links)
    indexes = [each.index for each in itertools.chain(*devices.values())]
    with node.stack() as edge:
        sysctls = edge.parameters(node.proc)
    roce = node.roce
    return Look(
        devices=devices,
        ethtool=node.ethtool.settings(indexes),
        dcb=_dcb(node, devices, pfs),
        sysctls=sysctls,
        rdma={
            device: each if each.soft else dataclasses.replace(each, roce=roce.read(each.name))
            for device, each in rdma_devices(node, devices).items()
        },
        managers=_managers(node, indexes),
        locked=_locked_attributes(node, node.sysfs.with_functions(pfs)),
        devlink=_devlink(node, set(pfs)),
        vdpa=_vdpa_devices(node),
        any_can_have_vdpa=node.sysfs.any_can_have_vdpa(),
    )


def _dcb(
    node: Node, devices: LinksByDevice, pfs: Iterable[DeviceHandle]
) -> dict[DeviceHandle, Dcb]:
    """The DCB of each PF that has it: one request each. mlx5's VFs and representors have none."""
    with node.dcb() as edge:
        links = ((pf, link_of(node, Target(pf), devices)) for pf in pfs)
        found = ((pf, edge.dcb(link.name)) for pf, link in links if link is not None)
        return {pf: dcb for pf, dcb in found if dcb is not None}


def _managers(node: Node, indexes: Iterable[int]) -> dict[int, ManagerName]:
    """By ifindex, the manager that has set up an interface and has finished with it."""
    with_files = managers.known(node.run)
    found = (
        (index, managers.manager_of(index, node.run)) for index in indexes if index in with_files
    )
    return {index: each.name for index, each in found if each is not None and each.settled}


def _locked_attributes(
    node: Node, devices: Iterable[DeviceHandle]
) -> dict[DeviceHandle, LockedAttributes]:
    """The attributes of each device that answers in time."""
    sysfs = node.sysfs
    return node.hung_calls.read(
        tuple(devices),
        lambda each: LockedAttributes(sysfs.numvfs(*each), sysfs.driver_override(*each)),
        *node.stops,
        timeout=node.settings.vf_timeout,
    )


def _devlink(node: Node, pfs: set[DeviceHandle]) -> dict[DeviceHandle, dict[str, Any]]:
    """What devlink reports, as fields of `Pf`, and of other devices of `Vf`: a request a PF.

    A few more for all of them: what is tuned, and rates, where a PF is in switchdev mode. What a
    driver starts with counts as unknown where the reload of its instance has failed: that has to be
    done again.
    """
    with node.devlink() as devlink:
        instances = devlink.instances()
        if not (ours := pfs & instances.keys()):
            return {}
        params = devlink.params()
        found: dict[DeviceHandle, dict[str, Any]] = {
            device: {
                "driverinit": None if each.failed else params[Cmode.DRIVERINIT].get(device, ())
            }
            for device, each in instances.items()
        }
        ports = devlink.ports()
        tuned = tuning.read(node, devlink, ports, ours)
        for function in node.sysfs.with_functions(ours):
            found.setdefault(function, {})["tuning"] = tuned.get(function, ())
        for device in ours:
            found[device] |= given(devlink.eswitch(device))
            found[device]["params"] = params[Cmode.RUNTIME].get(device, ())
            if device in ports.subfunctions or devlink.makes_subfunctions(device):
                found[device]["subfunctions"] = ports.subfunctions.get(device, ())
        switches = [
            device
            for device in ours
            if found[device].get("eswitch_mode") not in {None, EswitchMode.LEGACY}
        ]
        rates = devlink.rates() if switches else {}
        for device in switches:
            found[device]["rates"] = rates.get(device)
        return found


def _pf(node: Node, look: Look, handle: DeviceHandle) -> Pf:
    count = look.locked.get(handle, UNKNOWN).numvfs
    link = link_of(node, Target(handle), look.devices)
    infos: Mapping[int, VfInfo] = {}
    if count and link is not None:
        infos = {info.index: info for info in node.rtnl.vfs(link.index)}
    elif count:
        infos = vf_guids.read(node.sysfs.device(*handle))
    functions = node.sysfs.functions(*handle)
    indexes = sorted(index for index in {*infos, *functions} if index < (count or 0))
    own = dict(look.devlink.get(handle, {}))
    if ports := own.get("subfunctions"):
        own["subfunctions"] = tuple(_subfunction(node, look, handle, port) for port in ports)
    return Pf(
        handle=handle,
        numvfs=count,
        autoprobe=node.sysfs.autoprobe(*handle),
        netdev=look.netdev(link),
        vfs=tuple(
            _vf(node, look, (handle, functions.get(index)), index, infos.get(index))
            for index in indexes
        ),
        representors=_representors(look, look.devices.get(handle, [])),
        rdma=look.rdma.get(handle),
        dcb=look.dcb.get(handle),
        lag=lag.read(handle, node.sysfs.root, node.proc),
        **own,
    )


def _vf(
    node: Node, look: Look, place: tuple[DeviceHandle, str | None], index: int, info: VfInfo | None
) -> Vf:
    """`place` is the PF and the function's name, if there is one; `info` what the PF holds."""
    pf, function = place
    device = pf.with_name(function or "")
    own = look.devices.get(device, [])
    return Vf(
        index=index,
        address=function,
        driver=None if function is None else node.sysfs.driver(*device),
        driver_override=look.locked.get(device, UNKNOWN).driver_override,
        netdev=look.netdev(min(own, key=lambda link: link.index, default=None)),
        rdma=look.rdma.get(device),
        vdpa=_vdpa(node, look, device) if function else None,
        **look.devlink.get(device, {}),
        **({} if info is None else given(info)),
    )


def _subfunction(node: Node, look: Look, pf: DeviceHandle, port: Subfunction) -> Subfunction:
    """With what its driver has made, if it is active here."""
    on = Target(pf, port.own_port)
    device = device_of(node, on) if port.is_local and port.active else None
    if device is None:
        return port
    netdev = look.netdev(link_of(node, on, look.devices))
    made = _vdpa(node, look, device)
    return dataclasses.replace(port, netdev=netdev, vdpa=made, **look.devlink.get(device, {}))


def _vdpa_devices(node: Node) -> dict[DeviceHandle, tuple[Vdpa, ...]]:
    """By management device, its vDPA devices with their drivers. None without the module vdpa."""
    if not node.sysfs.knows_vdpa():
        return {}
    with node.vdpa() as edge:
        found = edge.devices()
    return {
        manager: tuple(
            dataclasses.replace(each, driver=node.sysfs.driver("vdpa", each.name))
            for each in devices
        )
        for manager, devices in found.items()
    }


def _vdpa(node: Node, look: Look, device: DeviceHandle) -> tuple[Vdpa, ...] | None:
    """None for a function whose driver makes none, and has none to make them later."""
    found = look.vdpa.get(device)
    if found is None and look.any_can_have_vdpa and node.sysfs.can_have_vdpa(*device):
        return ()
    return found


def _representors(look: Look, links: Iterable[Link]) -> tuple[Representor, ...]:
    found = {link.phys_port_name: link for link in links if is_representor(link)}
    return tuple(
        Representor(port, netdev)
        for port, link in sorted(found.items(), key=lambda item: str(item[0]))
        if port is not None and (netdev := look.netdev(link)) is not None
    )


def _with_namespaces(node: Node, driver: str, pfs: Iterable[Pf]) -> NodeState:
    """The PFs with their VFs' interfaces in other namespaces."""
    state = NodeState(driver, tuple(pfs))
    missing = {
        on.pf.with_name(vf.address)
        for on, vf in state.vfs()
        if vf.driver == driver and vf.netdev is None and vf.address is not None
    }
    if not missing:
        return state
    elsewhere = node.sysfs.other_rdma_devices()
    found = namespaces.find(node.namespaces, missing, node.proc, rdma=elsewhere)

    def placed(on: Target, vf: Vf) -> Vf:
        place = found.places.get(on.pf.with_name(vf.address or ""))
        return vf if place is None else dataclasses.replace(vf, inside=place)

    described = dataclasses.replace(state, namespaces=found.namespaces)
    return described.with_vfs(placed)


def _stack(
    node: Node, state: NodeState, links: Mapping[int, Link], sysctls: SysctlTables
) -> Stack | None:
    """What is stacked on our netdevs; None if there are no netdevs."""
    names = {netdev.name for netdev in state.netdevs()}
    roots = {index for index, link in links.items() if link.name in names}
    if not roots:
        return None
    with node.stack() as edge:
        return edge.read(links, roots, sysctls)
