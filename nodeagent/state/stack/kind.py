"""The base class of all kinds of objects on interfaces."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from nodeagent.state.checks import U32, check_sorted, within
from nodeagent.state.sysctls import Sysctl

Pairs = tuple[tuple[str, int], ...]
"""Attributes of a kind of link, sorted by name: `(("id", 100),)`."""


class StackStage(str):
    """The stage of the plan that restores a kind, and the kernel's reason for its place."""

    __slots__ = ("reason",)
    reason: str

    def __new__(cls, text: str, reason: str) -> Self:
        """`text` is the stage's name in logs and plans."""
        made = super().__new__(cls, text)
        made.reason = reason
        return made


@dataclass(frozen=True)
class Stacked(ABC):
    """One object on an interface (an address, a VLAN child …), which the kernel removes with it.

    Each kind is a frozen dataclass in a module of its own, a field of `Stack`, and an adapter of
    `nodeagent.kernel.stack`.
    """

    stage: ClassVar[StackStage]

    @property
    @abstractmethod
    def interfaces(self) -> tuple[str, ...]:
        """Our interfaces that it is on. They must exist before it."""

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """What identifies it: an interface cannot have two objects with the same key."""

    @abstractmethod
    def commands(self) -> Iterator[str]:
        """The commands of ip(8), bridge(8) or tc(8) that restore it."""

    @abstractmethod
    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same object with other names of interfaces: `names` maps old names to new ones."""

    def removal(self) -> Iterator[str]:
        """The commands that remove an object with the same key, if that is necessary."""
        return iter(())

    @property
    def is_the_kernels(self) -> bool:
        """Whether the kernel creates it: then it is not restored."""
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        """The interfaces that it needs, ours and others."""
        return self.interfaces

    def removed_with(self, sources: Mapping[str, str]) -> tuple[str, ...]:
        """The interfaces whose removal removes it. `sources`: see `Stack.sources`."""
        del sources
        return self.interfaces

    def is_met_by(self, found: Stacked, defaults: tuple[Sysctl, ...]) -> bool:
        """Whether `found` is as wanted; `defaults`: the sysctls of a new interface."""
        del defaults
        return self == found

    @property
    def interface(self) -> str:
        """The interface that messages about it name."""
        return self.interfaces[0]

    @property
    def noun(self) -> str:
        """The name of its kind in messages."""
        return type(self).__name__.lower()

    @property
    def task(self) -> str:
        """The task of restoring it, for "cannot TASK"."""
        return f"add {self.noun} {self}"


@dataclass(frozen=True)
class OnInterface(Stacked):
    """An object on one interface of ours, `dev`."""

    dev: str

    @property
    def interfaces(self) -> tuple[str, ...]:
        """`dev` alone."""
        return (self.dev,)

    def renamed(self, names: Mapping[str, str]) -> Self:
        """The same on `dev` by its new name."""
        return dataclasses.replace(self, dev=names.get(self.dev, self.dev))


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
