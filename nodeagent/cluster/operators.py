"""Diagnosis of the SR-IOV operator: is its controller working, or silent after a restart?

The known failure: after a restart the log has "Starting workers" but no "Reconciling" and no error,
and new networks get no NetworkAttachmentDefinition. A controller that starts reconciles every
object once, so a silent one can be recognised within seconds.
"""

from __future__ import annotations

import math
import re
import ssl
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from nodeagent.cluster import kinds
from nodeagent.cluster.client import Client, Object, Objects
from nodeagent.cluster.failures import Forbidden, NotFound, Refused, Unreachable
from nodeagent.cluster.findings import (
    Code,
    Finding,
    age,
    is_terminating,
    last_change,
    name_of,
    now,
    spec_of,
)
from nodeagent.settings import Settings

NOTICE_SECONDS: Final = 10.0
"""How long a working controller may take to notice an object. Usually it takes 2 to 3 s."""
SLOW_SECONDS: Final = 120.0
"""The longest time that a working controller was observed to take."""
CHECK_SECONDS: Final = 25.0
"""The time limit of a check. A silent controller must be reported within 30 s."""
LOG_LIMIT_BYTES: Final = 4 * 1024 * 1024
OPERATOR_LABEL: Final = "name=sriov-network-operator"

_STARTING = re.compile(r"Starting workers", re.IGNORECASE)
_RECONCILING = re.compile(r"\bReconciling\b.*SriovNetwork\b|\bReconciling SriovNetwork\b")
_CONTROLLER = re.compile(r"""\bcontroller(?:Kind)?["']?\s*[:=]\s*["']?(\w+)""")


class OperatorState(StrEnum):
    """The states of an operator."""

    WORKING = "working"
    SLOW = "slow"
    SILENT = "silent"
    ABSENT = "absent"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Log:
    """The content of the log: when the workers started, and how often they reconciled since then.

    `started` is None if the log does not reach back to the start, or could not be read (`trouble`).
    """

    started: datetime | None
    reconciled: int
    trouble: str = ""


@dataclass(frozen=True)
class Verdict:
    """The judgement on an operator; `evidence` are lines for people."""

    state: OperatorState
    namespace: str
    evidence: tuple[str, ...]
    findings: tuple[Finding, ...]


def check(client: Client, settings: Settings, *, within: float = CHECK_SECONDS) -> Verdict:
    """Judge the operator. Raises Forbidden or Unreachable if the cluster gives no information."""
    deadline = time.monotonic() + within
    namespace = namespace_of(client, settings)
    if namespace is None:
        return _absent(", ".join(settings.operator_namespaces), "no such namespace")
    pods = [
        pod
        for pod in client.list_all(kinds.POD, namespace, labels=OPERATOR_LABEL)
        if not is_terminating(pod)
    ]
    if not pods:
        return _absent(namespace, f"no pod with {OPERATOR_LABEL}")
    leases = client.list_all(kinds.LEASE, namespace)
    pod = _leader(pods, leases)
    networks = _networks(client, namespace)
    log = _read_log(client, pod)
    waiting, unanswered = _wait_for_networks(client, networks, log, deadline)
    if networks and not log.reconciled:
        log = _read_log(client, pod)  # it may have reconciled during the wait
    evidence = (
        *_pod_evidence(pod),
        *_lease_evidence(leases, pod),
        *_log_evidence(log),
        *_event_evidence(client, namespace),
        *(f"{name_of(each)}: {_since(each):.0f} s without effect" for each in waiting),
        *(
            f"{name_of(each)}: changed {_since(each):.0f} s ago, its NetworkAttachmentDefinition "
            "was not"
            for each in unanswered
        ),
    )
    state = _state(log, waiting, pod, has_work=bool(networks))
    findings = [*_webhook_findings(client, namespace)]
    if state == OperatorState.SILENT:
        findings.insert(0, _silent(pod, log, [*waiting, *unanswered]))
    return Verdict(state, namespace, evidence, tuple(findings))


def namespace_of(client: Client, settings: Settings) -> str | None:
    """The operator's namespace: the first one of OPERATOR_NAMESPACES that exists."""
    for name in settings.operator_namespaces:
        try:
            client.get(kinds.NAMESPACE, name)
        except NotFound:
            continue
        return name
    return None


def read_log(lines: Sequence[str]) -> Log:
    """The log since the last start of the SriovNetwork controller's workers.

    Each line begins with the kubelet's timestamp: `2025-11-11T12:43:30.447698451Z message`.
    """
    started: datetime | None = None
    reconciled = 0
    for line in lines:
        stamp, _, message = line.partition(" ")
        if _STARTING.search(message) and _is_ours(message):
            started, reconciled = _time(stamp) or started, 0
        elif _RECONCILING.search(message):
            reconciled += 1
    return Log(started, reconciled)


def _is_ours(message: str) -> bool:
    """Whether a line is about the SriovNetwork controller, and not another one of the operator.

    controller-runtime logs `"controller": "sriovnetwork"` and the kind.
    """
    names = {name.lower() for name in _CONTROLLER.findall(message)}
    return not names or "sriovnetwork" in names


