"""DCB: dcbnl's bytes as uapi/linux/dcbnl.h has them, what differs, what is set, and as lines."""

from __future__ import annotations

import dataclasses
import errno
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given

from nodeagent.errors import KernelError
from nodeagent.kernel.dcb import Dcbnl
from nodeagent.kernel.netlink import attribute, attributes, nested
from nodeagent.node.dcb import set_dcb
from nodeagent.plan.actions import SetDcb
from nodeagent.plan.comparison import differences
from nodeagent.plan.dcb import no_longer_offered
from nodeagent.plan.lines import lines
from nodeagent.plan.plan import after_reload, plan
from nodeagent.settings import Settings
from nodeagent.state.dcb import App, Buffers, Dcb, Ets, Pfc, Selector, Tsa
from nodeagent.state.eswitch import EswitchMode
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Pf
from tests.support.fake_kernel import PF1
from tests.support.fake_node import FakeNode, fake_node
from tests.support.strategies import dcbs

PF = DeviceHandle("pci", PF1)
ETS = Ets(
    willing=False,
    tc_tsa=(Tsa.ETS, Tsa.ETS, *(Tsa.STRICT,) * 5, Tsa.VENDOR),
    tc_bw=(30, 70, 100, 100, 100, 100, 100, 100),
    pg_bw=(0,) * 8,
    prio_tc=(0, 1, 2, 3, 1, 5, 6, 7),
    reco_tc_tsa=(Tsa.STRICT,) * 8,
    reco_tc_bw=(0,) * 8,
    reco_prio_tc=(0,) * 8,
)
LOSSLESS = Pfc(
    prio_pfc=(False, False, False, True, False, False, False, False), macsec_bypass=False, delay=7
)
APPS = (App(Selector.DSCP, 24, 3), App(Selector.DSCP, 46, 6))
FULL = Dcb(
    ets=ETS,
    maxrate=(0, 0, 1_000_000, 0, 0, 0, 0, 0),
    pfc=LOSSLESS,
    buffer=Buffers(prio_buffer=(0, 0, 0, 1, 0, 0, 0, 0), buffer_size=(100_000, 99_936, *(0,) * 6)),
    app=APPS,
)
HOST, LLD_MANAGED, IEEE_VERSION = 1, 2, 8


class Kernel(Dcbnl):
    """Keeps what is written as a driver does, and answers with it."""

    def __init__(self, dcbx: int | None = HOST | IEEE_VERSION, refusal: int = 0) -> None:
        self.held: dict[int, bytes] = {}
        self.apps: set[tuple[int, bytes]] = set()
        self.dcbx, self.refusal = dcbx, refusal
        self.asked: list[tuple[int, int]] = []

    def close(self) -> None:
        return

    def ask(self, message: bytearray) -> list[bytes]:
        (kind,) = struct.unpack_from("=H", message, 4)
        command = message[17]
        self.asked.append((kind, command))
        request = dict(attributes(bytes(message), 20))
        assert request[1] == b"enp1s0f0np0\0"
        header = bytes(20)
        if kind == 79:
            return [header + attribute(13, bytes([-self._write(command, request[13]) & 0xFF]))]
        table = nested(3, b"".join(attribute(*app) for app in sorted(self.apps)))
        ieee = nested(13, b"".join(attribute(*pair) for pair in self.held.items()) + table)
        dcbx = b"" if self.dcbx is None else attribute(14, bytes([self.dcbx]))
        return [header + attribute(1, request[1]) + ieee + dcbx]

    def _write(self, command: int, ieee: bytes) -> int:
        if self.refusal:
            return self.refusal
        for kind, value in attributes(ieee):
            if kind != 3:
                self.held[kind] = value
            elif command == 20:
                self.apps |= set(attributes(value))
            else:
                self.apps -= set(attributes(value))
        return 0


def write(edge: Dcbnl, dcb: Dcb) -> None:
    for part in ("ets", "maxrate", "pfc", "buffer"):
        if (value := getattr(dcb, part)) is not None:
            edge.set("enp1s0f0np0", part, value)
    edge.add_apps("enp1s0f0np0", dcb.app or ())


@given(dcb=dcbs)
def test_what_is_read_is_written_again(dcb: Dcb) -> None:
    edge = Kernel()
    write(edge, dcb)
    read = edge.dcb("enp1s0f0np0")
    assert read == dataclasses.replace(dcb, app=dcb.app or ())
    edge.delete_apps("enp1s0f0np0", dcb.app or ())
    assert edge.apps == set()


