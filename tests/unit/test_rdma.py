"""Names of RDMA devices: read from sysfs, planned, and set by netlink as rdma(8) does.

The messages are rdma(8)'s own, recorded in the lab. On a kernel: tests/lab/test_rdma.py.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.kernel.rdma import Rdma
from nodeagent.kernel.sysfs import RdmaDevice as Found
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.node.attempt import Attempt
from nodeagent.node.perform import perform
from nodeagent.node.rdma import name_rdma_devices
from nodeagent.plan.actions import SetRdma
from nodeagent.plan.comparison import differences
from nodeagent.plan.lines import lines
from nodeagent.plan.plan import plan
from nodeagent.plan.rdma import soft
from nodeagent.settings import Settings
from nodeagent.state.model import DeviceHandle, NodeState, Pf, RdmaDevice, Vf
from nodeagent.state.roce import RoceMode, RocePort
from tests.support.fake_kernel import PF1
from tests.support.fake_node import FakeNode, fake_node

HANDLE = DeviceHandle("pci", PF1)
ONE = bytes.fromhex("0800010001000000" + "0900020072786531" + "00000000" + "0800030001000000")
"""Of `rxe1`, index 1: RDMA_NLDEV_ATTR_DEV_INDEX, _DEV_NAME, _PORT_INDEX, as recorded."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    with fake_node(monkeypatch) as made:
        yield made


class Recorded(Rdma):
    """Answers with what was recorded, and keeps what it is sent."""

    def __init__(self, *bodies: bytes) -> None:
        self.bodies = [bytes(16) + body for body in bodies]
        self.sent: list[bytes] = []

    def close(self) -> None:
        """There is no socket."""

    def dump(self, message: bytearray, what: str) -> list[bytes]:
        assert struct.unpack_from("=IHH", message) == (16, 0x1401, 0x301)
        assert what == "RDMA devices"
        return self.bodies

    def send(self, messages: Sequence[bytearray]) -> list[OSError | None]:
        self.sent += map(bytes, messages)
        return [None] * len(messages)


def named(index: int, name: str) -> bytes:
    padded = name.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(padded), 2) + padded + bytes(-len(padded) % 4)
    return struct.pack("=HHI", 8, 1, index) + attribute


def node(pf: str | None, *vfs: str | None, is_soft: bool = False) -> NodeState:
    def device(name: str | None) -> RdmaDevice | None:
        return None if name is None else RdmaDevice(name, is_soft)

    made = tuple(Vf(n, f"0000:01:10.{n}", "mlx5_core", rdma=device(v)) for n, v in enumerate(vfs))
    return NodeState("mlx5_core", (Pf(HANDLE, len(vfs), vfs=made, rdma=device(pf)),))


def test_what_is_sent_is_what_rdma_sends() -> None:
    edge = Recorded(ONE)
    assert edge.indexes() == {"rxe1": 1}
    edge.rename([(1, "foo")])
    (sent,) = edge.sent
    assert edge.give(1, 5) is None
    assert edge.sent[1][16:] == bytes.fromhex("0800010001000000" + "0800440005000000")
    assert struct.unpack_from("=IHH", sent) == (len(sent), 0x1402, 0x5)
    assert sent[16:] == bytes.fromhex("0800010001000000" + "08000200666f6f00")


def test_a_device_is_found_on_its_function_or_by_its_netdev(tmp_path: Path) -> None:
    devices = tmp_path / "devices" / "0000:01:00.0"
    devices.mkdir(parents=True)
    (tmp_path / "bus" / "pci").mkdir(parents=True)
    (devices / "subsystem").symlink_to("../../bus/pci")
    for name in ("mlx5_0", "rxe0"):
        (tmp_path / "class" / "infiniband" / name).mkdir(parents=True)
    (tmp_path / "class" / "infiniband" / "mlx5_0" / "device").symlink_to(devices)
    (tmp_path / "class" / "infiniband" / "rxe0" / "parent").write_text("ens1\n")
    assert Sysfs(tmp_path).rdma_devices() == (
        Found("mlx5_0", DeviceHandle("pci", "0000:01:00.0")),
        Found("rxe0", None, "ens1"),
    )
    assert Sysfs(tmp_path / "nothing").rdma_devices() == ()


