"""The example of a NicClusterPolicy: fields that the operator has, values that nodeagent takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodeagent.modes import Mode
from nodeagent.settings import Settings, rows

ROOT = Path(__file__).parents[2]
POLICY: dict[str, Any] = yaml.safe_load(
    (ROOT / "manifests/network-operator/nicclusterpolicy.yaml").read_text()
)
DRIVER: dict[str, Any] = POLICY["spec"]["ofedDriver"]

PROBE = {"initialDelaySeconds": int, "periodSeconds": int}
FIELDS: dict[str, Any] = {
    "image": str,
    "repository": str,
    "version": str,
    "imagePullSecrets": list,
    "env": list,
    "startupProbe": PROBE,
    "livenessProbe": PROBE,
    "readinessProbe": PROBE,
    "terminationGracePeriodSeconds": int,
    "upgradePolicy": {
        "autoUpgrade": bool,
        "maxParallelUpgrades": int,
        "safeLoad": bool,
        "waitForCompletion": {"podSelector": str, "timeoutSeconds": int},
        "drain": {
            "enable": bool,
            "force": bool,
            "podSelector": str,
            "timeoutSeconds": int,
            "deleteEmptyDir": bool,
        },
    },
    "certConfig": {"name": str},
    "repoConfig": {"name": str},
    "containerResources": list,
}
"""OFEDDriverSpec of mellanox.com/v1alpha1 (api/v1alpha1/nicclusterpolicy_types.go)."""

STARTUP_FAILURES = 120
"""failureThreshold of the startup probe in the operator's DaemonSet, which no policy changes."""


def wrong(given: dict[str, Any], fields: dict[str, Any], path: str = "") -> list[str]:
    """The fields that the operator does not have, or of another type."""
    found = []
    for name, value in given.items():
        kind, here = fields.get(name), f"{path}.{name}"
        if isinstance(kind, dict) and isinstance(value, dict):
            found += wrong(value, kind, here)
        elif not isinstance(kind, type) or type(value) is not kind:
            found.append(here)
    return found


def test_the_operator_has_these_fields() -> None:
    assert (POLICY["apiVersion"], POLICY["kind"]) == ("mellanox.com/v1alpha1", "NicClusterPolicy")
    assert POLICY["spec"].keys() == {"ofedDriver"}
    assert wrong(DRIVER, FIELDS) == []


def test_what_the_example_is_for_is_in_it() -> None:
    parts = {"env", "startupProbe", "livenessProbe", "readinessProbe", "upgradePolicy"}
    assert parts <= DRIVER.keys()


@pytest.mark.parametrize(
    "bad",
    [
        {"hostPID": True},
        {"drain": {}},
        {"startupProbe": {"failureThreshold": 3}},
        {"version": 25.1},
    ],
)
def test_a_field_that_the_operator_does_not_have_is_found(bad: dict[str, Any]) -> None:
    assert len(wrong(DRIVER | bad, FIELDS)) == 1


def test_names_are_as_the_operators_schema_wants_them() -> None:
    assert re.fullmatch(r"[a-zA-Z0-9\-]+", DRIVER["image"])
    assert re.fullmatch(r"[a-zA-Z0-9.\-/]+", DRIVER["repository"])
    assert re.fullmatch(r"[a-zA-Z0-9.-]+", DRIVER["version"])


def settings() -> Settings:
    """With what the image brings, and what the operator sets in every driver pod."""
    image = {"NVIDIA_NIC_DRIVER_VER": "25.10-1.2.8.0", "NVIDIA_NIC_DRIVER_PATH": "/sources"}
    operator = {
        "NVIDIA_NIC_DRIVERS_INVENTORY_PATH": "/mnt/drivers-inventory",
        "CREATE_IFNAMES_UDEV": "true",
    }
    env = {each["name"]: each["value"] for each in DRIVER["env"]}
    loaded = Settings.from_environment(image | operator | env)
    loaded.check_mode(Mode.SOURCES, whole_life=True)
    return loaded


def test_nodeagent_takes_the_environment() -> None:
    assert {each["name"] for each in DRIVER["env"]} <= {row.name for _, row in rows()}
    assert settings().grace_period == DRIVER["terminationGracePeriodSeconds"]


def test_a_build_and_a_reload_fit_into_the_startup_probe() -> None:
    probe, loaded = DRIVER["startupProbe"], settings()
    allowed = probe["initialDelaySeconds"] + STARTUP_FAILURES * probe["periodSeconds"]
    needed = (loaded.build_timeout, loaded.restart_timeout, loaded.pf_timeout, loaded.vf_timeout)
    assert sum(needed) <= allowed
