"""The RBAC of manifests/: every command runs with it, and nothing in it can be spared."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import yaml

from nodeagent.record.journal import Journal, Note, Step
from nodeagent.settings import Settings
from tests.cluster.commands import ROOT, Pod
from tests.cluster.conftest import eventually
from tests.cluster.kubelet import Plugin
from tests.cluster.operator import CNI, NADS, Operator, attachment, network
from tests.cluster.proxy import Proxy, Seen
from tests.cluster.server import Object, Server

PARTS = ("base", "sriov-operator", "node-status", "device-plugins")
ADDED = {"nodeagent-node-status": "nodeagent", "nodeagent-device-plugins": "nodeagent"}
"""Roles that one adds for a ServiceAccount which has others: whose."""
RBAC = "/apis/rbac.authorization.k8s.io/v1"


class Access(NamedTuple):
    """One thing that was asked for; `namespace` is "" for all or none."""

    verb: str
    group: str
    resource: str
    namespace: str


FIRST = Access("get", "", "namespaces", "")
DANGEROUS = Access("patch", "operators.coreos.com", "subscriptions", "")


class Roles(NamedTuple):
    """The roles of one name as the test installed them, and the token of who has them."""

    user: str
    token: str
    cluster: Object
    local: Object
    cluster_path: str
    local_path: str


@pytest.fixture
def roles(server: Server, namespace: str, unique: str) -> dict[str, Roles]:
    """The manifest by its names, each pair bound to a ServiceAccount of its own."""
    texts = [(ROOT / "manifests" / part / "rbac.yaml").read_text() for part in PARTS]
    documents = [each for text in texts for each in yaml.safe_load_all(text)]
    by_name: dict[str, dict[str, Object]] = {}
    for each in (each for each in documents if each["kind"] in {"ClusterRole", "Role"}):
        name = each["metadata"]["name"]
        had = by_name.setdefault(ADDED.get(name, name), {}).setdefault(each["kind"], each)
        if had is not each:
            had["rules"] += each["rules"]
    return {
        name: _installed(server, namespace, f"{name}-{unique}", pair)
        for name, pair in by_name.items()
    }


def _installed(server: Server, namespace: str, name: str, pair: dict[str, Object]) -> Roles:
    cluster, local = pair["ClusterRole"], pair["Role"]
    cluster["metadata"]["name"] = local["metadata"]["name"] = name
    local["metadata"]["namespace"] = namespace
    path = f"{RBAC}/namespaces/{namespace}"
    server.create(f"{RBAC}/clusterroles", cluster)
    server.create(f"{path}/roles", local)
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    api_group = "rbac.authorization.k8s.io"
    for where, kind in (
        (f"{RBAC}/clusterrolebindings", "ClusterRole"),
        (f"{path}/rolebindings", "Role"),
    ):
        reference = {"apiGroup": api_group, "kind": kind, "name": name}
        body = {"metadata": {"name": name}, "subjects": [subject], "roleRef": reference}
        server.create(where, body)
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    server.create(accounts, {"metadata": {"name": name}})
    asked = server.create(f"{accounts}/{name}/token", {"spec": {"expirationSeconds": 3600}})
    return Roles(
        f"system:serviceaccount:{namespace}:{name}",
        asked["status"]["token"],
        cluster,
        local,
        f"{RBAC}/clusterroles/{name}",
        f"{path}/roles/{name}",
    )


def _objects(server: Server, namespace: str, unique: str) -> None:
    """One of each kind that is captured."""
    for path, version, kind in (
        ("/apis/operators.coreos.com/v1alpha1", "subscriptions", "Subscription"),
        ("/apis/operators.coreos.com/v1", "operatorgroups", "OperatorGroup"),
        ("/apis/operators.coreos.com/v1alpha1", "catalogsources", "CatalogSource"),
        ("/apis/sriovnetwork.openshift.io/v1", "sriovoperatorconfigs", "SriovOperatorConfig"),
        ("/apis/sriovnetwork.openshift.io/v1", "sriovnetworkpoolconfigs", "SriovNetworkPoolConfig"),
        ("/apis/sriovnetwork.openshift.io/v1", "sriovibnetworks", "SriovIBNetwork"),
        ("/apis/sriovnetwork.openshift.io/v1", "ovsnetworks", "OVSNetwork"),
        (
            "/apis/sriovnetwork.openshift.io/v1",
            "sriovnetworknodepolicies",
            "SriovNetworkNodePolicy",
        ),
    ):
        body: Object = {"apiVersion": path.removeprefix("/apis/"), "kind": kind}
        full = f"{path}/namespaces/{namespace}/{version}"
        server.create(full, {**body, "metadata": {"name": unique}, "spec": {"a": 1}})
    for group, plural, kind in (
        ("config.openshift.io/v1", "imagedigestmirrorsets", "ImageDigestMirrorSet"),
        (
            "operator.openshift.io/v1alpha1",
            "imagecontentsourcepolicies",
            "ImageContentSourcePolicy",
        ),
    ):
        body = {"apiVersion": group, "kind": kind}
        full = f"/apis/{group}/{plural}"
        server.create(full, {**body, "metadata": {"name": unique}, "spec": {"a": 1}})
    service = {"namespace": namespace, "name": "webhook"}
    hook = {
        "name": "a.b.c",
        "clientConfig": {"service": service},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    hooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    server.create(hooks, {"metadata": {"name": unique}, "webhooks": [hook]})
    server.create(f"{CNI}/namespaces/{namespace}/{NADS}", attachment("net", "openshift.io/vfs"))
    network(server, namespace, "net", "vfs", namespace)


def _story(settings: Settings, message: str) -> None:
    journal = Journal(settings)
    with pytest.raises(ZeroDivisionError), journal.step(Step.RESTART):
        raise ZeroDivisionError(message)
    namespace = settings.operator_namespaces[0]
    journal.note(Note.POD_INTERFACE_LOST, namespace=namespace, pod="web", uid="", message=message)
    journal.note(Note.READY)


def _of_the_pods(pod: Pod, settings: Settings, server: Server) -> Iterator[tuple[str, ...]]:
    """Every command that a node's pod runs, each on a good and where it matters a bad path."""
    namespace, node = settings.operator_namespaces[0], str(settings.node_name)
    pod.environment |= {"NODE_CONDITION": "true", "NODE_ANNOTATIONS": "true"}
    for _ in range(2):  # the second time the same Events are counted up
        _story(settings, "boom")
        yield "node", "announce"
    yield "node", "cordon"
    yield "node", "after-reload"
    yield "node", "wait-safe-load", "--timeout", "1"
    server.merge(f"/api/v1/nodes/{node}", {"metadata": {"labels": {
        "network.nvidia.com/operator.mofed.wait": "true"}}})  # fmt: skip
    yield "node", "wait-mofed", "--timeout", "1"
    yield "node", "report"
    yield "device-plugin", "record"
    plugin = Plugin(server, namespace, node, dip={"openshift.io/vfs": "0"})
    plugin.report = {"openshift.io/vfs": "8"}
    plugin.make()
    with plugin.playing():
        yield "device-plugin", "restart", "--wait"
        yield "device-plugin", "hold-off"
    yield "network", "check"
    yield "network", "wait", "net", "-n", namespace
    yield "network", "wait", "other", "-n", namespace, "--timeout", "1"
    yield "operator", "check"
    settings.device_plugin_config.write_text('{"resourceList": []}')
    yield "device-plugin", "prune"


