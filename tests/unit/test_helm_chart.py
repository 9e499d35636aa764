"""manifests/chart, rendered by Helm's own code: what the overlays have, and what values change."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.settings import SPACE_SEPARATED, Settings, rows
from tests.support.helm import CHART, helm, objects, rendered
from tests.support.kustomize import Object, identity, render

sys.path.insert(0, str(CHART.parents[1] / "scripts"))

from container import chart

MANIFESTS = CHART.parent
TOOLKIT = "registry.example/toolkit:4.16"
PROXY = "registry.example/kube-rbac-proxy:v0.19"
DRIVER = "registry.example/doca-driver:25.10"
NEEDED: dict[str, Object] = {
    "companion": {},
    "replace": {},
    "openshift": {"toolkit": {"image": TOOLKIT}},
    "sidecar": {"driver": {"image": DRIVER}},
}
"""The values that have no default, of each overlay's way."""
OVERLAYS = [*NEEDED]
EVERYTHING: Object = {
    "metrics": {"enabled": True},
    "alerts": {"enabled": True},
    "rbac": {
        "devicePluginNamespaces": ["nvidia-network-operator"],
        "nodeStatus": True,
        "operatorNamespace": "openshift-sriov-network-operator",
    },
}


def by_identity(things: list[Object]) -> dict[tuple[str, str, str, str], Object]:
    found = {identity(each): each for each in things}
    assert len(found) == len(things)
    return found


def with_images(things: list[Object]) -> list[Object]:
    """What `images:` in a kustomization makes of an overlay that has images to be set."""
    for container in [each for thing in things for each in containers(thing)]:
        name = container["image"].partition(":")[0]
        wanted = {"driver-toolkit": TOOLKIT, "doca-driver": DRIVER, "kube-rbac-proxy": PROXY}
        container["image"] = wanted.get(name, container["image"])
    return things


