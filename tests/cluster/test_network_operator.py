"""Beside the Network Operator: what its logic makes of each overlay's pods, as the server has them.

Pods are stored by a real API server from the DaemonSets' templates; the label, the upgrade
controller and the anti-affinity are written down in tests/support/network_operator.py.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from tests.cluster.server import Object, Server
from tests.support import network_operator as operator
from tests.support.kustomize import render

OVERLAYS = Path(__file__).parents[2] / "manifests/overlays"
NAMES = sorted(path.name for path in OVERLAYS.iterdir())


def daemonset(overlay: str) -> Object:
    (found,) = [o for o in render(OVERLAYS / overlay) if o["kind"] == "DaemonSet"]
    return found


def make_pod(server: Server, template: Object, namespace: str, node: str, name: str) -> None:
    """A pod of that template on that node, all of its containers ready."""
    body: Object = copy.deepcopy(template)
    body["metadata"] = {"name": name, "labels": body["metadata"]["labels"]}
    body["spec"] |= {"nodeName": node}
    where = f"/api/v1/namespaces/{namespace}/pods"
    server.create(where, body)
    statuses = [
        {"name": each["name"], "ready": True, "restartCount": 0, "image": "i", "imageID": "i"}
        for each in body["spec"]["containers"]
    ]
    status = {"phase": "Running", "containerStatuses": statuses}
    server.merge(f"{where}/{name}/status", {"status": status})


def pods_on(server: Server, node: str) -> list[Object]:
    found: list[Object] = server.get(f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")["items"]
    return found


@pytest.mark.parametrize("overlay", NAMES)
def test_an_operator_without_a_driver_in_its_policy_opens_the_node(
    server: Server, namespace: str, node: str, overlay: str
) -> None:
    """With the label on them our pods would count as left-overs, and no device plugin would run."""
    template = daemonset(overlay)["spec"]["template"]
    make_pod(server, template, namespace, node, "ours")
    assert operator.mofed_wait(pods_on(server, node), has_driver=False) == "false"
    labelled = copy.deepcopy(template)
    labelled["metadata"]["labels"] |= {operator.DRIVER: ""}
    make_pod(server, labelled, namespace, node, "labelled")
    assert operator.mofed_wait(pods_on(server, node), has_driver=False) == "true"


@pytest.mark.parametrize("overlay", NAMES)
def test_its_driver_pod_is_not_kept_off_and_is_the_one_that_counts(
    server: Server, namespace: str, node: str, overlay: str
) -> None:
    driver = operator.driver_daemonset("doca-driver:25.10-1.2.8.0-0-ubuntu24.04-amd64")
    make_pod(server, daemonset(overlay)["spec"]["template"], namespace, node, "ours")
    assert not operator.refuses(driver, pods_on(server, node))
    assert operator.mofed_wait(pods_on(server, node), has_driver=True) == "true"
    if operator.NAMESPACE not in {
        each["metadata"]["name"] for each in server.get("/api/v1/namespaces")["items"]
    }:
        server.create("/api/v1/namespaces", {"metadata": {"name": operator.NAMESPACE}})
    make_pod(server, driver["spec"]["template"], operator.NAMESPACE, node, f"mofed-{node}")
    assert operator.mofed_wait(pods_on(server, node), has_driver=True) == "false"
    (upgraded,) = operator.upgraded(pods_on(server, node))
    assert upgraded["metadata"]["name"] == f"mofed-{node}"


def test_the_server_takes_the_operators_daemonset(server: Server, namespace: str) -> None:
    """And what the companion is for is not in it."""
    rendered = operator.driver_daemonset("doca-driver:x", {"CREATE_IFNAMES_UDEV": "true"}.items())
    rendered["metadata"]["namespace"] = namespace
    stored = server.create(f"/apis/apps/v1/namespaces/{namespace}/daemonsets", rendered)
    spec = stored["spec"]["template"]["spec"]
    assert "hostPID" not in spec
    (container,) = spec["containers"]
    paths = {each["mountPath"] for each in container["volumeMounts"]}
    assert not paths & {"/run/netns", "/var/lib/nodeagent", "/proc"}
    assert container["volumeMounts"][0]["mountPropagation"] == "Bidirectional"
    assert container["env"] == [{"name": "CREATE_IFNAMES_UDEV", "value": "true"}]
