"""The inside of other network namespaces, as far as our VFs are there: found, read, written.

An interface is known by its parent device (IFLA_PARENT_DEV_NAME, Linux 5.14, else the bus info that
ethtool tells), never by its name.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from nodeagent.errors import KernelError
from nodeagent.kernel.ethnl import Ethtool
from nodeagent.kernel.events import AddressWatch, LinkWatch
from nodeagent.kernel.netns import NamespaceGone, Namespaces, entered
from nodeagent.kernel.rdma import Rdma
from nodeagent.kernel.rtnl import Change, Link, LinkChange, Rtnl
from nodeagent.kernel.stack import StackEdge
from nodeagent.kernel.sysctls import Told
from nodeagent.sriov.model import Inside, Netdev, Setting
from nodeagent.sriov.namespaces import Namespace

log = logging.getLogger(__name__)

Device = tuple[str, str]
"""Bus and name."""

MakeNetdev = Callable[[Link, Mapping[int, tuple[Setting, ...]], Told], Netdev]
"""From a link, ethtool settings by ifindex, and the sysctls that interfaces start with."""


class RememberingRtnl(Rtnl):
    """Knows the links from one change to the next: who sets a VF up looks several times."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, Link] | None = None

    def links(self) -> dict[int, Link]:
        """As they were after the last change."""
        if self._known is None:
            self._known = {n: self._with_parent(link) for n, link in super().links().items()}
        return self._known

    def _with_parent(self, link: Link) -> Link:
        """The device that its driver names, where the kernel does not say (before Linux 5.14)."""
        if link.device is not None or link.info:
            return link
        device = self.bus_info(link.name)
        return dataclasses.replace(link, bus="pci", device=device) if device else link

    def change(self, changes: Sequence[Change]) -> list[OSError | None]:
        """Then they are as they were set; a name or an altname is looked up again."""
        results = super().change(changes)
        for change, error in zip(changes, results, strict=True):
            if error is None and isinstance(change, LinkChange) and change.name is None:
                self._note(change)
            else:
                self.forget()
        return results

    def _note(self, change: LinkChange) -> None:
        if self._known is not None and change.index in self._known:
            fields = (field.name for field in dataclasses.fields(change) if field.name != "index")
            given: dict[str, Any] = {
                name: value for name in fields if (value := getattr(change, name)) is not None
            }
            link = self._known[change.index]
            self._known = {**self._known, change.index: dataclasses.replace(link, **given)}

    def forget(self) -> None:
        """Something has changed."""
        self._known = None


class TellingStack(StackEdge):
    """Says that what it sends may change links."""

    def __init__(self, rtnl: RememberingRtnl) -> None:
        super().__init__()
        self._rtnl = rtnl

    def send(self, messages: Sequence[bytearray]) -> list[OSError | None]:
        """Children come, ports get a master."""
        self._rtnl.forget()
        return super().send(messages)


@dataclass(frozen=True)
class Room:
    """Netlink sockets that are open in a namespace. A context manager, which closes them."""

    fd: int
    rtnl: RememberingRtnl

    @cached_property
    def ethtool(self) -> Ethtool:
        """One more socket there, and the search for ethtool's number."""
        with entered(self.fd):
            return Ethtool()

    @classmethod
    def open(cls, fd: int) -> Self:
        """Go in, open them, and come back."""
        with entered(fd):
            return cls(fd, RememberingRtnl())

    def network(self) -> AbstractContextManager[None]:
        """A block in which /proc/sys/net is that of the namespace."""
        return entered(self.fd)

    def stack(self) -> StackEdge:
        """One more socket there."""
        with entered(self.fd):
            return TellingStack(self.rtnl)

    def rdma_names(self) -> Collection[str]:
        """The RDMA devices that are there: in shared mode, or without ib_core, none of its own."""
        try:
            with entered(self.fd):
                edge = Rdma()
        except OSError:
            return ()
        with edge:
            return edge.indexes().keys()

    def link_watch(self) -> LinkWatch:
        """One more socket there."""
        with entered(self.fd):
            return LinkWatch()

    def address_watch(self) -> AddressWatch:
        """One more socket there."""
        with entered(self.fd):
            return AddressWatch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.rtnl.close()
        if "ethtool" in vars(self):
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
        devices = _rdma_there(inside, own, rdma)
        for device, link in own.items():
            netdev = make(link, settings, told)
            name = devices.get(device)
            places[device] = Inside(described.inode, netdev, carrier=link.carrier, rdma=name)
        found.append(described)

    _visit(namespaces, missing, read, room)
    return Found(places, tuple(sorted(found, key=lambda each: each.inode)))


def locate(
    namespaces: Namespaces,
    missing: Collection[Device],
    rdma: Mapping[Device, str] = MappingProxyType({}),
) -> dict[Device, tuple[Namespace, str | None]]:
    """In which namespace the interfaces of `missing` are; those that can't be seen are left out.

    And the name of the RDMA device, one of `rdma`, that is there with an interface.
    """
    found: dict[Device, tuple[Namespace, str | None]] = {}

    def note(inside: Room, own: dict[Device, Link], described: Namespace) -> None:
        there = _rdma_there(inside, own, rdma)
        found.update({device: (described, there.get(device)) for device in own})

    _visit(namespaces, missing, note, Room.open)
    return found


def _visit(
    namespaces: Namespaces,
    missing: Collection[Device],
    visit: Callable[[Room, dict[Device, Link], Namespace], None],
    room: Callable[[int], Room],
) -> None:
    """Call `visit` in each namespace that has some of `missing`, until all are found.

    Those that are merely open somewhere come last: to find them, every descriptor is looked at.
    """
    left = set(missing)
    for scan in (namespaces.scan, namespaces.scan_files):
        for inode, holders in scan().items() if left else ():
            if not left:
                return
            try:
                with namespaces.seen(inode, holders) as fd, room(fd) as inside:
                    own = _of(inside.rtnl.links(), left) if inside.rtnl.has_hardware() else {}
                    if own:
                        visit(inside, own, namespaces.described(fd, holders))
                        left -= own.keys()
            except NamespaceGone as gone:
                log.debug("network namespace %d: %s", inode, gone.message)
            except KernelError as error:
                log.warning("network namespace %d can't be looked at: %s", inode, error.message)


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


def _rdma_there(
    room: Room, own: Collection[Device], rdma: Mapping[Device, str]
) -> dict[Device, str]:
    """Which of these devices have their RDMA device, one of `rdma`, in the same namespace."""
    wanted = {device: rdma[device] for device in own if device in rdma}
    names = room.rdma_names() if wanted else ()
    return {device: name for device, name in wanted.items() if name in names}