def unserved(networks: Objects, attachments: Sequence[Object]) -> list[Object]:
    """Networks that have no NetworkAttachmentDefinition."""
    made = {
        (nad["metadata"]["namespace"], nad["metadata"]["name"]): nad
        for nad in attachments
        if not is_terminating(nad)
    }
    return [each for each in networks.values() if target(each) not in made]


def unanswered(networks: Objects, attachments: Sequence[Object], since: datetime) -> list[Object]:
    """Networks that were changed after `since`, and whose attachment was not changed after that.

    This is an indication only: not every change of a network changes its attachment.
    """
    made = {(nad["metadata"]["namespace"], nad["metadata"]["name"]): nad for nad in attachments}
    return [
        each
        for each in networks.values()
        if (nad := made.get(target(each))) is not None
        and since.replace(microsecond=0) <= datetime.fromisoformat(last_change(each))
        and datetime.fromisoformat(last_change(nad)) < datetime.fromisoformat(last_change(each))
    ]


def target(network: Object) -> tuple[str, str]:
    """Namespace and name of the NetworkAttachmentDefinition that the operator creates for it."""
    meta = network["metadata"]
    namespace = spec_of(network).get("networkNamespace") or meta["namespace"]
    return str(namespace), str(meta["name"])


def _leader(pods: Sequence[Object], leases: Sequence[Object]) -> Object:
    """The pod that holds a lease, else the last one. The other pods are on standby."""
    for pod in pods:
        if any(_holds(pod, lease) for lease in leases):
            return pod
    return pods[-1]


def _holds(pod: Object, lease: Object) -> bool:
    """The holder is `pod-name_uuid` (client-go's leaderelection, as controller-runtime uses it)."""
    holder = str(lease.get("spec", {}).get("holderIdentity") or "")
    return holder.partition("_")[0] == str(pod["metadata"]["name"])


def _networks(client: Client, namespace: str) -> Objects:
    try:
        return client.listing(kinds.SRIOV_NETWORK, namespace).objects
    except NotFound:
        return {}


def _wait_for_networks(
    client: Client, networks: Objects, log: Log, deadline: float
) -> tuple[list[Object], list[Object]]:
    """Networks without an attachment, and those whose last change had no effect.

    New networks, and a controller that has just started, are given NOTICE_SECONDS.
    """
    if not networks:
        return [], []
    waiting: list[Object] = []
    stale: list[Object] = []

    def look(attachments: Objects) -> float:
        made = [*attachments.values()]
        waiting[:] = unserved(networks, made)
        stale[:] = unanswered(networks, made, log.started) if log.started else []
        youngest = min((_since(each) for each in waiting), default=math.inf)
        if log.started is not None and not log.reconciled:
            youngest = min(youngest, (now() - log.started).total_seconds())
        return max(0.0, NOTICE_SECONDS - youngest)

    left = max(0.0, deadline - time.monotonic())
    try:
        client.follow(kinds.NETWORK_ATTACHMENT, look, timeout=left)
    except NotFound:
        return [*networks.values()], []
    old = [[each for each in found if _since(each) >= NOTICE_SECONDS] for found in (waiting, stale)]
    return old[0], old[1]


def _state(log: Log, waiting: Sequence[Object], pod: Object, *, has_work: bool) -> OperatorState:
    """A controller that has reconciled nothing since its start, although it has work, is silent.

    Without a log, a slow one cannot be distinguished from a silent one before SLOW_SECONDS.
    """
    if log.trouble or (log.started is None and not log.reconciled and not waiting):
        oldest = max((_since(each) for each in waiting), default=0.0)
        is_silent = min(oldest, _up(pod)) > SLOW_SECONDS
        return OperatorState.SILENT if is_silent else OperatorState.UNKNOWN
    if log.reconciled:
        return OperatorState.SLOW if waiting else OperatorState.WORKING
    started = _up(pod) if log.started is None else (now() - log.started).total_seconds()
    if not has_work or started < NOTICE_SECONDS:
        return OperatorState.UNKNOWN
    return OperatorState.SILENT


def _silent(pod: Object, log: Log, waiting: Sequence[Object]) -> Finding:
    began = f"workers started at {log.started:%H:%M:%S}" if log.started else "no start in the log"
    return Finding(
        name_of(pod),
        Code.CONTROLLER_SILENT,
        f"{began}, {log.reconciled} times Reconciling since; "
        + (
            ", ".join(f"{name_of(each)} waits {_since(each):.0f} s" for each in waiting)
            or "it has had no work since then"
        ),
        "the SR-IOV operator",
        f"delete the pod {name_of(pod)} and check again; if it is still silent, report it upstream",
    )