def containers(thing: Object) -> list[Object]:
    if thing["kind"] != "DaemonSet":
        return []
    spec = thing["spec"]["template"]["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def pod(values: Object) -> Object:
    (found,) = [each for each in objects(values) if each["kind"] == "DaemonSet"]
    spec: Object = found["spec"]["template"]["spec"]
    return spec


def container(values: Object, name: str = "nodeagent") -> Object:
    found: list[Object] = [each for each in pod(values)["containers"] if each["name"] == name]
    return found[0]


def test_what_is_generated_is_that_of_the_overlays_and_settings() -> None:
    """`scripts/chart` writes it."""
    assert {overlay.name for overlay in (MANIFESTS / "overlays").iterdir()} == {*OVERLAYS}
    files = [*chart.files()]
    for path, text in files:
        assert path.read_text() == text, path
    assert {path for path, _ in files} >= {*(CHART / "files").iterdir()}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_defaults_are_the_overlay(overlay: str) -> None:
    wanted = with_images(render(MANIFESTS / "overlays" / overlay))
    found = objects({"way": overlay, **NEEDED[overlay]})
    assert by_identity(found) == by_identity(wanted)


def test_without_any_value_it_is_the_companion() -> None:
    wanted = render(MANIFESTS / "overlays/companion")
    assert by_identity(objects({})) == by_identity(wanted)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_defaults_are_what_kubectl_makes_of_the_overlay(overlay: str, tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    images = [
        {"name": image.rpartition("/")[2].partition(":")[0], "newName": image.partition(":")[0]}
        | {"newTag": image.rpartition(":")[2]}
        for image in (DRIVER, TOOLKIT.replace("/toolkit", "/driver-toolkit"))
    ]
    mine = {"resources": [f"manifests/overlays/{overlay}"], "images": images}
    (tmp_path / "kustomization.yaml").write_text(yaml.dump(mine))
    argv = ["kubectl", "kustomize", str(tmp_path)]
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    wanted = [*yaml.safe_load_all(told.replace("/driver-toolkit:", "/toolkit:"))]
    found = objects({"way": overlay, **NEEDED[overlay]})
    assert by_identity(found) == by_identity(wanted)


def test_the_way_policy_is_the_policy_of_the_manifests() -> None:
    values = {"way": "policy", "image": {"repository": "registry.example/a/nodeagent-doca"}}
    (found,) = objects(values)
    wanted = yaml.safe_load((MANIFESTS / "network-operator/nicclusterpolicy.yaml").read_text())
    assert wanted["spec"]["ofedDriver"]["repository"] == "REPOSITORY"
    wanted["spec"]["ofedDriver"]["repository"] = "registry.example/a"
    assert found == wanted


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_metrics_alerts_and_rights_are_the_components(overlay: str) -> None:
    directory = MANIFESTS / "overlays" / overlay
    components = [MANIFESTS / chart.METRICS[overlay], MANIFESTS / "node-status"]
    wanted = with_images(render(directory, *components))
    wanted += render(MANIFESTS / "device-plugins") + render(MANIFESTS / "sriov-operator")
    found = objects({"way": overlay, **NEEDED[overlay], **EVERYTHING})
    assert by_identity(found) == by_identity(wanted)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_security_context_constraints_are_the_component(overlay: str) -> None:
    components = [MANIFESTS / chart.SCC[overlay]] if overlay in chart.SCC else []
    wanted = with_images(render(MANIFESTS / "overlays" / overlay, *components))
    rbac = {"securityContextConstraints": True}
    found = objects({"way": overlay, "rbac": rbac, **NEEDED[overlay]})
    assert by_identity(found) == by_identity(wanted)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_metrics_with_tls_are_the_component(overlay: str) -> None:
    directory = MANIFESTS / "overlays" / overlay
    wanted = render(directory, MANIFESTS / chart.METRICS[overlay], MANIFESTS / "metrics-tls")
    proxy = {"rbacProxy": {"image": PROXY}}
    values = {"way": overlay, "metrics": {"enabled": True, **proxy}, "alerts": {"enabled": True}}
    found = objects(values | NEEDED[overlay])
    assert by_identity(found) == by_identity(with_images(wanted))


def test_the_port_of_metrics_with_tls() -> None:
    metrics = {"enabled": True, "port": 9999, "rbacProxy": {"image": PROXY}}
    proxy = container({"metrics": metrics}, "kube-rbac-proxy")
    assert proxy["args"][:2] == [
        "--secure-listen-address=[$(POD_IP)]:9999",
        "--upstream=http://127.0.0.1:9999/",
    ]
    told = environment(container({"metrics": metrics}, "metrics"))
    assert (told["METRICS_ADDRESS"], told["METRICS_PORT"]) == ("127.0.0.1", "9999")


def test_each_namespace_of_device_plugins_has_its_role() -> None:
    names = ["kube-system", "nvidia-network-operator"]
    found = objects({"rbac": {"devicePluginNamespaces": names}}, namespace="other")
    roles = [each for each in found if each["metadata"]["name"] == "nodeagent-device-plugins"]
    assert [(each["kind"], each["metadata"]["namespace"]) for each in roles] == [
        (kind, name) for name in names for kind in ("Role", "RoleBinding")
    ]
    assert {each["subjects"][0]["namespace"] for each in roles if "subjects" in each} == {"other"}


@pytest.mark.parametrize(
    ("values", "helms", "expected", "made"),
    [
        ({}, "default", "nodeagent", True),
        ({}, "nodeagent", "nodeagent", False),
        ({}, "other", "other", False),
        ({"namespace": "mine"}, "default", "mine", True),
        ({"namespace": "mine"}, "other", "mine", True),
        ({"namespace": "default"}, "default", "default", False),
    ],
)
def test_all_objects_are_in_one_namespace(
    values: Object, helms: str, expected: str, made: bool
) -> None:
    """The chart makes it, unless Helm does: `helm install --create-namespace` would refuse."""
    found = objects(
        values | {"way": "openshift", "metrics": {"enabled": True}} | NEEDED["openshift"],
        namespace=helms,
    )
    spaces = [each for each in found if each["kind"] == "Namespace"]
    assert [each["metadata"]["name"] for each in spaces] == [expected] * made
    named = {each["metadata"]["namespace"] for each in found if "namespace" in each["metadata"]}
    subjects = {s["namespace"] for each in found for s in each.get("subjects", [])}
    assert (named, subjects) == ({expected}, {expected})


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({"repository": "r.example:5000/a/nodeagent"}, "r.example:5000/a/nodeagent:{}"),
        ({"tag": "0.2.0-x"}, "nodeagent:0.2.0-x"),
        ({"tag": "x", "digest": f"sha256:{'0' * 64}"}, f"nodeagent@sha256:{'0' * 64}"),
    ],
)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_image_is_that_of_every_container_of_ours(
    overlay: str, image: Object, expected: str
) -> None:
    target = "sidecar" if overlay in {"companion", "sidecar"} else "driver"
    values = {"way": overlay, "image": image, **NEEDED[overlay], **EVERYTHING}
    (thing,) = [each for each in objects(values) if each["kind"] == "DaemonSet"]
    images = {each["image"] for each in containers(thing)}
    assert images == {expected.format(target)} | {
        image for value in NEEDED[overlay].values() for image in value.values()
    }


