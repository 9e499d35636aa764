"""The node's allocatable extended resources: recorded before a reload, awaited after it.

A restarted device plugin registers again, and the kubelet reports the node's allocatable every
10 s. Until then the Node has the old numbers. Numbers equal to those before are therefore accepted
only if they were lower in between, or have not changed for longer than the kubelet's interval.
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
    """The allocatable resources when a reload began. `taken_at` is ISO 8601 in UTC."""

    node: str
    taken_at: str
    resources: Resources


def of_node(node: Object) -> Resources:
    """The extended resources of a Node, without cpu, memory, hugepages and the like."""
    found = node.get("status", {}).get("allocatable", {})
    counts = {name: str(text) for name, text in found.items() if _is_extended(name)}
    return {name: int(text) for name, text in sorted(counts.items()) if text.isdecimal()}


def listing(client: Client, node: str) -> Listing:
    """A listing of this node only, for a watch. NotFound if the cluster has no such node."""
    found = client.listing(NODE, fields=f"metadata.name={node}")
    if not found.objects:
        raise NotFound(
            f"the cluster has no node {node}",
            hint="NODE_NAME must be the Node object's name, from spec.nodeName",
        )
    return found


def path(state_dir: Path) -> Path:
    """The path of the record."""
    return state_dir / "allocatable.json"


def save(
    client: Client, node: str, state_dir: Path, *, in_flight: bool, at: str | None = None
) -> Record:
    """Record the present allocatable; `at` is the time of the request.

    While a reload is in progress, an existing record is kept: it is of the time before the reload.
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
    """The record; None if there is none. DataError if it is damaged."""
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
            hint="remove it; the wait is then for the node's present allocatable",
        ) from None


def forget(state_dir: Path) -> None:
    """Remove the record: the node's allocatable is as before."""
    durable.remove(path(state_dir))


def short(want: Resources, have: Resources) -> list[str]:
    """One line for each resource with less than wanted."""
    return [
        f"{name}: want {count}, have {have.get(name, 0)}"
        for name, count in want.items()
        if have.get(name, 0) < count
    ]


def wait(
    client: Client, before: Listing, want: Resources, *, timeout: float, settle: float
) -> None:
    """Return when the node's allocatable has what it had.

    `before` is the node before the restart of the plugins: the watch begins there, and so notices
    every dip. `timeout` and `settle` are seconds. WaitTimeout names the missing resources.
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
