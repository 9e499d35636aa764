"""Rate objects: the messages, what differs, lines, what is planned and what is performed."""

from __future__ import annotations

import dataclasses
import errno
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.errors import KernelError
from nodeagent.kernel.devlink import RATE_CODEC, Devlink
from nodeagent.kernel.genl import encoded
from nodeagent.kernel.netlink import attributes
from nodeagent.node.rates import set_rates
from nodeagent.plan.actions import SetRates
from nodeagent.plan.comparison import differences
from nodeagent.plan.lines import lines
from nodeagent.plan.plan import plan
from nodeagent.plan.rates import no_longer_offered
from nodeagent.plan.stages import StageName
from nodeagent.settings import Settings
from nodeagent.state.eswitch import EswitchMode
from nodeagent.state.model import DeviceHandle, NodeState, Pf
from nodeagent.state.rates import Rate, commands
from tests.support import strategies
from tests.support.fake_kernel import PF1
from tests.support.fake_node import FakeNode, fake_node

PF = DeviceHandle("pci", PF1)
GOLD = Rate(name="gold", is_node=True, tx_share=250_000_000)
IN_GOLD = Rate(name="2", tx_max=125_000_000, parent="gold")
FRESH = Rate(name="1")
RATES = (FRESH, IN_GOLD, GOLD)
HANDLE = (1, b"pci\0"), (2, f"{PF1}\0".encode())


class Answered(Devlink):
    """devlink that answers with these messages, and keeps what it was sent."""

    def __init__(self, *bodies: bytes, error: int = 0) -> None:
        self.family, self.bodies, self.error = 0x17, bodies, error
        self.sent: list[bytes] = []

    def dump(self, message: bytearray, what: str) -> list[bytes]:
        if self.error:
            raise KernelError(what, errno=self.error)
        return [bytes(20) + body for body in self.bodies]

    def send(self, messages: Any) -> list[OSError | None]:
        self.sent += map(bytes, messages)
        return [None]


@given(strategies.rates(3))
def test_what_is_set_is_what_is_read(rates: tuple[Rate, ...]) -> None:
    """What goes out of a rate that has nothing yet comes back as that rate."""
    sent = Answered()
    for each in rates:
        sent.set_rate(PF, each, each.changes(None))
    told = Answered(*(message[20:] for message in sent.sent))
    assert told.rates().get(PF, ()) == rates


def test_only_what_differs_is_sent_and_no_parent_is_an_empty_name() -> None:
    sent = Answered()
    sent.set_rate(PF, FRESH, dataclasses.replace(FRESH, tx_max=8).changes(IN_GOLD))
    (message,) = sent.sent
    assert message[16] == 75
    body = dict(attributes(message, 20))
    assert body == {**dict(HANDLE), 3: struct.pack("=I", 1), 167: struct.pack("=Q", 8), 169: b"\0"}
    assert [kind for _, kind, _ in RATE_CODEC] == [166, 167, 177, 178]


def test_a_name_that_cannot_be_printed_is_left_out() -> None:
    odd = encoded(*HANDLE, (168, b"a\x1b[2J\0"))
    assert Answered(odd, encoded(*HANDLE, (168, b"gold\0"))).rates() == {
        PF: (Rate(name="gold", is_node=True),)
    }


def test_a_kernel_without_rates_has_none() -> None:
    assert Answered(error=errno.EOPNOTSUPP).rates() == {}
    with pytest.raises(KernelError):
        Answered(error=errno.ENOMEM).rates()


