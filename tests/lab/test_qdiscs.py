"""What the kernel tells of a qdisc makes the same one again: each kind, with options of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from nodeagent.kernel.rtnl import Rtnl
from nodeagent.kernel.stack import StackEdge, qdiscs
from nodeagent.kernel.stack.adapter import Look
from tests.support import lab

MADE = """
    root fq limit 777 flow_limit 33 quantum 5000 initial_quantum 9000 maxrate 50mbit nopacing
    root handle 9: fq_codel limit 2000 flows 512 target 7ms interval 90ms noecn ce_threshold 3ms
    root codel limit 300 target 6ms interval 80ms ecn
    root tbf rate 5mbit burst 20kb latency 50ms peakrate 7mbit minburst 2000
    root htb default 20 r2q 7 direct_qlen 55
    root pfifo limit 77
    root bfifo limit 7777
    root pfifo_head_drop limit 78
    root pie limit 500 target 20ms tupdate 30ms alpha 3 beta 22 ecn bytemode
    root mqprio num_tc 2 map 0 0 1 1 0 0 0 0 0 0 0 0 0 0 0 0 queues 1@0 2@1 hw 0
    root ets bands 6 strict 2 quanta 3000 2000 1500 1000 priomap 0 1 2 3 4 5 5 5 5 5 5 5 5 5 5 5
    root etf clockid CLOCK_TAI delta 300000 skip_sock_check deadline_mode
    root cake bandwidth 50mbit diffserv4 dual-srchost nat ack-filter rtt 50ms overhead 18 mpu 64
    root multiq
    root mq
"""
TREE = "root handle 1: prio bands 4 priomap 1 2 2 2 1 2 0 0 1 1 1 1 1 1 1 3"


@pytest.fixture
def device() -> Iterator[str]:
    lab.sh("ip link add name qd0 numtxqueues 4 type dummy; ip link set qd0 up")
    yield "qd0"
    lab.sh("ip link delete qd0")


def again(device: str) -> tuple[str, str, tuple[str, ...]]:
    """What tc(8) tells, what it tells when the kernel has made them again, and what is lost."""
    before = told(device)
    with Rtnl() as rtnl, StackEdge() as edge:
        ours = {index: link for index, link in rtnl.links().items() if link.name == device}
        look = Look(ours, ours.keys())
        found = qdiscs.read(edge, look)
        lab.sh(f"tc qdisc delete dev {device} root || true")
        indexes = {link.name: index for index, link in ours.items()}
        messages = [qdiscs.message(each, indexes, 0) for each in found.things]
        assert edge.send(messages) == [None] * len(messages)
        assert qdiscs.read(edge, look).things == found.things
    return before, told(device), found.lost


def told(device: str) -> str:
    """Without what the kernel made by itself."""
    lines = lab.sh(f"tc -d qdisc show dev {device}").splitlines()
    kept = [re.sub(r" refcnt \d+| direct_packets_stat \d+", "", line) for line in lines]
    return "\n".join(sorted(line for line in kept if " 0: " not in line))


@pytest.mark.short
def test_each_kind(device: str) -> None:
    seen = set()
    for line in filter(None, map(str.strip, MADE.splitlines())):
        lab.sh(f"tc qdisc add dev {device} {line}")
        before, after, lost = again(device)
        assert (before, lost) == (after, ()), line
        seen |= set(re.findall(r"^qdisc (\w+)", before, re.MULTILINE))
        lab.sh(f"tc qdisc delete dev {device} root")
    assert seen | {"prio", "noqueue"} == qdiscs.KINDS


def test_a_tree_and_what_is_not_kept(device: str) -> None:
    tc = f"tc qdisc add dev {device}"
    lab.sh(f"{tc} {TREE}; {tc} parent 1:2 handle 20: codel; {tc} parent 1:3 handle 30: fq limit 9")
    before, after, lost = again(device)
    assert before.count("\n") == 2
    assert (before, lost) == (after, ())
    lab.sh(f"tc qdisc delete dev {device} parent 1:2; {tc} parent 1:2 handle 20: netem delay 10ms")
    _, after, lost = again(device)
    assert lost == (f"qdisc netem 20: on {device}, with its classes and filters",)
    assert ("qdisc prio 1:" in after, "qdisc fq 30:" in after) == (True, True)
    lab.sh(f"tc filter add dev {device} parent 1: matchall classid 1:1")
    _, after, lost = again(device)
    assert (after, len(lost)) == ("", 2)
    lab.sh(f"{tc} root handle 5: htb default 10")
    lab.sh(f"tc class add dev {device} parent 5: classid 5:10 htb rate 1mbit")
    _, after, lost = again(device)
    assert (after, [each.split()[1] for each in lost]) == ("", ["htb"])
