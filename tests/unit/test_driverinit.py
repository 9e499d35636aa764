"""Parameters that a driver starts with: messages, what a snapshot has, what is planned and done."""

from __future__ import annotations

import dataclasses
import errno
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from nodeagent.driver.nic import NicDriver
from nodeagent.errors import RestoreFailed
from nodeagent.kernel.devlink import Devlink, Instance
from nodeagent.kernel.genl import encoded
from nodeagent.kernel.netlink import attributes
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.modes import Mode
from nodeagent.node.auxiliary import probe_again
from nodeagent.node.observe import observe
from nodeagent.plan.comparison import differences
from nodeagent.plan.driverinit import no_longer_offered
from nodeagent.plan.lines import lines
from nodeagent.plan.plan import after_reload, plan
from nodeagent.plan.remarks import unseen
from nodeagent.plan.stages import AnyStage, StageName
from nodeagent.restore import restore, verify
from nodeagent.settings import Settings
from nodeagent.snapshot import take_snapshot
from nodeagent.state.eswitch import EswitchMode
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Param, Pf, Vf
from tests.support.fake_kernel import DRIVER, PF1, FakeInstance
from tests.support.fake_node import FakeDevlink, FakeNode, fake_node
from tests.support.fake_rules import Fault
from tests.support.simulate import FRESH_DRIVERINIT

PF = DeviceHandle("pci", PF1)
NO_ROCE, EVENTS = Param("enable_roce", 6, False), Param("event_eq_size", 3, 2048)
CHANGED = (NO_ROCE, FRESH_DRIVERINIT[1])
HANDLE = (1, b"pci\0"), (2, f"{PF1}\0".encode())


class Answered(Devlink):
    """devlink that answers with these messages, and refuses what it is told to."""

    def __init__(self, *bodies: bytes, refuses: int | None = None) -> None:
        self.family, self.name, self.bodies, self.refuses = 0x17, "devlink", bodies, refuses
        self.sent: list[list[bytes]] = []

    def dump(self, message: bytearray, what: str) -> list[bytes]:
        return [bytes(20) + body for body in self.bodies]

    def send(self, messages: Sequence[bytearray]) -> list[OSError | None]:
        self.sent.append([bytes(each) for each in messages])
        refused = OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return [refused if at == self.refuses else None for at in range(len(messages))]


def instance(*counts: int, failed: bool = False) -> bytes:
    """As netdevsim and mlx5 tell it: two actions, each with its entries by limit."""
    entries = [encoded((159, b"\0"), (160, struct.pack("=I", count))) for count in counts]
    actions = (encoded((153, b"\1"), (163, encoded((158, each)))) for each in entries)
    stats = encoded((157, encoded(*((162, each) for each in actions))), (161, b""))
    return encoded(*HANDLE, (136, bytes([failed])), (156, stats))


def test_how_often_an_instance_was_reloaded() -> None:
    assert Answered(instance(0, 0)).instances() == {PF: Instance(0, False)}
    assert Answered(instance(2, 1, failed=True)).instances() == {PF: Instance(3, True)}
    before_linux_5_10 = encoded(*HANDLE, (136, b"\0"))
    assert Answered(before_linux_5_10).instances() == {PF: Instance(None, False)}


def test_set_and_reloaded_is_one_datagram() -> None:
    """Which the kernel carries out within one system call: a kill comes before it or after."""
    devlink = Answered()
    devlink.reload(PF, (NO_ROCE, EVENTS))
    ((first, second, last),) = devlink.sent
    assert [each[16] for each in (first, second, last)] == [39, 39, 37]
    said = [dict(attributes(each, 20)) for each in (first, second, last)]
    assert (said[0][81], said[0][87], said[0].get(86)) == (b"enable_roce\0", b"\1", None)
    assert (said[1][81], said[1][87], said[1][86]) == (b"event_eq_size\0", b"\1", b"\0\x08\0\0")
    assert said[2] == dict(HANDLE)


