"""Netlink sockets inside other network namespaces, and the visits that find an interface there.

An interface is known by its parent device (IFLA_PARENT_DEV_NAME, Linux 5.14, else the bus info that
ethtool reports), never by its name.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Self

from nodeagent.errors import KernelError, reason
from nodeagent.kernel.ethtool import Ethtool
from nodeagent.kernel.events import AddressWatch, LinkWatch
from nodeagent.kernel.netns import NamespaceGone, Namespaces, entered, here
from nodeagent.kernel.rdma import Rdma
from nodeagent.kernel.rtnl import Change, Link, LinkChange, Rtnl
from nodeagent.kernel.stack import StackEdge, linkinfo
from nodeagent.state.attributes import given
from nodeagent.state.model import DeviceHandle
from nodeagent.state.namespaces import Holder, Namespace

log = logging.getLogger(__name__)


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
            link = dataclasses.replace(self._known[change.index], **given(change))
            self._known = {**self._known, change.index: link}

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


def locate(
    namespaces: Namespaces,
    missing: Collection[DeviceHandle],
    rdma: Mapping[DeviceHandle, str] = MappingProxyType({}),
) -> dict[DeviceHandle, tuple[Namespace, str | None]]:
    """In which namespace the interfaces of `missing` are; those that can't be seen are left out.

    And the name of the RDMA device, one of `rdma`, that is there with an interface.
    """
    found: dict[DeviceHandle, tuple[Namespace, str | None]] = {}

    def note(inside: Room, own: dict[DeviceHandle, Link], described: Namespace) -> None:
        there = rdma_there(inside, own, rdma)
        found.update({device: (described, there.get(device)) for device in own})

    visit(namespaces, missing, note)
    return found


def visit(
    namespaces: Namespaces,
    missing: Collection[DeviceHandle],
    look: Callable[[Room, dict[DeviceHandle, Link], Namespace], None],
    room: Callable[[int], Room] = Room.open,
) -> None:
    """Call `look` in each namespace that has some of `missing`, until all are found.

    Namespaces that are merely open in a process come last: to find them, every descriptor is
    looked at.
    """
    left = set(missing)

    def look_for_devices(inside: Room, describe: Callable[[], Namespace]) -> None:
        own = _links_of(inside.rtnl.links(), left) if inside.rtnl.has_hardware() else {}
        if own:
            look(inside, own, describe())
            left.difference_update(own)

    for scan in (namespaces.scan, namespaces.scan_files):
        for inode, holders in scan().items() if left else ():
            if not left:
                return
            _enter(namespaces, inode, holders, look_for_devices, room)


def _enter(
    namespaces: Namespaces,
    inode: int,
    holders: tuple[Holder, ...],
    look: Callable[[Room, Callable[[], Namespace]], None],
    room: Callable[[int], Room],
) -> None:
    """Call `look` with sockets in that namespace; one that is gone, or can't be read, is logged."""
    try:
        with namespaces.seen(inode, holders) as fd, room(fd) as inside:
            look(inside, lambda: namespaces.described(fd, holders))
    except NamespaceGone as gone:
        log.debug("network namespace %d: %s", inode, gone.message)
    except KernelError as error:
        log.warning("network namespace %d can't be looked at: %s", inode, error.message)


def children_in_other_namespaces(
    namespaces: Namespaces, names: Mapping[int, str], room: Callable[[int], Room] = Room.open
) -> tuple[str, ...]:
    """`macvlan net1 on enp1s0 in ...` for each child of our interfaces in another namespace.

    `names` are those of our interfaces, by ifindex. Such a child (a CNI's MACVLAN in a pod) dies
    with its parent. A namespace that goes while it is looked at has none.
    """
    found: list[str] = []
    with here() as own:

        def look(inside: Room, describe: Callable[[], Namespace]) -> None:
            try:
                number, place = inside.rtnl.number_of(own), describe()
            except OSError as error:
                raise KernelError(reason(error)) from error
            for link in inside.rtnl.links().values():
                parent, where = link.elsewhere or (0, None)
                if parent in names and number is not None and where == number:
                    kind = linkinfo.decoded(link.info).kind or "interface"
                    found.append(f"{kind} {link.name} on {names[parent]} in {place}")

        for inode, holders in namespaces.scan().items():
            _enter(namespaces, inode, holders, look, room)
    return tuple(found)


@contextmanager
def opened(namespaces: Namespaces, namespace: Namespace) -> Iterator[Room]:
    """Sockets in a namespace that is the one of before; NamespaceGone if it is not."""
    with namespaces.opened(namespace) as fd, Room.open(fd) as room:
        yield room


def _links_of(
    links: Mapping[int, Link], devices: Collection[DeviceHandle]
) -> dict[DeviceHandle, Link]:
    found: dict[DeviceHandle, Link] = {}
    for link in sorted(links.values(), key=lambda each: each.index):
        if link.bus is not None and link.device is not None:
            device = DeviceHandle.reported(link.bus, link.device)
            if device in devices:
                found.setdefault(device, link)
    return found


def rdma_there(
    room: Room, own: Collection[DeviceHandle], rdma: Mapping[DeviceHandle, str]
) -> dict[DeviceHandle, str]:
    """Which of these devices have their RDMA device, one of `rdma`, in the same namespace."""
    wanted = {device: rdma[device] for device in own if device in rdma}
    names = room.rdma_names() if wanted else ()
    return {device: name for device, name in wanted.items() if name in names}
