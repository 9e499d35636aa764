"""Restart of device plugins, which discover devices only when they start.

Each matching pod on the node is deleted, by UID, because an old pod that terminates and a new one
may exist side by side. Their controllers create new ones. A pod without a controller is left alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from nodeagent import durable
from nodeagent.cluster import allocatable, turns
from nodeagent.cluster.client import Client, Listing, Object, Objects
from nodeagent.cluster.failures import Conflict, NotFound
from nodeagent.cluster.findings import is_terminating, name_of
from nodeagent.cluster.gates import closed
from nodeagent.cluster.kinds import POD
from nodeagent.errors import WaitTimeout
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

LOCK: Final = "plugins.lock"
MAX_CLOCK_SKEW: timedelta = timedelta(seconds=5)
"""The assumed difference between the clocks of node and API server, for the age of pods."""


@dataclass(frozen=True)
class Restarted:
    """The result of a restart. Pods are `namespace/name`.

    `left` are pods without a controller; `failed` are lines about pods that the kubelet did not
    admit meanwhile; `resources` is the allocatable that was waited for.
    """

    deleted: tuple[str, ...]
    left: tuple[str, ...]
    failed: tuple[str, ...]
    resources: Mapping[str, int]
    seconds: float


@dataclass(frozen=True)
class _Found:
    """The device plugin pods by UID, and the listings that contain them."""

    listings: tuple[Listing, ...]
    pods: Mapping[str, Object]


def restart(client: Client, settings: Settings, node: str, *, wait: bool) -> Restarted | None:
    """Restart every device plugin pod on `node`; None if there are none.

    With `wait`, return when each has a ready successor, and the node's allocatable is as before the
    reload (or as now, if no reload is on record). Raises Forbidden, Unreachable, or WaitTimeout,
    which names what is missing.
    """
    began = time.monotonic()
    record = allocatable.load(settings.state_dir) if wait else None
    found = _find(client, settings, node)
    if not found.pods:
        _note_restarted(settings.state_dir)
        return None
    before = allocatable.listing(client, node) if wait else None
    since = _since(record)
    going = {uid: pod for uid, pod in found.pods.items() if _comes_back(pod)}
    for uid, pod in going.items():
        _delete(client, pod, uid)
    _note_restarted(settings.state_dir)
    want: Mapping[str, int] = {}
    if before is not None:
        want = record.resources if record else allocatable.of_node(*before.objects.values())
        try:
            _wait_for_successors(client, found.listings, going, _left(settings, began))
            allocatable.wait(
                client,
                before,
                want,
                timeout=_left(settings, began),
                settle=settings.allocatable_settle,
            )
        except WaitTimeout as error:
            found_out = [f"not admitted: {line}" for line in failed_pods(client, node, since)]
            found_out += _held_back(before)
            raise _explained(error, found_out, settings) from error
        allocatable.forget(settings.state_dir)
    return Restarted(
        deleted=tuple(map(name_of, going.values())),
        left=tuple(name_of(pod) for uid, pod in found.pods.items() if uid not in going),
        failed=failed_pods(client, node, since) if wait else (),
        resources=want,
        seconds=time.monotonic() - began,
    )


def hold_off(
    client: Client, settings: Settings, node: str, is_over: Callable[[], bool]
) -> tuple[str, ...]:
    """Restart the device plugins while there are no VFs (HOLD_OFF=plugin): they report none.

    Returns the deleted pods: none if `is_over` reports that the reload has ended, or the node's
    allocatable was not recorded, which is awaited after the reload. A file records the restart, so
    that `nodeagent.cluster.after_reload` restarts them even after a reload that failed.
    """
    with turns.alone(settings.state_dir, LOCK):
        if allocatable.load(settings.state_dir) is None:
            log.warning("device plugins are not restarted: the node's allocatable is not recorded")
            return ()
        found = _find(client, settings, node).pods
        going = {uid: pod for uid, pod in found.items() if _comes_back(pod)}
        if not going or is_over():
            return ()
        durable.replace(_held_off(settings.state_dir), b"", 0o600)
        for uid, pod in going.items():
            _delete(client, pod, uid)
    return tuple(map(name_of, going.values()))


def is_held_off(state_dir: Path) -> bool:
    """Whether they were restarted while there were no VFs, and not since.

    Waits for a `hold_off` in progress.
    """
    with turns.alone(state_dir, LOCK):
        return durable.exists(_held_off(state_dir))


def owed(state_dir: Path) -> Path:
    """The file that exists if the plugin's list has changed since the last restart of a plugin."""
    return state_dir / "plugin-restart-owed"


def _note_restarted(state_dir: Path) -> None:
    for path in (owed(state_dir), _held_off(state_dir)):
        durable.remove(path)


def _held_off(state_dir: Path) -> Path:
    return state_dir / "plugins-held-off"