def _of_people(file: Path) -> Iterator[tuple[str, ...]]:
    """The commands for whoever reinstalls the operator."""
    yield "operator", "capture", "--file", str(file)
    yield "operator", "restore", str(file), "--dry-run"
    plain = json.loads(file.read_text())
    for each in plain["items"]:
        each["metadata"]["name"] += "-new"
    file.write_text(json.dumps(plain))
    yield "operator", "restore", str(file)


def _asked(seen: Seen) -> Iterator[Access]:
    """The request as RBAC sees it; an apply that creates needs `create` as well."""
    url = urlsplit(seen.path)
    parts = url.path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource = "/".join([rest[0], *rest[2:]])
    collection = "watch" if "watch=true" in url.query else "list"
    verb = {
        "GET": "get" if len(rest) > 1 else collection,
        "POST": "create",
        "PATCH": "patch",
        "DELETE": "delete",
    }[seen.method]
    yield Access(verb, group, resource, namespace)
    if seen.method == "PATCH" and seen.status == 201:
        yield Access("create", group, resource, namespace)


def _may(server: Server, user: str, access: Access) -> bool:
    resource, _, subresource = access.resource.partition("/")
    attributes = {
        "verb": access.verb,
        "group": access.group,
        "resource": resource,
        "subresource": subresource,
        "namespace": access.namespace,
    }
    groups = ["system:serviceaccounts", "system:authenticated"]
    answer = server.create(
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        {"spec": {"user": user, "groups": groups, "resourceAttributes": attributes}},
    )
    return bool(answer["status"]["allowed"])


