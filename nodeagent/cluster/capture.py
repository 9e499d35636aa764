"""Save the objects that configure the SR-IOV operator to a file, and apply them after a reinstall.

The file is a `kind: List`, which kubectl can read. Fields that the server or a controller sets are
left out: status, uid, resourceVersion, managedFields, ownerReferences, finalizers. So are the
values of environment variables that look like secrets. A restore takes those values from the live
object; if it has none, the variable is left out and reported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from nodeagent.cluster import kinds
from nodeagent.cluster.client import Client, Object
from nodeagent.cluster.failures import NotFound
from nodeagent.cluster.findings import name_of
from nodeagent.cluster.kinds import Kind
from nodeagent.cluster.operators import namespace_of
from nodeagent.errors import DataError
from nodeagent.parse import object_name
from nodeagent.settings import Settings

ORDER: Final = (
    kinds.NAMESPACE,
    kinds.DIGEST_MIRRORS,
    kinds.CONTENT_POLICY,
    kinds.CATALOG_SOURCE,
    kinds.OPERATOR_GROUP,
    kinds.SUBSCRIPTION,
    kinds.SRIOV_CONFIG,
    kinds.SRIOV_POOL,
    kinds.SRIOV_POLICY,
    kinds.SRIOV_NETWORK,
    kinds.SRIOV_IB_NETWORK,
    kinds.OVS_NETWORK,
)
"""Image mirrors, then the catalogue, then the subscription, then the operator's configuration."""

WITHHELD: Final = "withheld"
_KEPT: Final = ("name", "namespace", "labels", "annotations")
_DROPPED: Final = re.compile(
    r"kubectl\.kubernetes\.io/last-applied-configuration|.*\.openshift\.io/(sa\.scc\..*|requester)"
)
_SERVER_LABELS: Final = re.compile(
    r"kubernetes\.io/metadata\.name|operators\.coreos\.com/.*|olm\..*"
)
_SECRET: Final = re.compile(r"pass|token|secret|credential|api_?key|private", re.IGNORECASE)
_USER_IN_URL: Final = re.compile(r"://[^/@\s]+@")


@dataclass(frozen=True)
class Captured:
    """The file's text, the number of objects, and the values left out as possible secrets."""

    text: str
    count: int
    withheld: tuple[str, ...]


class State(StrEnum):
    """The states of an object after a restore."""

    CREATED = "created"
    CHANGED = "changed"
    SAME = "same"
    DIFFERENT = "different"
    """It still differs from the file."""
    NOT_SERVED = "not served"
    """The cluster does not have its kind yet."""


@dataclass(frozen=True)
class Outcome:
    """The result for one object. `lines` are `path: before → after`."""

    name: str
    state: State
    lines: tuple[str, ...] = ()


def capture(client: Client, settings: Settings) -> Captured:
    """Read all objects of the kinds in ORDER: in the operator's namespace, or without one."""
    namespace = namespace_of(client, settings)
    if namespace is None:
        raise NotFound(
            f"there is no namespace {' or '.join(settings.operator_namespaces)}, so no operator",
            hint="set OPERATOR_NAMESPACES to the operator's namespace",
        )
    withheld: list[str] = []
    items = []
    for kind in ORDER:
        for each in _all(client, kind, namespace):
            plain = stripped(each, kind)
            items.append(_without_secrets(plain, f"{kind.kind} {name_of(plain)}", withheld))
    document = {"apiVersion": "v1", "kind": "List", "items": items}
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    return Captured(text, len(items), tuple(withheld))


def restore(client: Client, text: str, source: str, *, dry_run: bool) -> Iterator[Outcome]:
    """Apply the file's objects in order; one outcome for each. DataError for another file."""
    for kind, plain in parse(text, source):
        yield _restore(client, kind, plain, dry_run=dry_run)


def parse(text: str, source: str) -> Sequence[tuple[Kind, Object]]:
    """The objects of a captured file, in the order of their restoration."""
    by_kind = {(kind.api_version, kind.kind): kind for kind in ORDER}
    try:
        items = json.loads(text)["items"]
        found = [(by_kind[each["apiVersion"], each["kind"]], each) for each in items]
        for _, each in found:
            # they become part of a request's path
            object_name(each["metadata"]["name"])
            object_name(each["metadata"].get("namespace", "default"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{source} was not written by `nodeagent operator capture`: {error!r}",
            hint="nothing was changed",
        ) from None
    return sorted(found, key=lambda pair: ORDER.index(pair[0]))


def stripped(thing: Mapping[str, Any], kind: Kind) -> Object:
    """The object without the fields that the server or a controller sets."""
    meta = {key: thing["metadata"][key] for key in _KEPT if thing["metadata"].get(key)}
    for key, pattern in (("annotations", _DROPPED), ("labels", _SERVER_LABELS)):
        kept = {k: v for k, v in meta.pop(key, {}).items() if not pattern.fullmatch(k)}
        if kept:
            meta[key] = kept
    content = {
        key: value
        for key, value in thing.items()
        if key not in {"metadata", "status", "kind", "apiVersion"}
    }
    if kind == kinds.NAMESPACE:
        content = {}
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, **content}