def pods(client: Client, settings: Settings, node: str) -> list[str]:
    """One line for each device plugin pod on the node."""
    return [
        f"{name_of(pod)}: {'ready' if _is_ready(pod) else 'not ready'}, "
        f"since {pod['metadata']['creationTimestamp']}"
        for pod in _find(client, settings, node).pods.values()
    ]


def failed_pods(client: Client, node: str, since: datetime) -> tuple[str, ...]:
    """One line for each pod that the kubelet has not admitted since then for lack of a device."""
    selector = f"spec.nodeName={node},status.phase=Failed"
    return tuple(
        f"{name_of(pod)}: {pod['status'].get('message', 'no message')}"
        for pod in client.list_all(POD, fields=selector, cached=True)
        if pod["status"].get("reason") == "UnexpectedAdmissionError"
        and datetime.fromisoformat(pod["metadata"]["creationTimestamp"]) >= since - MAX_CLOCK_SKEW
    )


def grouped(selectors: Sequence[str]) -> tuple[str, ...]:
    """Combine `key=value` pairs into one label selector per key; the server cannot OR over keys."""
    values: dict[str, list[str]] = {}
    for each in selectors:
        key, _, value = each.partition("=")
        values.setdefault(key, []).append(value)
    return tuple(f"{key} in ({','.join(each)})" for key, each in values.items())


def _find(client: Client, settings: Settings, node: str) -> _Found:
    listings = []
    pods: dict[str, Object] = {}
    for labels in grouped(settings.device_plugin_selectors):
        listing = client.listing(POD, labels=labels, fields=f"spec.nodeName={node}", cached=True)
        ours = {
            uid: pod
            for uid, pod in listing.objects.items()
            if pod["metadata"]["namespace"] in settings.device_plugin_namespaces
            and pod.get("status", {}).get("phase") not in {"Failed", "Succeeded"}
        }
        if ours.keys() - pods.keys():
            listings.append(replace(listing, objects=ours))
        pods |= ours
    return _Found(tuple(listings), pods)


def _delete(client: Client, pod: Object, uid: str) -> None:
    """Delete the pod, unless it is being deleted or no longer exists."""
    meta = pod["metadata"]
    if is_terminating(pod):
        return
    try:
        client.delete(POD, meta["name"], meta["namespace"], uid=uid)
    except (Conflict, NotFound):
        return  # it no longer exists, or another pod has its name


def _wait_for_successors(
    client: Client, listings: Iterable[Listing], going: Mapping[str, Object], timeout: float
) -> None:
    deadline = time.monotonic() + timeout
    for listing in listings:
        old = {uid: pod for uid, pod in listing.objects.items() if uid in going}
        latest: list[str] = []

        def look(objects: Objects, old: Objects = old, latest: list[str] = latest) -> float:
            latest[:] = _without_successor(old, objects)
            return float("inf") if latest else 0.0

        left = max(0.0, deadline - time.monotonic())
        if old and not client.follow_from(listing, look, timeout=left):
            raise WaitTimeout("new device plugin pods", latest, timeout)


def _without_successor(old: Objects, now: Objects) -> list[str]:
    """One line for each pod that still exists, or whose owner has no new pod that is ready."""
    missing = []
    for uid, pod in old.items():
        if uid in now:
            missing.append(f"{name_of(pod)}: still exists, uid {uid}")
            continue
        new = [
            each
            for new_uid, each in now.items()
            if new_uid not in old and _owner(each) == _owner(pod)
        ]
        if not new:
            missing.append(f"{name_of(pod)}: no successor")
        elif not any(map(_is_ready, new)):
            missing.append(f"{name_of(pod)}: its successor {name_of(new[-1])} is not ready")
    return missing


def _held_back(before: Listing) -> list[str]:
    """One line for each gate on the node that keeps device plugins away."""
    return [f"held back by {line}" for n in before.objects.values() for line in closed(n)]


def _explained(error: WaitTimeout, found_out: Sequence[str], settings: Settings) -> WaitTimeout:
    """The same error for the whole time limit, with the causes that were found."""
    missing = [*error.missing, *found_out]
    said = WaitTimeout("device plugins", missing, settings.device_plugin_timeout)
    said.hint = "see the device plugin's log; check the VFs with `nodeagent verify`"
    return said


def _left(settings: Settings, began: float) -> float:
    return max(0.0, began + settings.device_plugin_timeout - time.monotonic())


def _since(record: allocatable.Record | None) -> datetime:
    return datetime.fromisoformat(record.taken_at) if record else datetime.now(UTC)


def _comes_back(pod: Object) -> bool:
    """Whether a controller will create another pod. Deleting a mirror pod restarts nothing."""
    mirror = "kubernetes.io/config.mirror" in pod["metadata"].get("annotations", {})
    return _owner(pod) is not None and not mirror


def _owner(pod: Object) -> str | None:
    owners = pod["metadata"].get("ownerReferences", ())
    return next((str(each["uid"]) for each in owners if each.get("controller")), None)


def _is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and not is_terminating(pod)
