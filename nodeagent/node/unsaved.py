"""What a reload takes from interfaces, and that nobody saves."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress

from nodeagent.kernel.attached import NftablesEdge, XfrmEdge
from nodeagent.kernel.modules import is_loaded
from nodeagent.kernel.netns import NamespaceGone
from nodeagent.kernel.unsaved import of_driver, of_interrupts, of_queues
from nodeagent.node.locate import device_of
from nodeagent.node.namespaces import within
from nodeagent.node.node import Node
from nodeagent.plan import vdpa
from nodeagent.state.model import DeviceHandle, NodeState, Target


def unsaved(node: Node, state: NodeState) -> Iterator[str]:
    """A line for each such thing on an interface, here and in pods, and on a function."""
    yield from _of_namespace(node, {netdev.name: on for on, netdev in state.targets()})
    yield from _of_vdpa(node, state)
    for namespace in state.namespaces:
        theirs = {
            vf.inside.netdev.name: on
            for on, vf in state.vfs()
            if vf.inside is not None and vf.inside.namespace == namespace.inode
        }
        lines: Collection[str] = ()
        with suppress(NamespaceGone), within(node, namespace) as (inside, _), inside.network():
            lines = list(_of_namespace(inside, theirs))
        yield from (f"{line} in {namespace}" for line in lines)


def _of_vdpa(node: Node, state: NodeState) -> Iterator[str]:
    """A line for each vDPA device that is not saved, or whose interface is another driver's."""
    saved = {
        each.name
        for pf in state.pfs
        for _, owner in vdpa.functions(pf)
        for each in owner.vdpa or ()
    }
    for device in _functions(node, state):
        for name in node.sysfs.vdpa_devices(*device):
            if name not in saved:
                yield f"the vDPA device {name} of {device}"
            elif node.sysfs.driver("vdpa", name) == "virtio_vdpa":
                yield f"what is set on the interface of the vDPA device {name} of {device}"


def _of_namespace(node: Node, ours: Mapping[str, Target]) -> Iterator[str]:
    """A line for each such thing on our interfaces in the namespace of `node`, by name."""
    names = {n: link.name for n, link in node.rtnl.links().items() if link.name in ours}
    for index, name in names.items():
        on, asked = ours[name], node.ethtool.interface(index)
        yield from of_driver(asked, name)
        if (directory := node.ethtool.directory(index)) is not None:
            yield from of_queues(asked, name, directory)
        device = None if isinstance(on.port, str) else device_of(node, on)
        if device is not None:
            yield from of_interrupts(node.sysfs.device(*device), name, node.proc)
    if is_loaded("nf_tables", node.sysfs.root):
        with NftablesEdge() as nftables:
            yield from nftables.attached(names.values())
    if is_loaded("xfrm_user", node.sysfs.root):
        with XfrmEdge() as xfrm:
            yield from xfrm.attached(names)


def _functions(node: Node, state: NodeState) -> Iterator[DeviceHandle]:
    """PFs, their VFs, and their subfunctions that are active here."""
    for pf in state.pfs:
        yield pf.handle
        yield from (pf.handle.with_name(vf.address) for vf in pf.vfs if vf.address is not None)
        yield from node.sysfs.subfunctions(*pf.handle).values()