def diff(before: object, after: object, path: str = "") -> Iterator[str]:
    """`path: before → after` for each leaf that differs; a list is one leaf."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from diff(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
    elif before != after:
        yield f"{path}: {_brief(before)} → {_brief(after)}"


def _restore(client: Client, kind: Kind, plain: Object, *, dry_run: bool) -> Outcome:
    name, namespace = plain["metadata"]["name"], plain["metadata"].get("namespace")
    before = _live(client, kind, name, namespace)
    unknown: list[str] = []
    plain = _with_secrets(plain, before, unknown)
    outcome = _applied(client, kind, plain, before, dry_run=dry_run)
    if unknown and outcome.state != State.NOT_SERVED:
        return Outcome(outcome.name, State.DIFFERENT, (*outcome.lines, *unknown))
    return outcome


def _applied(
    client: Client, kind: Kind, plain: Object, before: Object | None, *, dry_run: bool
) -> Outcome:
    name, namespace = plain["metadata"]["name"], plain["metadata"].get("namespace")
    title = f"{kind.kind} {name_of(plain)}"
    if before is not None and not [*diff(_within(before, plain), plain)]:
        extra = tuple(diff(plain, before))
        return Outcome(title, State.DIFFERENT if extra else State.SAME, extra)
    if before is None and dry_run:
        return Outcome(title, State.CREATED)
    try:
        client.apply(kind, plain, namespace, dry_run=dry_run)
    except NotFound:
        return Outcome(title, State.NOT_SERVED)
    after = plain if dry_run else _live(client, kind, name, namespace)
    left = tuple(diff(plain, after))
    if left:
        return Outcome(title, State.DIFFERENT, left)
    state = State.CREATED if before is None else State.CHANGED
    return Outcome(title, state, tuple(diff(before or {}, plain)))


def _live(client: Client, kind: Kind, name: str, namespace: str | None) -> Object | None:
    try:
        return stripped(client.get(kind, name, namespace), kind)
    except NotFound:
        return None


def _within(have: object, want: object) -> object:
    """`have` reduced to the fields that `want` has."""
    if isinstance(have, dict) and isinstance(want, dict):
        return {key: _within(have[key], value) for key, value in want.items() if key in have}
    return have


def _all(client: Client, kind: Kind, namespace: str) -> list[Object]:
    if kind == kinds.NAMESPACE:
        return [client.get(kind, namespace)]
    return sorted(client.list_served(kind, namespace if kind.namespaced else None), key=name_of)


def _without_secrets(thing: Object, title: str, withheld: list[str]) -> Object:
    """`thing` without the values of environment variables that look like a secret."""

    def clean(value: Any) -> Any:
        if _is_secret(value):
            withheld.append(f"{title}: env {value['name']}")
            return {"name": value["name"], WITHHELD: True}
        if isinstance(value, dict):
            return {key: clean(each) for key, each in value.items()}
        return [clean(each) for each in value] if isinstance(value, list) else value

    cleaned: Object = clean(thing)
    return cleaned


def _with_secrets(value: Any, live: Any, unknown: list[str]) -> Any:
    """The reverse: take withheld values from the live object, or name them in `unknown`."""
    if isinstance(value, dict):
        of = live if isinstance(live, dict) else {}
        return {key: _with_secrets(each, of.get(key), unknown) for key, each in value.items()}
    if not isinstance(value, list):
        return value
    known = {e["name"]: e for e in live or () if isinstance(e, dict) and "name" in e}
    found = []
    for each in value:
        if not (isinstance(each, dict) and WITHHELD in each):
            found.append(_with_secrets(each, None, unknown))
        elif each["name"] in known:
            found.append(known[each["name"]])
        else:
            unknown.append(f"env {each['name']}: its value was withheld; set it by hand")
    return found


def _is_secret(entry: object) -> bool:
    """Whether an `env:` entry has a literal value that looks like a secret."""
    if not isinstance(entry, dict) or not isinstance(entry.get("value"), str):
        return False
    name = str(entry.get("name", ""))
    return bool(_SECRET.search(name) or _USER_IN_URL.search(entry["value"]))


def _brief(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else text[:77] + "..."
