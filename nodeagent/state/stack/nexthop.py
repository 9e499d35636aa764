"""Nexthop objects (ip-nexthop(8)), by whose number routes are made."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import ClassVar, Final, Self

from nodeagent.state.checks import U32, check_fields, within
from nodeagent.state.stack.kind import Pairs, Stacked, StackStage, check_pairs
from nodeagent.state.sysctls import Sysctl

TIMER_HZ: Final = 100
"""Units of a second in which the kernel counts the timers of a resilient group (USER_HZ)."""


@dataclass(frozen=True)
class NexthopObject(Stacked):
    """A nexthop with a number, or a group of such: then `group` has their numbers and weights.

    `devs` is its interface; of a group those of its nexthops that are ours. `resilient` has
    `buckets`, `idle_timer` and `unbalanced_timer` of a group of that type. `carrier`: its interface
    had it (IFF_LOWER_UP), or one of the group's. The kernel adds no nexthop without. `port`: as a
    neighbour's; a bond or bridge that is left without ports has no carrier, and no nexthops.
    """

    stage: ClassVar = StackStage(
        "add nexthops",
        "a gateway must be reachable, and its link have carrier; routes are made by their numbers",
    )

    id: int
    devs: tuple[str, ...]
    via: str | None = None
    is_v6: bool = False
    onlink: bool = False
    proto: int = 0
    group: tuple[tuple[int, int], ...] = ()
    resilient: Pairs = ()
    carrier: bool = field(default=True, compare=False)
    port: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.devs:
            raise ValueError(f"nexthop id {self.id} has no interface")
        if self.via is not None:
            ip_address(self.via)
        check_fields(self, within(1, U32), "id")
        check_fields(self, within(0, 0xFF), "proto")
        for number, weight in self.group:
            within(1, U32)("id", number)
            within(1, 1 << 16)("weight", weight)
        check_pairs(self.resilient)

    def __str__(self) -> str:
        return " ".join(self._words())

    @property
    def noun(self) -> str:
        return "nexthop"

    @property
    def interfaces(self) -> tuple[str, ...]:
        return self.devs

    @property
    def key(self) -> Hashable:
        return NexthopObject, self.id

    def removed_with(self, sources: Mapping[str, str]) -> tuple[str, ...]:
        del sources
        return self.devs if self.port is None else (*self.devs, self.port)

    def renamed(self, names: Mapping[str, str]) -> Self:
        port = None if self.port is None else names.get(self.port, self.port)
        return replace(self, devs=tuple(names.get(dev, dev) for dev in self.devs), port=port)

    def is_met_by(self, found: Stacked, defaults: tuple[Sysctl, ...]) -> bool:
        """A group may have more nexthops by now."""
        del defaults
        if not isinstance(found, NexthopObject) or not self.group:
            return self == found
        there = replace(found, devs=self.devs, group=self.group)
        return self == there and {*self.group} <= {*found.group}

    def with_carrier(self, silent: Collection[int]) -> Self | None:
        """What the kernel can add of it, where these have no carrier."""
        if self.id in silent:
            return None
        return replace(self, group=tuple(each for each in self.group if each[0] not in silent))

    def commands(self) -> Iterator[str]:
        family = "-6 " if self.is_v6 and self.via is None else ""
        yield f"ip {family}nexthop replace {self}"

    def _words(self) -> Iterator[str]:
        yield f"id {self.id}"
        if self.group:
            members = (f"{number},{weight}" for number, weight in self.group)
            yield f"group {'/'.join(members)}"
        else:
            if self.via is not None:
                yield f"via {self.via}"
            yield f"dev {self.devs[0]}"
        if self.onlink:
            yield "onlink"
        if self.resilient:
            yield "type resilient"
            for name, value in self.resilient:
                yield f"{name} {value if name == 'buckets' else value // TIMER_HZ}"
        if self.proto:
            yield f"proto {self.proto}"
