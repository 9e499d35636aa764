"""Which pod and which container a process is in, as its cgroup's path tells it (cgroups(7))."""

from __future__ import annotations

import re
from pathlib import Path

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