@pytest.mark.parametrize(
    "values",
    [
        {"name": ""},
        {"name": "gold"},
        {"name": "1", "tx_max": 2**64},
        {"name": "1", "tx_weight": -1},
    ],
)
def test_no_such_rate(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not the name|not the index|not within"):
        Rate(**values)


def test_lines_for_devlink() -> None:
    had = dataclasses.replace(IN_GOLD, tx_share=7)
    out = dataclasses.replace(FRESH, name="3")
    spaced = Rate(name="a b", is_node=True)
    told = commands(
        str(PF), (GOLD, spaced, IN_GOLD, out), (had, dataclasses.replace(IN_GOLD, name="3"))
    )
    assert list(told) == [
        f"devlink port function rate add pci/{PF1}/gold tx_share 250000000bps",
        f"devlink port function rate add 'pci/{PF1}/a b'",
        f"devlink port function rate set pci/{PF1}/2 tx_share 0bps",
        f"devlink port function rate set pci/{PF1}/3 tx_max 0bps noparent",
    ]


def node(rates: tuple[Rate, ...] | None, mode: EswitchMode = EswitchMode.SWITCHDEV) -> NodeState:
    return NodeState("mlx5_core", (Pf(PF, 0, eswitch_mode=mode, rates=rates),))


def test_another_mode_takes_all_that_was_set() -> None:
    """A leaf of which nothing was set is as it was; nodes come first."""
    want, have = node(RATES), node(None, EswitchMode.LEGACY)
    stages = plan(want, have)
    assert [stage.name for stage in stages] == [StageName.ESWITCH, StageName.RATES]
    assert stages[1].actions == (SetRates(PF, (GOLD, IN_GOLD)),)
    assert lines(stages, want, have)[-1].startswith(
        f"devlink port function rate add pci/{PF1}/gold"
    )


def test_what_differs_is_set_and_a_node_in_excess_is_left() -> None:
    now = (FRESH, dataclasses.replace(IN_GOLD, parent="lead"), Rate(name="lead", is_node=True))
    assert list(map(str, differences(node(RATES), node(now)))) == [
        f"{PF} rate of port 2: want tx_max 125000000bps parent gold, "
        "have tx_max 125000000bps parent lead",
        f"{PF} rate node gold: want tx_share 250000000bps, have missing",
    ]
    ((stage),) = plan(node(RATES), node(now))
    assert stage.actions == (SetRates(PF, (GOLD, IN_GOLD), (now[1],)),)
    assert plan(node(RATES), node((*RATES, Rate(name="lead", is_node=True)))) == ()


def test_a_port_that_is_gone_is_named_and_not_wanted() -> None:
    """A subfunction's, which a reload takes; or a driver without rates."""
    have = node((FRESH, GOLD))
    assert plan(node(RATES), have) == ()
    assert list(no_longer_offered(node(RATES), have)) == [
        f"{PF} rate of port 2 (tx_max 125000000bps parent gold)"
    ]
    assert plan(node(RATES), node(None)) == ()
    assert plan(node(None), node(RATES)) == ()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    with fake_node(monkeypatch) as made:
        made.add_pf()
        yield made


@given(st.permutations([GOLD, IN_GOLD, FRESH]))
def test_nodes_are_made_before_leafs_whatever_the_order(rates: list[Rate]) -> None:
    with pytest.MonkeyPatch.context() as patch, fake_node(patch) as fake:
        fake.add_pf()
        fake.rates[PF1] = (FRESH, Rate(name="2"))
        with fake.node(Settings()) as made:
            assert set_rates(made, [SetRates(PF, tuple(rates))]) == []
            assert set_rates(made, [SetRates(PF, tuple(rates))]) == []
        assert fake.rate_writes == [
            "rate node gold: none",
            "rate node gold: tx_share 250000000bps",
            "rate of port 2: tx_max 125000000bps parent gold",
        ]


def test_a_refused_one_is_named_and_the_others_are_set(fake: FakeNode) -> None:
    fake.rates[PF1] = (FRESH, Rate(name="2"))
    fake.refused_settings = {"rate node gold"}
    other = dataclasses.replace(FRESH, tx_max=8)
    with fake.node(Settings()) as made:
        texts = [text for _, text in set_rates(made, [SetRates(PF, (GOLD, other))])]
    assert texts == [f"{PF}: cannot create rate node gold: EINVAL: Invalid argument"]
    assert fake.rates[PF1][0] == other
