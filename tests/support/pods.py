"""Pods, as far as a network namespace makes one: a long-lived process in it, with VFs of ours."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self

from tests.support import lab
from tests.support.lab import PATIENCE, PCI

VOLATILE: Final = {
    *("ifindex", "link_index", "stats", "stats64", "cacheinfo", "permaddr"),
    *("valid_life_time", "preferred_life_time", "used", "confirmed", "updated", "probes"),
}
"""What `ip -d -j` tells that is no configuration: ifindexes, counters, ages."""


class Pod:
    """A process in a network namespace of its own, for as long as the `with` block lasts."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up; echo; exec sleep 100000"],
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"\n"

    @property
    def path(self) -> str:
        """Where its network namespace can be opened."""
        return f"/proc/{self.process.pid}/ns/net"

    @property
    def inode(self) -> int:
        """The number of its network namespace."""
        return Path(self.path).stat().st_ino

    def sh(self, command: str) -> str:
        """What a shell command prints, with the pod's network."""
        return lab.sh(f"exec nsenter --net={self.path} bash -euc {_quoted(command)}")

    def ip(self, *lines: str) -> None:
        """Lines for ip(8), with the pod's network."""
        done = subprocess.run(
            ["nsenter", f"--net={self.path}", "ip", "-batch", "-"],
            input="\n".join(lines),
            text=True,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{lines}\n{done.stderr}"

    def take(self, address: str, name: str) -> None:
        """What the SR-IOV CNI does: the VF's interface goes in and gets its name there."""
        lab.ip(f"link set dev {lab.name(address)} netns {self.process.pid} name {name}")

    def read(self) -> dict[str, Any]:
        """Everything that `ip -d -j` tells of the inside, but for what is no configuration."""
        told = {
            what: json.loads(self.sh(f"ip -d -j {what}") or "[]")
            for what in ("address", "route", "-6 route", "rule", "neighbour show nud permanent")
        }
        told["address"] = [each for each in told["address"] if each["ifname"] != "lo"]
        return {what: _sorted(map(_kept, each)) for what, each in told.items()}

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """A process with the pod's network."""
        return subprocess.Popen(
            ["nsenter", f"--net={self.path}", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )

    def end(self) -> None:
        """Its process is gone, and its namespace with it, if nobody else has that."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def give(pods: Iterable[Pod], pf: str) -> None:
    """A VF of a PF to each pod, as net1, trusted, with an address of the PF's own subnet."""
    bus = int(pf[5:7], 16)
    for index, pod in enumerate(pods):
        address = lab.vf(pf, index)
        lab.ip(f"link set {lab.name(pf)} vf {index} trust on spoofchk off")
        pod.take(address, "net1")
        pod.ip(
            f"address add 10.{bus}.0.{index + 1}/24 dev net1",
            f"address add fd00:{bus}::{index + 1}/64 dev net1",
            "link set net1 up",
        )


def home(address: str) -> bool:
    """Whether a VF's interface is in the host's namespace."""
    return any((PCI / address / "net").glob("*"))


def _kept(told: Any) -> Any:
    if isinstance(told, dict):
        return {key: _kept(value) for key, value in told.items() if key not in VOLATILE}
    return [_kept(each) for each in told] if isinstance(told, list) else told


def _sorted(told: Iterable[Any]) -> list[Any]:
    return sorted(told, key=json.dumps)


def _quoted(command: str) -> str:
    return "'" + command.replace("'", "'\\''") + "'"
