"""Each way in, as the READMEs say it, line by line, with kubectl and a real API server.

What a cluster has and the server here has not is played: the DaemonSet's controller, the kubelet,
and the controller that ends a namespace. launcher/test_image.py builds the images.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import eventually
from tests.cluster.server import ADMIN_TOKEN, ApiError, Object, Server
from tests.support.helm import CHART, helm

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / name / "README.md").read_text() for name in (".", "manifests")}
OVERLAYS = sorted(path.name for path in (ROOT / "manifests/overlays").iterdir())
PODS, DAEMONSETS = (
    "/api/v1/namespaces/nodeagent/pods",
    "/apis/apps/v1/namespaces/nodeagent/daemonsets",
)
NAMESPACES = "/api/v1/namespaces"
ROLES = "/apis/rbac.authorization.k8s.io/v1"
PLUGINS = "nvidia-network-operator"
CONTENT = [
    *(f"/api/v1/namespaces/{{}}/{kind}" for kind in ("pods", "serviceaccounts", "secrets")),
    "/apis/apps/v1/namespaces/{}/daemonsets",
    *(f"{ROLES}/namespaces/{{}}/{kind}" for kind in ("roles", "rolebindings")),
]
"""What there may be in a namespace that ends."""
INSTALLATIONS = re.findall(
    r"helm install nodeagent manifests/chart --set ([^`\s]+)", PAGES["manifests"]
)

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")


def lines_of(section: str) -> list[str]:
    """The commands of a section of manifests/README.md, in their order."""
    text = PAGES["manifests"].partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(
        r"^    (\S.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )


@dataclass(frozen=True)
class Walk:
    """A folder with `manifests`, `scripts` and `my-cluster`, and who types there."""

    folder: Path
    server: Server
    node: str

    def type(self, line: str) -> None:
        """Run one line of a README. NODE in it is the node's name."""
        done = self.run(line)
        assert done.returncode == 0, (line, done.stdout, done.stderr)

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        """The same, whatever its exit status is."""
        return subprocess.run(
            shlex.split(line.replace("NODE", self.node)),
            check=False,
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def watch(self, line: str, what: str) -> None:
        """Run a line that does not end by itself, until it prints `what`."""
        running = subprocess.Popen(
            shlex.split(line), cwd=self.folder, env=self._environment, stdout=-1, text=True
        )
        alarm = threading.Timer(60, running.kill)
        alarm.start()
        try:
            printed = []
            for each in running.stdout or ():
                printed.append(each)
                if re.search(what, each):
                    return
            raise AssertionError(f"{what} is not in {printed}")
        finally:
            alarm.cancel()
            running.kill()
            running.wait()

    @property
    def _environment(self) -> dict[str, str]:
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        own = {"HOME": str(self.folder), "KUBECONFIG": str(self.folder / "config")}
        return {**os.environ, "XDG_CACHE_HOME": cache, **own}

    def write(self, overlay: str, version: str) -> None:
        """The kustomization of manifests/README.md, for an overlay and a driver's version."""
        text = PAGES["manifests"].partition("## Deploy\n")[2].partition("```yaml\n")[2]
        text = text.partition("```")[0].replace("REGISTRY", "registry.example")
        text = text.replace("overlays/replace", f"overlays/{overlay}").replace(
            "25.10-1.2.8.0}", f"{version}}}"
        )
        text = text.replace("  # -", "  -").replace("sha256:...", f"sha256:{'0' * 64}")
        if overlay in {"companion", "sidecar"}:
            assert "mofed-container  # nodeagent in the overlays companion and sidecar" in text
            text = text.replace("name: mofed-container", "name: nodeagent")
        (self.folder / "my-cluster").mkdir(exist_ok=True)
        (self.folder / "my-cluster/kustomization.yaml").write_text(text)

    def pods(self) -> list[Object]:
        """Those of nodeagent."""
        found: list[Object] = self.server.get(PODS)["items"]
        return found

    def versions(self) -> set[str]:
        """The driver's versions that the running pod's containers have."""
        (pod,) = self.pods()
        env = [each for one in pod["spec"]["containers"] for each in one.get("env", [])]
        return {each["value"] for each in env if each["name"] == "NVIDIA_NIC_DRIVER_VER"}


@pytest.fixture
def walk(server: Server, other_kinds: None, node: str, tmp_path: Path) -> Iterator[Walk]:
    """On a cluster with one node and the Network Operator's namespace."""
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    cluster = {
        "server": f"https://127.0.0.1:{server.port}",
        "certificate-authority": str(server.certificate),
    }
    context = {"cluster": "here", "user": "admin"}
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": cluster}],
        "users": [{"name": "admin", "user": {"token": ADMIN_TOKEN}}],
        "contexts": [{"name": "here", "context": context}],
    }  # fmt: skip
    (tmp_path / "config").write_text(json.dumps(config))
    stop = threading.Event()
    thread = threading.Thread(target=_play, args=(server, node, stop), daemon=True)
    thread.start()
    _clear(server)
    server.create(NAMESPACES, {"metadata": {"name": PLUGINS}})
    yield Walk(tmp_path, server, node)
    _clear(server)
    stop.set()
    thread.join()


