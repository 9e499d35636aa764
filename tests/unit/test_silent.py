"""VFs whose firmware was refused when they were made: made again once, or named."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace

import pytest

from nodeagent.errors import KernelError, RestoreFailed
from nodeagent.node import silent
from nodeagent.node.attempt import Attempt
from nodeagent.plan.actions import UnbindVf
from nodeagent.plan.taken import Taken
from nodeagent.restore import restore
from nodeagent.settings import Settings
from nodeagent.state.addresses import Mac
from nodeagent.state.lag import Lag
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Pf, Target, Vf
from tests.support.fake_kernel import PF1
from tests.support.fake_node import FakeNode, fake_node
from tests.support.fake_rules import Fault

HANDLE = DeviceHandle("pci", PF1)
SETTINGS = replace(Settings(), vf_timeout=30.0, pf_timeout=30.0)
AGAIN = f"pci/{PF1}: its firmware has not enabled VF 1, which this restore has created"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    """A PF without VFs. A probe here ends at once."""
    monkeypatch.setattr(silent, "SILENT_SECONDS", 0.0)
    with fake_node(monkeypatch) as made:
        made.add_pf(PF1)
        yield made


def wanted() -> NodeState:
    vfs = tuple(
        Vf(
            index=index,
            driver="mlx5_core",
            driver_override="",
            admin_mac=Mac(f"02:00:00:00:00:0{index}"),
            netdev=Netdev(f"net{index}", mac=Mac(f"02:00:00:00:00:0{index}"), mtu=1500, up=True),
        )
        for index in range(3)
    )
    return NodeState("mlx5_core", (Pf(HANDLE, 3, autoprobe=True, vfs=vfs),))


def numvfs_written(fake: FakeNode) -> list[object]:
    return [write.value for write in fake.written("sriov_numvfs")]


def test_all_of_the_pf_are_made_again(fake: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    fake.plant(fake.function(1), "bind", Fault(errno.ETIMEDOUT, times=1))
    with fake.node(SETTINGS) as node:
        restore(node, wanted())
    assert numvfs_written(fake) == ["3", "0", "3"]
    assert AGAIN in caplog.text
    assert [fake.link(fake.function(index)).name for index in range(3)] == ["net0", "net1", "net2"]


def test_one_that_stays_silent_is_named_and_the_others_are_right(
    fake: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    """Made again once, and not bound a third time: each bind takes two minutes."""
    fake.plant(fake.function(1), "bind", Fault(errno.ETIMEDOUT))
    with fake.node(SETTINGS) as node, pytest.raises(RestoreFailed) as caught:
        restore(node, wanted())
    said = str(caught.value)
    assert f"pci/{PF1} vf 1: the firmware of {fake.function(1)} does not start" in said
    assert f"`echo 0 >/sys/bus/pci/devices/{PF1}/sriov_numvfs` removes all VFs" in said
    assert f"pci/{PF1} vf 1 driver: want mlx5_core, have none" in said
    assert numvfs_written(fake) == ["3", "0", "3"]
    assert caplog.text.count(AGAIN) == 1
    binds = [write for write in fake.written("bind") if write.target == fake.function(1)]
    assert len(binds) == 2
    assert fake.link(fake.function(0)).name == "net0"
    assert fake.link(fake.function(2)).name == "net2"


def test_vfs_that_an_earlier_start_has_made_are_left_alone(fake: FakeNode) -> None:
    with fake.node(SETTINGS) as node:
        restore(node, wanted())
    fake.release("pci", fake.function(1))
    fake.plant(fake.function(1), "bind", Fault(errno.ETIMEDOUT))
    fake.writes.clear()
    with fake.node(SETTINGS) as node, pytest.raises(RestoreFailed, match="does not start"):
        restore(node, wanted())
    assert numvfs_written(fake) == []
    assert len(fake.written("bind")) == 1


def test_none_is_made_again_beside_one_that_a_virtual_machine_may_have(fake: FakeNode) -> None:
    vfs = (Vf(0, driver="none"), Vf(1, driver="vfio-pci"))
    state = NodeState("mlx5_core", (Pf(HANDLE, 2, vfs=vfs),))
    attempt = Attempt(fake.node(SETTINGS))
    attempt.note_vfs_made(HANDLE)
    attempt.silent.add(Target(HANDLE, 0))
    want, have = silent.planned_for(attempt, state, state)
    assert have == state
    assert [vf.index for vf in want.pfs[0].vfs] == [1]


def test_none_is_made_again_beside_one_that_another_has_taken(fake: FakeNode) -> None:
    state = NodeState("mlx5_core", (Pf(HANDLE, 2, vfs=(Vf(0, driver="none"), Vf(1))),))
    attempt = Attempt(fake.node(SETTINGS))
    attempt.note_vfs_made(HANDLE)
    attempt.silent.add(Target(HANDLE, 0))
    attempt.takings.found[Target(HANDLE, 1)] = Taken(Target(HANDLE, 1), "in a pod")
    assert silent.planned_for(attempt, state, state)[1] == state


def test_the_other_ports_of_a_lag_have_their_vfs_unbound_first(fake: FakeNode) -> None:
    """Its end is refused while one is bound; a LAG of another card stays."""
    lag = Lag(active=True, type="switchdev")
    names = {PF1: "0000:01:10.0", "0000:01:00.1": "0000:01:10.1", "0000:02:00.0": "0000:02:10.0"}
    pfs = tuple(
        Pf(DeviceHandle("pci", pf), 1, lag=lag, vfs=(Vf(0, address, "mlx5_core"),))
        for pf, address in names.items()
    )
    want = NodeState("mlx5_core", pfs)
    (first,) = pfs[0].vfs
    have = want.with_pfs((replace(pfs[0], vfs=(replace(first, driver="none"),)), *pfs[1:]))
    attempt = Attempt(fake.node(SETTINGS))
    attempt.note_vfs_made(HANDLE)
    attempt.silent.add(Target(HANDLE, 0))
    partner = DeviceHandle("pci", "0000:01:00.1")
    unbind = UnbindVf(partner, 0, "0000:01:10.1", "mlx5_core")
    assert silent.unbound_first(attempt, have) == (unbind,)
    _, planned = silent.planned_for(attempt, want, have)
    assert [[vf.driver for vf in pf.vfs] for pf in planned.pfs] == [[], ["none"], ["mlx5_core"]]
    attempt.note_vfs_made(HANDLE)
    assert silent.unbound_first(attempt, have) == ()


def test_a_bind_that_fails_sooner_or_otherwise_is_tried_again() -> None:
    timed_out = KernelError("x", errno=errno.ETIMEDOUT)
    assert silent.is_silent(timed_out, 120.0)
    assert not silent.is_silent(timed_out, 60.0)
    assert not silent.is_silent(KernelError("x", errno=errno.EIO), 120.0)
