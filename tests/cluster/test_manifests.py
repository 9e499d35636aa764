"""Every overlay, as rendered, is accepted by a real API server: a dry run of each object.

The chart, too; and Helm's own code installs it there, upgrades it and takes it away.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import eventually
from tests.cluster.server import ADMIN_TOKEN, ApiError, Object, Server
from tests.support.helm import CHART, helm, objects
from tests.support.kustomize import identity, render

MANIFESTS = Path(__file__).parents[2] / "manifests"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())
PATHS = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "Secret": "/api/v1/namespaces/{namespace}/secrets",
    "DaemonSet": "/apis/apps/v1/namespaces/{namespace}/daemonsets",
    "PodMonitor": "/apis/monitoring.coreos.com/v1/namespaces/{namespace}/podmonitors",
    "PrometheusRule": "/apis/monitoring.coreos.com/v1/namespaces/{namespace}/prometheusrules",
    "SecurityContextConstraints":
        "/apis/security.openshift.io/v1/securitycontextconstraints",
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(server: Server, other_kinds: None) -> Iterator[Server]:
    """With the namespaces and kinds that the manifests expect to find."""
    namespaces = ("nodeagent", "openshift-sriov-network-operator")
    for name in namespaces:
        server.create("/api/v1/namespaces", {"metadata": {"name": name}})
    yield server
    for name in namespaces:
        server.delete(f"/api/v1/namespaces/{name}")


def dry_run(server: Server, thing: Object) -> Object:
    """What the server would store. Strict: it says which fields it does not know."""
    path = PATHS[thing["kind"]].format(namespace=thing["metadata"].get("namespace", ""))
    name = thing["metadata"]["name"]
    return server.request(
        "PATCH",
        f"{path}/{name}?fieldManager=test&force=true&dryRun=All",
        thing,
        content_type="application/apply-patch+yaml",
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_accepts_every_object(cluster: Server, overlay: str) -> None:
    """With the component for metrics, which each may have; and by itself."""
    without = render(MANIFESTS / "overlays" / overlay)
    objects = render(MANIFESTS / "overlays" / overlay, MANIFESTS / "metrics")
    kinds = {"Namespace", "ServiceAccount", "DaemonSet", "PodMonitor", "PrometheusRule"}
    assert kinds <= {each["kind"] for each in objects}
    objects += [each for each in without if each["kind"] == "DaemonSet"]
    objects += render(MANIFESTS / "sriov-operator")
    for each in objects:
        stored = dry_run(cluster, each)
        assert _kept(each, stored) == [], each["metadata"]["name"]


WAYS: dict[str, Object] = {
    "companion": {},
    "replace": {"driver": {"version": "26.01-1"}},
    "openshift": {"toolkit": {"image": "registry.example/toolkit:4.16"}},
    "sidecar": {"driver": {"image": "registry.example/driver:25.10"}},
}
VALUES: Object = {
    "image": {"repository": "registry.example/nodeagent", "digest": f"sha256:{'0' * 64}"},
    "imagePullSecrets": ["pull"],
    "nodeSelector": {"nic": "connectx"},
    "tolerations": [{"key": "nic", "operator": "Exists", "effect": "NoSchedule"}],
    "nodeFeatureDiscovery": False,
    "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
    "settings": {"TERMINATION_GRACE_PERIOD": 600, "NODE_CONDITION": True, "API_TIMEOUT": 0.5},
    "metrics": {
        "enabled": True,
        "podMonitor": {"labels": {"release": "prometheus"}},
        "rbacProxy": {"image": "registry.example/kube-rbac-proxy:v0.19"},
    },
    "alerts": {"enabled": True, "labels": {"release": "prometheus"}},
    "rbac": {
        "nodeStatus": True,
        "securityContextConstraints": True,
        "devicePluginNamespaces": ["openshift-sriov-network-operator"],
        "operatorNamespace": "openshift-sriov-network-operator",
    },
}
"""Each value of the chart that changes what is rendered."""


@pytest.mark.parametrize("way", WAYS)
def test_the_server_accepts_what_the_chart_renders(cluster: Server, way: str) -> None:
    found = objects({"way": way, **VALUES, **WAYS[way]})
    assert {"PodMonitor", "PrometheusRule", "Role", "SecurityContextConstraints"} <= {
        each["kind"] for each in found
    }
    for each in found:
        stored = dry_run(cluster, each)
        assert _kept(each, stored) == [], identity(each)


def test_who_may_read_metrics_with_tls(cluster: Server) -> None:
    """What kube-rbac-proxy asks, with the rights and as the accounts of the component."""
    parts = ("overlays/companion", "metrics-sidecar", "metrics-tls")
    other = {"kind": "ServiceAccount", "metadata": {"name": "other", "namespace": "nodeagent"}}
    made = []
    for thing in [*render(*(MANIFESTS / part for part in parts)), other]:
        if thing["kind"] in {"ServiceAccount", "ClusterRole", "ClusterRoleBinding"}:
            path = PATHS[thing["kind"]].format(namespace="nodeagent")
            cluster.create(path, thing)
            made.append(f"{path}/{thing['metadata']['name']}")

    def token(name: str) -> str:
        path = f"/api/v1/namespaces/nodeagent/serviceaccounts/{name}/token"
        told: str = cluster.create(path, {"spec": {"expirationSeconds": 3600}})["status"]["token"]
        return told

    proxy = token("nodeagent")

    def status_of(review: str, group: str, spec: Object) -> Object:
        path = f"/apis/{group}/v1/{review.lower()}s"
        body = {"apiVersion": f"{group}/v1", "kind": review, "spec": spec}
        told: Object = cluster.request("POST", path, body, token=proxy)["status"]
        return told

    def may_read(name: str, path: str = "/metrics") -> bool:
        user = status_of("TokenReview", "authentication.k8s.io", {"token": token(name)})["user"]
        access = {"nonResourceAttributes": {"path": path, "verb": "get"}}
        who = {"user": user["username"], "groups": user["groups"]}
        told = status_of("SubjectAccessReview", "authorization.k8s.io", who | access)
        return bool(told["allowed"])

    eventually(lambda: may_read("nodeagent-metrics-reader"), 30)
    assert not may_read("nodeagent-metrics-reader", "/debug")
    assert not may_read("nodeagent")
    assert not may_read("other")
    for path in made:
        cluster.delete(path)


@pytest.mark.parametrize("namespace", ["default", "of-helm"])
def test_helm_installs_upgrades_and_uninstalls(cluster: Server, namespace: str) -> None:
    """Where Helm makes the namespace, and where the chart does."""
    where = "made-by-the-chart" if namespace == "default" else namespace
    values = {"namespace": where} if namespace == "default" else {}
    daemonset = f"/apis/apps/v1/namespaces/{where}/daemonsets/nodeagent"
    with helm().Config(
        kube_apiserver=f"https://127.0.0.1:{cluster.port}",
        kube_ca_file=cluster.certificate,
        kube_token=ADMIN_TOKEN,
        namespace=namespace,
    ) as connected:
        connected.install(
            str(CHART), "nodeagent", values, namespace=namespace, create_namespace=True
        )
        installed = cluster.get(daemonset)["spec"]["template"]["spec"]
        assert installed["containers"][0]["image"] == "nodeagent:sidecar"
        connected.upgrade(
            str(CHART), "nodeagent", values | {"image": {"tag": "next"}}, namespace=namespace
        )
        changed = cluster.get(daemonset)["spec"]["template"]["spec"]
        assert changed["containers"][0]["image"] == "nodeagent:next"
        with pytest.raises(helm().HelmError, match="'/way': value must be one of"):
            connected.upgrade(str(CHART), "nodeagent", {"way": "none"}, namespace=namespace)
        connected.uninstall("nodeagent")
    with pytest.raises(ApiError, match="404"):
        cluster.get(daemonset)
    with pytest.raises(ApiError, match="404"):
        cluster.get("/apis/rbac.authorization.k8s.io/v1/clusterroles/nodeagent")


def _kept(given: Object, stored: Object, place: str = "") -> list[str]:
    """Fields that were given and that the server dropped or changed."""
    lost = []
    for name, value in given.items():
        where = f"{place}.{name}"
        if name not in stored:
            lost += [where] if value not in ({}, [], None, "") else []
        elif isinstance(value, dict):
            lost += _kept(value, stored[name], where)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            if len(value) != len(stored[name]):
                lost.append(where)
            for index, (one, other) in enumerate(zip(value, stored[name], strict=False)):
                lost += _kept(one, other, f"{where}[{index}]")
        elif value != stored[name]:
            lost.append(f"{where}: {value!r} is {stored[name]!r}")
    return lost


def test_a_mistake_is_refused(cluster: Server) -> None:
    """What the test above relies on."""
    objects = render(MANIFESTS / "overlays" / "replace")
    (daemonset,) = [each for each in objects if each["kind"] == "DaemonSet"]
    wrong = copy.deepcopy(daemonset)
    wrong["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(ApiError):
        dry_run(cluster, wrong)
    wrong = copy.deepcopy(daemonset)
    del wrong["spec"]["template"]["spec"]["volumes"][0]
    with pytest.raises(ApiError, match="422"):
        dry_run(cluster, wrong)
    wrong = copy.deepcopy(daemonset)
    wrong["spec"]["template"]["spec"]["containers"][0]["securityContext"] = {}
    with pytest.raises(ApiError, match="Bidirectional mount propagation"):
        dry_run(cluster, wrong)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("PodMonitor", {"spec": {"podMetricsEndpoints": []}}),
        ("PodMonitor", {"spec": {"selector": {}, "podMetricsEndpoints": [{"interval": "soon"}]}}),
        ("PodMonitor", {"spec": {"selector": {}, "podMetricEndpoints": []}}),
        ("SecurityContextConstraints", {"allowHostPID": "no"}),
        ("SecurityContextConstraints", {"allowPrivileged": True}),
    ],
)
def test_a_mistake_in_other_projects_kinds_is_refused(
    cluster: Server, kind: str, change: Object
) -> None:
    objects = render(MANIFESTS / "overlays/openshift", MANIFESTS / "metrics")
    (thing,) = [each for each in objects if each["kind"] == kind]
    with pytest.raises(ApiError):
        dry_run(cluster, thing | change)