@pytest.mark.parametrize(
    ("want", "have", "line"),
    [
        (node("roce0"), node("mlx5_0"), "rdma dev set mlx5_0 name roce0"),
        (
            node(None, "roce0v0"),
            node(None, None),
            'rdma dev set "$(ls /sys/bus/pci/devices/0000:01:10.0/infiniband)" name roce0v0',
        ),
    ],
)
def test_another_name_and_one_yet_to_come(want: NodeState, have: NodeState, line: str) -> None:
    assert lines(plan(want, have), want, have) == ["# name RDMA devices", line]
    assert [each.attribute for each in differences(want, have)] == ["rdma"]


def test_a_function_that_is_missing_is_named_without_its_rdma_device() -> None:
    want, have = node("roce0", "roce0v0"), node("roce0")
    without = have.with_pfs(tuple(replace(pf, numvfs=0, vfs=()) for pf in have.pfs))
    found = differences(want, without)
    assert {each.attribute for each in found} == {"numvfs", "function"}


def test_nothing_to_do() -> None:
    for want, have in (
        (node("roce0", "roce0v0"), node("roce0", "roce0v0")),
        (node(None, None), node("roce0", "roce0v0")),
        (node("rxe0", is_soft=True), node(None)),
    ):
        assert plan(want, have) == ()
        assert differences(want, have) == ()


V1 = RocePort(port=1, mode=RoceMode.V1, tos=0)
TOS = RocePort(port=1, mode=RoceMode.V2, tos=106)


def with_roce(*ports: RocePort, known: bool = True, name: str = "roce0") -> NodeState:
    device = RdmaDevice(name, roce=ports if known else None)
    return NodeState("mlx5_core", (Pf(HANDLE, 0, rdma=device),))


def test_defaults_for_roce_are_set_on_the_device_by_its_wanted_name() -> None:
    want, have = with_roce(TOS), with_roce(name="mlx5_0")
    group = "/sys/kernel/config/rdma_cm/roce0"
    assert lines(plan(want, have), want, have) == [
        "# name RDMA devices",
        "rdma dev set mlx5_0 name roce0",
        "# set RoCE defaults",
        f"mkdir {group}; echo 'RoCE v2' >{group}/ports/1/default_roce_mode; "
        f"echo 106 >{group}/ports/1/default_roce_tos; rmdir {group}",
    ]
    assert [str(each) for each in differences(want, with_roce(V1))] == [
        f"pci/{PF1} roce port 1: want RoCE v2 tos 106, have IB/RoCE v1 tos 0"
    ]
    assert [str(each) for each in differences(with_roce(), with_roce(V1))] == [
        f"pci/{PF1} roce port 1: want RoCE v2 tos 0, have IB/RoCE v1 tos 0"
    ]


def test_defaults_for_roce_that_nobody_can_tell_are_not_set() -> None:
    """Neither those of a snapshot without them, nor while rdma_cm is not loaded."""
    for want, have in (
        (with_roce(known=False), with_roce(TOS)),
        (with_roce(TOS), with_roce(known=False)),
        (with_roce(), node(None)),
    ):
        assert not [each for each in differences(want, have) if "roce port" in each.attribute]


def test_one_in_software_is_named_as_lost() -> None:
    state = node("rxe0", "rxe1", is_soft=True)
    assert list(soft(state)) == [
        f"software RDMA device rxe0 on pci/{PF1}",
        f"software RDMA device rxe1 on pci/{PF1} vf 0",
    ]