def test_what_is_in_effect_is_shown_again_where_a_reload_is_refused() -> None:
    unset, refused = Answered(refuses=1), Answered(refuses=2)
    for devlink in (unset, refused):
        with pytest.raises(OSError, match="Invalid argument"):
            devlink.reload(PF, (NO_ROCE, EVENTS), FRESH_DRIVERINIT)
    assert len(unset.sent) == 1
    assert [dict(attributes(each, 20))[81] for each in refused.sent[1]] == [
        b"enable_roce\0",
        b"event_eq_size\0",
    ]


# ---- what differs, and what is planned -----------------------------------------------------------


def state(pf: tuple[Param, ...] | None, *vfs: tuple[Param, ...] | None) -> NodeState:
    made = tuple(
        Vf(n, f"0000:01:10.{n}", DRIVER, netdev=Netdev(f"v{n}", up=True), driverinit=each)
        for n, each in enumerate(vfs)
    )
    netdev = Netdev("p", mtu=1500, up=True)
    return NodeState(DRIVER, (Pf(PF, len(made), True, netdev, made, driverinit=pf),))


def stages(want: NodeState, have: NodeState) -> list[AnyStage]:
    return [stage.name for stage in plan(want, have)]


def test_a_pf_is_reloaded_before_its_vfs_are_made() -> None:
    found = stages(state(CHANGED, None), state(FRESH_DRIVERINIT, None))
    first = [
        *(StageName.REMOVE_VFS, StageName.PF_DRIVERINIT),
        *(StageName.CREATE_VFS, StageName.PREPARE_PFS),
    ]
    assert [each for each in found if each in first] == first


def test_a_vf_is_reloaded_before_its_interface_is_set_up_and_no_other_is() -> None:
    want = state(None, CHANGED, FRESH_DRIVERINIT, None)
    have = state(FRESH_DRIVERINIT, *[FRESH_DRIVERINIT] * 3)
    assert [str(each) for each in differences(want, have)] == [
        f"pci/{PF1} vf 0 enable_roce: want False, have True"
    ]
    assert stages(want, have) == [StageName.VF_DRIVERINIT, StageName.VF_NETDEVS]
    assert lines(plan(want, have), want, have)[1] == (
        "devlink dev param set pci/0000:01:10.0 name enable_roce value false cmode driverinit; "
        "devlink dev reload pci/0000:01:10.0"
    )


def test_after_a_reload_of_the_driver_each_is_ensured() -> None:
    want = state(CHANGED, CHANGED, None)
    text = "\n".join(lines(plan(want, after_reload(want)), want, after_reload(want)))
    assert text.count("devlink dev reload") == 2
    assert f"devlink dev reload pci/{PF1}; udevadm settle\n" in text
    assert "value 4096 cmode driverinit; devlink dev reload pci/0000:01:10.0\n" in text


def test_what_a_driver_has_no_more_is_named_and_not_waited_for() -> None:
    want = state((NO_ROCE, EVENTS), (EVENTS,))
    have = state((NO_ROCE,), ())
    assert differences(want, have) == ()
    assert list(no_longer_offered(want, have)) == [
        f"pci/{PF1} event_eq_size 2048",
        f"pci/{PF1} vf 0 event_eq_size 2048",
    ]


def test_a_vf_that_was_told_to_have_no_interface_is_in_no_namespace() -> None:
    vf = Vf(0, "0000:01:10.0", DRIVER, driverinit=(Param("enable_eth", 6, False),))
    told = NodeState(DRIVER, (Pf(PF, 1, vfs=(vf,)),))
    assert unseen(told) == ()
    pfs = (Pf(PF, 1, vfs=(dataclasses.replace(vf, driverinit=()),)),)
    assert unseen(dataclasses.replace(told, pfs=pfs)) == (f"pci/{PF1} vf 0",)


