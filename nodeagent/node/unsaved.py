"""What a reload takes from interfaces, and that nobody saves."""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.kernel.unsaved import of_driver, of_interrupts, of_queues
from nodeagent.node.locate import device_of
from nodeagent.node.node import Node
from nodeagent.state.model import NodeState


def unsaved(node: Node, state: NodeState) -> Iterator[str]:
    """A line for each such thing on an interface in the host's namespace."""
    indexes = {link.name: index for index, link in node.rtnl.links().items()}
    for on, netdev in state.targets():
        if (index := indexes.get(netdev.name)) is None:
            continue
        asked = node.ethtool.interface(index)
        yield from of_driver(asked, netdev.name)
        yield from of_queues(asked, netdev.name, node.sysfs.root)
        device = None if isinstance(on.port, str) else device_of(node, on)
        if device is not None:
            yield from of_interrupts(node.sysfs.device(*device), netdev.name, node.proc)