def test_what_the_pods_get() -> None:
    resources = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}
    values: Object = {
        "image": {"pullPolicy": "Always"},
        "imagePullSecrets": ["pull"],
        "resources": resources,
        "tolerations": [{"key": "nic", "operator": "Equal", "value": "x", "effect": "NoSchedule"}],
        "nodeSelector": {"nic": "connectx"},
        "nodeFeatureDiscovery": False,
        "settings": {"TERMINATION_GRACE_PERIOD": 600},
    }
    plain, found = pod({}), pod(values)
    assert found["imagePullSecrets"] == [{"name": "pull"}]
    assert found["tolerations"] == values["tolerations"]
    assert found["nodeSelector"] == {"nic": "connectx"}
    assert found["terminationGracePeriodSeconds"] == 600
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = found["affinity"]["nodeAffinity"][required]["nodeSelectorTerms"]
    assert [each["key"] for each in terms[0]["matchExpressions"]] == ["kubernetes.io/os"]
    (ours,) = found["containers"]
    assert (ours["imagePullPolicy"], ours["resources"]) == ("Always", resources)
    for key in ("hostNetwork", "hostPID", "volumes", "priorityClassName"):
        assert found[key] == plain[key]


def environment(container: Object) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def test_settings_are_added_to_those_of_the_overlay() -> None:
    settings: Object = {
        "QUIESCE": "off",
        "VF_TIMEOUT": 604800,
        "WATCH_DRIFT": True,
        "API_TIMEOUT": 0.5,
    }
    expected = {
        "QUIESCE": "off",
        "VF_TIMEOUT": "604800",
        "WATCH_DRIFT": "true",
        "API_TIMEOUT": "0.5",
    }
    before, after = (environment(container(values)) for values in ({}, {"settings": settings}))
    assert after == before | expected
    read = Settings.from_environment({k: v for k, v in after.items() if isinstance(v, str)})
    assert (read.watch_drift, read.api_timeout) == (True, 0.5)


def test_a_setting_that_the_overlay_has_is_replaced() -> None:
    values: Object = {"way": "openshift", **NEEDED["openshift"]}
    values |= {"settings": {"NVIDIA_NIC_DRIVER_PATH": "/src"}, "driver": {"version": "26.01-1"}}
    env = container(values, "mofed-container")["env"]
    assert len({each["name"] for each in env}) == len(env)
    told = environment({"env": env})
    assert (told["NVIDIA_NIC_DRIVER_PATH"], told["NVIDIA_NIC_DRIVER_VER"]) == ("/src", "26.01-1")


def test_settings_of_the_policy() -> None:
    values: Object = {
        "way": "policy",
        "image": {"repository": "r/nodeagent-doca"},
        "imagePullSecrets": ["pull"],
        "driver": {"version": "26.01-1.0.0.0-0"},
        "settings": {
            "POD_LOSSES": "accept",
            "TERMINATION_GRACE_PERIOD": 400,
            "NODE_CONDITION": True,
        },
    }
    (policy,) = objects(values)
    driver = policy["spec"]["ofedDriver"]
    assert (driver["repository"], driver["image"]) == ("r", "nodeagent-doca")
    assert (driver["version"], driver["imagePullSecrets"]) == ("26.01-1.0.0.0-0", ["pull"])
    assert driver["terminationGracePeriodSeconds"] == 400
    told = environment(driver)
    assert (told["POD_LOSSES"], told["TERMINATION_GRACE_PERIOD"]) == ("accept", "400")
    assert (told["NODE_CONDITION"], told["BUILD_TIMEOUT"]) == ("true", "2400")


