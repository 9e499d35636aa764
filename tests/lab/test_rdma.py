"""RDMA devices called what they were called, and in the namespaces that they were in.

rdma_rxe's are found by their netdev; those of lab_ib lie on functions, as an HCA's do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.lab import PF1, Nodeagent
from tests.support.pods import Pod

NAMES = {"roce-left": "enp1s0", "roce-right": "enp2s0"}


def read() -> dict[str, str]:
    """The netdev of each RDMA device, as rdma(8) says it."""
    return {link["ifname"]: link["netdev"] for link in json.loads(lab.sh("rdma -j link"))}


@pytest.fixture
def named(no_vfs: None) -> Iterator[None]:
    lab.sh("modprobe rdma_rxe")
    for name, netdev in NAMES.items():
        lab.sh(f"rdma link add rxe-{netdev} type rxe netdev {netdev}")
        lab.sh(f"rdma dev set rxe-{netdev} name {name}")
    yield
    lab.sh("modprobe -r rdma_rxe")


def test_names_that_were_swapped_and_one_that_is_gone(
    nodeagent: Nodeagent, named: None, tmp_path: Path
) -> None:
    snapshot = str(tmp_path / "snapshot")
    taken = nodeagent.call("snapshot", "--file", snapshot)
    assert "software RDMA device roce-left on pci/0000:01:00.0: the reload removes it" in taken.log
    lab.sh("rdma dev set roce-left name x; rdma dev set roce-right name roce-left")
    lab.sh("rdma dev set x name roce-right")
    told = nodeagent.call("verify", "--snapshot", snapshot, "--output", "json", status=1)
    differences = json.loads(told.output())["differences"]
    assert [(each["attribute"], each["want"], each["have"]) for each in differences] == [
        ("rdma", "roce-left", "roce-right"),
        ("rdma", "roce-right", "roce-left"),
    ]
    nodeagent.call("restore", "--snapshot", snapshot)
    assert read() == NAMES
    lab.sh("rdma link delete roce-left; rdma dev set roce-right name other")
    nodeagent.call("restore", "--snapshot", snapshot)
    assert read() == {"roce-right": "enp2s0"}


@pytest.fixture
def exclusive(no_vfs: None) -> Iterator[None]:
    """Each device in one namespace. The kernel changes that only while there is but one."""
    lab.sh(
        "mkdir -p /run/netns; modprobe ib_uverbs; rdma system set netns exclusive; modprobe lab_ib"
    )
    yield
    lab.sh("modprobe -r lab_ib")
    # a namespace ends some time after its last process
    shared = "rdma system set netns shared 2>/dev/null || true; rdma system"
    lab.eventually(lambda: "netns shared" in lab.sh(shared), "RDMA devices are shared")


def names_in(pod: Pod) -> list[str]:
    return [each["ifname"] for each in json.loads(pod.sh("rdma -j dev"))]


def names_here() -> dict[str, str]:
    """By function, those that the host's namespace has."""
    devices = Path("/sys/class/infiniband").iterdir()
    return {(each / "device").resolve().name: each.name for each in devices}


def test_a_device_that_a_pod_has_to_itself_goes_back_there(
    nodeagent: Nodeagent, exclusive: None
) -> None:
    """Exclusive mode: after its interface, by the name that it had there; the others stay here."""
    lab.create_vfs(PF1, 3)
    lab.settle()
    with ExitStack() as held:
        one, two = (held.enter_context(Pod()) for _ in range(2))
        here = names_here()
        for index, pod in enumerate((one, two)):
            address = lab.vf(PF1, index)
            pod.take(address, "net1")
            lab.sh(f"rdma dev set {here.pop(address)} name tenant{index}")
            lab.sh(f"rdma dev set tenant{index} netns ../..{pod.path}")
        lab.put_other_build_on_disk()
        nodeagent.call("reload", MLX5_AUXILIARY_MODULES="lab_ib")
        assert [names_in(one), names_in(two)] == [["tenant0"], ["tenant1"]]
        assert names_here() == here

        two.ip(f"link set net1 netns {one.process.pid} name net2")
        lab.put_other_build_on_disk()
        told = nodeagent.call(
            "preflight", "--output", "json", MLX5_AUXILIARY_MODULES="lab_ib", status=1
        )
        (loss,) = (f for f in json.loads(told.output())["findings"] if f["check"] == "pods")
        assert f"of pci/{lab.vf(PF1, 1)} is neither here nor where its interface is" in loss["what"]
