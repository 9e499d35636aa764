"""Snapshots as JSON, both ways.

Fields that are None are left out: the JSON has only what is known. Each member must have the type
of its field. `DataError` names the file if a member is missing, unknown or of another type.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import cache
from typing import Any, Final

from nodeagent.errors import DataError
from nodeagent.state.model import DeviceHandle, NodeState, Pf, PodNetdev, Snapshot

SCHEMA: Final = 3
READ: Final = (1, 2, SCHEMA)
"""The schemas that can be read. The fields that an older one lacks are None: not known."""

ALWAYS: Final[Mapping[type, tuple[str, ...]]] = {
    NodeState: ("pfs",),
    Pf: ("vfs",),
    PodNetdev: ("carrier",),
}
"""Members that every schema writes: the file is damaged if one is missing."""

_PAIRS: Final = ("srcversions", "ethtool", "sysctls", "tuning")
"""Fields that are tuples of pairs, and objects in JSON."""


def to_plain(value: Any) -> Any:
    """A value of the model as dicts, lists, strings and numbers, which `json` can write."""
    if isinstance(value, DeviceHandle):
        return str(value)
    if dataclasses.is_dataclass(value):
        items = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {
            name: dict(item) if name in _PAIRS else to_plain(item)
            for name, item in items
            if item is not None
        }
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return value


_LONGEST: Final = 400
"""Characters of a reason; a longer one is cut."""


def snapshot_to_plain(snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot as `to_plain` has it, with the number of its schema."""
    return {"schema": SCHEMA, **to_plain(snapshot)}


def snapshot_to_json(snapshot: Snapshot) -> str:
    """The snapshot as JSON: sorted keys, indented, one newline at the end."""
    return json.dumps(snapshot_to_plain(snapshot), indent=2, sort_keys=True) + "\n"


def snapshot_from_json(text: str, source: str) -> Snapshot:
    """The reverse of `snapshot_to_json`. DataError names `source` and what is wrong with it."""
    try:
        return _snapshot(json.loads(text))
    except RecursionError:
        raise DataError(f"{source} is not a snapshot: nested too deeply") from None
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{source} is not a snapshot that this version can read: {_brief(error)}",
            hint="the file was not changed; `nodeagent snapshot` prints the format",
        ) from error


def _brief(error: Exception) -> str:
    """The error's text, cut, because it may quote all of the file."""
    text = str(error)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _snapshot(plain: Any) -> Snapshot:
    members = dict(_object("snapshot", plain))
    if "schema" not in members:
        raise ValueError("snapshot has no 'schema'")
    schema = _read(int, members.pop("schema"))
    if schema not in READ:
        which = "newer" if schema > SCHEMA else "older"
        raise ValueError(
            f"its schema is {schema}, which is {which} than this version's: it writes {SCHEMA} "
            f"and reads {', '.join(map(str, READ))}"
        )
    made: Snapshot = _read(Snapshot, members)
    return made


def _read(kind: Any, plain: Any) -> Any:
    """A value of type `kind`, as it is annotated. ValueError or TypeError say what is wrong."""
    if kind is DeviceHandle:
        return DeviceHandle.parse(_read(str, plain))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _made(kind, plain)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {types.UnionType, typing.Union}:
        inner = [each for each in arguments if each is not types.NoneType]
        return _read(inner[0], plain) if len(inner) == 1 else _one_of(inner, plain)
    if origin is tuple:
        return _tuple(arguments, plain)
    if issubclass(kind, StrEnum):
        if _read(str, plain) not in set(kind):
            raise ValueError(f"{plain!r} is none of {', '.join(kind)}")
        return kind(plain)
    if issubclass(kind, str) and kind is not str:  # a Mac, a Guid
        return kind(_read(str, plain))
    return _one_of([kind], plain)


def _one_of(kinds: Sequence[type], plain: Any) -> Any:
    # bool is a subclass of int: `type()` keeps `true` out of numbers
    if type(plain) not in kinds:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{plain!r} is not of type {names}")
    return plain


def _tuple(arguments: tuple[Any, ...], plain: Any) -> tuple[Any, ...]:
    if isinstance(plain, Mapping) and typing.get_args(arguments[0])[:1] == (str,):
        # an object in JSON is a tuple of pairs
        plain = [list(pair) for pair in sorted(plain.items())]
    if not isinstance(plain, list):
        raise TypeError(f"{plain!r} is not a list")
    if arguments[-1] is Ellipsis:
        return tuple(_read(arguments[0], item) for item in plain)
    if len(plain) != len(arguments):
        raise ValueError(f"{plain!r} has not {len(arguments)} members")
    return tuple(_read(kind, item) for kind, item in zip(arguments, plain, strict=True))


def _made(kind: type, plain: Any) -> Any:
    title, (kinds, required) = _title(kind), _members(kind)
    members = _object(title, plain)
    if unknown := sorted(set(members) - set(kinds)):
        raise ValueError(f"{title} has unknown members: {', '.join(unknown)}")
    values: dict[str, Any] = dict.fromkeys(required)
    for name, value in members.items():
        try:
            values[name] = _read(kinds[name], value)
        except TypeError as error:
            raise TypeError(f"{name!r} of {title}: {error}") from None
    for name in required:
        if name not in members and types.NoneType not in typing.get_args(kinds[name]):
            raise ValueError(f"{title} has no {name!r}")
    return kind(**values)


@cache
def _members(kind: type) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The fields of a class with their types, and the names of those that are required."""
    fields = dataclasses.fields(kind)
    hints = typing.get_type_hints(kind)
    required = (
        each.name
        for each in fields
        if each.default is dataclasses.MISSING or each.name in ALWAYS.get(kind, ())
    )
    return {each.name: hints[each.name] for each in fields}, tuple(required)


def _title(kind: type) -> str:
    """`node state`, `rdma device`: a class's name in messages."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower()


def _object(title: str, plain: Any) -> Mapping[str, Any]:
    if not isinstance(plain, Mapping):
        raise TypeError(f"{title} is not an object")
    return plain
