"""The manifests, without a cluster: they render, and say what the settings and the contract say."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from nodeagent.driver.dtk import sanitised_kernel
from nodeagent.settings import Settings, rows
from tests.support.kustomize import Object, identity, render
from tests.support.network_operator import CONTAINER, FLAG, driver_daemonset

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from container.overlay import REFERENCE, problems

MANIFESTS = Path(__file__).parents[2] / "manifests"
OVERLAYS = sorted(path.name for path in (MANIFESTS / "overlays").iterdir())


DIGEST = f"sha256:{'0' * 64}"
METRICS = {
    **dict.fromkeys(("companion", "sidecar"), "metrics-sidecar"),
    **dict.fromkeys(("replace", "openshift"), "metrics"),
}
"""The component for metrics of each overlay."""


def daemonset(overlay: str) -> Object:
    (found,) = [o for o in render(MANIFESTS / "overlays" / overlay) if o["kind"] == "DaemonSet"]
    return found


def pod(overlay: str) -> Object:
    spec: Object = daemonset(overlay)["spec"]["template"]["spec"]
    return spec


def containers(overlay: str) -> list[Object]:
    spec = pod(overlay)
    return [*spec.get("initContainers", []), *spec["containers"]]


def ours(overlay: str) -> list[Object]:
    return [each for each in containers(overlay) if each["image"].startswith("nodeagent:")]


def environment(container: Object) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_renders_the_same(overlay: str) -> None:
    directory = MANIFESTS / "overlays" / overlay
    told = subprocess.run(
        ["kubectl", "kustomize", directory], capture_output=True, text=True, check=True
    )
    wanted = {identity(each): each for each in yaml.safe_load_all(told.stdout)}
    assert {identity(each): each for each in render(directory)} == wanted


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_under_another_name_and_namespace_all_refer_to_each_other(
    overlay: str, tmp_path: Path
) -> None:
    """What people put on top of an overlay: a namespace, a prefix, their registry, metrics."""
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    (tmp_path / "kustomization.yaml").write_text(
        "namespace: other\nnamePrefix: my-\n"
        f"resources: [manifests/overlays/{overlay}]\ncomponents: [manifests/metrics]\n"
        "images: [{name: nodeagent, newName: registry.example/nodeagent}]\n"
    )
    told = subprocess.run(
        ["kubectl", "kustomize", tmp_path], capture_output=True, text=True, check=True
    )
    objects: list[Object] = list(yaml.safe_load_all(told.stdout))
    there = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    for (kind, name), each in there.items():
        assert each["metadata"].get("namespace", "other") == "other", (kind, name)
        assert name.startswith("my-") or kind == "Namespace"
        if kind.endswith("Binding"):
            assert (each["roleRef"]["kind"], each["roleRef"]["name"]) in there
            for subject in each["subjects"]:
                assert (subject["kind"], subject["name"]) in there
                assert subject["namespace"] == "other"
        for rule in each.get("rules", []):
            for resource in rule.get("resourceNames", []):
                assert ("SecurityContextConstraints", resource) in there
    spec = there["DaemonSet", "my-nodeagent"]["spec"]["template"]["spec"]
    assert ("ServiceAccount", spec["serviceAccountName"]) in there
    images = {each["image"] for each in [*spec["containers"], *spec.get("initContainers", [])]}
    assert not {image for image in images if image.startswith("nodeagent")}
    assert {image for image in images if image.startswith("registry.example/nodeagent:")}


def test_a_feature_that_the_renderer_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("kind: Kustomization\nnamePrefix: x-\n")
    with pytest.raises(ValueError, match="namePrefix"):
        render(tmp_path)


def known_to_the_schema(thing: Object) -> Object | None:
    """The object with what Kubernetes' own schema (the client's models) knows of it."""
    model = getattr(client, f"V1{thing['kind']}", None)
    if model is None:  # another project's kind
        return None
    told: Object = model.from_dict(thing).model_dump(by_alias=True, exclude_none=True)
    return told


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_schema_knows_every_field(overlay: str) -> None:
    objects = render(MANIFESTS / "overlays" / overlay)
    assert len({identity(each) for each in objects}) == len(objects)
    unknown = {each["kind"] for each in objects if known_to_the_schema(each) is None}
    assert unknown <= {"SecurityContextConstraints"}
    for each in objects:
        assert known_to_the_schema(each) in (each, None)


def test_a_field_that_is_none_is_seen() -> None:
    whole = daemonset("replace")
    wrong = copy.deepcopy(whole)
    wrong["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    assert known_to_the_schema(whole) == whole
    assert known_to_the_schema(wrong) != wrong
    wrong = copy.deepcopy(whole)
    wrong["spec"]["template"]["spec"]["hostNetwork"] = "yes"
    with pytest.raises(ValueError, match="hostNetwork"):
        known_to_the_schema(wrong)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_volume_is_mounted_and_every_mount_has_its_volume(overlay: str) -> None:
    spec = pod(overlay)
    volumes = [each["name"] for each in spec["volumes"]]
    mounted = {mount["name"] for each in containers(overlay) for mount in each["volumeMounts"]}
    assert len(set(volumes)) == len(volumes)
    assert mounted == set(volumes)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_variable_is_one_of_ours_with_a_good_value(overlay: str) -> None:
    names = {row.name for _, row in rows()}
    for container in ours(overlay):
        assert {each["name"] for each in container["env"]} <= names
        Settings.from_environment(environment(container))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_paths_of_the_settings_are_on_mounts(overlay: str) -> None:
    """What must outlive the container, or be seen outside of it, is not written into it."""
    for container in ours(overlay):
        settings = Settings.from_environment(environment(container))
        mounts = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
        paths = [settings.ready_path, settings.lock_path, settings.state_dir]
        if overlay not in {"companion", "sidecar"}:
            paths.append(settings.blacklist_file)
        for path in paths:
            assert any(path.is_relative_to(mount) for mount in mounts), path


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_grace_period_fits_the_deadlines(overlay: str) -> None:
    """nodeagent is told how long it has: a restart that has begun is waited for nearly as long."""
    for container in ours(overlay):
        settings = Settings.from_environment(environment(container))
        assert settings.grace_period == pod(overlay)["terminationGracePeriodSeconds"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_are_nodeagents_and_give_a_hang_its_time(overlay: str) -> None:
    for container in [each for each in ours(overlay) if "startupProbe" in each]:
        for kind, word in (("startup", "startup"), ("liveness", "live"), ("readiness", "ready")):
            probe = container[f"{kind}Probe"]
            assert probe["exec"]["command"] == ["nodeagent", "probe", word]
        live = container["livenessProbe"]
        assert live["failureThreshold"] >= 2
        assert live["periodSeconds"] >= 10


def test_replace_is_the_driver_containers_pod() -> None:
    """The names and mounts that others look for."""
    whole, spec = daemonset("replace"), pod("replace")
    assert whole["spec"]["updateStrategy"] == {"type": "OnDelete"}
    assert spec["hostNetwork"] is True
    assert spec["terminationGracePeriodSeconds"] == 300
    assert spec["priorityClassName"] == "system-node-critical"
    assert "hostPID" not in spec
    (container,) = spec["containers"]
    assert container["name"] == "mofed-container"
    assert container["securityContext"] == {"privileged": True, "seLinuxOptions": {"level": "s0"}}
    where: dict[str, Any] = {each["mountPath"]: each for each in container["volumeMounts"]}
    assert where["/run/mellanox/drivers"]["mountPropagation"] == "Bidirectional"


def test_the_companion_replaces_nothing() -> None:
    """Not the driver container's name, flag or strategy; and it sees what that cannot see."""
    whole, spec = daemonset("companion"), pod("companion")
    assert whole["spec"]["updateStrategy"]["type"] == "RollingUpdate"
    assert whole["spec"]["template"]["metadata"]["labels"] == {
        "app.kubernetes.io/name": "nodeagent"
    }
    assert (spec["hostPID"], spec["hostNetwork"]) == (True, True)
    (container,) = spec["containers"]
    assert container["name"] != CONTAINER
    assert container["args"] == ["sidecar"]
    settings = Settings.from_environment(environment(container))
    assert str(settings.driver_ready_path) == FLAG
    assert str(settings.ready_path) != FLAG
    where: dict[str, Any] = {each["mountPath"]: each for each in container["volumeMounts"]}
    assert where["/run/netns"]["mountPropagation"] == "HostToContainer"
    (theirs,) = driver_daemonset("any")["spec"]["template"]["spec"]["containers"]
    assert "/run/mellanox/drivers" in where.keys() & {
        each["mountPath"] for each in theirs["volumeMounts"]
    }