def add_rdma(fake: FakeNode, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> Callable[[], int]:
    """PFs with mlx5_0, mlx5_1 and so on; tells how often all of the node's devices were read."""
    found = tuple(
        Found(f"mlx5_{number}", DeviceHandle("pci", address))
        for number, address in enumerate(addresses)
    )
    for each, address in zip(found, addresses, strict=True):
        fake.add_pf(address)
        (fake.tree.root / "bus/pci/devices" / address / "infiniband" / each.name).mkdir(
            parents=True
        )
    reads: list[Sysfs] = []

    def read(sysfs: Sysfs) -> tuple[Found, ...]:
        reads.append(sysfs)
        return found

    monkeypatch.setattr(Sysfs, "rdma_devices", read)
    return lambda: len(reads)


def test_names_that_cross_go_by_a_third(fake: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    edge = Recorded(named(0, "mlx5_0"), named(1, "mlx5_1"))
    add_rdma(fake, monkeypatch, PF1, "0000:02:00.0")
    with replace(fake.node(Settings()), rdma=lambda: edge) as under_test:
        want, have = (
            NodeState(
                "mlx5_core",
                tuple(
                    Pf(DeviceHandle("pci", address), rdma=RdmaDevice(name))
                    for address, name in zip((PF1, "0000:02:00.0"), names, strict=True)
                ),
            )
            for names in (("mlx5_1", "mlx5_0"), ("mlx5_0", "mlx5_1"))
        )
        assert perform(Attempt(under_test), plan(want, have)) == ()
    renames = [sent[20:24] + sent[28:].rstrip(b"\0") for sent in edge.sent]
    assert [(struct.unpack("=I", r[:4])[0], r[4:].decode()) for r in renames] == [
        (0, "natmp0"),
        (1, "natmp1"),
        (0, "mlx5_1"),
        (1, "mlx5_0"),
    ]


def test_however_many_are_named_the_node_is_read_as_often(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = (PF1, "0000:02:00.0", "0000:03:00.0")
    reads = add_rdma(fake, monkeypatch, *addresses)
    actions = [
        SetRdma(DeviceHandle("pci", address), None, address, f"mlx5_{number}", None)
        for number, address in enumerate(addresses)
    ]
    with replace(fake.node(Settings()), rdma=Recorded) as under_test:
        assert name_rdma_devices(Attempt(under_test), actions[:1], (), set()) == []
        for_one = reads()
        assert name_rdma_devices(Attempt(under_test), actions, (), set()) == []
    assert reads() == 2 * for_one


def test_one_in_software_is_there_without_being_its_functions(
    fake: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.add_pf(PF1)
    monkeypatch.setattr(Sysfs, "rdma_devices", lambda _: (Found("rxe1", None, "ens1np0"),))
    edge = Recorded(ONE)
    before = fake.monotonic()
    with replace(fake.node(Settings()), rdma=lambda: edge) as under_test:
        action = SetRdma(HANDLE, None, PF1, "roce0", None)
        assert name_rdma_devices(Attempt(under_test), [action], (), set()) == []
    assert len(edge.sent) == 1
    assert fake.monotonic() - before < 5


def test_one_that_never_comes_is_named(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    hasty = replace(Settings(), vf_timeout=0.2)
    with replace(fake.node(hasty), rdma=Recorded) as under_test:
        action = SetRdma(HANDLE, None, PF1, "roce0", None)
        (stage,) = plan(node("roce0"), node(None))
        assert stage.actions == (action,)
        (failure,) = perform(Attempt(under_test), [stage])
    assert failure == f"pci/{PF1}: no RDMA device after 0.2 s"


def test_one_that_does_not_come_is_waited_for_once_in_a_restore(fake: FakeNode) -> None:
    """mlx5_ib could not be loaded: its auxiliary device has no driver, which is said."""
    fake.add_pf(PF1)
    (fake.tree.root / "bus/pci/devices" / PF1 / "mlx5_core.rdma.0").mkdir()
    with replace(fake.node(Settings()), rdma=Recorded) as under_test:
        attempt, stages = Attempt(under_test), plan(node("roce0"), node(None))
        before = fake.monotonic()
        (failure,) = perform(attempt, stages)
        once = fake.monotonic() - before
        assert perform(attempt, stages) == ()
    assert fake.monotonic() - before < once + 5
    why = "mlx5_core.rdma.0 has no driver (is mlx5_ib loaded?)"
    assert failure == f"pci/{PF1}: no RDMA device: {why} after 150 s"


def test_one_of_a_function_that_loses_its_driver_is_not_waited_for(fake: FakeNode) -> None:
    fake.add_pf(PF1)
    fake.later(3, lambda: fake.release("pci", PF1))
    before = fake.monotonic()
    with replace(fake.node(Settings()), rdma=Recorded) as under_test:
        assert perform(Attempt(under_test), plan(node("roce0"), node(None))) == ()
    assert fake.monotonic() - before < 5


def test_one_that_comes_with_the_eswitch_only_is_not_waited_for(fake: FakeNode) -> None:
    """mlx5_ib has the auxiliary device of a PF in switchdev mode, and made no RDMA device."""
    fake.add_pf(PF1)
    (fake.tree.root / "bus/pci/devices" / PF1 / "mlx5_core.rdma-rep.0" / "driver").mkdir(
        parents=True
    )
    before = fake.monotonic()
    with replace(fake.node(Settings()), rdma=Recorded) as under_test:
        (failure,) = perform(Attempt(under_test), plan(node("roce0"), node(None)))
    assert failure.startswith(f"pci/{PF1}: no RDMA device: mlx5_ib was loaded in switchdev mode")
    assert fake.monotonic() - before < 5


def test_a_name_that_is_none_is_refused() -> None:
    for name in ("", "a/b", "mlx5_%d", "x" * 64):
        with pytest.raises(ValueError, match="not the name"):
            RdmaDevice(name)
