"""Which pod and which container a process is in, as its cgroup's path tells it (cgroups(7)).

A cgroup tells a pod's UID. Its name is in that of the directory that the kubelet keeps its logs in:
NAMESPACE_NAME_UID (BuildPodLogsDirectory(), pkg/kubelet/kuberuntime/helpers.go), of which none can
have an underscore.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

# A kubelet's cgroup: .../kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope, where the
# systemd driver writes the uid's "-" as "_".
_POD = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})")
_CONTAINER = re.compile(r"([0-9a-f]{64})")


def pod_and_container(process: Path) -> tuple[str, str]:
    """The pod's UID and the first twelve digits of the container's id, "" for none.

    `process` is its directory in /proc.
    """
    try:
        text = (process / "cgroup").read_text()
    except OSError:
        return "", ""
    pod, container = _POD.search(text), _CONTAINER.search(text)
    return pod[1].replace("_", "-") if pod else "", container[1][:12] if container else ""


LOGS: Final = "1/root/var/log/pods"
"""Below /proc: the host's, which takes hostPID, as pods' processes do."""


def pods_called(namespace: str, name: str, proc: Path) -> tuple[str, ...]:
    """The UIDs of the pods NAMESPACE/NAME of this node, earlier ones of that name among them."""
    try:
        names = [entry.name.split("_") for entry in (proc / LOGS).iterdir()]
    except OSError:
        return ()
    return tuple(parts[2] for parts in names if parts[:2] == [namespace, name] and len(parts) == 3)


def pods_in(namespaces: Collection[str], proc: Path) -> frozenset[str]:
    """The UIDs of the pods of this node in these Kubernetes namespaces, earlier ones among them."""
    try:
        names = [entry.name.split("_") for entry in (proc / LOGS).iterdir()]
    except OSError:
        return frozenset()
    return frozenset(parts[2] for parts in names if len(parts) == 3 and parts[0] in namespaces)
