"""Actions in pods' network namespaces as lines for a root shell.

nsenter(1) with --net alone: the commands are the host's, only the network is the pod's.
"""

from __future__ import annotations

import shlex

from nodeagent.plan.actions import MoveRdma, MoveVf
from nodeagent.state.namespaces import Namespace


def move_line(action: MoveVf) -> str:
    """`ip link set … netns … name net1`; the present name, which udev sets, is in sysfs."""
    devices = f"/sys/bus/{action.pf.bus}/devices/{action.address}/net"
    name = shlex.quote(action.name)
    return f'ip link set dev "$(ls {devices})" netns {_netns(action.namespace)} name {name}'


def move_rdma_line(action: MoveRdma) -> str:
    """rdma(8) only takes names below /run/netns."""
    path = action.namespace.path
    mounted = path.removeprefix("/var").removeprefix("/run/netns/")
    name = f"../..{path}" if mounted.startswith("/") else mounted
    return f"rdma dev set {action.name} netns {shlex.quote(name)}"


def inside_line(namespace: Namespace, line: str) -> str:
    """A line, or several that `; ` separates, in a namespace.

    The interfaces below /sys/class/net are those of the namespace in which sysfs was mounted.
    """
    command = line if not {*";&|"} & {*line} else f"sh -c {shlex.quote(line)}"
    if "/sys/class/net/" in line:
        command = f"unshare -m sh -c {shlex.quote(f'mount -t sysfs sysfs /sys; {line}')}"
    return f"nsenter --net={shlex.quote(namespace.path)} {command}"


def _netns(namespace: Namespace) -> str:
    """ip(8) takes a pid, or the name of a mount in /run/netns, or a path."""
    holder = namespace.holders[0]
    return str(holder.pid) if holder.mount is None else shlex.quote(holder.mount)
