"""Announcements of the driver's reloads to the cluster: Events, a condition, annotations.

A pod that lost an interface gets an Event of its own, in its namespace.

The journal is the queue, and a file in the same directory has the last announcement. Announcements
that failed because the API server did not answer are thus made later, in order and once: the name
of an Event is derived from its content, and an existing Event's count is increased, unless it was
created for the same record.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

from nodeagent import durable
from nodeagent.cluster.client import FIELD_MANAGER, Client, Object
from nodeagent.cluster.failures import Conflict, NotFound
from nodeagent.cluster.kinds import EVENT, NODE, POD
from nodeagent.record.journal import Note, Record, RecordKind, Step
from nodeagent.record.timeline import CheckpointKind, checkpoints
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

EVENT_NAMESPACE: Final = "default"
"""For Events about objects without a namespace (pkg/apis/core/validation/events.go)."""
CONDITION: Final = "NicDriverReady"
PREFIX: Final = "nodeagent"
MAX_EVENT_AGE: Final = timedelta(days=1)
MAX_MESSAGE_LENGTH: Final = 1000
"""Characters of an Event's message; the server accepts 1024."""


class Reason(StrEnum):
    """The reasons of nodeagent's Events and of the node's condition."""

    STARTED = "DriverReloadStarted"
    READY = "DriverReady"
    RELOAD_FAILED = "DriverReloadFailed"
    RELOAD_REFUSED = "DriverReloadRefused"
    RESTORE_FAILED = "VFRestoreFailed"
    INTERFACE_LOST = "PodInterfaceLost"


_OF_FAILED_STEP: Final[Mapping[str, Reason]] = {
    Step.RESTORE: Reason.RESTORE_FAILED,
    Step.VERIFY: Reason.RESTORE_FAILED,
    Step.PREFLIGHT: Reason.RELOAD_REFUSED,
}


@dataclass(frozen=True)
class Pod:
    """The pod that an Event is about; `uid` is empty if it is not known."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class DriverEvent:
    """Something to announce about the node, or about `pod` on it; `key` identifies its record."""

    reason: Reason
    message: str
    at: str
    key: str
    pod: Pod | None = None

    @property
    def is_warning(self) -> bool:
        """Whether it is a failure."""
        return self.reason not in {Reason.STARTED, Reason.READY}


@dataclass(frozen=True)
class Announced:
    """The last announcement, and a hash of the condition and annotations that the node has."""

    at: str = ""
    key: str = ""
    state: str = ""


def driver_events(records: Sequence[Record]) -> tuple[DriverEvent, ...]:
    """The announcements to make for the records, in order."""
    return tuple(_driver_events(records))


def announce(client: Client, settings: Settings, node: str, records: Sequence[Record]) -> int:
    """Announce what has not been announced yet; return the number of Events.

    Raises what the client raises; announcements made until then are not repeated.
    """
    path = settings.state_dir / "said.json"
    said = _load(path)
    found = driver_events(records)
    new = _unannounced(found, said)
    for each in new if settings.node_events else ():
        _create(client, node, _named(client, node, each))
        said = Announced(each.at, each.key, said.state)
        _save(path, said)
    shown = _shown(settings, found, records)
    state = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]
    if shown and state != said.state:
        _show(client, node, shown)
        _save(path, Announced(said.at, said.key, state))
    return len(new) if settings.node_events else 0


def condition(last: DriverEvent) -> Object:
    """The node's condition after `last`."""
    ready = last.reason == Reason.READY
    return {
        "type": CONDITION,
        "status": "True" if ready else "False",
        "reason": last.reason,
        "message": last.message,
        "lastTransitionTime": _seconds(last.at),
        "lastHeartbeatTime": _seconds(last.at),
    }


def last_reload(records: Sequence[Record]) -> dict[str, str]:
    """The node's annotations: srcversion of the loaded driver, time and duration of its reload."""
    shown: dict[str, str] = {}
    for look in checkpoints(records):
        if look.name == CheckpointKind.LOADED:
            shown[f"{PREFIX}/srcversion"] = next((value for _, value in look.srcversions), "none")
    began: Record | None = None
    for record in records:
        if record.begins(Step.RESTART):
            began = began or record
        elif record.is_note(Note.READY):
            if began is not None:
                shown[f"{PREFIX}/last-reload"] = record.at
                if began.boot == record.boot:
                    shown[f"{PREFIX}/last-reload-seconds"] = f"{record.clock - began.clock:.1f}"
            began = None
    return shown


def _driver_events(records: Sequence[Record]) -> Iterator[DriverEvent]:
    for record in records:
        if record.begins(Step.RESTART):
            yield _driver_event(record, Reason.STARTED, "the NIC driver is being reloaded")
        elif record.kind == RecordKind.FAILED:
            message = f"{record.name} failed: {record.facts.get('message', 'no message')}"
            reason = _OF_FAILED_STEP.get(record.name, Reason.RELOAD_FAILED)
            yield _driver_event(record, reason, message)
        elif record.is_note(Note.READY):
            message = "the NIC driver is loaded, and the VFs are restored"
            yield _driver_event(record, Reason.READY, message)
        elif record.is_note(Note.POD_INTERFACE_LOST):
            pod = Pod(*(record.facts.get(key, "") for key in ("namespace", "pod", "uid")))
            if pod.uid or (pod.namespace and pod.name):
                message = record.facts.get("message", "an interface was lost with the NIC driver")
                yield _driver_event(record, Reason.INTERFACE_LOST, message, pod)


