"""RDMA devices called what they were called: rdma_rxe's, found by their netdev, on two PFs.

There is no HCA here, whose devices are found by their function: tests/unit/test_rdma.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.lab import Nodeagent

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
    taken = nodeagent.call("snapshot", "-o", snapshot)
    assert "software RDMA device roce-left on pci/0000:01:00.0: the reload takes it" in taken.log
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
