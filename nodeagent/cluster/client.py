"""The API server, with manners: retries with jitter, Retry-After, one watch instead of polls.

The only module that imports `kubernetes`. Its dynamic client is used without its discovery (a
handful of requests and a cache file in /tmp), which nodeagent.cluster.kinds makes unnecessary.
Objects are plain dicts, as JSON has them.
"""

from __future__ import annotations

import json
import logging
import math
import random
import select
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import urllib3
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from kubernetes.dynamic.client import DynamicClient

from nodeagent.cluster import failures
from nodeagent.cluster.access import Access
from nodeagent.cluster.failures import Gone, Unreachable
from nodeagent.cluster.kinds import POD, Kind
from nodeagent.errors import ConfigError

Object = dict[str, Any]
Objects = Mapping[str, Object]
"""Objects of one kind by UID."""

MANAGER: Final = "nodeagent"
CONNECT: Final = 5.0
"""Seconds until a TCP connection is given up: a lost SYN is sent again after 1 s and 3 s."""
ANSWER: Final = 20.0
"""Seconds for one answer. The server itself ends a request after 60."""
FIRST: Final = 0.25
LONGEST: Final = 30.0
"""Seconds: the first pause of the exponential back-off is at most twice the first of these."""
WATCH: Final = 300.0
"""Seconds of one watch request, and up to twice that: 1000 nodes must not come back together."""
PAGE: Final = 500
RETRIED: Final = {408, 429, 500, 502, 503, 504}

log = logging.getLogger(__name__)


def _pause(seconds: float) -> None:
    # a signal's handler that raises ends it (PEP 475)
    select.select((), (), (), seconds)


@dataclass(frozen=True)
class Listing:
    """The objects of a kind that the selectors choose, by UID, as of a resourceVersion."""

    kind: Kind
    namespace: str | None
    labels: str
    fields: str
    objects: Objects
    version: str


@dataclass
class Traffic:
    """What a client has cost so far: requests sent, bytes of the answers' bodies."""

    requests: int = 0
    received: int = 0