def test_a_function_that_has_no_auxiliary_device_for_an_interface(tmp_path: Path) -> None:
    devices, sysfs = tmp_path / "bus/pci/devices", Sysfs(tmp_path)
    for function in "ab":
        (devices / function / f"mlx5_core.rdma.{function}").mkdir(parents=True)
    assert not sysfs.has_no_ethernet("pci", "b")  # its driver makes none for any
    for path in (devices / "a", tmp_path / "bus/auxiliary/devices"):
        (path / "mlx5_core.eth.0").mkdir(parents=True)
    assert [sysfs.has_no_ethernet("pci", function) for function in "ab"] == [False, True]


# ---- on a node -----------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    """A PF with devlink that was reloaded, and two VFs, of which the first was."""
    with fake_node(monkeypatch, igb=False) as node:
        wanted = state(CHANGED, CHANGED, None)
        (pf,) = wanted.pfs
        node.set_up(
            dataclasses.replace(
                wanted, pfs=(dataclasses.replace(pf, eswitch_mode=EswitchMode.LEGACY),)
            )
        )
        yield node


def saved(fake: FakeNode) -> NodeState:
    node = fake.node(Settings())
    return take_snapshot(node, NicDriver(node.settings, Mode.PRECOMPILED, None)).state


def test_a_snapshot_has_those_of_instances_that_were_reloaded(fake: FakeNode) -> None:
    """What was set of the others is not in effect."""
    fake.instances[fake.function(1)].params["enable_roce"] = NO_ROCE
    (pf,) = saved(fake).pfs
    assert pf.driverinit == CHANGED
    assert [vf.driverinit for vf in pf.vfs] == [CHANGED, None]
    (now,) = observe(fake.node(Settings())).pfs
    assert now.vfs[1].driverinit == CHANGED


def test_after_a_restart_each_is_in_effect_again_in_one_pass(fake: FakeNode) -> None:
    want, node = saved(fake), fake.node(Settings())
    fake.restart()
    fake.settle()
    restore(node, want)
    verify(node, want)
    first, second = (fake.instances[fake.function(index)] for index in range(2))
    for each in (fake.instances[PF1], first):
        assert (each.in_effect, each.reloads) == ({p.name: p for p in CHANGED}, 1)
    assert (second.in_effect, second.reloads) == ({}, 0)
    assert [write.target for write in fake.written("reload")] == [PF1, fake.function(0)]


def test_devices_that_have_started_with_what_is_wanted_are_not_asked_one_by_one(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a VF starts with is not known before it is bound."""
    known = {each.name: each for each in FRESH_DRIVERINIT}
    fake.instances[fake.function(0)] = FakeInstance(known, dict(known), reloads=1)
    want, node = saved(fake), fake.node(Settings())
    fake.restart()
    fake.settle()
    asked = []
    driverinit = FakeDevlink.driverinit

    def recorded(devlink: FakeDevlink, device: DeviceHandle, name: str) -> Param | None:
        asked.append(device.name)
        return driverinit(devlink, device, name)

    monkeypatch.setattr(FakeDevlink, "driverinit", recorded)
    restore(node, want)
    verify(node, want)
    assert {*asked} == {PF1}
    assert [write.target for write in fake.written("reload")] == [PF1]


def test_a_reload_that_fails_is_named_and_done_again(fake: FakeNode) -> None:
    want, node = saved(fake), fake.node(Settings())
    fake.restart()
    fake.settle()
    fake.plant(fake.function(0), "reload", Fault(errno.EINVAL))
    with pytest.raises(RestoreFailed) as caught:
        restore(node, want)
    assert f"cannot reload pci/{fake.function(0)} with other enable_roce" in str(caught.value)
    fake.faults.clear()
    restore(node, want)
    verify(node, want)


def test_what_a_killed_reload_has_left_is_reloaded_first(fake: FakeNode) -> None:
    fake.instances[PF1] = FakeInstance({p.name: p for p in CHANGED}, failed=True)
    node = fake.node(Settings())
    (pf,) = observe(node).pfs
    assert pf.driverinit is None
    probe_again(node)
    assert fake.instances[PF1] == FakeInstance(
        {p.name: p for p in CHANGED}, {p.name: p for p in CHANGED}, 1
    )
