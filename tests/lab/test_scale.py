"""Many VFs: what one costs does not grow with their number, and no list is cut unnoticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.errors import KernelError
from nodeagent.kernel.rtnl import Rtnl
from tests.support import lab
from tests.support.lab import NETDEVSIM

ROOT = Path(__file__).resolve().parents[2]
DEVICE = NETDEVSIM / "devices" / "netdevsim1"


def test_a_vf_of_300_costs_what_one_of_10_does(tmp_path: Path) -> None:
    """At most 1.5 times as much, for snapshot, plan, restore and verify; and PFs likewise."""
    result = tmp_path / "scale.json"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"}
    command = [sys.executable, "-m", "showcase.scale", str(result)]
    subprocess.run(command, env=environment, timeout=300, check=True)
    costs = {
        (each["pfs"], each["vfs"]): {
            step: seconds / (each["pfs"] * each["vfs"]) for step, seconds in each["seconds"].items()
        }
        for each in json.loads(result.read_text())
    }
    for many, few in (((1, 300), (1, 10)), ((1, 100), (1, 10)), ((8, 10), (2, 10))):
        for step, cost in costs[many].items():
            assert cost <= 1.5 * costs[few][step], (step, many, costs)


@pytest.fixture
def simulated() -> Iterator[str]:
    lab.sh("modprobe netdevsim")
    (NETDEVSIM / "new_device").write_text("1 1")
    Path("/sys/kernel/debug/netdevsim/netdevsim1/max_vfs").write_text("512")
    lab.settle()
    yield next((DEVICE / "net").iterdir()).name
    lab.sh("modprobe -r netdevsim")


def test_at_every_count_around_the_edge_the_list_is_whole_or_refused(simulated: str) -> None:
    """The kernel's attribute holds 64 KiB, and wraps silently at one more VF."""
    index = int((DEVICE / "net" / simulated / "ifindex").read_text())
    listed: dict[int, int | None] = {}
    refusals = set()
    with Rtnl() as rtnl:
        for count in range(300, 360):
            (DEVICE / "sriov_numvfs").write_text("0")
            (DEVICE / "sriov_numvfs").write_text(str(count))
            try:
                listed[count] = len(rtnl.vfs(index))
            except KernelError as refused:
                listed[count] = None
                refusals.add(refused.message.rpartition(": ")[2])
    edge = max(count for count, length in listed.items() if length is not None)
    assert all(length == (count if count <= edge else None) for count, length in listed.items())
    assert 330 < edge < 350
    assert refusals == {"the list is cut at 64 KiB"}
