"""What a reinstalled operator needs to be what it was: kept in a file, put back by apply.

The file is a `kind: List` that kubectl reads too. What the server or a controller populates never
travels: status, uid, resourceVersion, managedFields, ownerReferences, finalizers. Nothing secret
does either: environment variables that look like one keep their name and lose their value. Put
back, they take the value that is there, or are left out and named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
"""Images before the catalogue, the catalogue before who installs from it, then what it is told."""

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
    """The file's text, the number of objects, and what was left out because it may be secret."""

    text: str
    count: int
    withheld: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of one object: `state` is created, changed, same, different or not served.

    `lines` are `path: was → is`; after `different` the path still differs from the file.
    """

    name: str
    state: str
    lines: tuple[str, ...] = ()


def capture(client: Client, settings: Settings) -> Captured:
    """Everything of ORDER that there is: in the operator's namespace, or in none."""
    namespace = namespace_of(client, settings)
    if namespace is None:
        raise NotFound(
            f"no namespace {' or '.join(settings.operator_namespaces)}: there is no operator",
            hint="OPERATOR_NAMESPACES says where to look",
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
    """Apply the file's objects in order, one outcome each. DataError for a file that is none."""
    for kind, plain in parse(text, source):
        yield _restore(client, kind, plain, dry_run=dry_run)


def parse(text: str, source: str) -> Sequence[tuple[Kind, Object]]:
    """The objects of a captured file, in the order in which they go back."""
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
            f"{source} is no file of `nodeagent operator capture`: {error!r}",
            hint="nothing was changed",
        ) from None
    return sorted(found, key=lambda pair: ORDER.index(pair[0]))


def stripped(thing: Mapping[str, Any], kind: Kind) -> Object:
    """The object without what the server or a controller put there."""
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
    if unknown and outcome.state != "not served":
        return Outcome(outcome.name, "different", (*outcome.lines, *unknown))
    return outcome


def _applied(
    client: Client, kind: Kind, plain: Object, before: Object | None, *, dry_run: bool
) -> Outcome:
    name, namespace = plain["metadata"]["name"], plain["metadata"].get("namespace")
    title = f"{kind.kind} {name_of(plain)}"
    if before is not None and not [*diff(_within(before, plain), plain)]:
        extra = tuple(diff(plain, before))
        return Outcome(title, "different" if extra else "same", extra)
    if before is None and dry_run:
        return Outcome(title, "created")
    try:
        client.apply(kind, plain, namespace, dry_run=dry_run)
    except NotFound:
        return Outcome(title, "not served")
    after = plain if dry_run else _live(client, kind, name, namespace)
    left = tuple(diff(plain, after))
    if left:
        return Outcome(title, "different", left)
    return Outcome(
        title, "created" if before is None else "changed", tuple(diff(before or {}, plain))
    )


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
    try:
        if kind == kinds.NAMESPACE:
            return [client.get(kind, namespace)]
        found = client.list_all(kind, namespace if kind.namespaced else None)
    except NotFound:
        return []  # a kind that this cluster does not know
    return sorted(found, key=name_of)


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
    """The reverse: what was withheld is what is there now, or goes to `unknown`."""
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
            unknown.append(f"env {each['name']}: its value was withheld, set it by hand")
    return found


def _is_secret(entry: object) -> bool:
    """An `env:` entry with a literal value; a reference to a Secret holds none."""
    if not isinstance(entry, dict) or not isinstance(entry.get("value"), str):
        return False
    name = str(entry.get("name", ""))
    return bool(_SECRET.search(name) or _USER_IN_URL.search(entry["value"]))


def _brief(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else text[:77] + "..."
