"""Pods, as far as a network namespace makes one: a long-lived process in it, with VFs of ours."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Self

from tests.support import lab
from tests.support.lab import PATIENCE, PCI

VOLATILE: Final = {
    *("ifindex", "link_index", "stats", "stats64", "cacheinfo", "permaddr"),
    *("gc_timer", "hello_timer", "tcn_timer", "topology_change_timer", "message_age_timer"),
    *("tentative", "dadfailed", "forward_delay_timer", "hold_timer"),
    *("valid_life_time", "preferred_life_time", "used", "confirmed", "updated", "probes"),
}
"""What `ip -d -j` tells that is no configuration: ifindexes, counters, ages."""
SHOWN: Final = ("address", "route", "-6 route", "rule", "neighbour show nud permanent")
"""What `ip -d -j` is asked about the inside of a pod."""


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
        return lab.printed("nsenter", f"--net={self.path}", "/bin/bash", "-euc", command)

    def command(self, command: str) -> str:
        """A shell's line that does it with the pod's network."""
        return f"nsenter --net={self.path} {command}"

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
        """Everything that `ip -d -j` tells of the inside, but for what is no configuration.

        Waits until IPv6 addresses are used (DAD takes a second or two).
        """
        try:
            lab.eventually(lambda: not self._tentative(), f"{self.path}: DAD has ended")
        except AssertionError:
            sys.stderr.write(self.sh("ip -d -s address") + lab.sh("ip -br link"))
            raise
        asked = [*(f"ip -d -j {what}" for what in SHOWN), "tc -d qdisc show"]
        *objects, qdiscs = self.sh("; echo --; ".join(asked)).split("--\n")
        told = {what: json.loads(each or "[]") for what, each in zip(SHOWN, objects, strict=True)}
        queues = qdiscs.splitlines()
        told["qdisc"] = [re.sub(r" refcnt \d+", "", each) for each in queues if " 0: " not in each]
        told["address"] = [each for each in told["address"] if each["ifname"] != "lo"]
        return {what: _sorted(map(_kept, each)) for what, each in told.items()}

    def _tentative(self) -> str:
        """IPv6 addresses that are not used yet, but for the kernel's own.

        The emulated switch gives a late echo of their own question to some (dadfailed).
        """
        return self.sh("ip -6 -br address show tentative scope global").strip()

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


# Traffic between pods (tests.support.traffic), and the script that does the least

TRAFFIC: Final = Path(__file__).with_name("traffic.py")
LEAST: Final = Path(__file__).with_name("least.sh")


class Pings:
    """Echoes from pods to addresses, until the `with` block ends; then `gaps` by who asked whom."""

    def __init__(self, directory: Path, whom: Iterable[tuple[Pod, str]]) -> None:
        self._result = directory / "pings.json"
        self._whom = [f"{pod.process.pid}:{address}" for pod, address in whom]
        self.told: dict[str, dict[str, float]] = {}

    @property
    def gaps(self) -> dict[str, float]:
        """The longest time without an answer, in seconds."""
        return {whom: each["gap"] for whom, each in self.told.items()}

    def __enter__(self) -> Self:
        argv = [sys.executable, str(TRAFFIC), "ping", str(self._result), *self._whom]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        _await_word(self._process, "pinging")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        assert self._process.wait(PATIENCE) == 0
        self.told = json.loads(self._result.read_text())


class Announcements:
    """What is announced to the host, until the `with` block ends; then `heard`: "MAC ADDRESS"."""

    def __init__(self, directory: Path) -> None:
        self._result = directory / "announced.json"
        self.heard: set[str] = set()

    def __enter__(self) -> Self:
        argv = [sys.executable, str(TRAFFIC), "announced", str(self._result)]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        _await_word(self._process, "listening")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        assert self._process.wait(PATIENCE) == 0
        self.heard = set(json.loads(self._result.read_text()))


class Stream:
    """A TCP stream from a pod to another, with a checksum."""

    def __init__(self, sender: Pod, receiver: Pod, address: str, port: int) -> None:
        self._receiver = receiver.start(sys.executable, str(TRAFFIC), "receive", str(port))
        _await_word(self._receiver, "listening")
        self._sender = sender.start(sys.executable, str(TRAFFIC), "send", address, str(port))
        _await_word(self._sender, "connected")

    def finish(self) -> int:
        """How many bytes went; what arrived is what was sent."""
        self._sender.terminate()
        assert self._sender.wait(PATIENCE) == 0
        assert self._receiver.wait(PATIENCE) == 0
        assert self._sender.stdout is not None
        return int(self._sender.stdout.read())

    def end(self) -> None:
        """Whatever it does, it is over."""
        for process in (self._sender, self._receiver):
            process.kill()
            process.wait()


def write_least(directory: Path, vfs: Iterable[tuple[Pod, str, str]], held: Iterable[str]) -> None:
    """What least.sh reads, for VFs (their pod, PCI address and name there) as they are now."""
    directory.mkdir(exist_ok=True)
    (directory / "pfs").write_text("".join(f"{pf} {lab.name(pf)} {_mtu(pf)}\n" for pf in lab.pfs()))
    (directory / "held.ip").write_text("".join(f"{line}\n" for line in held))
    moves, inside = [], {}
    for pod, address, name in vfs:
        pid = pod.process.pid
        here = f"enp{int(address[5:7], 16)}s0v{_index(address)}"
        moves.append(f"link set dev {here} netns {pid} name {name}")
        inside[pid] = _batch(pod)
    (directory / "moves.ip").write_text("\n".join(moves) + "\n")
    for pid, lines in inside.items():
        (directory / f"{pid}.inside").write_text("".join(f"{line}\n" for line in lines))


def _batch(pod: Pod) -> Iterator[str]:
    """Lines for ip(8) that make the inside of a pod what it is, as short as can be."""
    told = json.loads(pod.sh("ip -d -j address"))
    for link in sorted(told, key=lambda each: "linkinfo" in each):
        name = link["ifname"]
        info = link.get("linkinfo", {})
        if info.get("info_kind") == "vlan":
            vid = info["info_data"]["id"]
            yield f"link add link {link['link']} name {name} type vlan id {vid}"
        elif link.get("parentbus") == "pci":
            yield f"link set dev {name} address {link['address']} mtu {link['mtu']}"
        else:
            continue
        for each in link["addr_info"]:
            if each["scope"] == "global":
                nodad = " nodad" if each["family"] == "inet6" else ""
                yield f"address add {each['local']}/{each['prefixlen']} dev {name}{nodad}"
        yield f"link set dev {name} up"
    for route in json.loads(pod.sh("ip -j route")):
        if route.get("protocol") != "kernel":
            yield f"route add {route['dst']} via {route['gateway']} dev {route['dev']}"


def _mtu(pf: str) -> str:
    return (PCI / pf / "net" / lab.name(pf) / "mtu").read_text().strip()


def _index(address: str) -> int:
    (link,) = (each for pf in lab.pfs() for each in (PCI / pf).glob("virtfn*")
               if each.resolve().name == address)  # fmt: skip
    return int(link.name.removeprefix("virtfn"))


def _await_word(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{word}\n"
