"""VFs' interfaces in other network namespaces, as values: where each is, and what it is like."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from nodeagent.kernel.netns import Namespaces
from nodeagent.kernel.rooms import Device, Room, rdma_there, visit
from nodeagent.kernel.rtnl import Link
from nodeagent.kernel.sysctls import Told
from nodeagent.state.model import Inside, Netdev, Setting
from nodeagent.state.namespaces import Namespace

MakeNetdev = Callable[[Link, Mapping[int, tuple[Setting, ...]], Told], Netdev]
"""From a link, ethtool settings by ifindex, and the sysctls that interfaces start with."""


@dataclass(frozen=True)
class Found:
    """Where devices' interfaces are: by device, and the namespaces they are in, by inode."""

    places: Mapping[Device, Inside]
    namespaces: tuple[Namespace, ...]


def find(
    namespaces: Namespaces,
    missing: Collection[Device],
    make: MakeNetdev,
    proc: Path,
    *,
    rdma: Mapping[Device, str] = MappingProxyType({}),
    room: Callable[[int], Room] = Room.open,
) -> Found:
    """Look for the interfaces of `missing` in all namespaces that can be seen, until all are found.

    A namespace that goes while it is looked at is one that has none of them. `rdma`: names of RDMA
    devices that are not in this namespace.
    """
    found = []
    places: dict[Device, Inside] = {}

    def read(inside: Room, own: dict[Device, Link], described: Namespace) -> None:
        with inside.network(), inside.stack() as edge:
            told = edge.parameters(proc)
            roots = {link.index for link in own.values()}
            stack = edge.read(inside.rtnl.links(), roots, told)
        described = dataclasses.replace(described, sysctls=told.defaults, stack=stack)
        settings = inside.ethtool.settings([link.index for link in own.values()])
        devices = rdma_there(inside, own, rdma)
        for device, link in own.items():
            netdev = make(link, settings, told)
            name = devices.get(device)
            places[device] = Inside(described.inode, netdev, carrier=link.carrier, rdma=name)
        found.append(described)

    visit(namespaces, missing, read, room)
    return Found(places, tuple(sorted(found, key=lambda each: each.inode)))
