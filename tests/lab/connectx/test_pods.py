"""Pods on a ConnectX: VFs in network namespaces, with the RDMA devices that belong to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack

import pytest

from tests.support import connectx, lab
from tests.support.lab import PF1, PF2, Nodeagent, State
from tests.support.pods import Pod

PFS = (PF1, PF2)


def inside_of(pods: Iterable[Pod]) -> list[State]:
    """The inside of each, once its links are up: the driver hears of that from its firmware."""
    made = list(pods)

    def down() -> list[str]:
        links = "\n".join(pod.sh("ip -br link show up") for pod in made)
        return [line for line in links.splitlines() if " DOWN " in line]

    lab.eventually(lambda: not down(), "carrier in each pod")
    return [pod.read() for pod in made]


@pytest.fixture
def pods(no_vfs: None) -> Iterator[list[Pod]]:
    """Four pods with a VF of each PF; the last VF of each stays at home."""
    for pf in PFS:
        lab.make_vfs(pf, 5)
    with ExitStack() as held:
        made = [held.enter_context(Pod()) for _ in range(4)]
        for index, pod in enumerate(made):
            for number, pf in enumerate(PFS, 1):
                pod.take(lab.vf(pf, index), f"net{number}")
                pod.ip(
                    f"address add 10.{number}.0.{index + 1}/24 dev net{number}",
                    f"address add fd00:{number}::{index + 1}/64 dev net{number} nodad",
                    f"link set net{number} mtu {1500 + index} up",
                    f"route add 172.{16 + index}.{number}.0/24 via 10.{number}.0.99",
                )
        lab.settle()
        yield made


def in_sysfs(pod: Pod, command: str) -> str:
    """What a command prints in the pod's directory of net1 in sysfs."""
    return pod.sh(f"unshare -m sh -ec 'mount -t sysfs s /sys; cd /sys/class/net/net1; {command}'")


def test_everything_in_four_pods(nodeagent: Nodeagent, pods: list[Pod]) -> None:
    pods[0].sh("ethtool -X net1 context new")
    in_sysfs(pods[0], "echo 1 > queues/rx-0/rps_cpus; echo 7000 > gro_flush_timeout")
    queues = [in_sysfs(pod, "grep -r . gro_flush_timeout queues/*/*ps_*") for pod in pods]
    before, inside = connectx.read(), inside_of(pods)
    assert before["devices"][PF1]["vfs"][0]["interface"] is None
    wanted = lab.put_other_build_on_disk()
    log = nodeagent.call("reload").log
    assert lab.loaded() == wanted
    assert connectx.read() == before
    assert inside_of(pods) == inside
    assert queues == [in_sysfs(pod, "grep -r . gro_flush_timeout queues/*/*ps_*") for pod in pods]
    assert "RSS context 1 of net1, with n-tuple rules that name it in " in log


def test_killed_while_pods_are_served(nodeagent: Nodeagent, pods: list[Pod]) -> None:
    before, inside = connectx.read(), inside_of(pods)
    nodeagent.reload_killed_at("move VFs: ")
    assert connectx.read() == before
    assert inside_of(pods) == inside