def _clear(server: Server) -> None:
    """Remove what another test, or one that failed, has left."""
    for name in ("nodeagent", PLUGINS):
        server.delete(f"{NAMESPACES}/{name}")
    for kind in ("clusterroles", "clusterrolebindings"):
        for each in server.get(f"{ROLES}/{kind}")["items"]:
            if each["metadata"]["name"].startswith("nodeagent"):
                server.delete(f"{ROLES}/{kind}/{each['metadata']['name']}")
    eventually(
        lambda: not any(_exists(server, f"{NAMESPACES}/{each}") for each in ("nodeagent", PLUGINS))
    )


def _exists(server: Server, path: str) -> bool:
    try:
        server.get(path)
    except ApiError:
        return False
    return True


def _play(server: Server, node: str, stop: threading.Event) -> None:
    while not stop.wait(0.1):
        try:
            _end_namespaces(server)
            _pods_end_and_begin(server, node)
        except ApiError as error:
            if error.status not in {404, 409}:  # somebody else was quicker
                raise


def _end_namespaces(server: Server) -> None:
    """What the namespace controller does when all in a namespace is gone."""
    for each in server.get(NAMESPACES)["items"]:
        name = each["metadata"]["name"]
        if name in {"nodeagent", PLUGINS} and each["metadata"].get("deletionTimestamp"):
            for kind in CONTENT:
                server.request("DELETE", kind.format(name), {"gracePeriodSeconds": 0})
            each["spec"]["finalizers"] = []
            server.request("PUT", f"{NAMESPACES}/{name}/finalize", each)


