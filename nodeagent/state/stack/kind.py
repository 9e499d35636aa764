"""What the program asks of every kind of thing that is stacked on a network interface."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from nodeagent.state.checks import U32, check_sorted, within
from nodeagent.state.sysctls import Sysctl

Pairs = tuple[tuple[str, int], ...]
"""Attributes as the driver of a link has them, sorted by name: `(("id", 100),)`."""


class StackStage(str):
    """The stage of the plan that puts a kind back, and the kernel's reason for its place."""

    __slots__ = ("reason",)
    reason: str

    def __new__(cls, text: str, reason: str) -> Self:
        """`text` is what people read."""
        made = super().__new__(cls, text)
        made.reason = reason
        return made


@dataclass(frozen=True)
class Stacked(ABC):
    """One thing that is stacked on interfaces, and that the kernel removes with them.

    Each kind is a frozen dataclass in a module of its own, a field of `Stack`, and an adapter of
    `nodeagent.kernel.stack`.
    """

    stage: ClassVar[StackStage]

    @property
    @abstractmethod
    def interfaces(self) -> tuple[str, ...]:
        """The interfaces of ours that it is on; they are there before it."""

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """What an interface has only once: something else with this key is in its place."""

    @abstractmethod
    def commands(self) -> Iterator[str]:
        """The lines of ip(8), bridge(8) or tc(8) that put it back."""

    @abstractmethod
    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same where interfaces have other names: `names` maps the old to the new ones."""

    def removal(self) -> Iterator[str]:
        """The lines that remove what is in its place, where it has to go first."""
        return iter(())

    @property
    def is_the_kernels(self) -> bool:
        """Whether the kernel makes it, so that it is not put back."""
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        """The interfaces without which it cannot be put back, also those that are not ours."""
        return self.interfaces

    def removed_with(self, sources: Mapping[str, str]) -> tuple[str, ...]:
        """The interfaces with which the kernel removes it; `sources` is that of its `Stack`."""
        del sources
        return self.interfaces

    def is_met_by(self, found: Stacked, defaults: tuple[Sysctl, ...]) -> bool:
        """Whether `found` is all that is wanted; `defaults`: the sysctls of a new interface."""
        del defaults
        return self == found

    @property
    def interface(self) -> str:
        """The interface that people look for it on."""
        return self.interfaces[0]

    @property
    def noun(self) -> str:
        """What people call its kind."""
        return type(self).__name__.lower()

    @property
    def task(self) -> str:
        """What is done to put it back, for the message that says that it failed."""
        return f"add {self.noun} {self}"


def fields_in_words(value: Any, first: str) -> str:
    """`192.0.2.10/24 dev enp1s0 label x`: the field `first`, and the others that are set."""
    found = [str(getattr(value, first))]
    for each in dataclasses.fields(value):
        now = getattr(value, each.name)
        if each.name != first and each.compare and now != each.default:
            found.append(each.name if now is True else f"{each.name} {now}")
    return " ".join(found)


def pairs_in_words(pairs: Pairs) -> str:
    """` id 100 protocol 33024`: each with a space before it."""
    return "".join(f" {name} {value}" for name, value in pairs)


def check_pairs(pairs: Pairs) -> None:
    """ValueError for pairs that are not sorted by name, or not of 32 bits."""
    check_sorted("attributes", [name for name, _ in pairs])
    for name, value in pairs:
        within(0, U32)(name, value)
