"""A cordon during a reload (HOLD_OFF=cordon): new pods are scheduled to other nodes.

An annotation on the node marks the cordon as ours; any other cordon stays. A file on this node
records that there may be one: if this process is killed, the next one that finishes a reload lifts
it. Both hold one lock, so that a cordon that the API server delays is not set after it was lifted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nodeagent import durable
from nodeagent.cluster import turns
from nodeagent.cluster.announce import PREFIX
from nodeagent.cluster.client import Client
from nodeagent.cluster.kinds import NODE

log = logging.getLogger(__name__)

MARK: Final = f"{PREFIX}/cordoned-for-reload"
LOCK: Final = "cordon.lock"


def cordon(client: Client, node: str, state_dir: Path, is_over: Callable[[], bool]) -> bool:
    """Mark the node unschedulable. False if it is already, or the reload is over.

    Raises what a request raises. The node may be cordoned then: `lift` checks that.
    """
    with turns.alone(state_dir, LOCK):
        found = client.get(NODE, node)
        if found.get("spec", {}).get("unschedulable") and not _is_ours(found):
            log.info("node %s is cordoned already: left as it is", node)
            return False
        if is_over():
            return False
        durable.replace(_path(state_dir), b"", 0o600)
        client.merge(
            NODE,
            node,
            {"metadata": {"annotations": {MARK: "true"}}, "spec": {"unschedulable": True}},
        )
    log.info("node %s is cordoned until its VFs are back", node)
    return True


def lift(client: Client, node: str, state_dir: Path) -> bool:
    """Remove our cordon; False if there is none. Raises what a request raises."""
    with turns.alone(state_dir, LOCK):
        if not durable.exists(_path(state_dir)):
            return False
        is_ours = _is_ours(client.get(NODE, node))
        if is_ours:
            client.merge(
                NODE,
                node,
                {"metadata": {"annotations": {MARK: None}}, "spec": {"unschedulable": None}},
            )
            log.info("node %s takes new pods again", node)
        durable.remove(_path(state_dir))
    return is_ours


def _is_ours(node: dict[str, object]) -> bool:
    metadata = node["metadata"]
    return isinstance(metadata, dict) and MARK in metadata.get("annotations", {})


def _path(state_dir: Path) -> Path:
    return state_dir / "cordoned"
