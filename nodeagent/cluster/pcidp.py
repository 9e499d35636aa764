"""Removal of missing devices from the device plugin's resource list (/etc/pcidp/config.json).

The rest of the file is kept byte for byte, because other programs write it, too. Entries that do
not select by PCI address are not touched. The device plugin crashes on an empty list, so the last
entry is replaced with a placeholder, which selects an address that no machine has.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nodeagent import durable, hostpath
from nodeagent.errors import DataError, UnavailableError

PLACEHOLDER_ADDRESS: Final = "ffff:ff:1f.7"
PLACEHOLDER: Final[dict[str, object]] = {
    "resourceName": "nodeagent_placeholder",
    "selectors": {"pciAddresses": [PLACEHOLDER_ADDRESS]},
}
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()

IsGone = Callable[[str, str], bool]
"""Whether the device of a resource is missing: (`prefix/name` or `name`, PCI address)."""


@dataclass(frozen=True)
class Pruned:
    """The file's new text, and one line for each removal; without any the text is unchanged."""

    text: str
    removed: tuple[str, ...]


@dataclass(frozen=True)
class _Node:
    """A JSON value and its position in the text: `start` inclusive, `end` exclusive."""

    value: Any
    start: int
    end: int
    items: tuple[_Node, ...] = ()
    members: tuple[tuple[str, _Node], ...] = ()

    def member(self, name: str) -> _Node | None:
        return next((node for key, node in self.members if key == name), None)


def prune_file(path: Path, is_gone: IsGone, *, owed: Path | None) -> Pruned | None:
    """Prune the file atomically; None if it does not exist.

    `owed` is a file that is created before the change, and that device_plugin.restart() removes: it
    keeps the restart on record if this process ends before it, or the API server does not answer.
    Without `owed` nothing is written (a dry run).

    DataError for a file that is not a resource list, and for a link, as in a mounted ConfigMap.
    """
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(facts.st_mode):
        raise DataError(
            f"{path} is not a regular file, so nodeagent does not change it",
            hint="change the ConfigMap if one is mounted there, or set DEVICE_PLUGIN_CONFIG to "
            "another file",
        )
    try:
        with os.fdopen(hostpath.open_file(path), "rb") as file:
            text = file.read().decode()
    except OSError as error:
        raise durable.unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from None
    pruned = prune(text, is_gone, str(path))
    if pruned.removed and owed is not None:
        durable.make_directory(owed.parent, 0o700)
        durable.replace(owed, b"", 0o600)
        durable.replace(path, pruned.text.encode(), stat.S_IMODE(facts.st_mode))
    return pruned


def prune(text: str, is_gone: IsGone, source: str) -> Pruned:
    """`text` without the missing addresses, and without the entries that lost their last one."""
    if not text.strip():
        return Pruned(_placeholder_text(), ("an empty file: a placeholder was written",))
    entries = _entries(text, source)
    removed: list[str] = []
    cuts: list[tuple[tuple[_Node, ...], set[int]]] = []
    dead: set[int] = set()
    for number, entry in enumerate(entries):
        name = _resource_name(entry)
        lists = [_gone(each, name, is_gone) for each in _address_lists(entry)]
        if lists and all(len(at) == len(each.items) for each, at in lists):
            dead.add(number)
        else:
            # a list that would become empty stays: an empty one selects every device
            lists = [(each, at) for each, at in lists if 0 < len(at) < len(each.items)]
            cuts += [(each.items, at) for each, at in lists]
        removed += [f"{name}: {each.items[n].value}" for each, at in lists for n in sorted(at)]
    if not removed and entries:
        return Pruned(text, ())
    if len(dead) == len(entries):
        said = removed or ["an empty list: a placeholder was written"]
        if [entry.value for entry in entries] == [PLACEHOLDER]:
            return Pruned(text, ())
        return Pruned(_placeholder_text(), tuple(said))
    cuts.append((entries, dead))
    return Pruned(_cut(text, cuts), tuple(removed))


