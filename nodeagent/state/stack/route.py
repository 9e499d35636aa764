"""Routes through an interface, or from an address of one."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import ClassVar, Final, Self

from nodeagent.state.checks import U32, check_fields, within
from nodeagent.state.stack.kind import Stacked, StackStage
from nodeagent.state.sysctls import Sysctl

TYPES: Final = ("unspec", "unicast", "local", "broadcast", "anycast", "multicast")
METRICS: Final = {2: "mtu", 3: "window", 4: "rtt", 7: "cwnd", 8: "advmss", 10: "hoplimit"}


@dataclass(frozen=True)
class Nexthop:
    """A nexthop of a route: `dev` (None: not one of our interfaces), `via` a gateway, `weight`."""

    dev: str | None
    via: str | None = None
    weight: int = 1
    onlink: bool = False

    def __post_init__(self) -> None:
        if self.via is not None:
            ip_address(self.via)
        within(1, 256)("weight", self.weight)

    def __str__(self) -> str:
        via = f"via {self.via} " if self.via else ""
        return f"{via}dev {self.dev}{' onlink' if self.onlink else ''}"

    def words(self, *, is_v6: bool) -> Iterator[str]:
        """The arguments of ip-route(8); `is_v6`: of an IPv6 route."""
        if self.via is not None:
            family = "" if (":" in self.via) == is_v6 else "inet6 " if ":" in self.via else "inet "
            yield f"via {family}{self.via}"
        yield f"dev {self.dev}"
        if self.onlink:
            yield "onlink"


@dataclass(frozen=True)
class Route(Stacked):
    """A route with at least one nexthop through our interfaces, or from an address of ours.

    `metrics` are RTAX_* by number (mtu is 2), `kind` is RTN_* (1: unicast). `expires_at` is a Unix
    time, and not compared. `nhid` is the nexthop object that it is made by; `nexthops` has then the
    interfaces of that.
    """

    stage: ClassVar = StackStage(
        "add routes",
        "a route needs its source address, its gateway's subnet, and links that are up",
    )

    dst: str
    nexthops: tuple[Nexthop, ...]
    table: int = 254
    metric: int = 0
    kind: int = 1
    proto: int = 3
    scope: int = 0
    tos: int = 0
    src: str | None = None
    pref: int | None = None
    metrics: tuple[tuple[int, int], ...] = ()
    nhid: int | None = None
    expires: bool = False
    expires_at: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        ip_network(self.dst)
        if not self.nexthops:
            raise ValueError(f"route {self.dst} has no nexthop")
        if self.src is not None:
            ip_address(self.src)
        check_fields(self, within(0, U32), "table", "metric")
        check_fields(self, within(1, U32), "nhid")
        check_fields(self, within(0, 0xFF), "kind", "proto", "scope", "tos", "pref")
        for number, value in self.metrics:
            within(0, 0xFF)("metric", number)
            within(0, U32)("metric", value)

    def __str__(self) -> str:
        hops = f"nhid {self.nhid}" if self.nhid else ", ".join(map(str, self.nexthops))
        return f"{self.dst} {hops} table {self.table} metric {self.metric} proto {self.proto}"

    @property
    def is_v6(self) -> bool:
        """Whether it is an IPv6 route."""
        return ":" in self.dst

    @property
    def interfaces(self) -> tuple[str, ...]:
        return tuple(hop.dev for hop in self.nexthops if hop.dev is not None)

    def removed_with(self, sources: Mapping[str, str]) -> tuple[str, ...]:
        """The interfaces of its nexthops, and the one that has its source address
        (fib_sync_down_addr(), net/ipv4/fib_semantics.c)."""
        if self.src in sources:
            return (*self.interfaces, sources[self.src or ""])
        return self.interfaces

    @property
    def key(self) -> Hashable:
        if self.nhid is None:
            return Route, self
        return Route, self.nhid, self.dst, self.table, self.metric, self.tos

    def is_met_by(self, found: Stacked, defaults: tuple[Sysctl, ...]) -> bool:
        """By one that leads to other interfaces, too, if a nexthop object says where it leads."""
        del defaults
        if self.nhid is None or not isinstance(found, Route):
            return self == found
        return self == replace(found, nexthops=self.nexthops)

    def renamed(self, names: Mapping[str, str]) -> Self:
        hops = tuple(replace(hop, dev=names.get(hop.dev or "", hop.dev)) for hop in self.nexthops)
        return replace(self, nexthops=hops)

    def commands(self) -> Iterator[str]:
        yield " ".join(self._words())

    def _words(self) -> Iterator[str]:
        kind = TYPES[self.kind] if self.kind < len(TYPES) else str(self.kind)
        yield f"ip {'-6 ' if self.is_v6 else ''}route append {kind} {self.dst}"
        if self.nhid is not None:
            yield f"nhid {self.nhid}"
        elif len(self.nexthops) == 1:
            yield from self.nexthops[0].words(is_v6=self.is_v6)
        yield f"table {self.table} proto {self.proto} scope {self.scope}"
        if self.metric:
            yield f"metric {self.metric}"
        if self.tos:
            yield f"tos {self.tos}"
        if self.src is not None:
            yield f"src {self.src}"
        yield from (f"{METRICS[n]} {value}" for n, value in self.metrics if n in METRICS)
        if self.nhid is None and len(self.nexthops) > 1:
            for hop in self.nexthops:
                yield " ".join(("nexthop", *hop.words(is_v6=self.is_v6), f"weight {hop.weight}"))
