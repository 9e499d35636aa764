"""Killed at every point, in turn, and started again: the end is as if nothing had happened.

Points between which nothing has changed are one place, unless `--every-point` is given. `--points
2/3` takes every third, so that several nodes share a scene (scripts/test).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.hosts_driver import hosts_own_driver
from tests.support.lab import PF1, Nodeagent
from tests.support.sweep import Share, Sweep, everything, over, swap_build, terminated
from tests.support.zygote import Zygote

pytestmark = pytest.mark.sweep


@pytest.fixture(scope="module")
def nodeagent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodeagent]:
    """One for all scenes, each of which begins without what the one before has left."""
    agent = Nodeagent(tmp_path_factory.mktemp("nodeagent"))
    yield agent
    agent.end()
    lab.remove_faults()


@pytest.fixture(scope="module")
def zygote(nodeagent: Nodeagent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(nodeagent.environment, tmp_path_factory.mktemp("zygote")) as zygote:
        yield zygote


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace")


@pytest.fixture(scope="module")
def upgrade(nodeagent: Nodeagent, zygote: Zygote, trace: Path) -> Sweep:
    """Two VFs in which everything differs, with addresses and a VLAN; another build on disk."""
    lab.clean("A")
    lab.make_vfs(PF1, 2, mtu=1600)
    first = lab.name(lab.vf(PF1, 1))
    lab.ip(
        f"link set {lab.name(PF1)} alias uplink",
        f"link set {first} up alias first txqueuelen 500",
        f"addr add 192.0.2.7/24 dev {first}",
        f"link add link {first} name {first}.7 type vlan id 7",
        f"link set {first}.7 up",
        f"route add 198.51.100.0/24 via 192.0.2.1 dev {first}",
    )
    sweep = Sweep("upgrade", nodeagent, zygote, trace, swap_build)
    before = everything()
    sweep.undisturbed()
    assert sweep.end == before
    return sweep


@pytest.fixture(scope="module")
def termination(nodeagent: Nodeagent, zygote: Zygote, trace: Path) -> Iterator[Sweep]:
    """The pod's driver is B; its end puts the host's own, A, back; the next start B again."""
    lab.clean("A")
    lab.make_vfs(PF1, 1)
    lab.put_on_disk("B")
    with hosts_own_driver():
        sweep = Sweep(
            "termination",
            nodeagent,
            zygote,
            trace,
            _nothing,
            ("terminate", "--yes"),
            settings={"RESTORE_DRIVER_ON_POD_TERMINATION": "true"},
        )
        sweep.start_again()
        sweep.count_points()
        assert lab.loaded() == lab.srcversion_of("A")
        sweep.start_again()
        yield sweep


def _nothing() -> None:
    """The scene is what the run before has left."""


@pytest.fixture(scope="module")
def install(nodeagent: Nodeagent, zygote: Zygote, trace: Path) -> Sweep:
    """No driver loaded: what the first start on a node finds where the inbox driver is away."""
    lab.clean("A")

    def prepare() -> None:
        lab.unload_driver()
        shutil.rmtree(nodeagent.state_dir, ignore_errors=True)
        nodeagent.ready.unlink(missing_ok=True)

    sweep = Sweep("first install", nodeagent, zygote, trace, prepare)
    sweep.undisturbed()
    return sweep


def test_killed_at_every_point_of_an_upgrade(upgrade: Sweep, share: Share) -> None:
    """With a few that are killed twice, once more while the next start mends the first."""
    over(share.kills(upgrade), upgrade.killed_at, upgrade, "SIGKILL")
    twice = share.kills(upgrade)[::8]
    over(twice, lambda n: upgrade.killed_twice(n, 1 + n * 13 % 40), upgrade, "SIGKILL twice")


def test_terminated_at_every_point_of_an_upgrade(upgrade: Sweep, share: Share) -> None:
    terminated(upgrade, share)


def test_killed_at_every_point_of_a_first_install(install: Sweep, share: Share) -> None:
    over(share.kills(install), install.killed_at, install, "SIGKILL")


def test_terminated_at_every_point_of_a_first_install(install: Sweep, share: Share) -> None:
    terminated(install, share)


def test_killed_at_every_point_of_a_termination(termination: Sweep, share: Share) -> None:
    over(share.kills(termination), termination.killed_at, termination, "SIGKILL")


def test_terminated_at_every_point_of_a_termination(termination: Sweep, share: Share) -> None:
    terminated(termination, share)
