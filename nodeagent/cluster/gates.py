"""Gates: marks of the Network Operator on the Node that say wait. nodeagent only reads them.

The operator's init container sets the safe-load annotation, and waits until the operator, having
cordoned and drained the node, removes it. The operator's label mofed.wait keeps device plugins off
the node while the driver is not ready.
"""

from __future__ import annotations

import math
from typing import Final

from nodeagent.cluster import allocatable
from nodeagent.cluster.client import Client, Object, Objects
from nodeagent.errors import WaitTimeout

SAFE_LOAD: Final = "nvidia.com/ofed-driver-upgrade.driver-wait-for-safe-load"
UPGRADE_STATE: Final = "nvidia.com/ofed-driver-upgrade-state"
MOFED_WAIT: Final = "network.nvidia.com/operator.mofed.wait"


def closed(node: Object) -> tuple[str, ...]:
    """One line for each gate that is closed."""
    meta = node["metadata"]
    labels = meta.get("labels", {})
    found = []
    if SAFE_LOAD in meta.get("annotations", {}):
        state = labels.get(UPGRADE_STATE, "no upgrade state")
        found.append(f"annotation {SAFE_LOAD} ({state})")
    if labels.get(MOFED_WAIT) == "true":
        found.append(f"label {MOFED_WAIT}=true")
    return tuple(found)


def wait_for_safe_load(client: Client, node: str, *, timeout: float = math.inf) -> None:
    """Return when the driver may be loaded: there is no safe-load annotation."""
    _wait(client, node, SAFE_LOAD, "the node to be drained", timeout)


def wait_for_driver(client: Client, node: str, *, timeout: float = math.inf) -> None:
    """Return when the Network Operator considers the driver ready: mofed.wait is not true."""
    _wait(client, node, MOFED_WAIT, "the Network Operator to open the node", timeout)


def _wait(client: Client, node: str, gate: str, what: str, timeout: float) -> None:
    latest: list[str] = []

    def look(objects: Objects) -> float:
        lines = [line for each in objects.values() for line in closed(each) if gate in line]
        latest[:] = lines or ([] if objects else [f"the node {node}"])
        return math.inf if latest else 0.0

    if not client.follow_from(allocatable.listing(client, node), look, timeout=timeout):
        raise WaitTimeout(what, latest, timeout)
