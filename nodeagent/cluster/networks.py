"""Diagnosis of secondary networks: incomplete ones, unserved ones, and conflicting writers.

It never writes, because an operator that owns a NetworkAttachmentDefinition overwrites a patch
within 20 ms. Each finding names the owner, and the change to make there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from nodeagent.cluster import allocatable, kinds
from nodeagent.cluster.client import Client, Listing, Object, Objects
from nodeagent.cluster.failures import NotFound
from nodeagent.cluster.findings import (
    Code,
    Finding,
    age,
    chooses,
    is_terminating,
    last_change,
    name_of,
    spec_of,
)
from nodeagent.cluster.kinds import Kind
from nodeagent.cluster.operators import target
from nodeagent.settings import Settings

RESOURCE: Final = "k8s.v1.cni.cncf.io/resourceName"
OWNER_REF: Final = "sriovnetwork.openshift.io/owner-ref"
CNIS: Final = frozenset({"sriov", "ib-sriov"})
"""CNI plugins that take a VF: they need `resourceName` in the annotation and in spec.config."""
WATCH_SECONDS: Final = 2.0
"""How long to watch for managers that overwrite each other; they do so within 20 ms."""


@dataclass(frozen=True)
class View:
    """The objects that concern this node's networks, and the writes seen during the watch."""

    node: Object
    attachments: Sequence[Object]
    networks: Sequence[Object]
    policies: Sequence[Object]
    namespaces: Mapping[str, Object]
    operator_namespaces: Sequence[str]
    writes: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    """By UID of a NetworkAttachmentDefinition: the successive pairs of manager and spec.config."""


def check(
    client: Client, settings: Settings, node: str, *, namespace: str | None = None
) -> tuple[Finding, ...]:
    """The problems of the networks that concern this node. Takes the 2 s of the watch."""
    return tuple(findings(look(client, settings, node, namespace=namespace)))


def look(
    client: Client,
    settings: Settings,
    node: str,
    *,
    namespace: str | None,
    seconds: float = WATCH_SECONDS,
) -> View:
    """Gather the input of `findings`."""
    this = next(iter(allocatable.listing(client, node).objects.values()))
    networks = client.list_served(kinds.SRIOV_NETWORK)
    policies = client.list_served(kinds.SRIOV_POLICY)
    namespaces = {each["metadata"]["name"]: each for each in client.list_all(kinds.NAMESPACE)}
    listing = _listing(client, kinds.NETWORK_ATTACHMENT, namespace)
    attachments: dict[str, Object] = {}
    writes: dict[str, list[tuple[str, str]]] = {}

    def note(objects: Objects) -> float:
        attachments.clear()
        attachments.update(objects)
        for uid, each in objects.items():
            write = (_manager(each), str(spec_of(each).get("config", "")))
            if writes.setdefault(uid, [])[-1:] != [write]:
                writes[uid].append(write)
        return math.inf

    if listing is not None:
        client.follow_from(listing, note, timeout=seconds if listing.objects else 0)
    return View(
        node=this,
        attachments=[*attachments.values()],
        networks=[each for each in networks if namespace in {None, target(each)[0]}],
        policies=policies,
        namespaces=namespaces,
        operator_namespaces=settings.operator_namespaces,
        writes=writes,
    )


def findings(view: View) -> Iterator[Finding]:
    """One finding for each problem. A pure function."""
    made = {(n["metadata"]["namespace"], n["metadata"]["name"]): n for n in view.attachments}
    for network in view.networks:
        if _concerns(view, str(spec_of(network).get("resourceName", ""))):
            yield from _network_findings(view, network, made.get(target(network)))
    for attachment in view.attachments:
        yield from _attachment_findings(view, attachment)