def test_values_of_metrics_and_alerts() -> None:
    values: Object = {
        "metrics": {
            "enabled": True,
            "port": 9999,
            "resources": {"requests": {"cpu": "5m"}},
            "podMonitor": {"labels": {"release": "prometheus"}, "interval": "1m"},
        },
        "alerts": {"enabled": True, "labels": {"role": "alerts"}},
    }
    serving = container(values, "metrics")
    assert environment(serving)["METRICS_PORT"] == "9999"
    assert serving["ports"] == [{"name": "metrics", "containerPort": 9999}]
    assert serving["resources"] == {"requests": {"cpu": "5m"}}
    found = {each["kind"]: each for each in objects(values)}
    assert found["PodMonitor"]["metadata"]["labels"] == {"release": "prometheus"}
    assert found["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["interval"] == "1m"
    assert found["PrometheusRule"]["metadata"]["labels"] == {"role": "alerts"}
    assert {*found["PrometheusRule"]["spec"]} == {"groups"}


def test_resources_of_others() -> None:
    resources = {"requests": {"memory": "4Gi"}}
    values: Object = {"way": "openshift", "toolkit": {"image": TOOLKIT, "resources": resources}}
    assert container(values, "openshift-driver-toolkit-ctr")["resources"] == resources
    values = {"way": "sidecar", "driver": {"image": DRIVER, "resources": resources}}
    assert container(values, "mofed-container")["resources"] == resources
    assert container(values)["resources"] != resources


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"way": "drive"}, r"'/way': value must be one of 'companion', 'replace', 'openshift',"),
        ({"way": None}, "way is required: companion, replace, openshift, sidecar or policy"),
        ({"imgae": {}}, "additional properties 'imgae' not allowed"),
        ({"image": {"repository": "r/n:tag"}}, "'/image/repository': 'r/n:tag' does not match"),
        ({"image": {"repository": ""}}, "'/image/repository': '' does not match"),
        ({"image": {"tag": "a b"}}, "'/image/tag': 'a b' does not match"),
        ({"image": {"digest": "sha256:1"}}, "'/image/digest': 'sha256:1' does not match"),
        ({"image": {"pullPolicy": "always"}}, "'/image/pullPolicy': value must be one of"),
        ({"driver": {"image": "a:{set-it}"}}, "'/driver/image': 'a:{set-it}' does not match"),
        ({"namespace": "No_Namespace"}, "'/namespace': 'No_Namespace' does not match"),
        ({"settings": {"QUIESE": "off"}}, "'/settings': additional properties 'QUIESE' not"),
        ({"settings": {"STATE_DIR": "/x"}}, "'/settings': additional properties 'STATE_DIR' not"),
        ({"settings": {"QUIESCE": "never"}}, "'/settings/QUIESCE': value must be one of 'auto',"),
        ({"settings": {"VF_TIMEOUT": 0}}, "'/settings/VF_TIMEOUT': minimum: got 0, want 0.001"),
        ({"settings": {"VF_TIMEOUT": "5m"}}, "'/settings/VF_TIMEOUT': got string, want number"),
        ({"settings": {"WATCH_DRIFT": "yes"}}, "WATCH_DRIFT': got string, want boolean"),
        ({"resources": {"memory": "1Gi"}}, "'/resources': additional properties 'memory' not"),
        ({"resources": {"limits": {"cpu": "1 core"}}}, "'/resources/limits/cpu': '1 core' does"),
        ({"tolerations": {"operator": "Exists"}}, "'/tolerations': got object, want array"),
        ({"metrics": {"port": 70000}}, "'/metrics/port': maximum: got 70,000, want 65,535"),
        ({"rbac": {"nodeStatus": "no"}}, "'/rbac/nodeStatus': got string, want boolean"),
        ({"way": "openshift"}, "toolkit.image is required by way openshift: oc adm release info"),
        ({"way": "sidecar"}, "driver.image is required by way sidecar"),
        (
            {"way": "sidecar", "driver": {"image": "doca-driver:latest"}},
            "driver.image is doca-driver:latest, which is another image tomorrow",
        ),
        (
            {"way": "openshift", "toolkit": {"image": "r.example:5000/driver-toolkit"}},
            "toolkit.image is r.example:5000/driver-toolkit, which is another image tomorrow",
        ),
        ({"image": {"tag": "latest"}}, "image.tag is latest, which is another image tomorrow"),
        ({"way": "policy"}, "image.repository is required by way policy"),
        (
            {"way": "policy", "image": {"repository": "r/n", "tag": "x"}},
            "image.tag and image.digest are not for way policy",
        ),
        (
            {"way": "policy", "image": {"repository": "r/n"}, "metrics": {"enabled": True}},
            "metrics, alerts and rbac are not for way policy",
        ),
        ({"metrics": {"rbacProxy": {"image": "r/p:1"}}}, "rbacProxy.image needs metrics.enabled"),
        ({"alerts": {"enabled": True}}, "alerts.enabled needs metrics.enabled"),
        ({"settings": {"NODE_CONDITION": True}}, "NODE_CONDITION needs rbac.nodeStatus"),
        ({"settings": {"HOLD_OFF": "cni,cordon"}}, "HOLD_OFF with cordon needs rbac.nodeStatus"),
    ],
)
def test_a_bad_value_is_refused_by_its_name(values: Object, message: str) -> None:
    with pytest.raises(RuntimeError) as refused:
        objects(values)
    assert message in str(refused.value)


