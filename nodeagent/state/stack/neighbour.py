"""Neighbours of an interface that an administrator set."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import ClassVar, Self

from nodeagent.state.checks import check_fields, within
from nodeagent.state.stack.kind import OnInterface, StackStage, fields_in_words


@dataclass(frozen=True)
class Neighbour(OnInterface):
    """A permanent neighbour, or one that is answered for (`proxy`, then without `lladdr`).

    On a bond or bridge, and on what stands on one, `port` is a port of it that is ours: with its
    last port it has another MAC, and then no neighbours.
    """

    stage: ClassVar = StackStage(
        "add neighbours",
        "a permanent neighbour goes when its link goes down (neigh_flush_dev()), and when its MAC "
        "changes (neigh_changeaddr())",
    )

    address: str
    lladdr: str | None = None
    proxy: bool = False
    flags: int = 0
    port: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        ip_address(self.address)
        check_fields(self, within(0, 0xFF), "flags")

    def __str__(self) -> str:
        return fields_in_words(self, "address")

    @property
    def key(self) -> Hashable:
        return Neighbour, self.dev, self.address

    def removed_with(self, sources: Mapping[str, str]) -> tuple[str, ...]:
        del sources
        return (self.dev,) if self.port is None else (self.dev, self.port)

    def renamed(self, names: Mapping[str, str]) -> Self:
        port = None if self.port is None else names.get(self.port, self.port)
        return replace(self, dev=names.get(self.dev, self.dev), port=port)

    def commands(self) -> Iterator[str]:
        proxy = "proxy " if self.proxy else ""
        lladdr = f" lladdr {self.lladdr} nud permanent" if self.lladdr else ""
        yield f"ip neighbour replace {proxy}{self.address}{lladdr} dev {self.dev}"
