"""What a reload takes from interfaces, and that nobody saves."""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.kernel.attached import NftablesEdge, XfrmEdge
from nodeagent.kernel.modules import is_loaded
from nodeagent.kernel.unsaved import of_driver, of_interrupts, of_queues
from nodeagent.node.locate import device_of
from nodeagent.node.node import Node
from nodeagent.state.model import DeviceHandle, NodeState


def unsaved(node: Node, state: NodeState) -> Iterator[str]:
    """A line for each such thing on an interface in the host's namespace, and on a function."""
    names = {netdev.name for netdev in state.netdevs()}
    ours = {n: link.name for n, link in node.rtnl.links().items() if link.name in names}
    indexes = {name: index for index, name in ours.items()}
    for on, netdev in state.targets():
        if netdev.name not in indexes:
            continue
        asked = node.ethtool.interface(indexes[netdev.name])
        yield from of_driver(asked, netdev.name)
        yield from of_queues(asked, netdev.name, node.sysfs.root)
        device = None if isinstance(on.port, str) else device_of(node, on)
        if device is not None:
            yield from of_interrupts(node.sysfs.device(*device), netdev.name, node.proc)
    for device in _functions(node, state):
        for name in node.sysfs.vdpa_devices(*device):
            yield f"the vDPA device {name} of {device}"
    if is_loaded("nf_tables", node.sysfs.root):
        with NftablesEdge() as nftables:
            yield from nftables.attached(ours.values())
    if is_loaded("xfrm_user", node.sysfs.root):
        with XfrmEdge() as xfrm:
            yield from xfrm.attached(ours)


def _functions(node: Node, state: NodeState) -> Iterator[DeviceHandle]:
    """PFs, their VFs, and their subfunctions that are active here."""
    for pf in state.pfs:
        yield pf.handle
        yield from (pf.handle.with_name(vf.address) for vf in pf.vfs if vf.address is not None)
        yield from node.sysfs.subfunctions(*pf.handle).values()
