"""The device, the link and the ifindex of a PF, a VF or a representor.

A target is identified by its PF's device and its index or port there, never by an interface's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nodeagent.kernel import udev, users
from nodeagent.kernel.rtnl import Link
from nodeagent.kernel.sysfs import PASSED_THROUGH
from nodeagent.node.node import Node
from nodeagent.state.model import (
    NO_DRIVER,
    OWN_PORT,
    REPRESENTOR,
    DeviceHandle,
    RdmaDevice,
    Target,
)

LinksByDevice = dict[DeviceHandle, list[Link]]


def users_of(node: Node, drivers: Mapping[DeviceHandle, str | None]) -> dict[DeviceHandle, str]:
    """By function, the processes that have it open through VFIO, UIO or vhost-vDPA.

    `drivers`: the driver of each function. Processes are searched only if a function is passed
    through, or the node has vDPA devices.
    """
    has_vdpa = node.sysfs.has_vdpa()
    files = {
        device: users.files_of_function(node.sysfs.device(*device))
        for device, driver in drivers.items()
        if has_vdpa or driver in PASSED_THROUGH
    }
    holders = users.of_passed_through(proc=node.proc) if files else ()
    found = {
        device: ", ".join(str(user) for user in holders if own & {*user.holds})
        for device, own in files.items()
    }
    return {device: text for device, text in found.items() if text}


def device_of(node: Node, target: Target) -> DeviceHandle | None:
    """The device of a target; None for a VF that does not exist, or an inactive subfunction."""
    handle, port = target
    if isinstance(port, str) and (own := OWN_PORT.fullmatch(port)):
        return node.sysfs.subfunction(*handle, int(own[1]))
    if not isinstance(port, int):
        return handle
    if not node.sysfs.has_functions(handle.bus):
        return None
    function = node.sysfs.function(*handle, port)
    return None if function is None else handle.with_name(function)


def absence(pf: DeviceHandle) -> str:
    """What is said of a PF that is not there, and what brings it back if the card is there."""
    return f"is not on the bus any more: `echo 1 >/sys/bus/{pf.bus}/rescan` looks for it"


def is_bound(node: Node, target: Target) -> bool:
    """Whether the device exists and has a driver, so that its interface may still appear."""
    device = device_of(node, target)
    return device is not None and node.sysfs.driver(*device) != NO_DRIVER


def is_hung(node: Node, target: Target) -> bool:
    """Whether a call on the target's device, or on its PF, has not returned."""
    if not node.hung_calls.lines():
        return False
    return device_of(node, target) in node.hung_calls or target.pf in node.hung_calls


def failed_reloads(node: Node) -> set[DeviceHandle]:
    """The devices that a devlink reload has left without their interface."""
    with node.devlink() as devlink:
        return {device for device, instance in devlink.instances().items() if instance.failed}


def links_by_device(node: Node) -> LinksByDevice:
    """By parent device, the network interfaces of the node's namespace: one dump."""
    return by_device(node, node.rtnl.links())


def by_device(node: Node, links: Mapping[int, Link]) -> LinksByDevice:
    """These links by parent device; for a virtio device, by the function below it."""
    devices: LinksByDevice = {}
    for link in links.values():
        if link.bus == "virtio" and link.device is not None:
            device = node.sysfs.function_below("virtio", link.device)
        elif link.bus and link.device:
            device = DeviceHandle.reported(link.bus, link.device)
        else:
            device = None
        if device is not None:
            devices.setdefault(device, []).append(link)
    return devices


def link_of(node: Node, target: Target, devices: LinksByDevice) -> Link | None:
    """The netdev of a PF, a VF or a representor: for a PF its own port, never another's."""
    device = device_of(node, target)
    if device is None:
        return None
    links = devices.get(device, [])
    if isinstance(target[1], str) and device == target.pf:
        own = [link for link in links if link.phys_port_name == target[1]]
    else:
        own = [link for link in links if not is_representor(link)]
    return min(own, key=lambda link: link.index, default=None)


def is_representor(link: Link) -> bool:
    """Whether a link represents another function, by its port's name (`pf0vf3`)."""
    return link.phys_port_name is not None and bool(REPRESENTOR.fullmatch(link.phys_port_name))


def ifindex_of(node: Node, target: Target) -> int | None:
    """The ifindex of a target's netdev in the node's namespace, from sysfs."""
    device = device_of(node, target)
    return None if device is None else ifindex_on(node, device, target)


def ifindex_on(node: Node, device: DeviceHandle, target: Target) -> int | None:
    """The same, if the target's device is known.

    The ports of all representors are read at once, and again if one is missing: reading them for
    each of 300 representors would be too slow.
    """
    port = target[1]
    if port is None and len(found := node.sysfs.interfaces(*device)) > 1:
        ports = node.sysfs.ports(*device).items()
        others = {index for name, index in ports if REPRESENTOR.fullmatch(name)}
        return next((index for index in found if index not in others), None)
    if not isinstance(port, str) or device != target.pf:
        return next(iter(node.sysfs.interfaces(*device)), None)
    known = node.port_indexes.get(device, {}).get(port)
    if known is None or not udev.is_initialized(known, node.udev_run):
        node.port_indexes[device] = node.sysfs.ports(*device)
    return node.port_indexes[device].get(port)


def rdma_devices(node: Node, devices: LinksByDevice) -> dict[DeviceHandle, RdmaDevice]:
    """By function, the NIC's own RDMA device, or else a software device on its netdev."""
    owners = {link.name: device for device, links in devices.items() for link in links}
    found: dict[DeviceHandle, RdmaDevice] = {}
    for each in node.sysfs.rdma_devices():
        soft = each.device is None
        device = owners.get(each.netdev or "") if soft else each.device
        if device is not None and (device not in found or found[device].soft > soft):
            found[device] = RdmaDevice(each.name, soft)
    return found


def rdma_names(node: Node, targets: Iterable[Target]) -> dict[Target, str]:
    """The names of the RDMA devices of these PFs and VFs, if they have one.

    Links are dumped only where a function has none of its own, but perhaps a software device.
    """
    located = ((target, device_of(node, target)) for target in targets)
    placed = {target: device for target, device in located if device is not None}
    names = {target: node.sysfs.rdma_device(*device) for target, device in placed.items()}
    found = {target: name for target, name in names.items() if name is not None}
    if len(found) < len(placed):
        others = rdma_devices(node, links_by_device(node))
        left = ((target, device) for target, device in placed.items() if target not in found)
        found |= {target: others[device].name for target, device in left if device in others}
    return found
