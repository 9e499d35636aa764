"""Removal of the entries that a deleted NodeENI owned in the device plugin's list.

The owned entries are kept on disk and compared with the present NodeENIs, so that a deletion is
noticed even if no process was watching. They are dropped from disk only after their removal.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

from nodeagent import durable
from nodeagent.cluster import device_plugin, pcidp
from nodeagent.cluster.client import Client, Object, Objects
from nodeagent.cluster.findings import chooses, spec_of
from nodeagent.cluster.kinds import NODE, NODE_ENI
from nodeagent.errors import DataError
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

Owned = frozenset[tuple[str, str]]
"""Pairs of resource (`prefix/name`) and PCI address."""


def watch(
    client: Client,
    settings: Settings,
    node: str,
    changed: Callable[[], None],
    *,
    timeout: float = math.inf,
) -> None:
    """Prune the list whenever a NodeENI of this node is deleted; then call `changed`.

    `changed` restarts the device plugin. It is also called if an earlier process changed the list
    and could not restart the plugin.

    Runs for `timeout` seconds. Raises what the client raises if the first listing fails; after that
    it waits until the API server answers again.
    """
    labels = client.get(NODE, node)["metadata"].get("labels", {})

    def look(objects: Objects) -> float:
        settle(owned(objects, labels), settings)
        if durable.exists(device_plugin.owed(settings.state_dir)):
            changed()
        return math.inf

    client.follow(NODE_ENI, look, timeout=timeout)


def settle(now: Owned, settings: Settings) -> None:
    """Remove the entries that no NodeENI owns any longer."""
    path = settings.state_dir / "nodeeni.json"
    before = _load(path)
    gone = before - now
    if gone:
        pruned = pcidp.prune_file(
            settings.device_plugin_config,
            lambda name, address: _owns(gone, now, name, address),
            owed=device_plugin.owed(settings.state_dir),
        )
        for line in pruned.removed if pruned else ():
            log.info("removed from %s: %s", settings.device_plugin_config, line)
    if now != before:
        durable.make_private_directory(settings.state_dir)
        durable.replace(path, json.dumps(sorted(now)).encode() + b"\n", 0o600)


def owned(objects: Objects, labels: dict[str, str]) -> Owned:
    """The entries owned by the NodeENIs that select a node with these labels."""
    pairs = (_pair(each) for each in objects.values() if _is_for(each, labels))
    return frozenset(pair for pair in pairs if pair is not None)


def _pair(eni: Object) -> tuple[str, str] | None:
    spec = spec_of(eni)
    resource, address = spec.get("dpdkResourceName"), spec.get("dpdkPCIAddress")
    return (str(resource), str(address)) if resource and address else None


def _is_for(eni: Object, labels: dict[str, str]) -> bool:
    return chooses(spec_of(eni).get("nodeSelector"), labels)


def _owns(gone: Owned, now: Owned, name: str, address: str) -> bool:
    """Whether an entry lost its owner. Its name may lack the prefix; another NodeENI may own it."""

    def among(pairs: Owned) -> bool:
        return any(
            address == its and name in {resource, resource.rpartition("/")[2]}
            for resource, its in pairs
        )

    return among(gone) and not among(now)


def _load(path: Path) -> Owned:
    data = durable.read_own(path)
    if data is None:
        return frozenset()
    try:
        return frozenset((str(resource), str(address)) for resource, address in json.loads(data))
    except (ValueError, TypeError):
        raise DataError(
            f"{path} is damaged", hint="remove it, and check the device plugin's list by hand"
        ) from None