def test_metrics_are_a_component_for_each_overlay(tmp_path: Path) -> None:
    """A container of its own, without a privilege, that can only read."""
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    for overlay in OVERLAYS:
        directory = tmp_path / "manifests/overlays" / overlay
        with (directory / "kustomization.yaml").open("a") as file:
            file.write(f"components:\n  - ../../{METRICS[overlay]}\n")
        objects = render(directory)
        (monitor,) = [each for each in objects if each["kind"] == "PodMonitor"]
        (whole,) = [each for each in objects if each["kind"] == "DaemonSet"]
        template = whole["spec"]["template"]
        wanted = monitor["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= template["metadata"]["labels"].items()
        (serving,) = [c for c in template["spec"]["containers"] if c["name"] == "metrics"]
        assert serving["ports"] == [{"name": "metrics", "containerPort": 9790}]
        assert environment(serving)["METRICS_PORT"] == "9790"
        assert serving["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert all(mount["readOnly"] for mount in serving["volumeMounts"])
        (agent,) = [c for c in ours(overlay) if "startupProbe" in c]
        assert serving["image"] == agent["image"]
        told, agents = environment(serving), environment(agent)
        for name in ("DRIVER_READY_PATH", "STATE_DIR", "LOCK_FILE_PATH"):
            assert told.get(name) == agents.get(name), name
        (relabeling,) = monitor["spec"]["podMetricsEndpoints"][0]["relabelings"]
        assert relabeling == {
            "sourceLabels": ["__meta_kubernetes_pod_node_name"],
            "targetLabel": "node",
        }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_metrics_with_tls_are_on_loopback_and_the_proxy_is_on_their_port(overlay: str) -> None:
    objects = render(
        MANIFESTS / "overlays" / overlay, MANIFESTS / METRICS[overlay], MANIFESTS / "metrics-tls"
    )
    (whole,) = [each for each in objects if each["kind"] == "DaemonSet"]
    each = {c["name"]: c for c in whole["spec"]["template"]["spec"]["containers"]}
    serving, proxy = each["metrics"], each["kube-rbac-proxy"]
    settings = Settings.from_environment(environment(serving))
    assert (settings.metrics_address, settings.metrics_port) == ("127.0.0.1", 9790)
    assert serving["ports"] == [{"name": "metrics", "containerPort": 9790}]
    assert proxy["args"][:2] == [
        "--secure-listen-address=[$(POD_IP)]:9790",
        "--upstream=http://127.0.0.1:9790/",
    ]
    assert proxy["securityContext"]["runAsNonRoot"] is True
    assert proxy["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "volumeMounts" not in proxy
    assert not REFERENCE.fullmatch(proxy["image"])
    there = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    (endpoint,) = there["PodMonitor", "nodeagent"]["spec"]["podMetricsEndpoints"]
    plain = render(MANIFESTS / "overlays" / overlay, MANIFESTS / METRICS[overlay])
    (without,) = [each for each in plain if each["kind"] == "PodMonitor"]
    assert without["spec"]["podMetricsEndpoints"][0].items() <= endpoint.items()
    assert endpoint["scheme"] == "https"
    secret = there["Secret", endpoint["authorization"]["credentials"]["name"]]
    (account,) = secret["metadata"]["annotations"].values()
    assert ("ServiceAccount", account) in there


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
def test_metrics_with_tls_under_another_name(tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    (tmp_path / "kustomization.yaml").write_text(
        "namespace: other\nnamePrefix: my-\nresources: [manifests/overlays/companion]\n"
        "components: [manifests/metrics-sidecar, manifests/metrics-tls]\n"
    )
    told = subprocess.run(
        ["kubectl", "kustomize", tmp_path], capture_output=True, text=True, check=True
    )
    there = {(o["kind"], o["metadata"]["name"]): o for o in yaml.safe_load_all(told.stdout)}
    name = "my-nodeagent-metrics-reader"
    (endpoint,) = there["PodMonitor", "my-nodeagent"]["spec"]["podMetricsEndpoints"]
    assert endpoint["authorization"]["credentials"]["name"] == name
    assert {*there["Secret", name]["metadata"]["annotations"].values()} == {name}
    binding = there["ClusterRoleBinding", name]
    assert binding["roleRef"]["name"] == name
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": name, "namespace": "other"}]
    binding = there["ClusterRoleBinding", "my-nodeagent-auth-delegator"]
    assert binding["roleRef"]["name"] == "system:auth-delegator"
    assert binding["subjects"][0]["name"] == "my-nodeagent"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
@pytest.mark.parametrize("more", [(), ("metrics-tls",)])
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_metrics_render_as_kustomize_has_them(
    overlay: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    directory = tmp_path / "manifests/overlays" / overlay
    with (directory / "kustomization.yaml").open("a") as file:
        file.write("components:\n")
        file.writelines(f"  - ../../{name}\n" for name in (METRICS[overlay], *more))
    told = subprocess.run(
        ["kubectl", "kustomize", directory], capture_output=True, text=True, check=True
    )
    wanted = {identity(each): each for each in yaml.safe_load_all(told.stdout)}
    assert {identity(each): each for each in render(directory)} == wanted


def test_openshift_has_the_toolkit() -> None:
    names = [each["name"] for each in pod("openshift")["containers"]]
    assert sorted(names) == ["mofed-container", "openshift-driver-toolkit-ctr"]


@pytest.mark.parametrize(
    ("overlay", "components"),
    [
        ("openshift", ()),
        ("replace", ("scc",)),
        ("sidecar", ("scc",)),
        ("companion", ("scc-companion", "metrics-sidecar", "metrics-tls")),
    ],
)
def test_constraints_are_what_the_pod_asks_for(overlay: str, components: tuple[str, ...]) -> None:
    objects = render(MANIFESTS / "overlays" / overlay, *(MANIFESTS / name for name in components))
    (scc,) = [each for each in objects if each["kind"] == "SecurityContextConstraints"]
    assert (scc["users"], scc["groups"]) == ([], [])
    (role,) = [o for o in objects if identity(o)[1:] == ("ClusterRole", "", "nodeagent-scc")]
    assert role["rules"][0]["resourceNames"] == [scc["metadata"]["name"]]
    (binding,) = [
        o for o in objects if identity(o)[1:] == ("ClusterRoleBinding", "", "nodeagent-scc")
    ]
    (subject,) = binding["subjects"]
    accounts = [identity(each)[1:] for each in objects if each["kind"] == "ServiceAccount"]
    assert (subject["kind"], subject["namespace"], subject["name"]) in accounts
    (spec,) = [o["spec"]["template"]["spec"] for o in objects if o["kind"] == "DaemonSet"]
    kinds = {next(iter(volume.keys() - {"name"})) for volume in spec["volumes"]}
    assert kinds <= {*scc["volumes"]}
    assert scc["allowHostPID"] is spec.get("hostPID", False)
    contexts = [each["securityContext"] for each in spec["containers"]]
    read_only = all(each.get("readOnlyRootFilesystem", False) for each in contexts)
    assert scc["readOnlyRootFilesystem"] is read_only


def test_the_toolkits_container_runs_what_is_put_beside_the_start_flag(tmp_path: Path) -> None:
    """Its loop, by a real shell, with the folder of this kernel's name as nodeagent makes it."""
    (toolkit,) = [c for c in pod("openshift")["containers"] if c["name"].startswith("openshift-")]
    place = tmp_path / sanitised_kernel(os.uname().release)
    place.mkdir()
    (place / "entrypoint").write_text(f'#!/bin/sh\necho "$@" >{place}/called\nrm {place}/dtk_*\n')
    (place / "entrypoint").chmod(0o755)
    (place / "dtk_start_compile").touch()
    script = toolkit["args"][0].replace("/mnt/shared-doca-driver-toolkit", str(tmp_path))
    running = subprocess.Popen([*toolkit["command"], script])
    try:
        assert running.wait(30) == 0
        assert (place / "called").read_text() == "dtk-build\n"
    finally:
        running.kill()


def test_the_toolkits_container_ends_while_it_waits(tmp_path: Path) -> None:
    """As process 1 it would get no signal that it has no trap for."""
    (toolkit,) = [c for c in pod("openshift")["containers"] if c["name"].startswith("openshift-")]
    script = toolkit["args"][0].replace("/mnt/shared-doca-driver-toolkit", str(tmp_path))
    running = subprocess.Popen([*toolkit["command"], script])
    try:
        while not Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text():
            assert running.poll() is None
            time.sleep(0.01)
        running.terminate()
        assert running.wait(2.5) == 0  # sooner than its sleep
    finally:
        running.kill()


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_lines_of_the_readme(overlay: str, tmp_path: Path) -> None:
    """The archive they push is the one that is written; no image is left without its registry."""
    text = (MANIFESTS / "README.md").read_text().partition("## Deploy\n")[2]
    text, _, after = text.partition("```yaml\n")
    lines = [line.strip() for line in text.splitlines() if line[:4] == " " * 4]
    build, push, check, apply, _ = lines
    assert check.split()[-1] == apply.split()[-1]
    assert build == "scripts/image --out images"
    assert "oci-archive:images/nodeagent-driver.oci.tar" in push
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    mine = tmp_path / apply.split()[-1]
    mine.mkdir()
    yours = after.partition("```")[0].replace("  # -", "  -").replace("sha256:...", DIGEST)
    if overlay in {"companion", "sidecar"}:
        yours = yours.replace("name: mofed-container", "name: nodeagent")
    (mine / "kustomization.yaml").write_text(
        yours.replace("overlays/replace", f"overlays/{overlay}")
    )
    told = subprocess.run(
        ["kubectl", "kustomize", mine], capture_output=True, text=True, check=True
    )
    objects = [*yaml.safe_load_all(told.stdout)]
    assert [
        each.replace("REGISTRY", "") for each in problems(objects) if "REGISTRY" not in each
    ] == []
    (whole,) = [each for each in objects if each["kind"] == "DaemonSet"]
    spec = whole["spec"]["template"]["spec"]
    both = [*spec["containers"], *spec.get("initContainers", [])]
    assert {each["image"].partition("/")[0] for each in both} == {"REGISTRY"}
    for each in both:
        assert REFERENCE.fullmatch(each["image"].replace("REGISTRY", "registry.example")), each


@pytest.mark.parametrize(
    ("overlay", "name"), [("openshift", "driver-toolkit"), ("sidecar", "doca-driver")]
)
def test_an_image_that_has_to_be_set_is_refused_until_it_is(overlay: str, name: str) -> None:
    """It is no reference, which the kubelet refuses without a pull; the others are."""
    refused = {
        each["image"] for each in containers(overlay) if not REFERENCE.fullmatch(each["image"])
    }
    assert refused == {f"{name}:{{set-it-by-images-in-your-kustomization}}"}
    assert not {each["image"] for each in containers(overlay) if each["image"].endswith(":latest")}


# a kustomization of somebody's, checked before it is applied (scripts/check-overlay)


def _with(change: Object, overlay: str = "replace", *components: str) -> list[Object]:
    """An overlay with its images set, and its first container changed."""
    objects = copy.deepcopy(
        render(MANIFESTS / "overlays" / overlay, *(MANIFESTS / each for each in components))
    )
    for each in objects:
        if each["kind"] == "DaemonSet":
            spec = each["spec"]["template"]["spec"]
            for container in spec["containers"] + spec.get("initContainers", []):
                container["image"] = "registry.example/nodeagent:1"
            first = spec["containers"][0]
            names = {each["name"] for each in change.get("env", [])}
            env = [each for each in first["env"] if each["name"] not in names]
            first |= change
            first["env"] = env + change.get("env", [])
    return objects


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_with_its_images_set_has_nothing_wrong(overlay: str) -> None:
    assert [*problems(_with({}, overlay, METRICS[overlay]))] == []


def _env(name: str, value: object) -> Object:
    return {"env": [{"name": name, "value": value}]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"image": "nodeagent:driver"},
            "the image nodeagent:driver names no registry: set newName",
        ),
        ({"image": "example/nodeagent:1"}, "the image example/nodeagent:1 names no registry"),
        ({"image": "r.example/n"}, "the image r.example/n has neither tag nor digest: set newTag"),
        ({"image": "r.example:5000/n"}, "the image r.example:5000/n has neither tag nor digest"),
        ({"image": "r.example/n:latest"}, "the image r.example/n:latest is another one tomorrow"),
        ({"image": "r.example/n:{set-it}"}, "the image 'r.example/n:{set-it}' is no image's name"),
        (
            {"args": ["source"]},
            "its argument is 'source'; allowed: sources, precompiled, dtk-build",
        ),
        ({"args": ["sources"]}, "NVIDIA_NIC_DRIVER_PATH is not set; in sources mode it names"),
        (_env("QUIESE", "off"), "QUIESE is no setting; is it QUIESCE?"),
        (_env("FOO", "off"), "FOO is no setting"),
        (_env("HOLD_OFF", "foo"), "HOLD_OFF is 'foo'; allowed: none"),
        (_env("HOLD_OFF", "cordon"), "HOLD_OFF=cordon need the component node-status"),
        (_env("RESTORE_FIRST", "a b"), "RESTORE_FIRST is 'a b'; allowed: "),
        (_env("METRICS_PORT", "-1"), "METRICS_PORT is '-1'; allowed: "),
        (_env("VF_TIMEOUT", 300), "VF_TIMEOUT is 300 and not text: put it in quotes"),
        (_env("VF_TIMEOUT", "5m"), "VF_TIMEOUT is '5m'; allowed: "),
        (_env("STATE_DIR", "state"), "STATE_DIR is 'state'; allowed: "),
        (_env("NVIDIA_NIC_DRIVER_VER", ""), "NVIDIA_NIC_DRIVER_VER is not set; it names"),
    ],
)
def test_what_would_fail_on_a_node_is_said_before(change: Object, told: str) -> None:
    (said,) = problems(_with(change))
    assert said.startswith("mofed-container: ")
    assert told in said


def test_what_a_setting_needs_may_be_there() -> None:
    assert [*problems(_with(_env("HOLD_OFF", "cordon"), "replace", "node-status"))] == []
    assert [*problems([])] == ["no DaemonSet: name one of manifests/overlays under `resources`"]
    assert [*problems(_with(_env("FOO", "x"), "sidecar"))] == []  # NVIDIA's own container


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
def test_the_command_that_says_it(tmp_path: Path) -> None:
    def told(directory: Path) -> tuple[int, str, str]:
        argv = [MANIFESTS.parent / "scripts/check-overlay", directory]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    status, found, _ = told(MANIFESTS / "overlays/companion")
    assert status == 1
    assert found.startswith("nodeagent: the image nodeagent:sidecar names no registry")
    status, found, reason = told(tmp_path)
    assert (status, found) == (125, "")
    assert "kustomization" in reason
    assert reason.endswith(f"check-overlay: kubectl cannot render {tmp_path}\n")