def _pods_end_and_begin(server: Server, node: str) -> None:
    """A DaemonSet with OnDelete has one pod on the node; a pod that is to go goes."""
    daemonsets = server.get(DAEMONSETS)["items"]
    for pod in server.get("/api/v1/pods")["items"]:
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        is_to_go = pod["metadata"].get("deletionTimestamp") and pod["spec"]["nodeName"] == node
        if is_to_go or (path.startswith(PODS) and not daemonsets):
            server.delete(path)
    for each in daemonsets:
        if each["metadata"].get("deletionTimestamp") or server.get(PODS)["items"]:
            continue
        template = each["spec"]["template"]
        owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "controller": True}
        owner |= {field: each["metadata"][field] for field in ("name", "uid")}
        meta = {"generateName": "nodeagent-", "labels": template["metadata"]["labels"]}
        spec = template["spec"] | {"nodeName": node}
        pod = server.create(PODS, {"metadata": {**meta, "ownerReferences": [owner]}, "spec": spec})
        works = {"ready": True, "restartCount": 0, "imageID": "", "state": {"running": {}}}
        status = {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [
                works | {"name": each["name"], "image": each["image"]}
                for each in spec["containers"]
            ],
        }
        server.merge(f"{PODS}/{pod['metadata']['name']}/status", {"status": status})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_deploy_upgrade_roll_back_uninstall(walk: Walk, overlay: str) -> None:
    """README.md's one command; then the sections of manifests/README.md."""
    (one,) = re.findall(rf"`(kubectl apply -k manifests/overlays/{overlay})`", PAGES["."])
    walk.type(one)
    if overlay == "companion":
        same, plugins = lines_of("Beside the Network Operator's driver pods")
        assert same == one
        walk.type(plugins)
        assert _exists(walk.server, f"{ROLES}/namespaces/{PLUGINS}/roles/nodeagent-device-plugins")

    *built, check, apply, watch = lines_of("Deploy")
    assert [each.split()[0] for each in built] == ["scripts/image", "skopeo"]
    walk.write(overlay, "25.10-1")
    walk.type(check)
    walk.type(apply)
    (stored,) = walk.server.get(DAEMONSETS)["items"]
    images = {c["image"] for c in stored["spec"]["template"]["spec"]["containers"]}
    assert all(each.startswith("registry.example/") for each in images)
    walk.watch(watch, rf"^nodeagent-\S+ +(\d)/\1 .*{walk.node}")

    owner = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": "web",
        "uid": "0",
        "controller": True,
    }
    for version in ("26.01-1", "25.10-1"):  # the upgrade, and the roll back, which is one
        app = f"/api/v1/namespaces/default/pods/web-{version}"
        container = {"name": "web", "image": "web"}
        walk.server.create(
            "/api/v1/namespaces/default/pods",
            {
                "metadata": {"name": f"web-{version}", "ownerReferences": [owner]},
                "spec": {"nodeName": walk.node, "containers": [container]},
            },
        )
        walk.write(overlay, version)
        before = walk.pods()
        again, drain, delete, watch, uncordon = lines_of("Upgrade")
        walk.type(again)
        # nothing happens yet; that a controller replaces the companion's pods is not played
        assert walk.pods() == before
        walk.type(drain)
        assert walk.server.get(f"/api/v1/nodes/{walk.node}")["spec"]["unschedulable"]
        assert not _exists(walk.server, app)
        assert walk.pods() == before
        walk.type(delete)
        walk.watch(watch, rf"^nodeagent-\S+ +(\d)/\1 .*{walk.node}")
        assert version in walk.versions()
        walk.type(uncordon)
        assert "unschedulable" not in walk.server.get(f"/api/v1/nodes/{walk.node}")["spec"]

    for line in lines_of("Uninstall"):
        walk.type(line)
    eventually(lambda: not _exists(walk.server, f"{NAMESPACES}/nodeagent"))
    for kind in ("clusterroles", "clusterrolebindings", f"namespaces/{PLUGINS}/roles"):
        names = [each["metadata"]["name"] for each in walk.server.get(f"{ROLES}/{kind}")["items"]]
        assert not [name for name in names if "nodeagent" in name], kind


@pytest.mark.parametrize("given", INSTALLATIONS)
def test_with_helm(walk: Walk, given: str) -> None:
    """Each `helm install` of manifests/README.md, by Helm's own code, and its uninstall."""
    values = helm().parse_set_string(given.replace("REGISTRY", "registry.example"))
    with helm().Config(
        kube_apiserver=f"https://127.0.0.1:{walk.server.port}",
        kube_ca_file=walk.server.certificate,
        kube_token=ADMIN_TOKEN,
        namespace="default",
    ) as connected:
        connected.install(str(CHART), "nodeagent", values, namespace="default")
        eventually(lambda: bool(walk.pods()))
        connected.uninstall("nodeagent")
    eventually(lambda: not _exists(walk.server, f"{NAMESPACES}/nodeagent"))


REFUSED = {
    "ports: [{containerPort: -1}]": r"containerPort: Invalid value: -1: must be between 1 and",
    "volumeMount: []": r'unknown field "[^"]*volumeMount"',
    "resources: {requests: {memory: 64 MB}}": r"quantities must match",
    "imagePullPolicy: always": r'imagePullPolicy: Unsupported value: "always"',
    # by the server's version: the place in the text, or the types
    "env: [{name: PF_TIMEOUT, value: 300}]": r'"PF_TIMEOUT","value":300|type string',
}
"""What of a container Kubernetes does not accept, and what it says."""


def test_what_kubernetes_does_not_know_is_refused_before_a_pod_is_made(walk: Walk) -> None:
    page = walk.folder / "my-cluster/kustomization.yaml"
    for bad, why in REFUSED.items():
        walk.write("replace", "25.10-1")
        content = yaml.safe_load(page.read_text())
        content["patches"].append({"patch": _patch(bad)})
        page.write_text(yaml.safe_dump(content))
        done = walk.run("kubectl apply -k my-cluster")
        assert done.returncode == 1
        assert re.search(why, done.stderr)
    assert walk.server.get(DAEMONSETS)["items"] == walk.pods() == []


def _patch(container: str) -> str:
    return (
        "{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: nodeagent, namespace: nodeagent}, "
        f"spec: {{template: {{spec: {{containers: [{{name: mofed-container, {container}}}]}}}}}}}}"
    )
