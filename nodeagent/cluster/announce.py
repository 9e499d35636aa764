"""What happened to the node's driver, said to the cluster: Events, a condition, annotations.

Pods whose interfaces could not be kept get an Event of their own, in their namespace.

The journal is the queue. What was said last is remembered beside it, so that what could not be said
while the API server was away is said later, in order, and once: an Event's name comes from what it
says, and an Event that is there already is counted up, unless it was this very record that it told.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from nodeagent import durable
from nodeagent.cluster.client import FIELD_MANAGER, Client, Object
from nodeagent.cluster.failures import Conflict, NotFound
from nodeagent.cluster.kinds import EVENT, NODE, POD
from nodeagent.record.journal import POD_INTERFACE_LOST, Record
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

EVENT_NAMESPACE: Final = "default"
"""Where Events about objects without a namespace belong (pkg/apis/core/validation/events.go)."""
CONDITION: Final = "NicDriverReady"
PREFIX: Final = "nodeagent"
MAX_EVENT_AGE: Final = timedelta(days=1)
MAX_MESSAGE_LENGTH: Final = 1000
"""Characters of an Event's message; the server takes 1024."""

_FAILED: Final = {
    "restore": "VFRestoreFailed",
    "verify": "VFRestoreFailed",
    "preflight": "DriverReloadRefused",
}


@dataclass(frozen=True)
class Pod:
    """Whom an Event is about; `uid` is empty where it is not known."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True)
class DriverEvent:
    """One thing to say: `reason` is a code that people search for; `key` tells records apart.

    It is about the node, or about a pod on it.
    """

    reason: str
    message: str
    at: str
    key: str
    pod: Pod | None = None

    @property
    def is_warning(self) -> bool:
        """A failure."""
        return self.reason.endswith(("Failed", "Refused", "Lost"))


@dataclass(frozen=True)
class Announced:
    """What the cluster has been told: the last event, and the state that the node shows."""

    at: str = ""
    key: str = ""
    state: str = ""


def driver_events(records: Sequence[Record]) -> tuple[DriverEvent, ...]:
    """What is worth saying, in order."""
    return tuple(_driver_events(records))


def announce(client: Client, settings: Settings, node: str, records: Sequence[Record]) -> int:
    """Say what has not been said yet; the number of Events.

    Raises what the client raises; what was said until then stays said.
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
    """The node's condition after the last thing that happened."""
    ready = last.reason == "DriverReady"
    return {
        "type": CONDITION,
        "status": "True" if ready else "False",
        "reason": last.reason,
        "message": last.message,
        "lastTransitionTime": _seconds(last.at),
        "lastHeartbeatTime": _seconds(last.at),
    }


def last_reload(records: Sequence[Record]) -> dict[str, str]:
    """srcversion of the loaded driver, when it was last reloaded, and how long that took."""
    shown: dict[str, str] = {}
    began: Record | None = None
    for record in records:
        if record.name == "srcversion" and record.facts.get("checkpoint") == "loaded":
            modules = {k: v for k, v in record.facts.items() if k != "checkpoint"}
            shown[f"{PREFIX}/srcversion"] = next(iter(modules.values()), "none")
        elif record.kind == "start" and record.name == "restart":
            began = began or record
        elif record.kind == "note" and record.name == "ready":
            if began is not None:
                shown[f"{PREFIX}/last-reload"] = record.at
                if began.boot == record.boot:
                    shown[f"{PREFIX}/last-reload-seconds"] = f"{record.clock - began.clock:.1f}"
            began = None
    return shown


def _driver_events(records: Sequence[Record]) -> Iterator[DriverEvent]:
    for record in records:
        if record.kind == "start" and record.name == "restart":
            yield _driver_event(record, "DriverReloadStarted", "the NIC driver is being reloaded")
        elif record.kind == "failed":
            message = f"{record.name} failed: {record.facts.get('message', 'no message')}"
            yield _driver_event(record, _FAILED.get(record.name, "DriverReloadFailed"), message)
        elif record.kind == "note" and record.name == "ready":
            yield _driver_event(
                record, "DriverReady", "the NIC driver is loaded, the VFs are right"
            )
        elif record.kind == "note" and record.name == POD_INTERFACE_LOST:
            pod = Pod(*(record.facts.get(key, "") for key in ("namespace", "pod", "uid")))
            if pod.uid or (pod.namespace and pod.name):
                message = record.facts.get("message", "an interface was lost with the NIC driver")
                yield _driver_event(record, "PodInterfaceLost", message, pod)


def _driver_event(record: Record, reason: str, message: str, pod: Pod | None = None) -> DriverEvent:
    cut = message if len(message) <= MAX_MESSAGE_LENGTH else message[: MAX_MESSAGE_LENGTH - 1] + "…"
    about = f"{pod.namespace}/{pod.name or pod.uid}" if pod else ""
    # several records may be of the same millisecond
    what = hashlib.sha256(f"{reason}\n{message}\n{about}".encode()).hexdigest()[:8]
    return DriverEvent(reason, cut, record.at, f"{record.run}-{record.clock}-{what}", pod)


def _unannounced(found: Sequence[DriverEvent], said: Announced) -> Sequence[DriverEvent]:
    """Those after the last that was said; by time when that has left the journal."""
    oldest = (datetime.now(UTC) - MAX_EVENT_AGE).isoformat()
    keys = [each.key for each in found]
    if said.key in keys:
        return found[keys.index(said.key) + 1 :]
    return [each for each in found if each.at > max(said.at, oldest)]


def _named(client: Client, node: str, event: DriverEvent) -> DriverEvent:
    """The same with its pod's name, where a cgroup told only its UID; no pod: it is gone."""
    pod = event.pod
    if pod is None or pod.name:
        return event
    for each in client.list_all(POD, fields=f"spec.nodeName={node}"):
        meta = each["metadata"]
        if meta["uid"] == pod.uid:
            return replace(event, pod=Pod(meta["namespace"], meta["name"], pod.uid))
    return event


def _create(client: Client, node: str, event: DriverEvent) -> None:
    """One Event; one that says the same is counted up, but for the same record only once.

    A pod that is gone with its namespace by now needs none.
    """
    if event.pod is not None and not event.pod.name:
        log.info("nobody to tell of %s: no pod here has the UID", event.reason)
        return
    body = _event(node, event)
    try:
        client.create(EVENT, body, body["metadata"]["namespace"])
    except Conflict:
        _count_up(client, body)
    except NotFound as error:
        if event.pod is None:
            raise
        log.info("nobody to tell of %s: %s", event.reason, error.message)
        return
    log.info("told the cluster: %s", event.reason)


def _event(node: str, event: DriverEvent) -> Object:
    """An Event about the node in the namespace `default`, or about a pod in the pod's own."""
    pod = event.pod
    # the node's name as its UID, as the kubelet does: `kubectl describe node` looks for that
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
    """The Event is there already; for the record that it told already it stays as it is."""
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
    """What the node shall show: its condition and annotations, as far as they are wanted."""
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
    """What was said. A file that is none means nothing was: to say it twice does no harm."""
    data = durable.read_own(path)
    try:
        return Announced(**json.loads(data)) if data else Announced()
    except (ValueError, TypeError):
        log.warning("%s is damaged; Events may be counted twice", path)
        return Announced()


def _save(path: Path, said: Announced) -> None:
    durable.make_directory(path.parent, 0o700)
    durable.replace(path, json.dumps(asdict(said)).encode() + b"\n", 0o600)
