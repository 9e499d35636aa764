"""Neighbours of an interface that an administrator set."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import ClassVar, Self

from nodeagent.state.checks import check_fields, within
from nodeagent.state.stack.kind import Stacked, StackStage, fields_in_words


@dataclass(frozen=True)
class Neighbour(Stacked):
    """A permanent neighbour, or one that is answered for (`proxy`, then without `lladdr`)."""

    stage: ClassVar = StackStage(
        "add neighbours", "a permanent neighbour goes when its link goes down (neigh_flush_dev())"
    )

    dev: str
    address: str
    lladdr: str | None = None
    proxy: bool = False
    flags: int = 0

    def __post_init__(self) -> None:
        ip_address(self.address)
        check_fields(self, within(0, 0xFF), "flags")

    def __str__(self) -> str:
        return fields_in_words(self, "address")

    @property
    def interfaces(self) -> tuple[str, ...]:
        return (self.dev,)

    @property
    def key(self) -> Hashable:
        return Neighbour, self.dev, self.address

    def renamed(self, names: Mapping[str, str]) -> Self:
        return replace(self, dev=names.get(self.dev, self.dev))

    def commands(self) -> Iterator[str]:
        proxy = "proxy " if self.proxy else ""
        lladdr = f" lladdr {self.lladdr} nud permanent" if self.lladdr else ""
        yield f"ip neighbour replace {proxy}{self.address}{lladdr} dev {self.dev}"
