"""scripts/demo --pods inside the emulated node: a reload under ten VFs that nine pods have.

The pods are network namespaces of long-lived processes; what they say to each other goes through
the switch of the emulated NIC. What is inside of them before and afterwards is read with iproute2.
Exit status 0 only if every check holds. Usage: python3 -m showcase.demo_pods WIDTH COLOUR (1 or 0).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from nodeagent.kernel.netns import Namespaces
from nodeagent.kernel.rooms import Room
from showcase import vfs
from showcase.demo import READY, SETTINGS, WORK, Stage, shortened, srcversions
from tests.support import lab
from tests.support.pods import Pings, Pod, Stream

CHART = Path("/host/out/timeline.svg")
"""Where `scripts/demo --out DIR` finds it."""
PLACES: tuple[tuple[int, int, int, str], ...] = (
    *((1, index, index, "net1") for index in range(6)),
    (2, 0, 0, "net2"),
    *((2, index, index + 5, "net1") for index in range(1, 4)),
)
"""PF, VF, pod, and the interface's name there."""


def main(stage: Stage) -> int:
    with ExitStack() as held:
        pods = [held.enter_context(Pod()) for _ in range(9)]
        directory = Path(held.enter_context(tempfile.TemporaryDirectory()))
        set_up(stage, pods)
        before = [pod.read() for pod in pods]
        pings = Pings(directory, asked(pods))
        streams = [Stream(pods[1], pods[2], "10.1.0.3", 7001)]
        streams.append(Stream(pods[0], pods[7], "10.2.0.3", 7002))
        with pings:
            reload(stage, pods[0])
        for stream in streams:
            count = stream.finish()
            stage.check(f"a TCP stream over the reload: {count} bytes, SHA-256 is right", count > 0)
        stage.title("The same interfaces afterwards")
        stage.lines(table(pods))
        stage.check("all nine pods are as they were", [pod.read() for pod in pods] == before)
        stage.title("The longest time without an answer, by who asked whom")
        gaps(stage, pods, pings)
        stage.title("nodeagent timeline")
        stage.lines(f"  {line}" for line in vfs.run("nodeagent", "timeline").splitlines())
        CHART.parent.mkdir(parents=True, exist_ok=True)
        CHART.write_text(vfs.run("nodeagent", "timeline", "--output", "svg"))
        stage.check("the ready flag is there", READY.exists())
        installed, loaded = srcversions()
        stage.check("the driver on disk is the one that runs", installed == loaded)
        stage.title("What it costs to find those that matter among a hundred network namespaces")
        crowd(stage)
    return stage.verdict()


def crowd(stage: Stage) -> None:
    """A hundred namespaces in all, each asked whether it has hardware."""
    lab.sh("for n in $(seq 91); do ip netns add other$n; done")
    count, seconds = seconds_of_a_scan()
    lab.sh("for n in $(seq 91); do ip netns delete other$n; done")
    stage.line(f"  {count} namespaces: {seconds:.3f} s, {1000 * seconds / count:.1f} ms each")
    stage.check("all hundred were asked", count == 100)


def set_up(stage: Stage, pods: list[Pod]) -> None:
    """Two PFs with seven VFs each; ten are net1 and net2 of nine pods."""
    stage.title("Two PFs with seven VFs each; nine pods have ten of them")
    pfs = lab.pfs()
    for device in pfs:
        lab.create_vfs(device, 7)
    for pf, index, pod, name in PLACES:
        lab.ip(f"link set {lab.name(pfs[pf - 1])} vf {index} trust on spoofchk off")
        pods[pod].take(lab.vf(pfs[pf - 1], index), name)
        pods[pod].ip(
            f"address add 10.{pf}.0.{index + 1}/24 dev {name}",
            f"address add fd00:{pf}::{index + 1}/64 dev {name}",
            f"link set {name} up",
        )
    pods[0].ip(
        "route add 192.0.2.0/24 via 10.1.0.99",
        "link add link net1 name net1.5 type vlan id 5",
        "address add 10.5.0.1/24 dev net1.5",
        "link set net1.5 up",
    )
    pods[0].sh("sysctl -qw net/ipv4/conf/net1/rp_filter=2")
    stage.lines(table(pods))
    vfs.run("lab-driver", "B")
    stage.title("nodeagent plan --after-reload: what is to be done in pods, among the rest")
    lines = vfs.run("nodeagent", "plan", "--after-reload").splitlines()
    stage.lines(shortened(lines, most=3))


def asked(pods: list[Pod]) -> Iterator[tuple[Pod, str]]:
    """Each VF asks the next one of its PF."""
    for pf, index, pod, _ in PLACES:
        count = sum(place[0] == pf for place in PLACES)
        yield pods[pod], f"10.{pf}.0.{(index + 1) % count + 1}"


def reload(stage: Stage, pod: Pod) -> None:
    """`nodeagent reload`, its log as it comes."""
    probe = f"10.1.0.2@{pod.path}"
    stage.title(f"nodeagent reload --probe {probe}")
    argv = ["nodeagent", "reload", "--probe", probe]
    agent = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    for line in agent.stderr or ():
        stage.lines([f"  {line.rstrip()}"])
    stage.check("nodeagent reload: exit status 0", agent.wait() == 0)


def table(pods: list[Pod]) -> Iterator[str]:
    """A line an interface."""
    for number, pod in enumerate(pods, 1):
        for link in json.loads(pod.sh("ip -j address")):
            if link["ifname"] != "lo":
                own = [a["local"] for a in link["addr_info"] if a["scope"] == "global"]
                words = f"{link['ifname']:<8} {link['address']}  {', '.join(own)}"
                yield f"  pod {number}  {words}"


def gaps(stage: Stage, pods: list[Pod], pings: Pings) -> None:
    numbers = {pod.process.pid: number for number, pod in enumerate(pods, 1)}
    for whom, told in pings.told.items():
        pid, _, address = whom.partition(":")
        counted = f"{told['came']:.0f} of {told['sent']:.0f} answered"
        stage.line(f"  pod {numbers[int(pid)]} to {address}  {told['gap']:5.1f} s  {counted}")
    silent = max(told["silent"] for told in pings.told.values())
    stage.check("every pod is answered again", silent < 1)


def seconds_of_a_scan() -> tuple[int, float]:
    """How many namespaces there are, and how long it takes to find and to ask each of them."""
    namespaces, times = Namespaces(), []
    for _ in range(3):
        began = time.monotonic()
        found = namespaces.scan()
        for inode, holders in found.items():
            with namespaces.seen(inode, holders) as fd, Room.open(fd) as room:
                room.rtnl.has_hardware()
        times.append(time.monotonic() - began)
    return len(found), min(times)


if __name__ == "__main__":
    os.environ |= SETTINGS
    WORK.mkdir()
    sys.exit(main(Stage(int(sys.argv[1]), sys.argv[2] == "1")))
