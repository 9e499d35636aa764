"""RESTORE_FIRST: which VFs of a plan are bound before the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nodeagent.kernel.cgroup import LOGS, pods_in
from nodeagent.node.urgent import put_first, urgent
from nodeagent.plan.actions import BindVf, MoveVf, SetLink, SetVf, Stage
from nodeagent.plan.stages import StageName
from nodeagent.settings import Settings
from nodeagent.state.model import DeviceHandle, Target
from nodeagent.state.namespaces import Holder, Namespace

PF1, PF2 = DeviceHandle("pci", "0000:01:00.0"), DeviceHandle("pci", "0000:02:00.0")
UID = "0b1c0000-0000-0000-0000-000000000001"


@pytest.fixture
def stages() -> list[Stage]:
    """Two VFs on each of two PFs; VF 1 of the second is in a pod."""
    binds = [
        BindVf(pf, index, f"{pf.name[:8]}10.{index}", "mlx5_core")
        for pf in (PF1, PF2)
        for index in (0, 1)
    ]
    pod = Namespace(4, 5, "boot", (Holder(pid=7, started=1),), pod=UID)
    moves = [MoveVf(PF2, 1, "0000:02:10.1", pod, "net1")]
    return [cast(Stage, SimpleNamespace(actions=each)) for each in (binds, moves)]


def first(stages: list[Stage], proc: Path, setting: str | None) -> set[Target]:
    names = {} if setting is None else {"RESTORE_FIRST": setting}
    node = SimpleNamespace(settings=Settings.from_environment(names), proc=proc)
    return set(urgent(cast(Any, node), stages))


@pytest.mark.parametrize(
    ("setting", "found"),
    [
        (None, set()),
        ("0000:01:10.1", {Target(PF1, 1)}),
        ("0000:02:00.0", {Target(PF2, 0), Target(PF2, 1)}),
        ("payments", {Target(PF2, 1)}),
        ("payments,0000:01:10.0", {Target(PF2, 1), Target(PF1, 0)}),
        ("default", set()),
    ],
)
def test_by_address_and_by_namespace(
    stages: list[Stage], tmp_path: Path, setting: str | None, found: set[Target]
) -> None:
    (tmp_path / LOGS / f"payments_api-0_{UID}").mkdir(parents=True)
    assert first(stages, tmp_path, setting) == found


def test_without_the_hosts_processes_no_pod_is_known(stages: list[Stage], tmp_path: Path) -> None:
    assert first(stages, tmp_path, "payments") == set()
    assert pods_in({"payments"}, tmp_path) == frozenset()


def test_their_interfaces_are_set_up_before_the_others() -> None:
    """Nothing is left out, and what does not follow a bind keeps its place."""
    links = tuple(SetLink(PF1, index, up=True) for index in (0, 1))
    rates = tuple(SetVf(PF1, index, max_tx_rate=9, min_tx_rate=0) for index in (0, 1))
    bind = Stage(StageName.BIND_VFS, (BindVf(PF1, 1, "0000:01:10.1", "mlx5_core"),))
    before = Stage(StageName.PREPARE_PFS, (SetLink(PF1, None, up=True),))
    netdevs, late = Stage(StageName.VF_NETDEVS, links), Stage(StageName.VFS_LATE, rates)
    assert put_first([before, bind, netdevs, late], {Target(PF1, 1)}) == (
        before,
        bind,
        Stage(StageName.VF_NETDEVS, links[1:]),
        Stage(StageName.VF_NETDEVS, links[:1]),
        Stage(StageName.VFS_LATE, rates[1:]),
        Stage(StageName.VFS_LATE, rates[:1]),
    )
    assert put_first([before, netdevs], {Target(PF1, 1)}) == (before, netdevs)
    assert put_first([bind, netdevs], set()) == (bind, netdevs)
