"""The pod and the container of a process, by the path of its cgroup (cgroups(7)).

The path has the pod's UID. The kubelet keeps a pod's logs in a directory NAMESPACE_NAME_UID
(BuildPodLogsDirectory(), pkg/kubelet/kuberuntime/helpers.go); none of the three has an underscore.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

# A kubelet's cgroup: .../kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope, where the
# systemd driver writes the uid's "-" as "_".
_POD = re.compile(r"pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})")
_CONTAINER = re.compile(r"([0-9a-f]{64})")


def pod_and_container(process: Path) -> tuple[str, str]:
    """The pod's UID and the first twelve digits of the container's ID, "" for none.

    `process` is the process's directory in /proc.
    """
    try:
        text = (process / "cgroup").read_text()
    except OSError:
        return "", ""
    pod, container = _POD.search(text), _CONTAINER.search(text)
    return pod[1].replace("_", "-") if pod else "", container[1][:12] if container else ""


LOGS: Final = "1/root/var/log/pods"
"""The host's directory, below /proc. Like the pods' processes, it is visible with hostPID only."""


def pods_called(namespace: str, name: str, proc: Path) -> tuple[str, ...]:
    """The UIDs of the pods NAMESPACE/NAME of this node, also of deleted ones."""
    pods = _pods(proc)
    return tuple(uid for own, called, uid in pods if (own, called) == (namespace, name))


def pods_in(namespaces: Collection[str], proc: Path) -> frozenset[str]:
    """The UIDs of the pods of this node in these Kubernetes namespaces, also of deleted ones."""
    return frozenset(uid for namespace, _, uid in _pods(proc) if namespace in namespaces)


def _pods(proc: Path) -> Iterator[tuple[str, str, str]]:
    """Namespace, name and UID of each pod of this node that has logs."""
    with suppress(OSError):
        for entry in (proc / LOGS).iterdir():
            parts = entry.name.split("_")
            if len(parts) == 3:
                yield parts[0], parts[1], parts[2]