def _read_log(client: Client, pod: Object) -> Log:
    meta = pod["metadata"]
    names = [each["name"] for each in pod["spec"]["containers"]]
    container = next((name for name in names if "operator" in name), names[0])
    hasty = replace(client, patience=min(3.0, client.patience))
    try:
        return read_log(
            hasty.log_lines(meta["name"], meta["namespace"], container, limit=LOG_LIMIT_BYTES)
        )
    except (Forbidden, NotFound, Refused, Unreachable) as error:
        return Log(None, 0, error.message)


def _pod_evidence(pod: Object) -> Iterator[str]:
    restarts = sum(int(s.get("restartCount", 0)) for s in _statuses(pod))
    yield f"pod {name_of(pod)} up {_up(pod):.0f} s, {restarts} restarts"


def _lease_evidence(leases: Sequence[Object], pod: Object) -> Iterator[str]:
    held = [lease for lease in leases if _holds(pod, lease)]
    if not held:
        yield "the pod holds no lease: it is not the leader"
    for each in held:
        spec = each["spec"]
        seconds = age(spec["renewTime"])
        late = seconds > float(spec.get("leaseDurationSeconds") or 15)
        yield f"lease {name_of(each)} renewed {seconds:.0f} s ago" + (": stale" if late else "")


def _log_evidence(log: Log) -> Iterator[str]:
    if log.trouble:
        yield f"log: {log.trouble}"
    elif log.started is None:
        yield f"log: it does not contain the controller's start; {log.reconciled} times Reconciling"
    else:
        ago = (now() - log.started).total_seconds()
        yield f"log: workers started {ago:.0f} s ago, {log.reconciled} times Reconciling since"


def _event_evidence(client: Client, namespace: str) -> Iterator[str]:
    stamps = [
        str(each.get("lastTimestamp") or each.get("eventTime") or "")
        for each in client.list_all(kinds.EVENT, namespace)
    ]
    newest = max(filter(None, stamps), default="")
    yield f"last event {age(newest):.0f} s ago" if newest else "no events"


def _webhook_findings(client: Client, namespace: str) -> Iterator[Finding]:
    for kind in (kinds.VALIDATING, kinds.MUTATING):
        for each in client.list_all(kind):
            for hook in each.get("webhooks", ()):
                service = hook.get("clientConfig", {}).get("service") or {}
                if service.get("namespace") == namespace:
                    yield from _hook_findings(client, each, hook, service)


def _hook_findings(
    client: Client, configuration: Object, hook: Object, service: Object
) -> Iterator[Finding]:
    subject = f"{configuration['metadata']['name']}/{hook['name']}"
    if not _has_endpoints(client, service["name"], service["namespace"]):
        yield Finding(
            subject,
            Code.WEBHOOK_WITHOUT_ENDPOINTS,
            f"service {service['namespace']}/{service['name']} has no ready endpoint, "
            f"failurePolicy {hook.get('failurePolicy', 'Fail')}",
            "the SR-IOV operator",
            "get its webhook pods ready, or set enableOperatorWebhook: false in "
            "SriovOperatorConfig",
        )
    trouble = ca_trouble(hook["clientConfig"].get("caBundle") or "", now())
    if trouble:
        yield Finding(
            subject,
            Code.WEBHOOK_CA,
            f"caBundle {trouble}",
            "the issuer of the operator's certificates (service-ca, cert-manager)",
            "renew the webhook's certificate and its caBundle",
        )


def ca_trouble(bundle: str, at: datetime) -> str:
    """The problem of a caBundle (base64 of PEM); "" if it has none."""
    if not bundle:
        return "is empty"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=b64decode(bundle, validate=True).decode("ascii"))
    except (ValueError, ssl.SSLError) as error:
        return f"is not a certificate: {error}"
    ends = [ssl.cert_time_to_seconds(str(each["notAfter"])) for each in context.get_ca_certs()]
    if ends and max(ends) < at.timestamp():
        return "has expired"
    return ""


def _has_endpoints(client: Client, name: str, namespace: str) -> bool:
    try:
        endpoints = client.get(kinds.ENDPOINTS, name, namespace)
    except NotFound:
        return False
    return any(each.get("addresses") for each in endpoints.get("subsets") or ())


def _absent(namespace: str, why: str) -> Verdict:
    finding = Finding(
        namespace,
        Code.OPERATOR_ABSENT,
        why,
        "the cluster's administrator",
        "install the operator, or set OPERATOR_NAMESPACES",
    )
    return Verdict(OperatorState.ABSENT, namespace, (), (finding,))


def _since(network: Object) -> float:
    return age(last_change(network))


def _up(pod: Object) -> float:
    starts = [
        each["state"]["running"]["startedAt"]
        for each in _statuses(pod)
        if "running" in each.get("state", {})
    ]
    return age(max([*starts, pod["metadata"]["creationTimestamp"]]))


def _statuses(pod: Object) -> Sequence[Object]:
    found: Sequence[Object] = pod.get("status", {}).get("containerStatuses") or ()
    return found


def _time(stamp: str) -> datetime | None:
    """The kubelet's timestamp has nanoseconds; Python parses up to microseconds."""
    try:
        return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", stamp))
    except ValueError:
        return None
