"""Killed at every point from the first VF's bind on, with VFs in pods: half-moved, half-configured.

What comes before is the same with pods and without (test_killed.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import lab
from tests.support.lab import PF1, Nodeagent
from tests.support.pods import Pod
from tests.support.sweep import Share, Sweep, everything, over, swap_build
from tests.support.zygote import Zygote

pytestmark = pytest.mark.sweep


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Sweep]:
    """Two VFs in two pods: addresses, a route, a VLAN, a sysctl, an alias."""
    agent = Nodeagent(tmp_path)
    lab.clean("A")
    lab.make_vfs(PF1, 2)
    (tmp_path / "trace").mkdir()
    with ExitStack() as held:
        both = [held.enter_context(Pod()) for _ in range(2)]
        for index, pod in enumerate(both):
            pod.take(lab.vf(PF1, index), "net1")
            pod.ip(
                f"address add 10.1.0.{index + 1}/24 dev net1",
                f"address add fd00:1::{index + 1}/64 dev net1",
                "link set net1 up alias tenant",
                "route add 192.0.2.0/24 via 10.1.0.99",
            )
            # before it has carrier, igb's PF may refuse its VF a VLAN (EINVAL)
            lab.eventually(partial(has_carrier, pod), "carrier in a pod")
            pod.ip(
                "link add link net1 name net1.5 type vlan id 5",
                "link set net1.5 up",
            )
            pod.sh("sysctl -qw net/ipv4/conf/net1/rp_filter=2")
        zygote = held.enter_context(Zygote(agent.environment, tmp_path))

        def look() -> dict[str, Any]:
            for pod in both:
                for name in ("net1", "net1.5"):
                    lab.eventually(partial(has_carrier, pod, name), "carrier in a pod")
            return everything() | {"pods": [pod.read() for pod in both]}

        before = look()
        sweep = Sweep("pods", agent, zygote, tmp_path / "trace", swap_build, look=look)
        sweep.undisturbed()
        assert sweep.end == before
        yield sweep
    agent.end()
    lab.clean("A")


def has_carrier(pod: Pod, name: str = "net1") -> bool:
    """igb's VFs have it two seconds after they went up; link-local addresses come with it, or are
    there before, where nodeagent has put them back."""
    shown = pod.sh(f"ip -6 address show {name}")
    return "LOWER_UP" in shown and "fe80:" in shown


def test_killed_at_every_point_at_which_pods_are_served(pods: Sweep, share: Share) -> None:
    names = [line.partition(" ")[2] for line in pods.points]
    first = next(n for n, name in enumerate(names, 1) if name.endswith(("/bind", "/drivers_probe")))
    changes = ("move", "send netlink changes", "sysctl")
    last = max(n for n, name in enumerate(names, 1) if name.startswith(changes))
    assert any(name.startswith("move") for name in names[first:last])
    over(share.kills(pods, first, last + 1), pods.killed_at, pods, "SIGKILL")
