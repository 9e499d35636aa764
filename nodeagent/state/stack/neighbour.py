"""Permanent neighbours of an interface."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import ClassVar, Self

from nodeagent.state.checks import check_fields, within
from nodeagent.state.stack.kind import OnInterface, StackStage, fields_in_words


@dataclass(frozen=True)
class Neighbour(OnInterface):
    """A permanent neighbour, or a proxy entry (`proxy`, without `lladdr`).

    If `dev` is a bond or bridge, or an interface on one, `port` is a port of it that is ours: when
    the last port is removed its MAC changes, and the kernel removes its neighbours.
    """

    stage: ClassVar = StackStage(
        "add neighbours",
        "the kernel removes it when its link is set down (neigh_flush_dev()), and when its MAC "
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
