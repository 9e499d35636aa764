"""vDPA devices: messages recorded on the emulated ConnectX (mlx5_vdpa, Linux 6.12), and plans."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from nodeagent.errors import RestoreFailed
from nodeagent.kernel.netlink import attribute, attributes
from nodeagent.kernel.vdpa import VdpaEdge
from nodeagent.node.observe import observe
from nodeagent.plan.actions import SetVdpa
from nodeagent.plan.comparison import differences
from nodeagent.plan.lines import lines
from nodeagent.plan.plan import after_reload, plan
from nodeagent.plan.vdpa import no_longer_offered
from nodeagent.restore import restore, verify
from nodeagent.settings import Settings
from nodeagent.state.addresses import Mac
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Pf, Vdpa, Vf
from tests.support.fake_kernel import DRIVER, PF1
from tests.support.fake_node import FakeNode, fake_node

PF = DeviceHandle("pci", PF1)
VF = DeviceHandle("pci", "0000:01:00.2")
MAC = Mac("02:00:00:00:00:b1")
BLUE = Vdpa("blue", "vhost_vdpa", MAC, 1400, 4, 0x3_0000_0021, 0x3_0000_002D)


def state(*devices: Vdpa, offers: bool = True) -> NodeState:
    """A PF with a VF, of which these devices are."""
    vf = Vf(
        0,
        VF.name,
        DRIVER,
        "",
        netdev=Netdev("v", up=True),
        vdpa=devices if offers else None,
    )
    return NodeState(DRIVER, (Pf(PF, 1, True, Netdev("p", up=True), (vf,)),))


class Answered(VdpaEdge):
    """The family vdpa, with answers by command."""

    def __init__(self, answers: dict[int, list[bytes]]) -> None:
        self.family = 0x20
        self.name = "vdpa"
        self.answers = answers
        self.sent: list[bytes] = []

    def dump(self, message: bytearray, what: str) -> list[bytes]:
        return self.answers[message[16]]

    def send(self, messages: Sequence[bytearray]) -> list[OSError | None]:
        self.sent += map(bytes, messages)
        return [None]


def body(*parts: tuple[int, bytes]) -> bytes:
    """A message with these attributes."""
    return bytes(20) + b"".join(attribute(kind, payload) for kind, payload in parts)


def test_what_the_kernel_says() -> None:
    """And what is said to it, with the numbers of uapi/linux/vdpa.h."""
    manager = ((1, b"pci\0"), (2, f"{VF.name}\0".encode()))
    features, supported = (struct.pack("=Q", each) for each in (BLUE.features, BLUE.supported))
    config = (
        *((4, b"blue\0"), (5, struct.pack("=I", 1)), (20, features)),
        *((13, struct.pack("=H", 1400)), (10, bytes.fromhex("0200000000b1"))),
        (12, struct.pack("=H", 4)),
    )
    edge = Answered(
        {
            2: [body(*manager, (16, supported))],
            5: [body(*manager, (4, b"blue\0"))],
            6: [body(*config)],
        }
    )
    assert edge.devices() == {VF: (dataclasses.replace(BLUE, driver="none"),)}
    assert edge.managers() == {VF: BLUE.supported}
    edge.add(VF, BLUE)
    (sent,) = edge.sent
    assert sent[16] == 3
    given = dict(attributes(sent, 20))
    assert given == dict((*manager, *(each for each in config if each[0] != 5)))


def test_they_are_planned_after_their_functions() -> None:
    want = state(BLUE)
    have = after_reload(want)
    stages = plan(want, have)
    (action,) = (a for each in stages for a in each.actions if isinstance(a, SetVdpa))
    assert action == SetVdpa(PF, 0, VF.name, BLUE)
    text = lines(stages, want, have)
    where = text.index("# add vDPA devices")
    assert where > text.index("# bind VFs")
    assert text[where + 1] == (
        f"vdpa dev add name blue mgmtdev {VF} mac {MAC} mtu 1400 max_vqp 4 "
        "device_features 0x300000021; "
        "echo blue > /sys/bus/vdpa/devices/blue/driver/unbind; "
        "echo blue > /sys/bus/vdpa/drivers/vhost_vdpa/bind"
    )


@pytest.mark.parametrize("change", [{"mac": None}, {"mtu": 1500}, {"max_vqp": 1}])
def test_one_with_other_values_is_made_anew(change: dict[str, Any]) -> None:
    want, have = state(BLUE), state(dataclasses.replace(BLUE, **change))
    ((action,),) = (each.actions for each in plan(want, have))
    assert isinstance(action, SetVdpa)
    assert "vdpa dev del blue; vdpa dev add name blue " in "".join(
        lines(plan(want, have), want, have)
    )
    (found,) = differences(want, have)
    assert str(found).startswith(f"{PF} vf 0 vDPA device blue: want mac {MAC} ")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    """A PF with a VF that has the device blue."""
    with fake_node(monkeypatch, igb=False) as fake:
        fake.add_pf()
        fake.give(Pf(PF, 1, True, Netdev("p", up=True), (Vf(0, driver=DRIVER),)))
        fake.settle()
        fake.change(fake.link(fake.function(0)).index, name="v")
        (fake.tree.root / "bus/vdpa").mkdir()
        fake.vdpa_managers[fake.function(0)] = BLUE.supported or 0
        with fake.node(Settings()).vdpa() as vdpa:
            vdpa.add(DeviceHandle("pci", fake.function(0)), BLUE)
        yield fake


def test_they_are_made_again_with_what_is_offered(fake: FakeNode) -> None:
    node = fake.node(Settings())
    want = observe(node)
    assert [vf.vdpa for _, vf in want.vfs()] == [(BLUE,)]
    fake.restart()
    fake.settle()
    fake.vdpa_managers[fake.function(0)] = 0x5
    restore(node, want)
    verify(node, want)
    assert fake.skipped == 0, "waited for something in vain"
    ((made,),) = [vf.vdpa or () for _, vf in observe(node).vfs()]
    assert made == dataclasses.replace(BLUE, features=0x1)


def test_one_that_is_refused_is_an_error(fake: FakeNode) -> None:
    node = fake.node(Settings())
    want = observe(node)
    fake.restart()
    fake.settle()
    fake.refused_settings = {"blue"}
    with pytest.raises(RestoreFailed) as failed:
        restore(node, want)
    assert f"{PF} vf 0: vDPA device blue: EINVAL" in str(failed.value)


def test_what_a_driver_does_not_offer_is_named() -> None:
    """Devices, and features of one; the node is as it can be."""
    want = state(BLUE)
    without = state(offers=False)
    assert not differences(want, without)
    (line,) = no_longer_offered(want, without)
    assert line.startswith(f"{PF} vf 0 vDPA device blue (mac {MAC} ")
    fewer = state(dataclasses.replace(BLUE, features=0x1, supported=0x5))
    assert not differences(want, fewer)
    assert [*no_longer_offered(want, fewer)] == [
        f"{PF} vf 0 vDPA device blue device_features 0x300000020"
    ]
