"""Neighbours of an interface that an administrator set."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import ClassVar

from nodeagent.state.checks import check_fields, within
from nodeagent.state.stack.kind import OnInterface, StackStage, fields_in_words


@dataclass(frozen=True)
class Neighbour(OnInterface):
    """A permanent neighbour, or an address that the kernel answers for (`proxy`, no `lladdr`)."""

    stage: ClassVar = StackStage(
        "add neighbours", "a link that goes down loses permanent neighbours (neigh_flush_dev())"
    )

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
    def key(self) -> Hashable:
        return Neighbour, self.dev, self.address

    def commands(self) -> Iterator[str]:
        proxy = "proxy " if self.proxy else ""
        lladdr = f" lladdr {self.lladdr} nud permanent" if self.lladdr else ""
        yield f"ip neighbour replace {proxy}{self.address}{lladdr} dev {self.dev}"
