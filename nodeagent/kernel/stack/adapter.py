"""The interface of an adapter, which reads a kind of stacked thing and sends it back."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Generic, TypeVar

from nodeagent.kernel.netlink import Netlink
from nodeagent.kernel.rtnl import Link
from nodeagent.kernel.sysctls import SysctlTables
from nodeagent.state.stack import Stack, Stacked

FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
MIN_LIFETIME: Final = 60
"""Seconds, for what expired while its interface was away."""

T = TypeVar("T", bound=Stacked)


@dataclass(frozen=True)
class Look:
    """The input for reading a kind: all links, ours among them, and the kinds before it.

    `roots` are the ifindexes of our netdevs; `stack` is what has been read already.
    `all_addresses`: also the link-local addresses that the kernel adds.
    """

    links: Mapping[int, Link]
    roots: Collection[int]
    tables: SysctlTables = field(default_factory=SysctlTables)
    stack: Stack = field(default_factory=Stack)
    all_addresses: bool = False

    @cached_property
    def names(self) -> Mapping[int, str]:
        """The names of all interfaces, by ifindex."""
        return {index: link.name for index, link in self.links.items()}

    @cached_property
    def indexes(self) -> Collection[int]:
        """The ifindexes of our netdevs and of their children."""
        children = {child.dev for child in self.stack.children}
        return {*self.roots, *(i for i, name in self.names.items() if name in children)}

    @cached_property
    def ports(self) -> Mapping[int, str]:
        """By ifindex of a master of ours, and of what stands on it, the name of a port of ours."""
        by_name = {name: index for index, name in self.names.items()}
        found = {by_name[each.master]: each.dev for each in reversed(self.stack.memberships)}
        for index, link in sorted(self.links.items()):
            if index not in found and link.parent in found:
                found[index] = found[link.parent]
        return found


@dataclass(frozen=True)
class Found(Generic[T]):
    """The things of a kind, and a line for each that is not restored."""

    things: tuple[T, ...] = ()
    lost: tuple[str, ...] = ()


@dataclass(frozen=True)
class Adapter(Generic[T]):
    """A kind, both ways. The module of this package with the name of its field of `Stack` has one.

    `read` returns the things of the kind on our interfaces; KernelError if the kernel refuses.
    `message` makes the request that restores one, of the ifindexes by name and the Unix time. If
    the thing exists already, that changes nothing or is refused with EEXIST. `in_order`: the order
    in which they must be added; by default any.
    """

    kind: type[T]
    read: Callable[[Netlink, Look], Found[T]]
    message: Callable[[T, Mapping[str, int], float], bytearray]
    in_order: Callable[[Sequence[T]], Sequence[T]] = list


def time_left(until: int, now: float) -> int:
    """Seconds until a Unix time."""
    return max(MIN_LIFETIME, int(until - now))
