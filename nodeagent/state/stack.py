"""What was stacked on our netdevs in the host's namespace, as values; it dies with them.

Everything names interfaces by their names: these are put back before anything is stacked on them.
Numbers are the kernel's (rtnetlink(7), uapi/linux/rtnetlink.h, if_addr.h, neighbour.h), because
tables, protocols and scopes have no other names that hold on every node. `None` and the empty
tuple mean: not set.

What is not here comes by itself, or survives. The kernel makes routes of protocol `kernel`, the
local table's, and the link-local address of protocol `kernel_ll` when an address is added and when
the link goes up. Rules with iif or oif stay: the kernel detaches them by name and attaches them
again when an interface of that name comes (fib_rules_event(), net/core/fib_rules.c). Bonds,
bridges, VRFs and teams stay, with their addresses: they lose their ports only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Final

U32: Final = 0xFFFFFFFF
IFNAMSIZ: Final = 16
QDISC_ROOT: Final = 0xFFFFFFFF
QDISC_MAJOR: Final = 0xFFFF0000
CHILD_KINDS: Final = ("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap")
MASTER_KINDS: Final = ("bond", "bridge", "team", "vrf")

Pairs = tuple[tuple[str, int], ...]
"""Attributes as the driver of a link has them, sorted by name: `(("id", 100),)`."""


@dataclass(frozen=True)
class Child:
    """An interface on top of another: a VLAN, MACVLAN, MACVTAP, IPVLAN or IPVTAP.

    `data` is what its kind has: a VLAN's id, protocol, flags, and `egress.N`, `ingress.N` for its
    priority maps; mode and flags of the others. `mac` is None where it is its parent's (IPVLAN).
    `sysctls` are those that differ from the node's defaults; they are compared against those.
    """

    dev: str
    parent: str
    kind: str
    data: Pairs
    mac: str | None
    mtu: int
    up: bool
    altnames: tuple[str, ...] = ()
    alias: str = ""
    txqueuelen: int | None = None
    group: int = 0
    promisc: bool = False
    allmulti: bool = False
    sysctls: tuple[tuple[str, int], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        _check_one_of("kind", self.kind, CHILD_KINDS)
        _check_pairs(self.data)
        _check_numbers(self, 0x7FFFFFFF, "mtu")
        _check_numbers(self, U32, "txqueuelen", "group")

    def __str__(self) -> str:
        data = "".join(f" {name} {value}" for name, value in self.data)
        state = "up" if self.up else "down"
        text = f"{self.kind}{data} on {self.parent}, {self.mac or 'no MAC'}, {self.mtu}, {state}"
        rest = "".join(f", {word} {value}" for word, value in self.settings())
        return text + rest

    def settings(self) -> Iterator[tuple[str, object]]:
        """What is set beside what makes it: ip(8)'s words and values, and sysctls."""
        yield from (("altname", name) for name in self.altnames)
        for word, value, usual in (
            ("alias", self.alias, ""),
            ("txqueuelen", self.txqueuelen, None),
            ("group", self.group, 0),
            ("promisc", "on" if self.promisc else "off", "off"),
            ("allmulticast", "on" if self.allmulti else "off", "off"),
        ):
            if value != usual:
                yield word, value
        yield from ((f"net.{key}", value) for key, value in self.sysctls)


@dataclass(frozen=True)
class Membership:
    """An interface as port of a bond, bridge, team or VRF. `data`: the port's own attributes.

    `vlans` is a bridge port's VLAN table: ids, each with its BRIDGE_VLAN_INFO_* flags. A bond
    remembers what MAC its port had before (`mac`), and loses its own (`master_mac`) with its last
    port; neither is compared: what shows, the port's MAC now, is an attribute of its netdev.
    """

    dev: str
    master: str
    kind: str
    data: Pairs = ()
    vlans: tuple[tuple[int, int], ...] = ()
    mac: str | None = field(default=None, compare=False)
    master_mac: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check_one_of("kind", self.kind, MASTER_KINDS)
        _check_pairs(self.data)
        for vid, flags in self.vlans:
            _check_within("VLAN", vid, 4095)
            _check_within("flags", flags, 0xFFFF)

    def __str__(self) -> str:
        data = "".join(f" {name} {value}" for name, value in self.data)
        vlans = f" vlans {','.join(str(vid) for vid, _ in self.vlans)}" if self.vlans else ""
        return f"port of {self.kind} {self.master}{data}{vlans}"