def incomplete(attachment: Object) -> list[tuple[Code, str, str]]:
    """Why it cannot serve a pod: triples of code, evidence, and the change to make."""
    text = spec_of(attachment).get("config") or ""
    if not text:
        return []  # Multus then reads a file with the network's name on the node
    try:
        config = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        return [(Code.CONFIG_NOT_JSON, f"spec.config: {error}", "make spec.config valid JSON")]
    plugin = _sriov_plugin(config)
    if plugin is None:
        return []
    annotated = attachment["metadata"].get("annotations", {}).get(RESOURCE)
    configured = plugin.get("resourceName")
    found = []
    if not annotated:
        found.append(
            (
                Code.NO_RESOURCE_ANNOTATION,
                f"type {plugin['type']} and no annotation {RESOURCE}",
                f"set the annotation {RESOURCE}; without it the pod gets no VF",
            )
        )
    if not configured:
        found.append(
            (
                Code.NO_RESOURCE_IN_CONFIG,
                f"type {plugin['type']} and no resourceName in spec.config",
                'add "resourceName" to spec.config; without it pods fail with '
                '"VF pci addr is required"',
            )
        )
    if annotated and configured and annotated != configured:
        found.append(
            (
                Code.RESOURCE_MISMATCH,
                f"the annotation says {annotated}, spec.config says {configured}",
                "make both the same",
            )
        )
    return found


def owner(attachment: Object) -> str:
    """The owner: by ownerReferences, by the operator's annotation, or else the last writer."""
    meta = attachment["metadata"]
    references = [f"{each['kind']} {each['name']}" for each in meta.get("ownerReferences", ())]
    mark = meta.get("annotations", {}).get(OWNER_REF)
    return (
        ", ".join([*references, *([mark] if mark else [])])
        or f"field manager {_manager(attachment)}"
    )


def _attachment_findings(view: View, attachment: Object) -> Iterator[Finding]:
    subject, whose = name_of(attachment), owner(attachment)
    for code, evidence, change in incomplete(attachment):
        yield Finding(subject, code, evidence, whose, f"{change} (change the owner, not this)")
    resource = _resource(attachment)
    if resource and _concerns(view, resource):
        yield from _resource_findings(view, subject, whose, resource)
    yield from _orphan_findings(view, attachment, subject)
    yield from _fight_findings(view, attachment, subject, whose)
    space = view.namespaces.get(attachment["metadata"]["namespace"])
    if space is not None and is_terminating(space):
        yield Finding(
            subject,
            Code.NAMESPACE_TERMINATING,
            f"namespace {space['metadata']['name']} is being deleted",
            whose,
            "wait until the namespace is gone, or use another one",
        )


def _network_findings(view: View, network: Object, made: Object | None) -> Iterator[Finding]:
    subject = f"SriovNetwork {name_of(network)}"
    space, name = target(network)
    there = view.namespaces.get(space)
    whose = f"field manager {_manager(network)}"
    if there is None:
        evidence, change = f"namespace {space} does not exist", f"create the namespace {space}"
        yield Finding(subject, Code.NAMESPACE_MISSING, evidence, whose, change)
    elif is_terminating(there):
        evidence = f"namespace {space} is being deleted"
        change = "wait until it is gone, or use another namespace"
        yield Finding(subject, Code.NAMESPACE_TERMINATING, evidence, whose, change)
    elif made is None:
        ago = age(last_change(network))
        yield Finding(
            subject,
            Code.NO_ATTACHMENT,
            f"no NetworkAttachmentDefinition {space}/{name}, {ago:.0f} s after its last change",
            "the SR-IOV operator",
            _why_none(view, network),
        )


def _why_none(view: View, network: Object) -> str:
    space = network["metadata"]["namespace"]
    if space not in view.operator_namespaces:
        known = " or ".join(view.operator_namespaces)
        return f"move the SriovNetwork to the operator's namespace ({known}); it is in {space}"
    return "check the operator with `nodeagent operator check`"


def _resource_findings(view: View, subject: str, whose: str, resource: str) -> Iterator[Finding]:
    have = allocatable.of_node(view.node)
    node = view.node["metadata"]["name"]
    if have.get(resource):
        return
    makers = [name_of(policy) for policy in view.policies if _makes(policy, resource)]
    if resource in have:
        evidence = f"{resource}: 0 allocatable on {node}"
        change = "restart the device plugin (`nodeagent device-plugin restart`), and see its log"
        yield Finding(subject, Code.RESOURCE_EMPTY, evidence, "the device plugin", change)
    elif makers:
        evidence = f"{node} has no {resource}, although {', '.join(makers)} defines it"
        change = (
            "restart the device plugin (`nodeagent device-plugin restart`), and see this node's "
            "SriovNetworkNodeState"
        )
        yield Finding(subject, Code.RESOURCE_MISSING, evidence, "the device plugin", change)
    else:
        evidence = f"{node} has no {resource}, and no SriovNetworkNodePolicy defines it"
        change = "correct the name at the owner, or create a policy for it"
        yield Finding(subject, Code.RESOURCE_UNKNOWN, evidence, whose, change)


