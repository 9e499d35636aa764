"""VFs' interfaces in other network namespaces: find them, and enter these namespaces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from nodeagent.kernel import rooms
from nodeagent.kernel.netns import NamespaceGone, Namespaces
from nodeagent.kernel.rooms import Room, rdma_there, visit
from nodeagent.kernel.rtnl import Link
from nodeagent.node import cni
from nodeagent.node.hung_calls import HungCalls
from nodeagent.node.netdev import netdev_of
from nodeagent.node.node import Node
from nodeagent.plan.left_behind import LeftBehind, without
from nodeagent.settings import PodInterfaces
from nodeagent.state.model import DeviceHandle, NodeState, PodNetdev
from nodeagent.state.namespaces import Namespace


@dataclass(frozen=True)
class Found:
    """Interfaces in other namespaces, by device, and these namespaces, sorted by inode."""

    places: Mapping[DeviceHandle, PodNetdev]
    namespaces: tuple[Namespace, ...]


def find(
    namespaces: Namespaces,
    missing: Collection[DeviceHandle],
    proc: Path,
    *,
    rdma: Mapping[DeviceHandle, str] = MappingProxyType({}),
    room: Callable[[int], Room] = Room.open,
) -> Found:
    """Search all visible namespaces for the interfaces of `missing`, until all are found.

    A namespace that disappears meanwhile has none of them. `rdma`: the names of RDMA devices that
    are not in this namespace.
    """
    found = []
    places: dict[DeviceHandle, PodNetdev] = {}

    def read(inside: Room, own: dict[DeviceHandle, Link], described: Namespace) -> None:
        with inside.network(), inside.stack() as edge:
            sysctls = edge.parameters(proc)
            roots = {link.index for link in own.values()}
            stack = edge.read(inside.rtnl.links(), roots, sysctls, all_addresses=True)
        described = dataclasses.replace(described, sysctls=sysctls.defaults, stack=stack)
        settings = inside.ethtool.settings([link.index for link in own.values()])
        devices = rdma_there(inside, own, rdma)
        for device, link in own.items():
            netdev = netdev_of(link, settings, sysctls)
            name = devices.get(device)
            places[device] = PodNetdev(described.inode, netdev, carrier=link.carrier, rdma=name)
        found.append(described)

    visit(namespaces, missing, read, room)
    return Found(places, tuple(sorted(found, key=lambda each: each.inode)))


def reachable(node: Node, want: NodeState) -> tuple[NodeState, tuple[LeftBehind, ...]]:
    """`want` without the VFs of namespaces that are gone or replaced, and these VFs.

    What their PFs hold becomes what they held before those pods. With POD_INTERFACES=report,
    without the VFs of all namespaces, whose pods still exist.
    """
    if node.settings.pod_interfaces == PodInterfaces.REPORT:
        report = "POD_INTERFACES=report"
        return without(want, {each.inode: report for each in want.namespaces}, are_there=True)
    gone = {}
    for namespace in want.namespaces:
        try:
            with node.namespaces.opened(namespace):
                pass
        except NamespaceGone as error:
            gone[namespace.inode] = error.message
    return without(want, gone, deleted=_deleted(node, want))


def _deleted(node: Node, want: NodeState) -> set[str]:
    """The addresses of VFs whose pod was deleted: SR-IOV CNI has no record of it any more."""
    recorded = {
        vf.address: vf.cni.name
        for _, vf in want.vfs()
        if vf.cni is not None and vf.address is not None
    }
    now = cni.records(node.settings.cni_data_dir) if recorded else None
    if now is None:
        return set()
    return {
        address
        for address, name in recorded.items()
        if address not in now or now[address].kept.name != name
    }


@contextmanager
def within(node: Node, namespace: Namespace) -> Iterator[tuple[Node, Room]]:
    """The node as seen in a namespace; NamespaceGone if the namespace does not exist any more."""
    with rooms.opened(node.namespaces, namespace) as room:
        inside = dataclasses.replace(
            node,
            rtnl=room.rtnl,
            ethtool=room.ethtool,
            stack=room.stack,
            address_watch=room.address_watch,
            network=room.network,
            hung_calls=HungCalls(),
            port_indexes={},
        )
        yield inside, room


def children_in_other_namespaces(node: Node, state: NodeState) -> tuple[str, ...]:
    """A line for each child, in another namespace, of an interface of `state`."""
    wanted = {netdev.name for netdev in state.netdevs()}
    names = {n: link.name for n, link in node.rtnl.links().items() if link.name in wanted}
    return rooms.children_in_other_namespaces(node.namespaces, names)