@dataclass(frozen=True)
class Address:
    """An address with its prefix length: `192.0.2.10/24`. `peer`: of a point-to-point link.

    `flags` are those that an administrator sets (IFA_F_NODAD, _HOMEADDRESS, _NOPREFIXROUTE,
    _MANAGETEMPADDR, _MCAUTOJOIN). `tentative`: nobody knew yet that it is nobody else's, or it is
    somebody else's (IPv6, DAD). `expires`: it has a lifetime; then the `_until` are Unix times in
    seconds. They are not compared: the kernel counts down in seconds of its own.
    """

    dev: str
    address: str
    scope: int = 0
    flags: int = 0
    peer: str | None = None
    broadcast: str | None = None
    label: str | None = None
    metric: int | None = None
    proto: int = 0
    expires: bool = False
    tentative: bool = field(default=False, compare=False)
    valid_until: int | None = field(default=None, compare=False)
    preferred_until: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        ip_interface(self.address)
        for address in (self.peer and self.peer.partition("/")[0], self.broadcast):
            if address:
                ip_address(address)
        _check_numbers(self, U32, "flags", "metric")
        _check_numbers(self, 0xFF, "scope", "proto")

    def __str__(self) -> str:
        return _words(self, "address", self.address)


@dataclass(frozen=True)
class Neighbour:
    """A permanent neighbour, or one that is answered for (`proxy`, then without `lladdr`)."""

    dev: str
    address: str
    lladdr: str | None = None
    proxy: bool = False
    flags: int = 0

    def __post_init__(self) -> None:
        ip_address(self.address)
        _check_numbers(self, 0xFF, "flags")

    def __str__(self) -> str:
        return _words(self, "address", self.address)


@dataclass(frozen=True)
class Nexthop:
    """Where a route goes: `dev` (None: not ours to say), `via` a gateway. `weight` is from 1."""

    dev: str | None
    via: str | None = None
    weight: int = 1
    onlink: bool = False

    def __post_init__(self) -> None:
        if self.via is not None:
            ip_address(self.via)
        if not 1 <= self.weight <= 256:
            raise ValueError(f"weight {self.weight} is not within 1 and 256")

    def __str__(self) -> str:
        via = f"via {self.via} " if self.via else ""
        return f"{via}dev {self.dev}{' onlink' if self.onlink else ''}"


@dataclass(frozen=True)
class Route:
    """A route by one or several nexthops of which at least one is ours, or from an address of ours.

    `metrics` are RTAX_* by number (mtu is 2), `kind` is RTN_* (1: unicast). `expires_at` is a Unix
    time, and not compared.
    """

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
    expires: bool = False
    expires_at: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        ip_network(self.dst)
        if not self.nexthops:
            raise ValueError(f"route {self.dst} goes nowhere")
        if self.src is not None:
            ip_address(self.src)
        _check_numbers(self, U32, "table", "metric")
        _check_numbers(self, 0xFF, "kind", "proto", "scope", "tos", "pref")
        for number, value in self.metrics:
            _check_within("metric", number, 0xFF)
            _check_within("metric", value, U32)

    def __str__(self) -> str:
        hops = ", ".join(map(str, self.nexthops))
        return f"{self.dst} {hops} table {self.table} metric {self.metric} proto {self.proto}"

    @property
    def is_v6(self) -> bool:
        """Whether it is an IPv6 route."""
        return ":" in self.dst


@dataclass(frozen=True)
class Qdisc:
    """A queueing discipline that somebody made (tc(8)).

    `handle` and `parent` are the kernel's numbers (major << 16 | minor; `QDISC_ROOT`); `options` is
    TCA_OPTIONS in hexadecimal digits, which only its kind understands.
    """

    dev: str
    kind: str
    handle: int
    parent: int
    options: str = ""

    def __post_init__(self) -> None:
        _check_numbers(self, U32, "handle", "parent")
        bytes.fromhex(self.options)
        if not self.kind.isprintable() or not 0 < len(self.kind) < IFNAMSIZ:
            raise ValueError(f"{self.kind!r} is no kind of qdisc")

    def __str__(self) -> str:
        options = f" with {self.options}" if self.options else ""
        return f"{self.place}{self.kind}{options}"

    @property
    def place(self) -> str:
        """Where it hangs and what it is called, in tc(8)'s words: `root handle 8001: `."""
        parent = f"parent {self.parent >> 16:x}:{self.parent & 0xFFFF:x}"
        where = "root" if self.parent == QDISC_ROOT else parent
        return f"{where} handle {self.handle >> 16:x}: "