def _granted(role: Object) -> set[tuple[str, str, str]]:
    return {
        (verb, group, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_every_command_runs_and_no_rule_can_be_spared(
    roles: dict[str, Roles],
    pod: Pod,
    settings: Settings,
    proxy: Proxy,
    tmp_path: Path,
) -> None:
    server, namespace = proxy.server, settings.operator_namespaces[0]
    _objects(server, namespace, namespace.removeprefix("ns-"))
    operator = Operator(server, proxy, namespace)
    operator.make_pod()
    operator.say("INFO Reconciling SriovNetwork net")
    assert roles.keys() == {"nodeagent", "nodeagent-operator"}
    for name, commands in (
        ("nodeagent", _of_the_pods(pod, settings, server)),
        ("nodeagent-operator", _of_people(tmp_path / "operator.json")),
    ):
        mine = roles[name]
        (settings.service_account_dir / "token").write_text(mine.token)
        eventually(lambda user=mine.user: _may(server, user, FIRST))  # type: ignore[misc] # its default
        since = proxy.count()
        for arguments in commands:
            done = pod.run(*arguments)
            assert done.returncode in {0, 1, 75}, (arguments, done.stderr)
            assert "forbidden" not in done.stdout + done.stderr, (arguments, done.stderr)
        if name == "nodeagent":
            _watch_nodeenis(pod, proxy)
        seen = proxy.seen[since:]
        assert {each.path for each in seen if each.status == 403} == set()
        _nothing_can_be_spared(server, mine, namespace, {a for each in seen for a in _asked(each)})
        if name == "nodeagent":
            assert not _may(server, mine.user, DANGEROUS._replace(namespace=namespace))


def _watch_nodeenis(pod: Pod, proxy: Proxy) -> None:
    watching = pod.start("device-plugin", "prune", "--watch-nodeeni")
    eventually(lambda: any("nodeenis?" in s.path and "watch=true" in s.path for s in proxy.seen))
    watching.terminate()
    watching.communicate(timeout=10)


def _nothing_can_be_spared(
    server: Server, roles: Roles, namespace: str, asked: set[Access]
) -> None:
    """Each verb was asked for; and without any one rule something that was asked is denied."""
    everywhere = {(a.verb, a.group, a.resource) for a in asked}
    within = {(a.verb, a.group, a.resource) for a in asked if a.namespace == namespace}
    assert _granted(roles.cluster) - everywhere == set(), "the ClusterRole has what nobody asks for"
    assert _granted(roles.local) - within == set(), "the Role has what nobody asks for"
    for role, path in ((roles.cluster, roles.cluster_path), (roles.local, roles.local_path)):
        for number, rule in enumerate(role["rules"]):
            left = [each for at, each in enumerate(role["rules"]) if at != number]
            server.merge(path, {"rules": left})
            concerned = [
                a for a in asked if a.resource in rule["resources"] and a.group in rule["apiGroups"]
            ]
            assert _breaks(server, roles.user, concerned), f"{rule} can be spared"
        server.merge(path, {"rules": role["rules"]})


def _breaks(server: Server, user: str, asked: list[Access]) -> Any:
    """Some of it is denied now; the authorizer learns of a change within moments."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not all(_may(server, user, access) for access in asked):
            return True
        time.sleep(0.05)
    return False


WRITES = [
    Access("patch", "", "nodes", ""),
    Access("patch", "", "nodes/status", ""),
    Access("delete", "", "pods", ""),
]


def test_the_base_writes_events_alone_and_a_role_deletes_pods_in_its_namespace_only(
    server: Server, namespace: str, unique: str
) -> None:
    """What is added grants what it says, where it says, and the base nothing of it."""
    user = f"system:serviceaccount:{namespace}:nodeagent"
    subject = {"kind": "ServiceAccount", "name": "nodeagent", "namespace": namespace}

    def install(part: str) -> None:
        for each in yaml.safe_load_all((ROOT / "manifests" / part / "rbac.yaml").read_text()):
            name = each["metadata"]["name"]
            if name == "nodeagent-operator":
                continue
            each["metadata"]["name"] = f"{name}-{unique}"
            where = RBAC
            if "namespace" in each["metadata"]:
                each["metadata"]["namespace"] = namespace
                where = f"{RBAC}/namespaces/{namespace}"
            if "roleRef" in each:
                each["roleRef"]["name"] += f"-{unique}"
                each["subjects"] = [subject]
            server.create(f"{where}/{each['kind'].lower()}s", each)

    install("base")
    eventually(lambda: _may(server, user, FIRST))
    here = [access._replace(namespace=namespace) for access in WRITES]
    assert not [access for access in (*WRITES, *here) if _may(server, user, access)]
    assert _may(server, user, Access("create", "", "events", "default"))
    install("device-plugins")
    eventually(lambda: _may(server, user, here[2]))
    assert not [access for access in WRITES if _may(server, user, access)]
    assert not _may(server, user, WRITES[2]._replace(namespace="kube-system"))
    install("node-status")
    eventually(lambda: all(_may(server, user, access) for access in WRITES[:2]))
    assert not _may(server, user, WRITES[2])
