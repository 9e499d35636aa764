"""A client of the API server: objects by kind, changes, and watches.

Objects are plain dicts, as decoded from JSON.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import urllib3

from nodeagent.cluster.connection import CONNECT_TIMEOUT, Connection, backoff
from nodeagent.cluster.failures import Gone, NotFound, Unreachable
from nodeagent.cluster.kinds import POD, Kind

Object = dict[str, Any]
Objects = Mapping[str, Object]
"""Objects of one kind by UID."""

FIELD_MANAGER: Final = "nodeagent"
WATCH_SECONDS: Final = 300.0
"""The least duration of a watch request; a random time of up to as much again is added, so that
1000 nodes do not reconnect at once."""
PAGE_SIZE: Final = 500

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The objects of a kind that match the selectors, by UID, as of a resourceVersion.

    `cached`: from the server's watch cache, which may be slightly stale. Otherwise the server reads
    all objects of the kind from etcd to find the few that match.
    """

    kind: Kind
    namespace: str | None
    labels: str
    fields: str
    cached: bool
    objects: Objects
    version: str


class Client(Connection):
    """A connection with requests by kind, name and namespace."""

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        """One object. NotFound if it, or its kind, does not exist."""
        what = f"read {_named(kind, name, namespace)}"
        return self._json(what, "get", kind.path(name, namespace))

    def list_all(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        cached: bool = False,
    ) -> list[Object]:
        """All objects that match the selectors, read page by page."""
        listing = self.listing(kind, namespace, labels=labels, fields=fields, cached=cached)
        return [*listing.objects.values()]

    def list_served(self, kind: Kind, namespace: str | None = None) -> list[Object]:
        """All objects of a kind; none if the cluster does not have the kind."""
        try:
            return self.list_all(kind, namespace)
        except NotFound:
            return []

    def listing(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        cached: bool = False,
    ) -> Listing:
        """The same with its resourceVersion, from which `follow_from` can start a watch."""
        return self._listed(Listing(kind, namespace, labels, fields, cached, {}, ""))

    def create(self, kind: Kind, body: Object, namespace: str | None = None) -> Object:
        """Create an object. Conflict if it exists."""
        what = f"create {_named(kind, body['metadata'].get('name', ''), namespace)}"
        path = kind.path(None, namespace)
        return self._json(what, "post", path, body=body, field_manager=FIELD_MANAGER)

    def delete(self, kind: Kind, name: str, namespace: str, *, uid: str) -> None:
        """Delete the object with this UID. Conflict if another one has the name by now."""
        body = {"preconditions": {"uid": uid}}
        what = f"delete {_named(kind, name, namespace)}"
        self._json(what, "delete", kind.path(name, namespace), body=body)

    def merge(
        self,
        kind: Kind,
        name: str,
        body: Object,
        namespace: str | None = None,
        *,
        status: bool = False,
    ) -> Object:
        """Strategic merge patch of the object, or of its status."""
        path = kind.path(name, namespace) + ("/status" if status else "")
        return self._json(
            f"change {_named(kind, name, namespace)}",
            "patch",
            path,
            body=body,
            content_type="application/strategic-merge-patch+json",
            field_manager=FIELD_MANAGER,
        )

    def apply(
        self, kind: Kind, body: Object, namespace: str | None = None, *, dry_run: bool = False
    ) -> Object:
        """Server-side apply, which takes fields over from other managers."""
        name = body["metadata"]["name"]
        return self._json(
            f"apply {_named(kind, name, namespace)}",
            "patch",
            kind.path(name, namespace),
            # a string, because the library serialises bodies of JSON types only; JSON is YAML
            body=json.dumps(body),
            content_type="application/apply-patch+yaml",
            field_manager=FIELD_MANAGER,
            force_conflicts="true",
            dry_run="All" if dry_run else None,
        )

    def log_lines(self, name: str, namespace: str, container: str, *, limit: int) -> list[str]:
        """The end of a container's log, at most `limit` bytes, with the kubelet's timestamps."""
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/log"
        query = [("container", container), ("timestamps", "true"), ("tailLines", "5000")]
        query.append(("limitBytes", str(limit)))
        what = f"read the log of {_named(POD, name, namespace)}"
        text = self._call(what, "get", path, query_params=query).decode(errors="replace")
        return text.splitlines()

    def follow(
        self,
        kind: Kind,
        look: Callable[[Objects], float],
        *,
        timeout: float = math.inf,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
    ) -> bool:
        """List the objects, and call `look` now and after each change. False at the deadline.

        `look` returns 0 if it has seen what it waits for, else the seconds after which to call it
        even without a change (math.inf: never). It is given the state of the objects, not events:
        changes during an interruption of the watch are found by listing again.
        """
        listing = self.listing(kind, namespace, labels=labels, fields=fields)
        return self.follow_from(listing, look, timeout=timeout)

    def follow_from(
        self, listing: Listing, look: Callable[[Objects], float], *, timeout: float = math.inf
    ) -> bool:
        """The same from an earlier listing, such as one from before a change of its objects."""
        deadline = time.monotonic() + timeout
        objects = dict(listing.objects)
        version: str | None = listing.version
        failed = 0
        while True:
            rest = look(objects)
            left = deadline - time.monotonic()
            if rest <= 0:
                return True
            if left <= 0:
                return False
            try:
                if version is None:
                    found = self._listed(listing)
                    objects, version = dict(found.objects), found.version
                    continue
                version = self._watched(listing, version, objects, look, min(rest, left))
                failed = 0
            except Gone:
                version = None
            except Unreachable as error:
                failed += 1
                version = version if failed == 1 else None
                left = deadline - time.monotonic()
                log.debug("%s", error.message)
                self.pause(max(0.0, min(max(backoff(failed), error.after), left)))

    def _listed(self, what: Listing) -> Listing:
        """A present listing with the kind and selectors of `what`."""
        path, token = what.kind.path(None, what.namespace), None
        found: dict[str, Object] = {}
        while True:
            try:
                page = self._json(
                    f"list {what.kind}" + (f" in {what.namespace}" if what.namespace else ""),
                    "get",
                    path,
                    label_selector=what.labels or None,
                    field_selector=what.fields or None,
                    resource_version="0" if what.cached and token is None else None,
                    limit=PAGE_SIZE,
                    _continue=token,
                )
            except Gone:
                if token is None:
                    raise Unreachable(f"cannot list {what.kind}: the first page is gone") from None
                token, found = None, {}  # the continue token has expired: start again
                continue
            try:
                found.update({each["metadata"]["uid"]: each for each in page["items"] or ()})
                token = page["metadata"].get("continue")
                version = str(page["metadata"]["resourceVersion"])
            except (KeyError, TypeError, AttributeError) as error:
                raise Unreachable(f"cannot list {what.kind}: the answer is not a list") from error
            if not token:
                return replace(what, objects=found, version=version)

    def _watched(
        self,
        what: Listing,
        version: str,
        objects: dict[str, Object],
        look: Callable[[Objects], float],
        seconds: float,
    ) -> str:
        """Keep `objects` up to date until `look` returns 0 or `seconds` have passed.

        Returns the resourceVersion to continue from. The server's time limits are whole seconds.
        """
        kind = what.kind
        lasting = min(seconds, WATCH_SECONDS * (1 + random.random()))  # noqa: S311  jitter
        answer = self._open(
            f"watch {kind}",
            kind.path(None, what.namespace),
            lasting + CONNECT_TIMEOUT,
            watch="true",
            resource_version=version,
            label_selector=what.labels or None,
            field_selector=what.fields or None,
            allow_watch_bookmarks="true",
            timeout_seconds=max(1, math.ceil(lasting)),
        )
        until = time.monotonic() + lasting
        try:
            for line in answer:
                self.traffic.received += len(line)
                event = _event(line)
                version = event["object"]["metadata"]["resourceVersion"]
                _take_in(objects, event)
                if event["type"] != "BOOKMARK":
                    rest = look(objects)
                    if rest <= 0 or rest < until - time.monotonic():
                        return version
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(f"cannot watch {kind}: {error}") from error
        finally:
            answer.close()
        return version


def _event(line: bytes) -> Object:
    """The event in one line of a watch. Gone or Unreachable if the server reports an error."""
    try:
        event: Object = json.loads(line)
        kind, about = event["type"], event["object"]
        if kind == "ERROR":
            code, said = about.get("code"), about.get("message")
        else:
            _ = about["metadata"]["resourceVersion"]
            _ = kind == "BOOKMARK" or about["metadata"]["uid"]
    except ValueError:
        raise Unreachable("a watch was interrupted in the middle of a line") from None
    except (KeyError, TypeError, AttributeError):
        raise Unreachable("a watch returned something that is not an event") from None
    if kind != "ERROR":
        return event
    if code == 410:
        raise Gone
    raise Unreachable(f"a watch ended: {said}")


def _take_in(objects: dict[str, Object], event: Object) -> None:
    uid = event["object"]["metadata"].get("uid")
    if event["type"] in {"ADDED", "MODIFIED"}:
        objects[uid] = event["object"]
    elif event["type"] == "DELETED":
        objects.pop(uid, None)


def _named(kind: Kind, name: str, namespace: str | None) -> str:
    return f"{kind.kind} " + (f"{namespace}/{name}" if namespace else name)
