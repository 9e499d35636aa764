"""The Network Operator, as far as driver pods go: its DaemonSet, its label, its upgrade controller.

Written down from Mellanox/network-operator and its upgrade library, of the middle of 2026: the
fields, mounts and probes of the DaemonSet, and what is not in it (hostPID, /run/netns, a state
directory); the logic of `network.nvidia.com/operator.mofed.wait`; which pods are upgraded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

Object = dict[str, Any]

DRIVER: Final = "nvidia.com/ofed-driver"
OWNER: Final = "ds-owner"
POLICY: Final = "NicClusterPolicy"
CONTAINER: Final = "mofed-container"
NAMESPACE: Final = "nvidia-network-operator"
FLAG: Final = "/run/mellanox/drivers/.driver-ready"
_HOST: Final = {
    "run-mlnx-ofed": ("/run/mellanox/drivers", "/run/mellanox/drivers", "DirectoryOrCreate"),
    "etc-network": ("/etc/network", "/etc/network", ""),
    "host-etc": ("/etc", "/host/etc", ""),
    "host-usr": ("/usr", "/host/usr", ""),
    "host-udev": ("/lib/udev", "/host/lib/udev", ""),
    "host-run-udev": ("/run/udev", "/run/udev", ""),
    "host-lib-modules": ("/lib/modules", "/host/lib/modules", ""),
    "drivers-inventory": (
        *("/var/opt/mofed-container/inventory", "/mnt/drivers-inventory", "DirectoryOrCreate"),
    ),
}
"""By volume: the path on the host, in the container, and the volume's type."""


def driver_daemonset(image: str, env: Iterable[tuple[str, str]] = ()) -> Object:
    """The DaemonSet that the operator makes from `spec.ofedDriver`."""
    labels = {"app": "mofed-ubuntu24.04-7c9f", DRIVER: "", OWNER: POLICY, "nvidia.com/driver": ""}
    other_driver_pods = {"matchExpressions": [{"key": DRIVER, "operator": "Exists"}]}
    mounts: list[Object] = [{"name": n, "mountPath": where[1]} for n, where in _HOST.items()]
    mounts[0]["mountPropagation"] = "Bidirectional"
    volumes = [
        {"name": name, "hostPath": {"path": path, **({"type": kind} if kind else {})}}
        for name, (path, _, kind) in _HOST.items()
    ]
    alive = {"exec": {"command": ["sh", "-c", "lsmod | grep mlx5_core"]}}
    once = {"periodSeconds": 30, "failureThreshold": 1, "successThreshold": 1}
    container = {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": {"privileged": True, "seLinuxOptions": {"level": "s0"}},
        "env": [{"name": name, "value": value} for name, value in env],
        "volumeMounts": mounts,
        "startupProbe": {
            "exec": {"command": ["sh", "-c", f"ls {FLAG}"]},
            "initialDelaySeconds": 30,
            "periodSeconds": 10,
            "failureThreshold": 120,
        },
        "livenessProbe": {**alive, **once, "initialDelaySeconds": 30},
        "readinessProbe": {**alive, **once, "initialDelaySeconds": 10},
    }
    init = {
        "name": "network-operator-init-container",
        "image": "network-operator-init-container:v0.0.3",
        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
    }
    spec = {
        "hostNetwork": True,
        "priorityClassName": "system-node-critical",
        "serviceAccountName": "ofed-driver",
        "terminationGracePeriodSeconds": 300,
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "podAntiAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": [
                    {"labelSelector": other_driver_pods, "topologyKey": "kubernetes.io/hostname"}
                ]
            }
        },
        "nodeSelector": {"feature.node.kubernetes.io/pci-15b3.present": "true"},
        "initContainers": [init],
        "containers": [container],
        "volumes": volumes,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "mofed-ubuntu24.04-7c9f-ds", "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": {"app": labels["app"], DRIVER: ""}},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def mofed_wait(pods: Iterable[Object], *, has_driver: bool) -> str:
    """The label `network.nvidia.com/operator.mofed.wait` of the node that has these pods.

    `has_driver`: the policy has `ofedDriver`. Device plugins select nodes with "false".
    """
    driver_pods = [pod for pod in pods if DRIVER in pod["metadata"].get("labels", {})]
    if not has_driver:  # each pod counts as a left-over that is still ending
        return "true" if driver_pods else "false"
    owned = [pod for pod in driver_pods if pod["metadata"]["labels"].get(OWNER) == POLICY]
    for pod in (owned or driver_pods)[:1]:
        for status in pod.get("status", {}).get("containerStatuses", []):
            if status["name"] == CONTAINER and status["ready"]:
                return "false"
    return "true"


def upgraded(pods: Iterable[Object]) -> list[Object]:
    """The pods that its upgrade controller cordons, drains and deletes."""
    wanted = {DRIVER: "", OWNER: POLICY}.items()
    here = [pod for pod in pods if pod["metadata"]["namespace"] == NAMESPACE]
    return [pod for pod in here if wanted <= pod["metadata"].get("labels", {}).items()]


def refuses(daemonset: Object, pods: Iterable[Object]) -> bool:
    """Whether a driver pod's anti-affinity keeps it off the node that has these pods."""
    affinity = daemonset["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    (wanted,) = term["labelSelector"]["matchExpressions"]
    return any(wanted["key"] in pod["metadata"].get("labels", {}) for pod in pods)
