"""Checks of values, shared by the modules of `nodeagent.state`; ValueError says what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final

U32: Final = 0xFFFFFFFF
U64: Final = 0xFFFFFFFFFFFFFFFF
IFNAMSIZ: Final = 16

Check = Callable[[str, Any], None]
"""Takes an attribute's name and a value of it; ValueError says what is wrong."""


def within(low: int, high: int) -> Check:
    """A check: the value is a number from `low` to `high`."""

    def check_range(name: str, value: int) -> None:
        if not low <= value <= high:
            raise ValueError(f"{name} {value} is not within {low} and {high}")

    return check_range


def one_of(allowed: Sequence[str]) -> Check:
    """A check: the value is one of these."""

    def check_one(name: str, value: str) -> None:
        if value not in allowed:
            raise ValueError(f"{name} {value!r} is none of {', '.join(allowed)}")

    return check_one


def member_of(kind: type[StrEnum]) -> Check:
    """A check: the value is a member of the enum."""
    members = frozenset(kind)

    def check_member(name: str, value: str) -> None:
        if value not in members:
            raise ValueError(f"{name} {value!r} is none of {', '.join(kind)}")

    return check_member


def check_sorted(what: str, values: Sequence[Any]) -> None:
    """ValueError unless the values are sorted and unique."""
    if list(values) != sorted(set(values)):
        raise ValueError(f"{what} {list(values)} are not unique and sorted")


def check_fields(value: object, check: Check, *names: str) -> None:
    """Check these fields of a value, unless they are None."""
    for name in names:
        number = getattr(value, name)
        if number is not None:
            check(name, number)
