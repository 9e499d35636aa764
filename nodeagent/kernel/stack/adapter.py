"""How each kind of stacked thing is read from the kernel, and sent back to it."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Generic, Protocol, TypeVar

from nodeagent.kernel.netlink import Netlink
from nodeagent.kernel.rtnl import Link
from nodeagent.kernel.sysctls import Told
from nodeagent.state.stack import Stack, Stacked

FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
GRACE: Final = 60
"""Seconds. What is left to what expired while its interface was away."""

T = TypeVar("T", bound=Stacked)


@dataclass(frozen=True)
class Look:
    """What is known when a kind is read: all links, ours among them, and the kinds before it.

    `roots` are the ifindexes of our netdevs; `stack` is what has been read already.
    `all_addresses`: also the link-local addresses that the kernel makes.
    """

    links: Mapping[int, Link]
    roots: Collection[int]
    told: Told = field(default_factory=Told)
    stack: Stack = field(default_factory=Stack)
    all_addresses: bool = False

    @cached_property
    def names(self) -> Mapping[int, str]:
        """Everybody's names, by ifindex."""
        return {index: link.name for index, link in self.links.items()}

    @cached_property
    def indexes(self) -> Collection[int]:
        """The ifindexes of our netdevs and of their children."""
        children = {child.dev for child in self.stack.children}
        return {*self.roots, *(i for i, name in self.names.items() if name in children)}


@dataclass(frozen=True)
class Found(Generic[T]):
    """What there is of a kind, and a line for each that is not put back."""

    things: tuple[T, ...] = ()
    lost: tuple[str, ...] = ()


class Adapter(Protocol[T]):
    """A module of this package: one kind, both ways."""

    def read(self, edge: Netlink, look: Look, /) -> Found[T]:
        """What the kernel has of this kind on our interfaces. KernelError when it refuses."""

    def in_order(self, things: Sequence[T], /) -> Sequence[T]:
        """In the order in which the kernel takes them, and then has them as they were."""

    def message(self, thing: T, indexes: Mapping[str, int], now: float, /) -> bytearray:
        """The request that puts it back. It may be sent again: what is so already is left as it is,
        or refused with EEXIST. `indexes`: ifindexes by name; `now`: the Unix time."""


def time_left(until: int, now: float) -> int:
    """Seconds until a Unix time."""
    return max(GRACE, int(until - now))