Stacked = Child | Membership | Address | Neighbour | Route | Qdisc


@dataclass(frozen=True)
class Stack:
    """All that is stacked on our netdevs.

    `children` and `qdiscs` with parents first, the rest in the kernel's order, which for addresses
    means something (primary and secondary). `lost` is in words: what dies with our netdevs and is
    not put back.
    """

    children: tuple[Child, ...] = ()
    memberships: tuple[Membership, ...] = ()
    addresses: tuple[Address, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    routes: tuple[Route, ...] = ()
    qdiscs: tuple[Qdisc, ...] = ()
    lost: tuple[str, ...] = field(default=(), compare=False)

    @property
    def sources(self) -> dict[str, str]:
        """Whose each IPv4 address is. A route from it goes with it (fib_sync_down_addr())."""
        fourth = (each for each in self.addresses if ":" not in each.address)
        return {each.address.partition("/")[0]: each.dev for each in fourth}

    def things(self) -> Iterator[Stacked]:
        """Everything, in the order in which it can be put back."""
        yield from self.children
        yield from self.memberships
        yield from self.addresses
        yield from self.neighbours
        yield from self.routes
        yield from self.qdiscs


def devices_of(thing: Stacked) -> tuple[str, ...]:
    """The interfaces that have to be there before `thing`, without its own if it is one."""
    if isinstance(thing, Child):
        return (thing.parent,)
    if isinstance(thing, Route):
        return tuple(hop.dev for hop in thing.nexthops if hop.dev is not None)
    return (thing.dev,)


def stands_on(thing: Stacked, sources: Mapping[str, str]) -> tuple[str, ...]:
    """The interfaces with which `thing` goes: those before it, and of a route its source's.

    `sources`: `Stack.sources` of the stack that it is of.
    """
    if isinstance(thing, Route) and thing.src in sources:
        return (*devices_of(thing), sources[thing.src or ""])
    return devices_of(thing)


def renamed(thing: Stacked, names: Mapping[str, str]) -> Stacked:
    """`thing` where interfaces have other names: `names` maps the old to the new ones."""
    if isinstance(thing, Route):
        hops = tuple(replace(hop, dev=names.get(hop.dev or "", hop.dev)) for hop in thing.nexthops)
        return replace(thing, nexthops=hops)
    if isinstance(thing, Child):
        return replace(thing, parent=names.get(thing.parent, thing.parent))
    return replace(thing, dev=names.get(thing.dev, thing.dev))


def roots(stack: Stack) -> dict[str, str]:
    """Each child's name, and the name of the netdev that it stands on in the end."""
    found: dict[str, str] = {}
    for child in stack.children:
        found[child.dev] = found.get(child.parent, child.parent)
    return found


def _words(value: Any, *without: str) -> str:
    """`192.0.2.10/24 dev enp1s0 label x`: the fields that are set."""
    first = [getattr(value, without[0])]
    for each in dataclasses.fields(value):
        now = getattr(value, each.name)
        if each.name not in without and each.compare and now != each.default:
            first.append(each.name if now is True else f"{each.name} {now}")
    return " ".join(map(str, first))


def _check_within(what: str, value: int, high: int) -> None:
    if not 0 <= value <= high:
        raise ValueError(f"{what} {value} is not within 0 and {high}")


def _check_numbers(value: Any, high: int, *names: str) -> None:
    for name in names:
        number = getattr(value, name)
        if number is not None:
            _check_within(name, number, high)


def _check_one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{what} {value!r} is none of {', '.join(allowed)}")


def _check_pairs(pairs: Pairs) -> None:
    names = [name for name, _ in pairs]
    if names != sorted(set(names)):
        raise ValueError(f"{names} are not unique and sorted")
    for name, value in pairs:
        _check_within(name, value, U32)