def present_on(sysfs: Path = Path("/sys")) -> IsGone:
    """A test for devices that /sys/bus/pci/devices lacks. UnavailableError if that is empty."""
    devices = sysfs / "bus/pci/devices"
    if not devices.is_dir() or not any(devices.iterdir()):
        raise UnavailableError(
            f"{devices} has no devices, so missing ones cannot be recognised",
            hint="run it on the node, with access to its /sys",
        )
    return lambda _, address: not (devices / address).exists()


def _entries(text: str, source: str) -> tuple[_Node, ...]:
    try:
        tree, end = _parse(text, _skip(text, 0))
        if _skip(text, end) != len(text):
            raise ValueError("text after the end")  # noqa: TRY301  one error, one message
    except (ValueError, RecursionError, IndexError) as error:
        raise DataError(f"{source} is not JSON: {error}", hint="it was not touched") from None
    entries = tree.member("resourceList")
    if entries is None or not isinstance(entries.value, list):
        raise DataError(f"{source} has no resourceList", hint="it was not touched")
    return entries.items


def _gone(addresses: _Node, name: str, is_gone: IsGone) -> tuple[_Node, set[int]]:
    at = {
        number
        for number, each in enumerate(addresses.items)
        if isinstance(each.value, str) and is_gone(name, each.value)
    }
    return addresses, at


def _resource_name(entry: _Node) -> str:
    value = entry.value if isinstance(entry.value, dict) else {}
    prefix, name = value.get("resourcePrefix"), str(value.get("resourceName", "?"))
    return f"{prefix}/{name}" if prefix else name


def _address_lists(entry: _Node) -> list[_Node]:
    """Every non-empty pciAddresses of the entry; `selectors` is an object or a list of them."""
    selectors = entry.member("selectors")
    if selectors is None:
        return []
    each = selectors.items or (selectors,)
    found = [selector.member("pciAddresses") for selector in each]
    if any(node is None for node in found):
        return []  # a selector without addresses: the entry stays
    return [node for node in found if node is not None and node.items]


def _cut(text: str, cuts: list[tuple[tuple[_Node, ...], set[int]]]) -> str:
    """Remove items of lists, each with one comma and the space around it."""
    spans = []
    for items, dead in cuts:
        for at in sorted(dead):
            later_lives = any(n not in dead for n in range(at + 1, len(items)))
            if later_lives or at == 0:
                spans.append((items[at].start, items[at + 1].start))
            else:
                spans.append((items[at - 1].end, items[at].end))
    for start, end in sorted(spans, reverse=True):
        text = text[:start] + text[end:]
    return text


def _placeholder_text() -> str:
    return json.dumps({"resourceList": [PLACEHOLDER]}, indent=2) + "\n"


def _parse(text: str, at: int) -> tuple[_Node, int]:
    """The JSON value that begins at `at`, with the positions of everything in it."""
    if text[at] not in "[{":
        value, end = _DECODER.raw_decode(text, at)
        return _Node(value, at, end), end
    is_list, closing = text[at] == "[", "]" if text[at] == "[" else "}"
    items: list[tuple[str, _Node]] = []
    here = _skip(text, at + 1)
    while text[here] != closing:
        key = ""
        if not is_list:
            key, here = _DECODER.raw_decode(text, here)
            here = _expect(text, _skip(text, here), ":")
        node, here = _parse(text, here)
        items.append((key, node))
        here = _skip(text, here)
        if text[here] != closing:
            here = _expect(text, here, ",")
    end = here + 1
    if is_list:
        nodes = tuple(node for _, node in items)
        return _Node([node.value for node in nodes], at, end, items=nodes), end
    return _Node({key: node.value for key, node in items}, at, end, members=tuple(items)), end


def _expect(text: str, at: int, sign: str) -> int:
    if text[at] != sign:
        raise ValueError(f"{sign!r} expected at character {at}")
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
