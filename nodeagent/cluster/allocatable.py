"""What the node can give to pods: recorded before a reload, awaited after it.

A device plugin that was restarted registers anew, and the kubelet reports the node's allocatable
each 10 s. Until then the old numbers stand there: equal numbers are believed when they were seen
to be lower in between, or when they have stood for longer than the kubelet takes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from nodeagent import durable
from nodeagent.cluster.client import Client, Listing, Object, Objects
from nodeagent.cluster.failures import NotFound
from nodeagent.cluster.kinds import NODE
from nodeagent.errors import DataError, WaitTimeout

Resources = Mapping[str, int]
"""Extended resources by name: `openshift.io/vfs` → 8."""


@dataclass(frozen=True)
class Record:
    """What the node could give when a reload began. `taken_at` is ISO 8601 in UTC."""

    node: str
    taken_at: str
    resources: Resources


def of_node(node: Object) -> Resources:
    """The extended resources of a Node; cpu, memory, hugepages and such are not a plugin's."""
    found = node.get("status", {}).get("allocatable", {})
    counts = {name: str(text) for name, text in found.items() if _is_extended(name)}
    return {name: int(text) for name, text in sorted(counts.items()) if text.isdecimal()}


def listing(client: Client, node: str) -> Listing:
    """This node, to be followed. NotFound when the cluster has none of that name."""
    found = client.listing(NODE, fields=f"metadata.name={node}")
    if not found.objects:
        raise NotFound(
            f"the cluster has no node {node}",
            hint="NODE_NAME must be the Node object's name, from spec.nodeName",
        )
    return found


def path(state_dir: Path) -> Path:
    """Where the record is."""
    return state_dir / "allocatable.json"


def save(
    client: Client, node: str, state_dir: Path, *, in_flight: bool, at: str | None = None
) -> Record:
    """Record what the node can give now; `at` is when that was asked for.

    While a reload is in flight an existing record is kept: what the node can give now is damage.
    """
    kept = load(state_dir)
    if in_flight and kept is not None and kept.node == node:
        return kept
    now = at or datetime.now(UTC).isoformat(timespec="seconds")
    record = Record(node, now, of_node(client.get(NODE, node)))
    plain = {"node": node, "taken_at": now, "resources": dict(record.resources)}
    durable.make_private_directory(state_dir)
    durable.replace(path(state_dir), json.dumps(plain, indent=2).encode() + b"\n", 0o600)
    return record


def load(state_dir: Path) -> Record | None:
    """The record; None when there is none; DataError when it is damaged."""
    data = durable.read_own(path(state_dir))
    if data is None:
        return None
    try:
        plain = json.loads(data)
        resources = {str(name): int(count) for name, count in plain["resources"].items()}
        datetime.fromisoformat(plain["taken_at"])
        return Record(str(plain["node"]), plain["taken_at"], resources)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path(state_dir)} is damaged: {error!r}",
            hint="remove it: the node's present allocatable is then what is waited for",
        ) from None


def forget(state_dir: Path) -> None:
    """The node gives again what it gave: the record has served."""
    durable.remove(path(state_dir))


def short(want: Resources, have: Resources) -> list[str]:
    """A line for each resource of which there is too little."""
    return [
        f"{name}: want {count}, have {have.get(name, 0)}"
        for name, count in want.items()
        if have.get(name, 0) < count
    ]


def wait(
    client: Client, before: Listing, want: Resources, *, timeout: float, settle: float
) -> None:
    """Return when the node's allocatable has what it had.

    `before` is the node as it was before the plugins were restarted: the watch begins there, so
    that a dip is not missed. `timeout` and `settle` are seconds. WaitTimeout names what is short.
    """
    look, latest = _watcher(want, settle)
    if not client.follow_from(before, look, timeout=timeout):
        raise WaitTimeout("the node's allocatable", short(want, latest()) or ["to settle"], timeout)


def _watcher(
    want: Resources, settle: float
) -> tuple[Callable[[Objects], float], Callable[[], Resources]]:
    began = time.monotonic()
    seen: list[Resources] = []
    dipped = False

    def look(objects: Objects) -> float:
        nonlocal dipped
        have: Resources = next((of_node(each) for each in objects.values()), {})
        seen[:] = [have]
        if short(want, have):
            dipped = True
            return float("inf")
        return 0.0 if dipped else max(0.0, began + settle - time.monotonic())

    return look, lambda: seen[0] if seen else {}


def _is_extended(name: str) -> bool:
    domain, slash, _ = name.partition("/")
    return bool(slash) and not (domain == "kubernetes.io" or domain.endswith(".kubernetes.io"))
