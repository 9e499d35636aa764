"""Pods keep their interfaces: a reload with VFs in other network namespaces.

What is inside pods is set up and read with iproute2; what they say to each other goes through the
switch of the emulated NIC, by processes that know nothing of the reload.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.support import lab
from tests.support.lab import PF1, PF2, Nodeagent, State
from tests.support.pods import LEAST, Pings, Pod, Stream, write_least

SHARE: Final = 1.2
"""Of the time for which pods are cut off when a script does the least that is still right."""


@dataclass
class Scene:
    """Ten VFs in nine pods, four at home, and what is said between pods."""

    pods: list[Pod]
    vfs: list[tuple[Pod, str, str]]
    node: State
    inside: list[State]

    def now(self) -> list[State]:
        """The inside of each pod."""
        return [pod.read() for pod in self.pods]

    def asked(self) -> Iterator[tuple[Pod, str]]:
        """Each pod asks another one of its PF, so that each VF is asked by somebody."""
        for pf, count in ((1, 6), (2, 4)):
            for index in range(count):
                asks = next(p for p, vf, _ in self.vfs if vf == lab.vf(PFS[pf], index))
                yield asks, f"10.{pf}.0.{(index + 1) % count + 1}"


PFS: Final = {1: PF1, 2: PF2}


@pytest.fixture
def scene(no_vfs: None) -> Iterator[Scene]:
    """2 PFs with 7 VFs each; the first pod has net1 and net2, each of another PF."""
    for address in PFS.values():
        lab.make_vfs(address, 7, mtu=9000)
    with ExitStack() as held:
        pods = [held.enter_context(Pod()) for _ in range(9)]
        places = [(pods[n], 1, n, "net1") for n in range(6)]
        places += [(pods[0], 2, 0, "net2"), *((pods[5 + n], 2, n, "net1") for n in range(1, 4))]
        vfs = [(pod, lab.vf(PFS[pf], index), name) for pod, pf, index, name in places]
        for pod, pf, index, name in places:
            lab.ip(f"link set {lab.name(PFS[pf])} vf {index} vlan 0 trust on spoofchk off")
            pod.take(lab.vf(PFS[pf], index), name)
            pod.ip(
                f"address add 10.{pf}.0.{index + 1}/24 dev {name}",
                f"address add fd00:{pf}::{index + 1}/64 dev {name}",
                f"link set {name} mtu 1500 up",
                f"route add 172.{16 + index}.{pf}.0/24 via 10.{pf}.0.99",
            )
        pods[0].ip(
            "link set net1 mtu 1600 txqueuelen 500 alias tenant",
            "link property add dev net1 altname first-network",
            "link add link net1 name net1.5 type vlan id 5",
            "address add 10.5.0.1/24 dev net1.5",
            "link set net1.5 up",
            "neighbour add 10.1.0.77 lladdr 02:77:00:00:00:01 dev net1",
            "route add fd00:77::/64 via fd00:1::99",
        )
        lab.settle()
        lab.sh("sleep 2")  # until IPv6 addresses are used
        yield Scene(pods, vfs, lab.read(), [pod.read() for pod in pods])


def test_ten_vfs_in_nine_pods(nodeagent: Nodeagent, scene: Scene, tmp_path: Path) -> None:
    """Everything is as it was, streams survive, and nobody waits long."""
    wanted = lab.put_other_build_on_disk()
    stream = Stream(scene.pods[1], scene.pods[2], "10.1.0.3", 7001)
    other = Stream(scene.pods[0], scene.pods[7], "10.2.0.3", 7002)
    with Pings(tmp_path, scene.asked()) as pings:
        nodeagent.call("reload")
        lab.sh("sleep 3")
    assert lab.loaded() == wanted
    assert stream.finish() > 0
    assert other.finish() > 0
    assert scene.now() == scene.inside
    assert lab.read() == scene.node

    write_least(tmp_path / "least", scene.vfs, held_by_pfs(scene.node))
    with Pings(tmp_path, scene.asked()) as least:
        subprocess.run([LEAST, tmp_path / "least"], check=True, timeout=lab.PATIENCE)
        lab.sh("sleep 3")
    told = [
        f"{whom:24} {gap:6.2f} s, by the script {script:6.2f} s: {gap / script:.2f}"
        for (whom, gap), script in zip(pings.gaps.items(), least.gaps.values(), strict=True)
    ]
    sys.stderr.write("\n".join(["longest time without an answer", *told, ""]))
    assert max(pings.gaps.values()) <= SHARE * max(least.gaps.values())


def held_by_pfs(node: State) -> Iterator[str]:
    """What PFs hold for their VFs, as lines for ip(8)."""
    for pf, state in node.items():
        for index, vf in state["vfs"].items():
            told = f"mac {vf['told by its PF']['address']} trust on spoofchk off"
            yield f"link set dev {lab.name(pf)} vf {index} {told}"
