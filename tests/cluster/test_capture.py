"""Capture and restore: what was there is there again, nothing of the server's travels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.cluster import capture
from nodeagent.cluster.client import Client
from nodeagent.cluster.failures import NotFound
from nodeagent.errors import DataError
from nodeagent.settings import Settings
from tests.cluster.commands import Pod
from tests.cluster.operator import SRIOV, network
from tests.cluster.proxy import Proxy
from tests.cluster.server import Object, Server

OLM = "/apis/operators.coreos.com"
SUBSCRIPTION = {
    "channel": "stable",
    "name": "sriov-network-operator",
    "source": "mirror",
    "sourceNamespace": "openshift-marketplace",
    "startingCSV": "sriov-network-operator.v4.21.0",
    "installPlanApproval": "Manual",
    "config": {
        "env": [
            {"name": "HTTPS_PROXY", "value": "http://me:geheim@proxy:3128"},
            {"name": "API_TOKEN", "value": "geheim"},
            {"name": "NO_PROXY", "value": ".svc"},
        ]
    },
}


@pytest.fixture
def subscription(server: Server, namespace: str) -> str:
    """An installed operator; the path of its subscription."""
    path = f"{OLM}/v1alpha1/namespaces/{namespace}/subscriptions"
    meta: Object = {
        "name": "sriov",
        "finalizers": ["tests/x"],
        "labels": {"mine": "yes", "operators.coreos.com/sriov.ns": ""},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}],
    }
    body = {"apiVersion": "operators.coreos.com/v1alpha1", "kind": "Subscription"}
    server.create(path, {**body, "metadata": meta, "spec": SUBSCRIPTION})
    server.merge(f"{path}/sriov/status", {"status": {"state": "AtLatestKnown"}})
    groups = f"{OLM}/v1/namespaces/{namespace}/operatorgroups"
    body = {"apiVersion": "operators.coreos.com/v1", "kind": "OperatorGroup"}
    server.create(groups, {**body, "metadata": {"name": "g"}, "spec": {"targetNamespaces": ["x"]}})
    config = {"apiVersion": "sriovnetwork.openshift.io/v1", "kind": "SriovOperatorConfig"}
    configs = f"{SRIOV}/namespaces/{namespace}/sriovoperatorconfigs"
    server.create(configs, {**config, "metadata": {"name": "default"}, "spec": {"logLevel": 2}})
    network(server, namespace, "net", "vfs", "default")
    return f"{path}/sriov"


def test_nothing_of_the_server_and_nothing_secret(
    client: Client, settings: Settings, subscription: str
) -> None:
    taken = capture.capture(client, settings)
    for word in ("geheim", "uid", "resourceVersion", "managedFields", "status", "finalizers"):
        assert word not in taken.text
    (found,) = [o for o in json.loads(taken.text)["items"] if o["kind"] == "Subscription"]
    assert found["spec"]["startingCSV"] == "sriov-network-operator.v4.21.0"
    assert found["spec"]["config"]["env"] == [
        {"name": "HTTPS_PROXY", "withheld": True},
        {"name": "API_TOKEN", "withheld": True},
        {"name": "NO_PROXY", "value": ".svc"},
    ]
    assert found["metadata"]["labels"] == {"mine": "yes"}
    assert len(taken.withheld) == 2


def test_reinstalled_is_what_it_was(
    client: Client, settings: Settings, server: Server, namespace: str, subscription: str
) -> None:
    taken = capture.capture(client, settings)
    server.merge(subscription, {"metadata": {"finalizers": None}})
    server.delete(subscription)
    server.merge(
        f"{SRIOV}/namespaces/{namespace}/sriovoperatorconfigs/default", {"spec": {"logLevel": 0}}
    )
    planned = {o.name: o for o in capture.restore(client, taken.text, "f", dry_run=True)}
    assert "env API_TOKEN: its value was withheld; set it by hand" in (
        planned[f"Subscription {namespace}/sriov"].lines
    )
    assert planned[f"SriovOperatorConfig {namespace}/default"].lines == ("spec.logLevel: 0 → 2",)
    with pytest.raises(Exception, match="404"):
        server.get(subscription)
    done = {o.name: o.state for o in capture.restore(client, taken.text, "f", dry_run=False)}
    assert done[f"Subscription {namespace}/sriov"] == "different", "two values are to be set"
    assert done[f"SriovOperatorConfig {namespace}/default"] == "changed"
    server.merge(subscription, {"spec": SUBSCRIPTION})
    again = {o.state for o in capture.restore(client, taken.text, "f", dry_run=False)}
    assert again == {"same"}
    assert server.get(subscription)["spec"] == SUBSCRIPTION
    assert capture.capture(client, settings).text == taken.text


def test_order_images_catalogue_subscription_then_its_objects(
    client: Client, settings: Settings, subscription: str, server: Server, unique: str
) -> None:
    mirrors = "/apis/config.openshift.io/v1/imagedigestmirrorsets"
    body = {"apiVersion": "config.openshift.io/v1", "kind": "ImageDigestMirrorSet"}
    server.create(mirrors, {**body, "metadata": {"name": f"m-{unique}"}, "spec": {"a": 1}})
    taken = capture.capture(client, settings)
    order = [kind.kind for kind, _ in capture.parse(taken.text, "f")]
    assert order.index("ImageDigestMirrorSet") < order.index("OperatorGroup")
    assert order.index("OperatorGroup") < order.index("Subscription")
    assert order.index("Subscription") < order.index("SriovOperatorConfig")
    assert order[-1] == "SriovNetwork"


def test_what_is_more_than_it_was_is_said(
    client: Client, settings: Settings, server: Server, namespace: str, subscription: str
) -> None:
    taken = capture.capture(client, settings)
    path = f"{SRIOV}/namespaces/{namespace}/sriovoperatorconfigs/default"
    server.merge(path, {"spec": {"enableInjector": True}})
    found = {o.name: o for o in capture.restore(client, taken.text, "f", dry_run=False)}
    outcome = found[f"SriovOperatorConfig {namespace}/default"]
    assert outcome.state == "different"
    assert outcome.lines == ("spec.enableInjector: nothing → true",)


def test_kind_that_is_not_served_yet(client: Client, proxy: Proxy, namespace: str) -> None:
    body = {
        "apiVersion": "sriovnetwork.openshift.io/v1",
        "kind": "SriovOperatorConfig",
        "metadata": {"name": "default", "namespace": namespace},
        "spec": {},
    }
    text = json.dumps({"items": [body]})
    proxy.fail(status=404, times=2)
    assert [o.state for o in capture.restore(client, text, "f", dry_run=False)] == ["not served"]


@pytest.mark.parametrize("text", ["", "{}", '{"items": [{"apiVersion": "v1", "kind": "Secret"}]}'])
def test_foreign_files_are_refused(client: Client, proxy: Proxy, text: str) -> None:
    with pytest.raises(DataError, match="was not written by"):
        [*capture.restore(client, text, "f", dry_run=False)]
    assert proxy.count() == 0


def test_no_operator(client: Client, settings: Settings, server: Server, unique: str) -> None:
    with pytest.raises(NotFound, match="so no operator"):
        capture.capture(client, replace(settings, operator_namespaces=(f"no-{unique}",)))


def test_commands(pod: Pod, subscription: str, tmp_path: Path, namespace: str) -> None:
    file = str(tmp_path / "operator.json")
    taken = pod.run("operator", "capture", "--file", file)
    assert taken.returncode == 0, taken.stderr
    assert taken.stderr.count("left out, because it may be secret") == 2
    same = pod.run("operator", "restore", file)
    assert f"Subscription {namespace}/sriov" in same.stdout
    assert same.returncode == 0, same.stdout
    assert pod.run("operator", "restore", str(tmp_path / "none")).returncode == 66