def _orphan_findings(view: View, attachment: Object, subject: str) -> Iterator[Finding]:
    mark = attachment["metadata"].get("annotations", {}).get(OWNER_REF)
    if not mark or "sriovnetwork" not in mark.lower():
        return
    name = mark.rpartition("/")[2]
    if name not in {network["metadata"]["name"] for network in view.networks}:
        yield Finding(
            subject,
            Code.OWNER_MISSING,
            f"its owner {mark} does not exist",
            "the SR-IOV operator",
            "create the owner again, or delete this object: no controller updates it",
        )


def _fight_findings(view: View, attachment: Object, subject: str, whose: str) -> Iterator[Finding]:
    """A content that was changed and came back: two managers overwrite each other."""
    writes = view.writes.get(attachment["metadata"]["uid"], ())
    managers = list(dict.fromkeys(manager for manager, _ in writes))
    contents = [content for _, content in writes]
    came_back = any(
        contents[at] in contents[: at - 1] and contents[at] != contents[at - 1]
        for at in range(2, len(contents))
    )
    if came_back:
        version = attachment["metadata"]["resourceVersion"]
        yield Finding(
            subject,
            Code.OVERWRITTEN,
            f"spec.config changed {len(writes) - 1} times in {WATCH_SECONDS:g} s and came back, "
            f"written by {' and '.join(managers)}, resourceVersion {version}",
            whose,
            "stop the other writer; to change an object that has an owner, change the owner",
        )


def _concerns(view: View, resource: str) -> bool:
    """Whether this node has the resource, should have it, or no node does."""
    if not resource or _has(allocatable.of_node(view.node), resource):
        return bool(resource)
    makers = [policy for policy in view.policies if _makes(policy, resource)]
    labels = view.node["metadata"].get("labels", {})
    return not makers or any(
        chooses(spec_of(policy).get("nodeSelector"), labels) for policy in makers
    )


def _has(have: Mapping[str, int], resource: str) -> bool:
    return any(resource in {name, name.rpartition("/")[2]} for name in have)


def _makes(policy: Object, resource: str) -> bool:
    name = spec_of(policy).get("resourceName")
    return bool(name) and name == resource.rpartition("/")[2]


def _resource(attachment: Object) -> str:
    annotated = attachment["metadata"].get("annotations", {}).get(RESOURCE)
    if annotated:
        return str(annotated)
    try:
        config = json.loads(spec_of(attachment).get("config") or "{}")
    except (ValueError, TypeError, RecursionError):
        return ""
    return str((_sriov_plugin(config) or {}).get("resourceName") or "")


def _sriov_plugin(config: object) -> dict[str, str] | None:
    """The CNI plugin that takes a VF, from a configuration or a list of them."""
    if not isinstance(config, dict):
        return None
    plugins = config.get("plugins", [config])
    for each in plugins if isinstance(plugins, list) else ():
        if isinstance(each, dict) and str(each.get("type")) in CNIS:
            return each
    return None


def _manager(thing: Object) -> str:
    """The last writer of spec, by managedFields.

    Their times are whole seconds. Of two writers within a second, the last is the one that now owns
    the field.
    """
    entries = [
        (each, each["fieldsV1"]["f:spec"])
        for each in thing["metadata"].get("managedFields", ())
        if "f:spec" in each.get("fieldsV1", {})
    ]
    latest: Object = max(
        entries,
        key=lambda pair: ("f:config" in pair[1], str(pair[0].get("time", ""))),
        default=({}, {}),
    )[0]
    return str(latest.get("manager", "unknown"))


def _listing(client: Client, kind: Kind, namespace: str | None) -> Listing | None:
    try:
        return client.listing(kind, namespace)
    except NotFound:
        return None