TEXTS = ("", "x", "X y", "a,b", "a:b", "none", "cni,plugin", "/a", "/a/../b", "a=b", "-x", "off")
VALUES: tuple[object, ...] = (*TEXTS, True, False, -1, 0, 0.5, 300, 604800, 604801)


def test_a_setting_that_the_chart_accepts_is_one_that_nodeagent_accepts() -> None:
    """Nothing that the schema lets through ends a pod with a wrong environment."""
    named = [row for _, row in rows() if row.name in chart.settings()]
    tried = [{row.name: value for row in named} for value in VALUES]
    tried.append({row.name: typed(row.default) for row in named if row.default is not None})
    outcomes: dict[str, set[bool]] = {row.name: set() for row in named}
    with helm().Chart.load(CHART) as loaded:
        for settings in tried:
            refused = refused_settings(loaded, settings)
            for row in [row for row in named if row.name in settings]:
                outcomes[row.name].add(row.name in refused)
                value = settings[row.name]
                text = str(value).lower() if isinstance(value, bool) else str(value)
                if row.name not in refused and (text or row.unit == SPACE_SEPARATED):
                    row.parse(text)
    assert [name for name, each in outcomes.items() if each != {True, False}] == []


def refused_settings(loaded: Any, settings: Object) -> set[str]:
    """The names of those that the schema refuses."""
    try:
        loaded.validate_schema({"settings": settings})
    except helm().HelmValuesError as error:
        return {*re.findall(r"at '/settings/(\w+)'", str(error))}
    return set()


def typed(default: str) -> object:
    """A default as YAML would have it."""
    if default in {"true", "false"}:
        return default == "true"
    return float(default) if default.isdecimal() else default


def test_the_schema_and_the_values_name_the_same() -> None:
    with helm().Chart.load(CHART) as loaded:
        schema, values = loaded.schema, loaded.values
    assert schema is not None

    def named(schema: Object, values: Object) -> None:
        assert {*schema["properties"]} - {"global"} == {*values}
        for name, value in values.items():
            below = schema["properties"][name]
            if isinstance(value, dict) and value:
                named(below, value)

    named(schema, values)


@pytest.mark.parametrize("way", [*OVERLAYS, "policy"])
def test_the_notes_are_short_and_lint_has_nothing_to_say(way: str) -> None:
    values: Object = {"way": way, **NEEDED.get(way, {"image": {"repository": "r/n"}})}
    notes = rendered(values)["NOTES.txt"]
    assert 2 < len(notes.splitlines()) <= 20
    report = helm().lint(CHART, values, strict=True)
    assert [each for each in report["messages"] if each["severity"] > 1] == []


READMES = "".join((MANIFESTS.parent / name / "README.md").read_text() for name in ("", "manifests"))
INSTALLATIONS = re.findall(r"helm install nodeagent manifests/chart --set ([^`\s]+)", READMES)


@pytest.mark.parametrize("given", INSTALLATIONS)
def test_the_lines_of_the_readmes(given: str) -> None:
    values = helm().parse_set_string(given.replace("REGISTRY", "registry.example"))
    assert "registry.example/nodeagent" in {
        each["image"].partition(":")[0] for each in of_the_pod(values)
    }


def of_the_pod(values: Object) -> list[Object]:
    (found,) = [containers(each) for each in objects(values) if each["kind"] == "DaemonSet"]
    return found


def test_the_readme_shows_each_way_and_values_that_are_some() -> None:
    ways = [helm().parse_set_string(given).get("way", "companion") for given in INSTALLATIONS]
    assert {*ways} == {*OVERLAYS}
    shown = READMES.partition("## With Helm\n")[2].partition("```yaml\n")[2].partition("```")[0]
    values = yaml.safe_load(shown.replace("REGISTRY", "registry.example"))
    assert {each["image"] for each in of_the_pod(values)} == {
        "registry.example/nodeagent:VERSION-sidecar"
    }
