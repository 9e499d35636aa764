"""Subfunctions: a reload takes them, so they are named, and their representors not waited for."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from nodeagent.driver.nic import NicDriver
from nodeagent.modes import Mode
from nodeagent.plan.comparison import differences
from nodeagent.restore import restore, verify
from nodeagent.settings import Settings
from nodeagent.snapshot import take_snapshot
from nodeagent.state.eswitch import EswitchMode
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Pf, Representor, Vf
from tests.support.fake_kernel import DRIVER, PF1
from tests.support.fake_node import fake_node

PF = DeviceHandle("pci", PF1)
PORT = "pf0sf88"


def test_they_are_named_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with fake_node(monkeypatch, igb=False) as fake:
        pf = fake.add_pf()
        fake.give(Pf(PF, 1, True, Netdev("p"), (Vf(0),), eswitch_mode=EswitchMode.SWITCHDEV))
        fake.settle()
        fake.add_link("sf88", bus="pci", device=PF1, phys_port_name=PORT, up=True)
        node = fake.node(Settings())
        driver = NicDriver(node.settings, Mode.PRECOMPILED, None)
        want = take_snapshot(node, driver).state
        (saved,) = want.pfs
        assert [each.port for each in saved.representors] == ["pf0vf0"]
        assert saved.subfunctions == (PORT,)
        assert f"pci/{PF1} subfunction {PORT}: the reload takes it away" in caplog.text
        fake.restart()
        pf.eswitch = dataclasses.replace(saved, eswitch_mode=EswitchMode.LEGACY)
        fake.settle()
        caplog.clear()
        began = node.hung_calls, fake.skipped
        restore(node, want)
        verify(node, want)
        assert (node.hung_calls, fake.skipped) == began  # nobody has waited in vain
        gone = [each for each in caplog.records if PORT in each.getMessage()]
        assert [(each.levelno, each.getMessage().partition(":")[0]) for each in gone] == [
            (logging.WARNING, "gone, and to be added again by who made it (devlink port add)")
        ]


def test_a_snapshot_of_before_that_has_their_representors() -> None:
    """They are wanted no more."""
    have = NodeState(DRIVER, (Pf(PF, 0),))
    lost = Representor(PORT, Netdev("sf88"))
    vf0 = Representor("pf0vf0", Netdev("vf0"))
    pfs = (Pf(PF, 0, representors=(lost, vf0)),)
    assert [str(each) for each in differences(NodeState(DRIVER, pfs), have)] == [
        f"pci/{PF1} representor pf0vf0 netdev: want vf0, have missing"
    ]


@pytest.mark.parametrize("port", ["pf0vf1", "pf0", "p0", "pf0sf"])
def test_no_subfunction(port: str) -> None:
    with pytest.raises(ValueError, match="not a subfunction"):
        Pf(PF, 0, subfunctions=(port,))
