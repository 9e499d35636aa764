"""Netlink sockets in other network namespaces, and the search for interfaces there.

An interface is identified by its parent device (IFLA_PARENT_DEV_NAME, Linux 5.14, else ethtool's
bus info), never by its name.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Self

from nodeagent.errors import KernelError, reason
from nodeagent.kernel.ethtool import Ethtool
from nodeagent.kernel.events import AddressWatch, LinkWatch
from nodeagent.kernel.netns import NamespaceGone, Namespaces, entered, here, mount_sysfs
from nodeagent.kernel.rdma import Rdma
from nodeagent.kernel.rtnl import Change, Link, LinkChange, Rtnl
from nodeagent.kernel.stack import StackEdge, linkinfo
from nodeagent.state.attributes import given
from nodeagent.state.model import DeviceHandle
from nodeagent.state.namespaces import Holder, Namespace

log = logging.getLogger(__name__)


class CachingRtnl(Rtnl):
    """Caches the links between changes, because setting up a VF reads them several times."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, Link] | None = None

    def links(self) -> dict[int, Link]:
        """The links after the last change."""
        if self._known is None:
            self._known = {n: self._with_parent(link) for n, link in super().links().items()}
        return self._known

    def _with_parent(self, link: Link) -> Link:
        """The link with the device that its driver reports, if the kernel does not (Linux 5.13)."""
        if link.device is not None or link.info:
            return link
        device = self.bus_info(link.name)
        return dataclasses.replace(link, bus="pci", device=device) if device else link

    def change(self, changes: Sequence[Change]) -> list[OSError | None]:
        """Change links, and the cache with them; after a change of names they are read again."""
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
        """Read the links again the next time."""
        self._known = None


class InvalidatingStack(StackEdge):
    """Clears the cache of links, which its messages may change."""

    def __init__(self, rtnl: CachingRtnl) -> None:
        super().__init__()
        self._rtnl = rtnl

    def send(self, messages: Sequence[bytearray]) -> list[OSError | None]:
        """Send messages that may create children or set masters."""
        self._rtnl.forget()
        return super().send(messages)


@dataclass(frozen=True)
class Room:
    """Netlink sockets that are open in a namespace. A context manager, which closes them."""

    fd: int
    rtnl: CachingRtnl
    _held: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def ethtool(self) -> Ethtool:
        """Another socket there, and the sysfs of the namespace."""
        with entered(self.fd):
            return self._held.enter_context(Ethtool(self._sysfs()))

    def _sysfs(self) -> Path | None:
        try:
            fd = mount_sysfs()
        except OSError as error:  # a kernel before 5.2
            log.debug("cannot mount sysfs: %s", reason(error))
            return None
        self._held.callback(os.close, fd)
        return Path(f"/proc/self/fd/{fd}")

    @classmethod
    def open(cls, fd: int) -> Self:
        """Open the sockets in the namespace."""
        with entered(fd):
            return cls(fd, CachingRtnl())

    def network(self) -> AbstractContextManager[None]:
        """A block in which /proc/sys/net is that of the namespace."""
        return entered(self.fd)

    def stack(self) -> StackEdge:
        """Another socket there."""
        with entered(self.fd):
            return InvalidatingStack(self.rtnl)

    def rdma_names(self) -> Collection[str]:
        """The RDMA devices of the namespace; none in shared mode, and without ib_core."""
        try:
            with entered(self.fd):
                edge = Rdma()
        except OSError:
            return ()
        with edge:
            return edge.indexes().keys()

    def link_watch(self) -> LinkWatch:
        """Another socket there."""
        with entered(self.fd):
            return LinkWatch()

    def address_watch(self) -> AddressWatch:
        """Another socket there."""
        with entered(self.fd):
            return AddressWatch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.rtnl.close()
        self._held.close()


def locate(
    namespaces: Namespaces,
    missing: Collection[DeviceHandle],
    rdma: Mapping[DeviceHandle, str] = MappingProxyType({}),
) -> dict[DeviceHandle, tuple[Namespace, str | None]]:
    """The namespaces of the interfaces of `missing`, without those that are not visible.

    And the name of the RDMA device, one of `rdma`, that is in the same namespace.
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

    Namespaces that processes only have open come last: every descriptor is read to find them.
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
    """Call `look` with sockets in that namespace; log one that is gone or cannot be read."""
    try:
        with namespaces.seen(inode, holders) as fd, room(fd) as inside:
            look(inside, lambda: namespaces.described(fd, holders))
    except NamespaceGone as gone:
        log.debug("network namespace %d: %s", inode, gone.message)
    except KernelError as error:
        log.warning("network namespace %d cannot be read: %s", inode, error.message)


def children_in_other_namespaces(
    namespaces: Namespaces, names: Mapping[int, str], room: Callable[[int], Room] = Room.open
) -> tuple[str, ...]:
    """`macvlan net1 on enp1s0 in ...` for each child of our interfaces in another namespace.

    `names` are those of our interfaces, by ifindex. The kernel removes such a child (a CNI's
    MACVLAN in a pod) with its parent. A namespace that disappears meanwhile has none.
    """
    found: list[str] = []
    with here() as own:

        def look(inside: Room, describe: Callable[[], Namespace]) -> None:
            try:
                number, place = inside.rtnl.number_of(own), describe()
            except OSError as error:
                raise KernelError(reason(error)) from error
            for link in inside.rtnl.links().values():
                parent, where = link.foreign_parent or (0, None)
                if parent in names and number is not None and where == number:
                    kind = linkinfo.decoded(link.info).kind or "interface"
                    found.append(f"{kind} {link.name} on {names[parent]} in {place}")

        for inode, holders in namespaces.scan().items():
            _enter(namespaces, inode, holders, look, room)
    return tuple(found)


@contextmanager
def opened(namespaces: Namespaces, namespace: Namespace) -> Iterator[Room]:
    """Sockets in a namespace; NamespaceGone if it does not exist any more."""
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
    """The devices whose RDMA device, one of `rdma`, is in the same namespace, with its name."""
    wanted = {device: rdma[device] for device in own if device in rdma}
    names = room.rdma_names() if wanted else ()
    return {device: name for device, name in wanted.items() if name in names}
