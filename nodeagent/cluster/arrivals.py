"""Wait for networks: until each one exists, is complete, and has been stable for a moment.

One watch serves all of them. The error on time-out names the known causes that apply.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from nodeagent.cluster import kinds, operators
from nodeagent.cluster.client import Client, Object, Objects
from nodeagent.cluster.failures import Forbidden, NotFound
from nodeagent.cluster.findings import Code, age, is_terminating, last_change, name_of, spec_of
from nodeagent.cluster.networks import incomplete, owner
from nodeagent.cluster.operators import OperatorState
from nodeagent.errors import WaitTimeout
from nodeagent.settings import Settings

STABLE_SECONDS: Final = 1.0
"""How long a complete network must stay unchanged; an operator overwrites one within 20 ms."""


@dataclass(frozen=True)
class Arrival:
    """A complete network: the seconds from the start of the wait until it was complete."""

    name: str
    seconds: float


@dataclass
class _Progress:
    """What one network lacks, or since when and in which version it is complete."""

    missing: str = "does not exist"
    version: str = ""
    since: float = 0.0


def wait(
    client: Client, settings: Settings, names: Sequence[str], namespace: str, *, timeout: float
) -> tuple[Arrival, ...]:
    """Return when all networks are complete. WaitTimeout names the others and the likely causes."""
    began = time.monotonic()
    progress = {name: _Progress() for name in names}

    def look(objects: Objects) -> float:
        moment = time.monotonic()
        by_name = {each["metadata"]["name"]: each for each in objects.values()}
        for name, known in progress.items():
            _update(known, by_name.get(name), moment)
        return max(_remaining(known, moment) for known in progress.values())

    fields = f"metadata.name={names[0]}" if len(names) == 1 else ""
    done = client.follow(
        kinds.NETWORK_ATTACHMENT, look, namespace=namespace, timeout=timeout, fields=fields
    )
    late = {name: known.missing for name, known in progress.items() if known.missing}
    if not done:
        raise _late(client, settings, late or dict.fromkeys(names, "changes"), namespace, timeout)
    return tuple(Arrival(name, known.since - began) for name, known in progress.items())


def _update(known: _Progress, attachment: Object | None, moment: float) -> None:
    if attachment is None:
        known.missing, known.version = "does not exist", ""
        return
    if is_terminating(attachment):
        held = ", ".join(attachment["metadata"].get("finalizers", ())) or "its removal"
        known.missing, known.version = f"is being deleted (waiting for {held})", ""
        return
    trouble = incomplete(attachment)
    if not spec_of(attachment).get("config"):
        trouble = [(Code.NO_CONFIG, "no spec.config", "")]
    known.missing = f"incomplete: {trouble[0][1]} (owner: {owner(attachment)})" if trouble else ""
    version = str(attachment["metadata"]["resourceVersion"])
    if version != known.version:
        known.version, known.since = version, moment


def _remaining(known: _Progress, moment: float) -> float:
    return float("inf") if known.missing else max(0.0, known.since + STABLE_SECONDS - moment)


def _late(
    client: Client, settings: Settings, late: dict[str, str], namespace: str, timeout: float
) -> WaitTimeout:
    missing = [f"{namespace}/{name} {why}" for name, why in late.items()]
    try:
        causes = [*_causes(client, settings, set(late), namespace)]
    except Forbidden as error:
        causes = [f"cannot look for the causes: {error.message}"]
    said = WaitTimeout("networks", missing, timeout)
    said.hint = "; ".join(causes) or "no known cause applies; see `nodeagent operator check`"
    return said


def _causes(client: Client, settings: Settings, names: set[str], namespace: str) -> Iterator[str]:
    """The known causes that apply, the most certain one first."""
    try:
        space = client.get(kinds.NAMESPACE, namespace)
    except NotFound:
        yield f"the namespace {namespace} does not exist: create it"
        return
    if is_terminating(space):
        yield f"the namespace {namespace} is being deleted: use another, or wait until it is gone"
        return
    try:
        networks = client.list_all(kinds.SRIOV_NETWORK)
    except NotFound:
        yield "the cluster has no SriovNetwork: the operator is not installed"
        return
    asked = {
        name: each
        for each in networks
        for space_name, name in [operators.target(each)]
        if space_name == namespace and name in names
    }
    for name in sorted(names - asked.keys()):
        yield f"no SriovNetwork defines {namespace}/{name}"
    for network in asked.values():
        where = network["metadata"]["namespace"]
        if where not in settings.operator_namespaces:
            yield f"SriovNetwork {name_of(network)} is not in the operator's namespace"
    if asked:
        yield from _operator_causes(client, settings, [*asked.values()])


def _operator_causes(
    client: Client, settings: Settings, networks: Sequence[Object]
) -> Iterator[str]:
    verdict = operators.check(client, settings)
    yield from map(str, verdict.findings)
    if verdict.state == OperatorState.SLOW:
        waits = max(age(last_change(each)) for each in networks)
        yield f"the operator is slow: {waits:.0f} s so far; 30 to 120 s have been observed"