def test_structures_are_as_long_as_the_kernels() -> None:
    """It refuses shorter ones (dcbnl_ieee_policy)."""
    edge = Kernel()
    write(edge, FULL)
    assert {kind: len(value) for kind, value in edge.held.items()} == {1: 59, 2: 136, 7: 64, 10: 44}
    assert {len(value) for _, value in edge.apps} == {4}
    assert edge.held[2][:6] == struct.pack("=BBBxH", 0, 1 << 3, 0, 7)


def test_what_a_driver_can_goes_back_as_it_was_told() -> None:
    edge = Kernel()
    edge.held = {1: bytes((0, 8, 1)) + bytes(56), 2: bytes((8,)) + bytes(135)}
    write(edge, FULL)
    assert edge.held[1][1:3] == bytes((8, 1))
    assert edge.held[2][0] == 8


@pytest.mark.parametrize(
    ("dcbx", "is_known"),
    [(None, True), (HOST, True), (IEEE_VERSION, False), (HOST | LLD_MANAGED, False)],
)
def test_what_firmware_negotiates_is_not_known(dcbx: int | None, is_known: bool) -> None:
    assert (Kernel(dcbx).dcb("enp1s0f0np0") is not None) is is_known


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENODEV])
def test_a_driver_without_dcb(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object, __: bytearray) -> list[bytes]:
        raise OSError(number, "no")

    monkeypatch.setattr(Kernel, "ask", refuse)
    assert Kernel().dcb("enp1s0f0np0") is None
    number = errno.EPERM
    with pytest.raises(KernelError, match="cannot read the DCB of enp1s0f0np0"):
        Kernel().dcb("enp1s0f0np0")


def test_a_refusal_is_a_byte_of_the_answer() -> None:
    with pytest.raises(OSError, match="Invalid argument") as refused:
        Kernel(refusal=errno.EINVAL).set("enp1s0f0np0", "ets", ETS)
    assert refused.value.errno == errno.EINVAL


def test_a_scheduler_without_a_name_is_not_known() -> None:
    edge = Kernel()
    write(edge, FULL)
    held = bytearray(edge.held[1])
    held[19] = 3
    edge.held[1] = bytes(held)
    assert edge.dcb("enp1s0f0np0") == dataclasses.replace(FULL, ets=None)


# what differs, and what is planned


def node(dcb: Dcb | None, mode: EswitchMode = EswitchMode.LEGACY) -> NodeState:
    pf = Pf(PF, numvfs=0, eswitch_mode=mode, netdev=Netdev("enp1s0f0np0"), dcb=dcb)
    return NodeState("mlx5_core", (pf,))


def test_only_what_differs_is_planned() -> None:
    other = dataclasses.replace(FULL, pfc=dataclasses.replace(LOSSLESS, delay=20), app=())
    (stage,) = plan(node(FULL), node(other))
    assert stage.name == "set PF DCB"
    assert stage.actions == (SetDcb(PF, Dcb(pfc=LOSSLESS, app=APPS)),)
    pfc, app = map(str, differences(node(FULL), node(other)))
    prios = "prio-pfc 0:off 1:off 2:off 3:on 4:off 5:off 6:off 7:off macsec-bypass off"
    assert pfc == f"{PF} dcb pfc: want {prios} delay 7, have {prios} delay 20"
    assert app == f"{PF} dcb app: want dscp-prio 24:3 dscp-prio 46:6, have none"


def test_of_another_eswitch_mode_all_of_it_is_set_after_the_mode() -> None:
    """Also what is as wanted before: the driver begins with its own."""
    stages = plan(node(FULL, EswitchMode.SWITCHDEV), node(FULL))
    assert [stage.name for stage in stages] == ["set eswitch", "set DCB"]
    assert stages[1].actions == (SetDcb(PF, FULL),)


def test_what_is_not_known_or_not_offered_is_not_planned_and_is_named() -> None:
    assert plan(node(None), node(FULL)) == ()
    for have in (None, Dcb()):
        assert plan(node(FULL), node(have)) == ()
        assert differences(node(FULL), node(have)) == ()
        assert list(no_longer_offered(node(FULL), node(have))) == [
            f"enp1s0f0np0 ({PF}) dcb {part}" for part in ("app", "buffer", "ets", "maxrate", "pfc")
        ]
    assert list(no_longer_offered(node(FULL), node(FULL))) == []
    assert list(no_longer_offered(node(Dcb(app=())), node(None))) == []


