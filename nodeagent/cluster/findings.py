"""The findings of a diagnosis: subject, problem, evidence, owner, and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

Object = Mapping[str, Any]


class Code(StrEnum):
    """The problems that a diagnosis can find."""

    CONFIG_NOT_JSON = "config-not-json"
    NO_CONFIG = "no-config"
    NO_RESOURCE_ANNOTATION = "no-resource-annotation"
    NO_RESOURCE_IN_CONFIG = "no-resource-in-config"
    RESOURCE_MISMATCH = "resource-mismatch"
    RESOURCE_EMPTY = "resource-empty"
    RESOURCE_MISSING = "resource-missing"
    RESOURCE_UNKNOWN = "resource-unknown"
    NAMESPACE_MISSING = "namespace-missing"
    NAMESPACE_TERMINATING = "namespace-terminating"
    NO_ATTACHMENT = "no-attachment"
    OWNER_MISSING = "owner-missing"
    OVERWRITTEN = "overwritten"
    CONTROLLER_SILENT = "controller-silent"
    WEBHOOK_WITHOUT_ENDPOINTS = "webhook-without-endpoints"
    WEBHOOK_CA = "webhook-ca"
    OPERATOR_ABSENT = "operator-absent"


@dataclass(frozen=True)
class Finding:
    """One finding. `code` is for programs; `change` is the change to make at the owner."""

    subject: str
    code: Code
    evidence: str
    owner: str
    change: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.code}: {self.evidence}; owner: {self.owner}; {self.change}"


def spec_of(thing: Object) -> Object:
    """The object's spec; empty if it is missing or not an object (a CRD may have no schema)."""
    spec = thing.get("spec")
    return spec if isinstance(spec, dict) else {}


def chooses(selector: object, labels: Mapping[str, str]) -> bool:
    """Whether a nodeSelector matches the labels; an empty or missing one matches all nodes."""
    pairs = selector.items() if isinstance(selector, dict) else ()
    return all(labels.get(key) == value for key, value in pairs)


def age(stamp: str) -> float:
    """Seconds since a timestamp of the API server (RFC 3339)."""
    return (now() - datetime.fromisoformat(stamp)).total_seconds()


def last_change(thing: Object) -> str:
    """The time of the last change of the object, except for its status, by managedFields."""
    meta = thing["metadata"]
    times = [
        str(each["time"])
        for each in meta.get("managedFields", ())
        if "time" in each and "f:status" not in each.get("fieldsV1", {})
    ]
    return max([*times, str(meta["creationTimestamp"])], key=datetime.fromisoformat)


def is_terminating(thing: Object) -> bool:
    """Whether the object is being deleted, and waits for its finalizers."""
    return bool(thing["metadata"].get("deletionTimestamp"))


def name_of(thing: Object) -> str:
    """`namespace/name`, or `name` for what has no namespace."""
    meta = thing["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])


def now() -> datetime:
    """The present moment, UTC."""
    return datetime.now(UTC)
