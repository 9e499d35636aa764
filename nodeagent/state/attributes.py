"""An attribute as one row: a field of a frozen dataclass, with everything that is known of it.

`VfAttributes`, `LinkAttributes` and `EswitchAttributes` consist of such rows. The wanted and the
present state, the action that changes it and the kernel's message inherit their fields, so that a
new attribute is a row there and a row in the codec of its kernel interface
(`nodeagent.kernel.rtnl`, `nodeagent.kernel.devlink`). Everything else reads the rows: the
comparison, the plan and its lines, snapshots, and what is sent again after a refusal.

In every field None means "not known, not supported or not ours".
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, TypeVar

from nodeagent.state.checks import Check

LEGACY_MAX_SIZE: Final = 1 << 16
"""GSO_LEGACY_MAX_SIZE and GRO_LEGACY_MAX_SIZE (include/linux/netdevice.h)."""


@dataclass(frozen=True)
class Row:
    """What is known of an attribute in addition to its type.

    `part` is its name in messages; attributes of one part are set together, in one message to the
    kernel. `word` is the keyword of ip(8) or devlink(8), None if they have a command of its own for
    it; `only_with` names an attribute without which (or if that is 0) it is not written; `follows`
    one with which the kernel sets it, too, to the same value, up to 64 KiB. `fresh` is
    the value of a new device, None if that depends on the driver. `is_late`: it is set only when
    the VFs are bound and have carrier. `needs_down`: the kernel refuses it while the link is up.
    """

    part: str
    word: str | None
    only_with: str | None
    follows: str | None
    fresh: object
    check: Check | None
    is_late: bool
    needs_down: bool

    def words(self, value: object) -> str:
        """Keyword and value as in a command."""
        if self.word == "":
            return "up" if value else "down"
        if isinstance(value, bool):
            return f"{self.word} {'on' if value else 'off'}"
        return f"{self.word} {shlex.quote(str(value))}"


def attribute(
    part: str,
    word: str | None,
    *,
    only_with: str | None = None,
    follows: str | None = None,
    fresh: object = None,
    check: Check | None = None,
    is_late: bool = False,
    needs_down: bool = False,
) -> Any:
    """A field with its row; its default is None."""
    row = Row(part, word, only_with, follows, fresh, check, is_late, needs_down)
    return dataclasses.field(default=None, metadata={"row": row})


@dataclass(frozen=True)
class Attributes:
    """The base of classes whose fields have rows, and of those that inherit these fields.

    For mypy a class of it is not hashable: it looks at the `__hash__` of instances.
    """


A = TypeVar("A", bound=Attributes)


def rows(kind: type[Attributes]) -> Mapping[str, Row]:
    """The rows by name, in the order in which they are declared, written and sent."""
    return _rows(kind)  # type: ignore[arg-type] # see Attributes


@cache
def _rows(kind: Any) -> Mapping[str, Row]:
    declared = (
        field
        for base in reversed(kind.__mro__)
        for field in base.__dict__.get("__dataclass_fields__", {}).values()
    )
    return {field.name: field.metadata["row"] for field in declared if "row" in field.metadata}


def parts(kind: type[Attributes]) -> Mapping[str, tuple[str, ...]]:
    """By part, the attributes that the kernel takes together."""
    return _parts(kind)  # type: ignore[arg-type] # see Attributes


@cache
def _parts(kind: Any) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name, row in rows(kind).items():
        found[row.part] = (*found.get(row.part, ()), name)
    return found


def given(values: Attributes) -> dict[str, Any]:
    """The attributes that are known, by name."""
    return {
        name: value for name in rows(type(values)) if (value := getattr(values, name)) is not None
    }


def only(values: A, names: tuple[str, ...]) -> A:
    """`values` with these attributes alone."""
    others: dict[str, Any] = {name: None for name in rows(type(values)) if name not in names}
    return replace(values, **others)


def needs_down(values: Attributes) -> bool:
    """Whether the link has to be down for these changes."""
    every = rows(type(values))
    return any(every[name].needs_down for name in given(values))


def fresh(kind: type[A]) -> A:
    """What a new device has, as far as that does not depend on its driver."""
    new: A = _fresh(kind)  # type: ignore[arg-type] # see Attributes
    return new


@cache
def _fresh(kind: Any) -> Any:
    return kind(**{name: row.fresh for name, row in rows(kind).items()})


def differing(
    kind: type[Attributes], want: Attributes, have: Attributes
) -> Iterator[tuple[str, object, object]]:
    """Name, wanted value and present value of each attribute that is not as wanted.

    An attribute that is known in `want` and not in `have` differs, with None as its present value:
    the plan has an action that ensures it.
    """
    for name in rows(kind):
        wanted = getattr(want, name)
        if wanted is not None and wanted != (now := getattr(have, name)):
            yield name, wanted, now


def changed(kind: type[A], want: A, have: A) -> A:
    """What to set to get from `have` to `want`, each with the attributes set together with it."""
    names = {name for name, _, _ in differing(kind, want, have)}
    return together(kind, names, want, have)


def together(kind: type[A], names: set[str], want: A, have: A) -> A:
    """The attributes `names` as wanted; those that are set with them as wanted, or else as now."""
    values = {
        name: value
        for part in parts(kind).values()
        if not names.isdisjoint(part)
        for name in part
        if (value := _either(getattr(want, name), getattr(have, name))) is not None
    }
    return kind(**values)


def words(values: Attributes) -> Iterator[str]:
    """The attributes that are known, as arguments of ip(8) and devlink(8)."""
    found = given(values)
    for name, row in rows(type(values)).items():
        if name not in found or row.word is None:
            continue
        has_other = row.only_with is None or found.get(row.only_with)
        other = found.get(row.follows or "")
        if has_other and (other != found[name] or other > LEGACY_MAX_SIZE):
            yield row.words(found[name])


def check(values: Attributes) -> None:
    """ValueError for a value that the attribute cannot have."""
    for name, does_check in _checks(type(values)):  # type: ignore[arg-type] # see Attributes
        value = getattr(values, name)
        if value is not None:
            does_check(name, value)


@cache
def _checks(kind: Any) -> tuple[tuple[str, Check], ...]:
    every = ((name, row.check) for name, row in rows(kind).items())
    return tuple((name, found) for name, found in every if found is not None)


def _either(want: object, have: object) -> object:
    return have if want is None else want
