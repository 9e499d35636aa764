"""Interfaces on top of another: VLAN, MACVLAN, MACVTAP, IPVLAN, IPVTAP."""

from __future__ import annotations

import shlex
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Self

from nodeagent.state.attributes import check, differing, fresh, given, rows
from nodeagent.state.checks import one_of
from nodeagent.state.link import LinkAttributes
from nodeagent.state.stack.kind import Pairs, Stacked, StackStage, check_pairs, pairs_in_words
from nodeagent.state.sysctls import Sysctl, commands, missing
from nodeagent.state.vf import VLAN_PROTOCOLS

CHILD_KINDS: Final = ("vlan", "macvlan", "macvtap", "ipvlan", "ipvtap")
MODES: Final = {
    "macvlan": {1: "private", 2: "vepa", 4: "bridge", 8: "passthru", 16: "source"},
    "ipvlan": {0: "l2", 1: "l3", 2: "l3s"},
}
MADE_WITH: Final = ("mac", "mtu", "name", "up", "altnames")
"""Link attributes that `ip link add` sets, or that have a command of their own."""


@dataclass(frozen=True)
class Child(Stacked, LinkAttributes):
    """An interface on top of another, with all attributes of a link; `name` is None, see `dev`.

    `data` are the attributes of its kind: id, protocol and flags of a VLAN, with `egress.N` and
    `ingress.N` for its priority maps; mode and flags of the others. `mac` is None if it is that of
    the parent (IPVLAN). `sysctls` are those that differ from the node's defaults.
    """

    stage: ClassVar = StackStage(
        "add children", "a VLAN or MACVLAN names its parent by ifindex, and is up only if that is"
    )

    dev: str
    parent: str
    kind: str
    data: Pairs
    sysctls: tuple[Sysctl, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        one_of(CHILD_KINDS)("kind", self.kind)
        check_pairs(self.data)
        check(self)
        if self.name is not None:
            raise ValueError(f"child {self.dev} has a second name, {self.name!r}")

    def __str__(self) -> str:
        state = "up" if self.up else "down"
        made = f"{self.kind}{pairs_in_words(self.data)} on {self.parent}"
        text = f"{made}, {self.mac or 'no MAC'}, {self.mtu}, {state}"
        altnames = (f"altname {name}" for name in self.altnames or ())
        sysctls = (f"net.{key} {value}" for key, value in self.sysctls)
        return ", ".join((text, *altnames, *self._settings(), *sysctls))

    def _settings(self) -> Iterator[str]:
        """The attributes to set after `ip link add`, as arguments of ip-link(8)."""
        usual = {**given(fresh(LinkAttributes)), "txqueuelen": None}
        found = given(self)
        for name, row in rows(LinkAttributes).items():
            if name in found and name not in MADE_WITH and found[name] != usual.get(name):
                yield row.words(found[name])

    @property
    def interfaces(self) -> tuple[str, ...]:
        return (self.parent,)

    @property
    def interface(self) -> str:
        return self.dev

    @property
    def key(self) -> Hashable:
        return Child, self.dev

    @property
    def task(self) -> str:
        return f"make {self.kind} {self.dev} on {self.parent}"

    def is_met_by(self, found: Stacked, defaults: tuple[Sysctl, ...]) -> bool:
        """Link attributes that are not known are not compared."""
        if not isinstance(found, Child):
            return False
        if (self.parent, self.kind, self.data) != (found.parent, found.kind, found.data):
            return False
        if any(differing(LinkAttributes, self, found)):
            return False
        return not missing(self.sysctls, found.sysctls, defaults)

    def renamed(self, names: Mapping[str, str]) -> Self:
        return replace(self, parent=names.get(self.parent, self.parent))

    def commands(self) -> Iterator[str]:
        yield " ".join(self._making())
        for name in self.altnames or ():
            yield f"ip link property add dev {self.dev} altname {shlex.quote(name)}"
        yield from (f"ip link set dev {self.dev} {words}" for words in self._settings())
        yield from commands(self.sysctls, self.dev)
        if self.up:
            yield f"ip link set dev {self.dev} up"

    def _making(self) -> Iterator[str]:
        yield f"ip link add link {self.parent} name {self.dev}"
        if self.mac is not None:
            yield f"address {self.mac}"
        if self.mtu is not None:
            yield f"mtu {self.mtu}"
        yield f"type {self.kind}"
        yield from self._data_words()

    def _data_words(self) -> Iterator[str]:
        """Arguments of ip-link(8), without flags, whose words differ by kind."""
        modes = MODES["macvlan" if self.kind.startswith("macv") else "ipvlan"]
        for name, value in self.data:
            if name == "protocol":
                yield f"protocol {VLAN_PROTOCOLS.get(value, hex(value))}"
            elif name == "mode":
                yield f"mode {modes.get(value, value)}"
            elif name == "id":
                yield f"id {value}"
            elif name.startswith(("egress.", "ingress.")):
                direction, _, source = name.partition(".")
                yield f"{direction}-qos-map {source}:{value}"
            elif name.startswith("source."):
                yield f"macaddr add {name.removeprefix('source.')}"
