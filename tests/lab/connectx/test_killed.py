"""An upgrade of the genuine driver, killed at points all over it, with a PF in switchdev mode.

On igb all places are tried (tests/lab/test_killed.py). Here there are others besides, of eswitch,
representors and RDMA devices: a sample of all is, with `--every-point` all points are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import connectx, lab
from tests.support.lab import PF1, PF2, Nodeagent
from tests.support.sweep import Share, Sweep, over, swap_build
from tests.support.zygote import Zygote

pytestmark = pytest.mark.sweep

SAMPLES = 8
"""Of all places."""


@pytest.fixture
def upgrade(tmp_path: Path) -> Iterator[Sweep]:
    """Two VFs in legacy, two in switchdev mode; another build on disk."""
    agent = Nodeagent(tmp_path)
    lab.clean("A")
    lab.make_vfs(PF1, 2, mtu=1600)
    lab.create_vfs(PF2, 2)
    lab.ip(*(f"link set {lab.name(PF2)} vf {n} mac 02:00:00:01:01:0{n}" for n in range(2)))
    connectx.switch(PF2)
    (tmp_path / "trace").mkdir()
    (tmp_path / "zygote").mkdir()
    with Zygote(agent.environment, tmp_path / "zygote") as zygote:
        sweep = Sweep("upgrade", agent, zygote, tmp_path / "trace", swap_build, look=connectx.read)
        before = connectx.read()
        sweep.undisturbed()
        assert sweep.end == before
        yield sweep
    agent.end()
    lab.clean("A")


def test_killed_at_points_of_an_upgrade(upgrade: Sweep, share: Share) -> None:
    numbers = share.kills(upgrade)
    if not share.every_point:
        step = len(numbers) // SAMPLES
        numbers = numbers[step // 2 :: step]
    over(numbers, upgrade.killed_at, upgrade, "SIGKILL")