def _driver_event(
    record: Record, reason: Reason, message: str, pod: Pod | None = None
) -> DriverEvent:
    cut = message if len(message) <= MAX_MESSAGE_LENGTH else message[: MAX_MESSAGE_LENGTH - 1] + "…"
    about = f"{pod.namespace}/{pod.name or pod.uid}" if pod else ""
    # several records may have the same millisecond
    what = hashlib.sha256(f"{reason}\n{message}\n{about}".encode()).hexdigest()[:8]
    return DriverEvent(reason, cut, record.at, f"{record.run}-{record.clock}-{what}", pod)


def _unannounced(found: Sequence[DriverEvent], said: Announced) -> Sequence[DriverEvent]:
    """The events after the last announced one; by time if that has left the journal."""
    oldest = (datetime.now(UTC) - MAX_EVENT_AGE).isoformat()
    keys = [each.key for each in found]
    if said.key in keys:
        return found[keys.index(said.key) + 1 :]
    return [each for each in found if each.at > max(said.at, oldest)]


def _named(client: Client, node: str, event: DriverEvent) -> DriverEvent:
    """The event with its pod's name, if only the UID is known and the pod still exists."""
    pod = event.pod
    if pod is None or pod.name:
        return event
    for each in client.list_all(POD, fields=f"spec.nodeName={node}"):
        meta = each["metadata"]
        if meta["uid"] == pod.uid:
            return replace(event, pod=Pod(meta["namespace"], meta["name"], pod.uid))
    return event


def _create(client: Client, node: str, event: DriverEvent) -> None:
    """Create an Event, or increase the count of an equal one.

    An Event about a pod is dropped if the pod or its namespace no longer exists.
    """
    if event.pod is not None and not event.pod.name:
        log.info("no Event %s: no pod on this node has the UID", event.reason)
        return
    body = _event(node, event)
    try:
        client.create(EVENT, body, body["metadata"]["namespace"])
    except Conflict:
        _count_up(client, body)
    except NotFound as error:
        if event.pod is None:
            raise
        log.info("no Event %s: %s", event.reason, error.message)
        return
    log.info("announced %s", event.reason)


def _event(node: str, event: DriverEvent) -> Object:
    """An Event about the node in the namespace `default`, or about a pod in the pod's own."""
    pod = event.pod
    # The kubelet, too, uses the node's name as UID: `kubectl describe node` searches for that.
    about: Object = {"kind": "Node", "name": node, "uid": node, "apiVersion": "v1"}
    namespace = EVENT_NAMESPACE
    if pod is not None:
        about = {"kind": "Pod", "name": pod.name, "namespace": pod.namespace, "apiVersion": "v1"}
        about |= {"uid": pod.uid} if pod.uid else {}
        namespace = pod.namespace
    text = f"{node}\n{about['name']}\n{event.reason}\n{event.message}"
    at = _seconds(event.at)
    return {
        "metadata": {
            "name": f"{about['name'][:200]}.{hashlib.sha256(text.encode()).hexdigest()[:16]}",
            "namespace": namespace,
            "annotations": {f"{PREFIX}/record": event.key},
        },
        "involvedObject": about,
        "reason": event.reason,
        "message": event.message,
        "type": "Warning" if event.is_warning else "Normal",
        "source": {"component": FIELD_MANAGER, "host": node},
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }


def _count_up(client: Client, event: Object) -> None:
    """Increase the count of an existing Event, unless it was created for the same record."""
    meta = event["metadata"]
    there = client.get(EVENT, meta["name"], meta["namespace"])
    if there["metadata"].get("annotations", {}).items() >= meta["annotations"].items():
        return
    again = {
        "metadata": {"annotations": meta["annotations"]},
        "count": int(there.get("count") or 1) + 1,
        "lastTimestamp": event["lastTimestamp"],
    }
    client.merge(EVENT, meta["name"], again, meta["namespace"])


def _shown(
    settings: Settings, found: Sequence[DriverEvent], records: Sequence[Record]
) -> dict[str, Object]:
    """The condition and annotations for the node, as far as the settings enable them."""
    shown: dict[str, Object] = {}
    of_node = [each for each in found if each.pod is None]
    if settings.node_condition and of_node:
        shown["condition"] = condition(of_node[-1])
    if settings.node_annotations and of_node:
        shown["annotations"] = last_reload(records)
    return shown


def _show(client: Client, node: str, shown: dict[str, Object]) -> None:
    if "condition" in shown:
        status = {"status": {"conditions": [shown["condition"]]}}
        client.merge(NODE, node, status, status=True)
    if "annotations" in shown:
        client.merge(NODE, node, {"metadata": {"annotations": shown["annotations"]}})


def _seconds(at: str) -> str:
    """RFC 3339 to the second, as metav1.Time is."""
    return datetime.fromisoformat(at).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _load(path: Path) -> Announced:
    """The last announcement. A damaged file counts as none: a second announcement does no harm."""
    data = durable.read_own(path)
    try:
        return Announced(**json.loads(data)) if data else Announced()
    except (ValueError, TypeError):
        log.warning("%s is damaged; Events may be counted twice", path)
        return Announced()


def _save(path: Path, said: Announced) -> None:
    durable.make_directory(path.parent, 0o700)
    durable.replace(path, json.dumps(asdict(said)).encode() + b"\n", 0o600)
