"""The inside of other network namespaces, as far as our VFs are there: found, read, written.

An interface is known by its parent device (IFLA_PARENT_DEV_NAME, Linux 5.14, else the bus info that
ethtool tells), never by its name.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from nodeagent.errors import KernelError
from nodeagent.kernel.ethnl import Ethtool
from nodeagent.kernel.events import AddressWatch, LinkWatch
from nodeagent.kernel.netns import NamespaceGone, Namespaces, entered
from nodeagent.kernel.rtnl import Link, Rtnl
from nodeagent.kernel.stack import StackEdge
from nodeagent.sriov.model import Inside, Netdev, Setting
from nodeagent.sriov.namespaces import Namespace

log = logging.getLogger(__name__)

Device = tuple[str, str]
"""Bus and name."""

MakeNetdev = Callable[[Link, Mapping[int, tuple[Setting, ...]]], Netdev]


@dataclass(frozen=True)
class Room:
    """Netlink sockets that are open in a namespace. A context manager, which closes them."""

    fd: int
    rtnl: Rtnl
    ethtool: Ethtool

    @classmethod
    def open(cls, fd: int) -> Self:
        """Go in, open them, and come back."""
        with entered(fd):
            return cls(fd, Rtnl(), Ethtool())

    def stack(self) -> StackEdge:
        """One more socket there."""
        with entered(self.fd):
            return StackEdge()

    def link_watch(self) -> LinkWatch:
        """One more socket there."""
        with entered(self.fd):
            return LinkWatch()

    def address_watch(self) -> AddressWatch:
        """One more socket there."""
        with entered(self.fd):
            return AddressWatch()

    def links(self, bus: str = "pci") -> dict[int, Link]:
        """Its interfaces; one without a parent device gets the one that its driver names."""
        return {
            index: link if link.device is not None or link.info else self._with_parent(link, bus)
            for index, link in self.rtnl.links().items()
        }

    def _with_parent(self, link: Link, bus: str) -> Link:
        device = self.rtnl.bus_info(link.name)
        return dataclasses.replace(link, bus=bus, device=device) if device else link

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.rtnl.close()
        self.ethtool.close()


@dataclass(frozen=True)
class Found:
    """Where devices' interfaces are: by device, and the namespaces they are in, by inode."""

    places: Mapping[Device, Inside]
    namespaces: tuple[Namespace, ...]


def find(
    namespaces: Namespaces,
    missing: Collection[Device],
    make: MakeNetdev,
    room: Callable[[int], Room] = Room.open,
) -> Found:
    """Look for the interfaces of `missing` in all namespaces that can be seen, until all are found.

    A namespace that goes while it is looked at is one that has none of them.
    """
    left, found = set(missing), []
    places: dict[Device, Inside] = {}
    for scan in (namespaces.scan, namespaces.scan_files):
        for inode, holders in scan().items():
            if not left:
                break
            try:
                with namespaces.seen(inode, holders) as fd, room(fd) as inside:
                    own = _of(inside.links(), left)
                    if not own:
                        continue
                    described = namespaces.described(fd, holders)
                    places |= _places(inside, own, inode, make)
                    found.append(_with_stack(inside, described, own.values()))
                    left -= own.keys()
            except NamespaceGone as gone:
                log.debug("network namespace %d: %s", inode, gone.message)
            except KernelError as error:
                log.warning("network namespace %d can't be looked at: %s", inode, error.message)
        if not left:
            break
    return Found(places, tuple(sorted(found, key=lambda each: each.inode)))


@contextmanager
def opened(namespaces: Namespaces, namespace: Namespace) -> Iterator[Room]:
    """Sockets in a namespace that is the one of before; NamespaceGone if it is not."""
    with namespaces.opened(namespace) as fd, Room.open(fd) as room:
        yield room


def _of(links: Mapping[int, Link], devices: Collection[Device]) -> dict[Device, Link]:
    found: dict[Device, Link] = {}
    for link in sorted(links.values(), key=lambda each: each.index):
        if link.bus is not None and link.device is not None:
            device = (link.bus, link.device)
            if device in devices:
                found.setdefault(device, link)
    return found


def _places(
    room: Room, own: Mapping[Device, Link], inode: int, make: MakeNetdev
) -> dict[Device, Inside]:
    settings = room.ethtool.settings([link.index for link in own.values()])
    return {
        device: Inside(inode, make(link, settings), carrier=link.carrier)
        for device, link in own.items()
    }


def _with_stack(room: Room, namespace: Namespace, own: Collection[Link]) -> Namespace:
    with room.stack() as edge:
        stack = edge.read(room.links(), {link.index for link in own})
    return dataclasses.replace(namespace, stack=stack)