@dataclass
class Client:
    """One connection to one API server.

    `patience` is how many seconds a single call may take, with all its retries. `pause` waits; a
    server that refused has no event to wait for, it has asked for time.
    """

    access: Access
    patience: float = 30.0
    pause: Callable[[float], None] = _pause
    traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        self._dynamic = DynamicClient(ApiClient(_configuration(self.access)), None, _NoDiscovery)
        self._dynamic.client.user_agent = "nodeagent"

    def get(self, kind: Kind, name: str, namespace: str | None = None) -> Object:
        """One object. NotFound when there is none, or no such kind."""
        what = f"read {_named(kind, name, namespace)}"
        return self._json(what, "get", kind.path(name, namespace))

    def list_all(
        self, kind: Kind, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        """All objects that the selectors choose, page by page."""
        listing = self.listing(kind, namespace, labels=labels, fields=fields)
        return [*listing.objects.values()]

    def listing(
        self, kind: Kind, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> Listing:
        """The same with the moment it is of, so that `follow_from` misses nothing after it."""
        return self._listed(Listing(kind, namespace, labels, fields, {}, ""))

    def create(self, kind: Kind, body: Object, namespace: str | None = None) -> Object:
        """Conflict when it exists."""
        what = f"create {_named(kind, body['metadata'].get('name', ''), namespace)}"
        path = kind.path(None, namespace)
        return self._json(what, "post", path, body=body, field_manager=MANAGER)

    def delete(self, kind: Kind, name: str, namespace: str, *, uid: str) -> None:
        """Delete exactly this object: Conflict when its name has gone to another by now."""
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
            field_manager=MANAGER,
        )

    def apply(
        self, kind: Kind, body: Object, namespace: str | None = None, *, dry_run: bool = False
    ) -> Object:
        """Server-side apply, taking over fields of others: what the body says shall be so."""
        name = body["metadata"]["name"]
        return self._json(
            f"apply {_named(kind, name, namespace)}",
            "patch",
            kind.path(name, namespace),
            # a string, since the library serialises bodies of JSON types only; JSON is YAML
            body=json.dumps(body),
            content_type="application/apply-patch+yaml",
            field_manager=MANAGER,
            force_conflicts="true",
            dry_run="All" if dry_run else None,
        )

    def log_lines(self, name: str, namespace: str, container: str, *, limit: int) -> list[str]:
        """The last lines of a container's log, each with the kubelet's timestamp before it.

        `limit` is in bytes, so that a chatty operator does not fill our memory.
        """
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
        """List, look, then look again at each change, by one watch. False at the deadline.

        `look` returns 0 when it has seen what it waits for, else the seconds after which it wants
        to look again without a change (math.inf: never). State is compared, not events counted:
        what happened while a watch was cut is found by listing anew.
        """
        listing = self.listing(kind, namespace, labels=labels, fields=fields)
        return self.follow_from(listing, look, timeout=timeout)

    def follow_from(
        self, listing: Listing, look: Callable[[Objects], float], *, timeout: float = math.inf
    ) -> bool:
        """`follow`, from a listing taken earlier: before something was done to its objects."""
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
                self.pause(max(0.0, min(_backoff(failed), left)))

    def _listed(self, what: Listing) -> Listing:
        """What `what` chooses, as it is now."""
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
                    limit=PAGE,
                    _continue=token,
                )
            except Gone:
                if token is None:
                    raise Unreachable(f"cannot list {what.kind}: the first page is gone") from None
                token, found = None, {}  # the pages took too long: from the first one again
                continue
            found.update({each["metadata"]["uid"]: each for each in page["items"]})
            token = page["metadata"].get("continue")
            if not token:
                version = page["metadata"]["resourceVersion"]
                return replace(what, objects=found, version=version)

    def _watched(
        self,
        what: Listing,
        version: str,
        objects: dict[str, Object],
        look: Callable[[Objects], float],
        seconds: float,
    ) -> str:
        """Keep `objects` up to date until `look` is content or `seconds` are over.

        Returns the resourceVersion to continue from. The server ends a watch after whole seconds.
        """
        kind = what.kind
        lasting = min(seconds, WATCH * (1 + random.random()))  # noqa: S311  jitter
        answer = self._open(
            f"watch {kind}",
            kind.path(None, what.namespace),
            lasting + CONNECT,
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

    def _json(self, what: str, method: str, path: str, **parameters: Any) -> Object:
        data = self._call(what, method, path, **parameters)
        try:
            plain = json.loads(data)
        except ValueError as error:
            raise Unreachable(f"cannot {what}: the answer is not JSON: {error}") from error
        if not isinstance(plain, dict):
            raise Unreachable(f"cannot {what}: the answer is no object")
        return plain

    def _call(self, what: str, method: str, path: str, **parameters: Any) -> bytes:
        """One call: sent again, later and later, while the server may yet do it."""
        deadline = time.monotonic() + self.patience
        attempt = 0
        while True:
            attempt += 1
            left = max(deadline - time.monotonic(), 0.1)
            try:
                data: bytes = self._send(method, path, min(left, ANSWER), **parameters).data
            except (ApiException, urllib3.exceptions.HTTPError, OSError) as error:
                wait = _worth_waiting(error, attempt)
                left = deadline - time.monotonic()
                if wait is None or wait >= left:
                    raise _failure(what, self.access, error) from error
                log.debug("cannot %s: %s; again in %.1f s", what, _brief(error), wait)
            else:
                self.traffic.received += len(data)
                return data
            self.pause(wait)

    def _open(self, what: str, path: str, timeout: float, **parameters: Any) -> Any:
        try:
            return self._send("get", path, timeout, **parameters)
        except ApiException as error:
            if error.status in RETRIED | {401}:
                raise Unreachable(f"cannot {what}: {_brief(error)}") from error
            raise _failure(what, self.access, error) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(f"cannot {what}: {_brief(error)}") from error

    def _send(self, method: str, path: str, timeout: float, **parameters: Any) -> Any:
        """The library's response, its body unread."""
        self.traffic.requests += 1
        if self.access.kubeconfig is None:
            self._dynamic.configuration.api_key["BearerToken"] = f"Bearer {self.access.token()}"
        return self._dynamic.request(
            method,
            path,
            serialize=False,
            _request_timeout=(min(timeout, CONNECT), timeout),
            **parameters,
        )


class _NoDiscovery:
    """Stands where the dynamic client would ask the server what it has."""

    def __init__(self, client: DynamicClient, cache_file: str | None) -> None:
        """The signature is the library's."""


def _configuration(access: Access) -> Configuration:
    configuration = Configuration(host=access.host, retries=False)
    if access.kubeconfig is None:
        if not access.certificate.is_file():
            raise Unreachable(
                f"there is no {access.certificate} to know the API server by",
                hint="the pod needs a ServiceAccount and automountServiceAccountToken",
            )
        configuration.ssl_ca_cert = str(access.certificate)
        return configuration
    # half a second of imports (oauth, exec plugins) that a pod never needs
    from kubernetes.config import kube_config  # noqa: PLC0415

    try:
        kube_config.load_kube_config(str(access.kubeconfig), client_configuration=configuration)
    except (ConfigException, OSError) as error:
        raise ConfigError(f"KUBECONFIG: {access.kubeconfig} cannot be used: {error}") from error
    return configuration


def _event(line: bytes) -> Object:
    """One line of a watch. Gone or Unreachable for what the server says went wrong."""
    try:
        event: Object = json.loads(line)
    except ValueError:
        raise Unreachable("a watch was cut in the middle of a line") from None
    if event["type"] != "ERROR":
        return event
    if event["object"].get("code") == 410:
        raise Gone
    raise Unreachable(f"a watch ended: {event['object'].get('message')}")


def _take_in(objects: dict[str, Object], event: Object) -> None:
    uid = event["object"]["metadata"].get("uid")
    if event["type"] in {"ADDED", "MODIFIED"}:
        objects[uid] = event["object"]
    elif event["type"] == "DELETED":
        objects.pop(uid, None)


def _worth_waiting(error: Exception, attempt: int) -> float | None:
    """Seconds until the call is worth sending again, None for never.

    429 and 503 say how long in Retry-After. A token that has expired is renewed on disk by the
    kubelet, at the latest a moment after it ran out: a 401 is worth three more looks.
    """
    pause = _backoff(attempt)
    if isinstance(error, ApiException) and error.status:
        if error.status == 401:
            return pause if attempt <= 3 else None
        if error.status not in RETRIED:
            return None
        asked = str((error.headers or {}).get("Retry-After") or "")
        return max(pause, float(asked) + random.random()) if asked.isdecimal() else pause  # noqa: S311  jitter
    return None if _is_untrusted(error) else pause


def _backoff(attempt: int) -> float:
    """Exponential, with jitter over its upper half."""
    ceiling = min(LONGEST, FIRST * float(2 ** min(attempt, 16)))
    return ceiling * random.uniform(0.5, 1)  # noqa: S311  jitter


def _failure(what: str, access: Access, error: Exception) -> Exception:
    """The failure that this error is."""
    where = access.host or f"the server of {access.kubeconfig}"
    status = error.status if isinstance(error, ApiException) else 0
    if status == 410:
        return Gone()
    if _is_untrusted(error):
        return failures.untrusted(what, where, _brief(error))
    if not status or status in RETRIED:
        return failures.unreachable(what, where, _brief(error))
    return failures.refusal(what, status, _brief(error))


def _brief(error: Exception) -> str:
    """What the server said in its Status, or the library in its exception, on one line."""
    if isinstance(error, ApiException) and error.body:
        try:
            plain = json.loads(error.body)
            return f"{error.status} {plain.get('reason', '')}: {plain.get('message', '')}"
        except (ValueError, AttributeError):
            return f"{error.status} {error.reason}"
    text = str(getattr(error, "reason", None) or error)
    return " ".join(text.split()) or type(error).__name__


def _is_untrusted(error: Exception) -> bool:
    return "certificate verify failed" in str(error).lower()


def _named(kind: Kind, name: str, namespace: str | None) -> str:
    return f"{kind.kind} " + (f"{namespace}/{name}" if namespace else name)
