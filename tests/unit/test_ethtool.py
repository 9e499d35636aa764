"""ethtool: what the kernel was recorded to say, what we say to it, and settings as values.

The recorded messages are those of the emulated node (Linux 6.12): a PF of igb and one of its VFs.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from nodeagent.errors import KernelError
from nodeagent.kernel import ethtool as edge
from nodeagent.kernel.ethtool import KINDS, Change, Ethtool, in_order
from nodeagent.kernel.genl import HEADER, encoded
from nodeagent.kernel.netlink import NLM_F_DUMP, attributes
from nodeagent.node.attempt import Attempt
from nodeagent.node.observe import observe
from nodeagent.node.perform import perform
from nodeagent.plan.actions import SetEthtool
from nodeagent.plan.comparison import differences
from nodeagent.plan.ethtool import OPTIONS, commands, no_longer_offered, to_set
from nodeagent.plan.plan import after_reload, plan
from nodeagent.settings import Settings
from nodeagent.state.ethtool import EthtoolKind
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Pf
from tests.support.fake_kernel import PF1
from tests.support.fake_node import FakeNode, fake_node

RECORDED = Path(__file__).parents[1] / "support" / "recorded"
PF, VF = 2, 10
NAMES = [f"bit{n}" for n in range(64)]
NAMES[14], NAMES[10] = "rx-gro", "netns-local"


def recorded(name: str, index: int) -> bytes:
    for line in (RECORDED / "ethtool.hex").read_text().splitlines():
        kind, interface, message = line.split()
        if (kind, int(interface)) == (name, index):
            return bytes.fromhex(message)
    raise LookupError(name)


class Recorded(Ethtool):
    """An ethtool socket whose kernel says what was recorded, and takes down what it is told."""

    def __init__(self) -> None:
        super().__init__(sysfs=None)
        self.family = 22
        self.sent: list[bytearray] = []
        self.spoiled: set[int] = set()

    def dump(self, message: bytearray, what: str) -> list[bytes]:
        (flags,) = struct.unpack_from("=H", message, 6)
        assert flags & NLM_F_DUMP == NLM_F_DUMP
        if message[16] in self.spoiled:
            raise KernelError(f"cannot list {what}", errno=errno.EIO)
        return list(self._said(message[16]))

    def ask(self, message: bytearray) -> list[bytes]:
        if message[16] == edge.STRSET_GET and message[4] == 22:
            strings = encoded(
                *(
                    (1, encoded((1, struct.pack("=I", n)), (2, name.encode() + b"\0")))
                    for n, name in enumerate(NAMES)
                )
            )
            one = encoded((1, struct.pack("=I", 4)), (2, struct.pack("=I", 64)), (3, strings))
            return [bytes(HEADER) + encoded((2, encoded((1, one))))]
        if message[4] != 22:
            return super().ask(message)
        (_, header), *_ = attributes(bytes(message), HEADER)
        (index,) = struct.unpack("=I", dict(attributes(header))[edge.DEV_INDEX])
        said = [body for body in self._said(message[16]) if edge._interface(body)[0] == index]
        if not said:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return said

    def _said(self, command: int) -> Iterator[bytes]:
        (kind,) = [kind for kind in KINDS if kind.get == command]
        for index in (PF, VF):
            try:
                yield recorded(kind.name, index)
            except LookupError:
                continue

    def send(self, messages: Sequence[bytearray]) -> list[OSError | None]:
        self.sent.extend(messages)
        return [None for _ in messages]


@pytest.fixture
def ethtool() -> Iterator[Recorded]:
    with Recorded() as opened:
        yield opened


def test_a_pf_of_igb_as_recorded(ethtool: Recorded) -> None:
    settings = dict(ethtool.settings([PF])[PF])
    assert {key: value for key, value in settings.items() if not key.startswith("features.")} == {
        "privflags.legacy-rx": False,
        "channels.combined": 2,
        "rings.rx": 256,
        "rings.tx": 256,
        "rings.rx-push": False,
        "rings.tx-push": False,
        "coalesce.rx-usecs": 3,
        "coalesce.tx-usecs": 0,
        "pause.autoneg": True,
    }
    assert settings["features.rx-gro"] is True
    assert "features.netns-local" not in settings
    assert sum(key.startswith("features.") for key in settings) == 24


def test_a_vf_of_igb_has_no_channels_and_no_private_flags(ethtool: Recorded) -> None:
    settings = dict(ethtool.settings([VF])[VF])
    assert settings["rings.rx"] == 1024
    assert settings["pause.autoneg"] is False
    assert settings["pause.rx"] is False
    assert not [key for key in settings if key.startswith(("channels.", "privflags."))]


def test_settings_are_sorted_and_only_of_whom_we_asked(ethtool: Recorded) -> None:
    found = ethtool.settings([VF, 77])
    assert found.keys() == {VF}
    assert list(found[VF]) == sorted(found[VF])
    assert ethtool.settings([VF])[VF] is found[VF]
    assert ethtool.settings([]) == {}


def test_a_driver_that_spoils_a_dump_hides_nobody_else(ethtool: Recorded) -> None:
    whole = ethtool.settings([PF, VF, 77])
    ethtool.spoiled = {kind.get for kind in KINDS}
    assert ethtool.settings([PF, VF, 77]) == whole


def test_a_kernel_without_it_has_nothing_and_refuses(ethtool: Recorded) -> None:
    ethtool.family = None
    assert ethtool.settings([PF]) == {}
    (refusal,) = ethtool.change([Change(PF, EthtoolKind.RINGS, (("rings.rx", 512),))])
    assert refusal is not None
    assert refusal.errno == errno.EOPNOTSUPP


def body_of(message: bytearray) -> dict[int, bytes]:
    return dict(attributes(bytes(message), HEADER))


def test_numbers_and_switches_as_they_are_sent(ethtool: Recorded) -> None:
    ethtool.change(
        [
            Change(
                7, EthtoolKind.COALESCE, (("coalesce.adaptive-rx", False), ("coalesce.rx-usecs", 9))
            )
        ]
    )
    (message,) = ethtool.sent
    sent = body_of(message)
    assert dict(attributes(sent[1]))[edge.DEV_INDEX] == struct.pack("=I", 7)
    assert sent[2] == struct.pack("=I", 9)
    assert sent[11] == b"\0"
    assert message[16] == 20


def test_features_as_they_are_sent(ethtool: Recorded) -> None:
    """A compact bitset: bit 14 is named and off, bit 40 is named and on, all others stay."""
    ethtool.change(
        [Change(7, EthtoolKind.FEATURES, (("features.rx-gro", False), ("features.bit40", True)))]
    )
    bitset = dict(attributes(body_of(ethtool.sent[0])[edge.FEATURES_WANTED]))
    assert bitset[edge.BITSET_SIZE] == struct.pack("=I", 64)
    assert bitset[edge.BITSET_MASK] == struct.pack("=II", 1 << 14, 1 << 8)
    assert bitset[edge.BITSET_VALUE] == struct.pack("=II", 0, 1 << 8)


def test_private_flags_as_they_are_sent(ethtool: Recorded) -> None:
    ethtool.change(
        [Change(7, EthtoolKind.PRIVFLAGS, (("privflags.a b", True), ("privflags.c", False)))]
    )
    bitset = dict(attributes(body_of(ethtool.sent[0])[edge.PRIVFLAGS_FLAGS]))
    bits = [dict(attributes(bit)) for _, bit in attributes(bitset[edge.BITSET_BITS])]
    assert bits == [{2: b"a b\0", 3: b""}, {2: b"c\0"}]


def test_what_moves_by_itself_is_left_out() -> None:
    (coalesce,) = [kind for kind in KINDS if kind.name == "coalesce"]
    message = {2: struct.pack("=I", 8), 6: struct.pack("=I", 16), 11: b"\1", 12: b"\0"}
    assert dict(edge._plain(coalesce, message)) == {
        "coalesce.adaptive-rx": True,
        "coalesce.adaptive-tx": False,
        "coalesce.tx-usecs": 16,
    }


def test_the_order_of_kinds_is_the_same_on_paper_and_in_the_kernel() -> None:
    assert list(OPTIONS) == [kind.name for kind in KINDS] == list(EthtoolKind)[: len(KINDS)]
    values = tuple(sorted((f"{kind.name}.x", 1) for kind in KINDS))
    assert [change.kind for change in in_order(1, values)] == list(OPTIONS)
    texts = list(commands(values, "eth0"))
    assert [text.split()[1] for text in texts] == list(OPTIONS.values())


# settings as values


def netdev(**settings: int | bool) -> Netdev:
    pairs = ((key.replace("__", ".").replace("_", "-"), value) for key, value in settings.items())
    return Netdev("ens1np0", ethtool=tuple(sorted(pairs)))


def node_of(interface: Netdev) -> NodeState:
    return NodeState("mlx5_core", (Pf(DeviceHandle("pci", PF1), 0, True, interface),))


def test_only_what_differs_is_set() -> None:
    want = netdev(rings__rx=512, rings__tx=256, features__rx_gro=False)
    have = netdev(rings__rx=256, rings__tx=256, features__rx_gro=False)
    (stage,) = plan(node_of(want), node_of(have))
    assert stage.name == "set PF ethtool"
    assert stage.actions == (SetEthtool(DeviceHandle("pci", PF1), None, (("rings.rx", 512),)),)
    (line,) = map(str, differences(node_of(want), node_of(have)))
    assert line == f"pci/{PF1} rings.rx: want 512, have 256"


def test_what_adaptive_coalescing_hides_goes_along_with_switching_it_off() -> None:
    want = netdev(coalesce__adaptive_rx=False, coalesce__rx_usecs=8, rings__rx=256)
    have = netdev(coalesce__adaptive_rx=True, rings__rx=256)
    assert to_set(want, have) == (("coalesce.adaptive-rx", False), ("coalesce.rx-usecs", 8))


def test_what_a_new_driver_does_not_have_is_named_and_not_waited_for() -> None:
    want, have = netdev(privflags__old=True, rings__rx=256), netdev(rings__rx=256)
    assert plan(node_of(want), node_of(have)) == ()
    assert differences(node_of(want), node_of(have)) == ()
    (line,) = no_longer_offered(node_of(want), node_of(have))
    assert line == f"ens1np0 (pci/{PF1}) privflags.old: was on"


def test_of_an_interface_not_looked_at_nothing_is_known() -> None:
    want = node_of(netdev(rings__rx=512))
    assert to_set(netdev(rings__rx=512), None) == ()
    have = after_reload(want).pfs[0].netdev
    assert have is not None
    assert have.ethtool is None
    assert list(no_longer_offered(want, after_reload(want))) == []


def test_private_flags_with_spaces_are_quoted() -> None:
    (line,) = commands((("privflags.a b", True),), "eth0")
    assert line == "ethtool --set-priv-flags eth0 'a b' on"


@pytest.mark.parametrize(
    "settings",
    [
        (("rings.rx", -1),),
        (("rings.rx", 2**32),),
        (("speed.rx", 1),),
        (("rings.", 1),),
        (("rings.rx\n", 1),),
        (("rings.rx", 1), ("rings.rx", 2)),
        (("rings.tx", 1), ("rings.rx", 2)),
    ],
)
def test_what_is_no_setting(settings: tuple[tuple[str, int | bool], ...]) -> None:
    with pytest.raises(ValueError, match=r"ethtool setting|not within"):
        Netdev("eth0", ethtool=settings)


# performed


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    with fake_node(monkeypatch) as node:
        node.add_pf()
        node.ethtool[node.link(PF1).index] = {"rings.rx": 256, "rings.tx": 256, "pause.rx": True}
        yield node


def test_the_fake_node_is_observed_and_set(fake: FakeNode) -> None:
    with fake.node(Settings()) as node:
        have = observe(node)
        want = node_of(netdev(rings__rx=512, rings__tx=256, pause__rx=False))
        stages = [stage for stage in plan(want, have) if stage.name == "set PF ethtool"]
        assert perform(Attempt(node), stages) == ()
        assert differences(want, observe(node)) == ()
    assert [write.kind for write in fake.ethtool_writes] == ["rings", "pause"]
    assert list(itertools.chain(*(write.values for write in fake.ethtool_writes))) == [
        ("rings.rx", 512),
        ("pause.rx", False),
    ]


def test_what_is_so_already_is_not_written(fake: FakeNode) -> None:
    with fake.node(Settings()) as node:
        pf = DeviceHandle("pci", PF1)
        (stage,) = plan(node_of(netdev(rings__rx=512)), observe(node))
        fake.ethtool[fake.link(PF1).index]["rings.rx"] = 512
        assert isinstance(stage.actions[0], SetEthtool)
        assert stage.actions[0].pf == pf
        assert perform(Attempt(node), [stage]) == ()
    assert fake.ethtool_writes == []


def test_a_refused_key_is_named_and_the_others_are_set(fake: FakeNode) -> None:
    fake.refused_settings = {"rings.rx"}
    with fake.node(Settings()) as node:
        stages = plan(node_of(netdev(rings__rx=512, rings__tx=1024)), observe(node))
        (line,) = perform(Attempt(node), stages)
        assert line == f"pci/{PF1}: cannot set rings.rx: EINVAL: Invalid argument"
        (left,) = differences(node_of(netdev(rings__rx=512, rings__tx=1024)), observe(node))
    assert left.attribute == "rings.rx"