def test_as_lines_for_dcb() -> None:
    want = node(FULL)
    assert lines(plan(want, after_reload(want)), want, after_reload(want)) == [
        "# set PF DCB",
        "dcb ets set dev enp1s0f0np0 willing off "
        "tc-tsa 0:ets 1:ets 2:strict 3:strict 4:strict 5:strict 6:strict 7:vendor "
        "tc-bw 0:30 1:70 2:0 3:0 4:0 5:0 6:0 7:0 pg-bw 0:0 1:0 2:0 3:0 4:0 5:0 6:0 7:0 "
        "prio-tc 0:0 1:1 2:2 3:3 4:1 5:5 6:6 7:7 "
        "reco-tc-tsa 0:strict 1:strict 2:strict 3:strict 4:strict 5:strict 6:strict 7:strict "
        "reco-tc-bw 0:0 1:0 2:0 3:0 4:0 5:0 6:0 7:0 reco-prio-tc 0:0 1:0 2:0 3:0 4:0 5:0 6:0 7:0"
        "; dcb maxrate set dev enp1s0f0np0 tc-maxrate "
        "0:0kbit 1:0kbit 2:1000000kbit 3:0kbit 4:0kbit 5:0kbit 6:0kbit 7:0kbit"
        "; dcb pfc set dev enp1s0f0np0 prio-pfc 0:off 1:off 2:off 3:on 4:off 5:off 6:off 7:off "
        "macsec-bypass off delay 7"
        "; dcb app flush dev enp1s0f0np0"
        "; dcb app add dev enp1s0f0np0 dscp-prio 24:3 dscp-prio 46:6",
    ]
    (buffer,) = Dcb(buffer=FULL.buffer).commands("a")
    assert buffer.endswith("buffer-size 0:100000 1:99936 2:0 3:0 4:0 5:0 6:0 7:0")
    assert App(Selector.ETHTYPE, 0, 5).words() == "default-prio 5"


# performed


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    with fake_node(monkeypatch) as node:
        node.add_pf()
        yield node


def test_part_by_part_and_only_what_differs(fake: FakeNode) -> None:
    fake.dcb[PF1] = dataclasses.replace(FULL, ets=None, maxrate=(0,) * 8, app=(APPS[0],))
    with fake.node(Settings()) as made:
        assert set_dcb(made, [SetDcb(PF, FULL)]) == []
        assert fake.dcb_writes == ["maxrate", "app"]
        assert set_dcb(made, [SetDcb(PF, FULL)]) == []
    assert fake.dcb_writes == ["maxrate", "app"]
    assert fake.dcb[PF1] == dataclasses.replace(FULL, ets=None)


def test_a_refused_part_is_named_and_the_others_are_set(fake: FakeNode) -> None:
    fake.refused_settings = {"ets"}
    fake.dcb[PF1] = dataclasses.replace(
        FULL, ets=dataclasses.replace(ETS, willing=True), app=(App(Selector.DSCP, 24, 0),)
    )
    with fake.node(Settings()) as made:
        ((_, text),) = set_dcb(made, [SetDcb(PF, FULL)])
    assert text == f"{PF}: cannot set dcb ets: EINVAL: Invalid argument"
    assert fake.dcb_writes == ["app", "app"]
    assert fake.dcb[PF1].app == APPS


def test_a_pf_without_dcb_is_left_alone(fake: FakeNode) -> None:
    elsewhere = DeviceHandle("pci", "0000:09:00.0")
    with fake.node(Settings()) as made:
        assert set_dcb(made, [SetDcb(PF, FULL), SetDcb(elsewhere, FULL)]) == []


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Dcb, {"maxrate": (0,) * 7}),
        (Dcb, {"maxrate": (2**64, *(0,) * 7)}),
        (Dcb, {"app": (APPS[1], APPS[0])}),
        (Buffers, {"prio_buffer": (0,) * 8, "buffer_size": (2**32, *(0,) * 7)}),
        (Pfc, {"prio_pfc": (True,), "macsec_bypass": False, "delay": 0}),
        (Pfc, {"prio_pfc": (True,) * 8, "macsec_bypass": False, "delay": 0x10000}),
        (App, {"selector": Selector.PORT, "protocol": 0x10000, "priority": 0}),
        (App, {"selector": Selector.PORT, "protocol": 1, "priority": 256}),
    ],
)
def test_no_such_value(kind: type, values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"members|within|sorted"):
        kind(**values)


def test_no_ets_of_seven_classes() -> None:
    for name in ("tc_tsa", "reco_tc_tsa", "tc_bw", "prio_tc"):
        with pytest.raises(ValueError, match=f"{name} has not 8 members"):
            dataclasses.replace(ETS, **{name: getattr(ETS, name)[:7]})
