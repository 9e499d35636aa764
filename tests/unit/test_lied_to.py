"""Lied to by the kernel, by udev, by whoever else is at work: found, named, and mended or stopped.

More of it stands beside what it concerns: a bind that does nothing, a write that is ignored or
blocks, fewer VFs than asked for (test_perform), a restart that lies (test_nic), events that are
lost or come twice (test_events). The last property of test_reload mixes them.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
from collections.abc import Callable, Iterator

import pytest

from nodeagent.errors import RestoreFailed
from nodeagent.kernel.rtnl import Link
from nodeagent.reload import restore, verify
from nodeagent.settings import Settings
from nodeagent.sriov import patience
from nodeagent.sriov.model import DeviceHandle, Mac, Netdev, NodeState, Pf, Vf
from tests.support.fake_kernel import PF1
from tests.support.fake_node import FakeNode, fake_node
from tests.support.fake_rules import Fault

SETTINGS = dataclasses.replace(Settings(), vf_timeout=30.0, pf_timeout=30.0)
COUNT = 4


def wanted() -> NodeState:
    """Four VFs with a VLAN and a name each, on one PF."""
    vfs = tuple(
        Vf(
            index=index,
            driver="mlx5_core",
            driver_override="",
            admin_mac=Mac(f"02:00:00:00:00:{index:02x}"),
            vlan=100 + index,
            qos=0,
            vlan_proto="802.1Q",
            trust=True,
            spoofchk=True,
            link_state="auto",
            min_tx_rate=0,
            max_tx_rate=0,
            netdev=Netdev(f"net{index}", Mac(f"02:00:00:00:00:{index:02x}"), 1400, True),
        )
        for index in range(COUNT)
    )
    netdev = Netdev("uplink0", Mac("52:54:00:00:00:01"), 9000, True)
    return NodeState("mlx5_core", (Pf(DeviceHandle("pci", PF1), COUNT, True, netdev, vfs),))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    """The node after a reload: the PF is back, its VFs are not."""
    monkeypatch.setattr(patience, "AGAIN", 0.01)
    monkeypatch.setattr(patience, "PATIENCE", 0.1)
    with fake_node(monkeypatch) as made:
        made.set_up(wanted())
        made.remove_vfs(made.pfs[PF1])
        made.settle()
        yield made


def restored(fake: FakeNode) -> None:
    """Restored, and proven."""
    with fake.node(SETTINGS) as node:
        restore(node, wanted())
        verify(node, wanted())


def after(fake: FakeNode, what: str, do: Callable[[], None], *, times: int = 1) -> None:
    """Somebody does something right after a write of which the text contains `what`."""
    left = [times]

    def trace(step: str) -> None:
        if step.startswith("after") and what in step and left[0]:
            left[0] -= 1
            do()

    fake.trace = trace


def link_of(fake: FakeNode, index: int) -> Link:
    return fake.link(fake.function(index))


# Another actor


def others_loop(fake: FakeNode, count: int) -> Callable[[], None]:
    """What an operator's loop does that wants another number of VFs."""

    def set_numvfs() -> None:
        fake.remove_vfs(fake.pfs[PF1])
        fake.create_vfs(fake.pfs[PF1], count)

    return set_numvfs


MADE = "attribute='sriov_numvfs', value='4'"


def test_numvfs_changed_once_is_said_and_planned_again(
    fake: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    after(fake, MADE, others_loop(fake, 2))
    restored(fake)
    assert (
        f"pci/{PF1} numvfs: we set it to 4, and something else made it 2: planned once more"
        in caplog.text
    )


@pytest.mark.parametrize("count", [0, 2, 7])
def test_numvfs_changed_again_and_again_is_a_clear_stop(fake: FakeNode, count: int) -> None:
    after(fake, MADE, others_loop(fake, count), times=100)
    with pytest.raises(RestoreFailed, match="is not fought") as caught:
        restored(fake)
    assert f"pci/{PF1} numvfs: we set it to 4, and something else made it {count}" in str(
        caught.value
    )
    assert "sriov_numvfs" in (caught.value.hint or "")
    assert len([w for w in fake.written("sriov_numvfs") if w.value == "4"]) == 2


def test_numvfs_changed_while_vfs_are_bound(
    fake: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    """Later in the same round: binds fail, nobody waits for what is gone, the next plan mends."""
    after(fake, "attribute='trust'", others_loop(fake, 2))
    restored(fake)
    assert "something else made it 2" in caplog.text


def test_nobody_waits_for_vfs_that_another_took_away(fake: FakeNode) -> None:
    fake.delays.functions = 3
    after(fake, MADE, others_loop(fake, 1))
    before = fake.monotonic()
    restored(fake)
    assert fake.monotonic() - before < 60


# Refused for a while, and for good


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EAGAIN])
@pytest.mark.parametrize("attribute", ["vlan", "mac", "trust"])
def test_busy_for_a_while(
    fake: FakeNode, caplog: pytest.LogCaptureFixture, number: int, attribute: str
) -> None:
    """Asked again until it is taken: no failure, no second round."""
    caplog.set_level(logging.INFO)
    fake.plant(f"{PF1} vf 2", attribute, Fault(number, times=3))
    restored(fake)
    assert "FAILED" not in caplog.text


@pytest.mark.parametrize("attribute", ["mtu", "up", "name"])
def test_an_interface_that_is_busy_for_a_while(
    fake: FakeNode, caplog: pytest.LogCaptureFixture, attribute: str
) -> None:
    caplog.set_level(logging.INFO)
    fake.plant(fake.function(2), attribute, Fault(errno.EBUSY, times=3))
    restored(fake)
    assert "FAILED" not in caplog.text


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EAGAIN])
def test_busy_for_good_is_named(fake: FakeNode, number: int) -> None:
    fake.plant(f"{PF1} vf 2", "vlan", Fault(number))
    with pytest.raises(RestoreFailed) as caught:
        restored(fake)
    assert f"pci/{PF1} vf 2: cannot set its VLAN: {errno.errorcode[number]}" in str(caught.value)
    assert f"pci/{PF1} vf 2 vlan: want 102, have 0" in str(caught.value)
    assert "vf 1" not in str(caught.value)


def test_what_is_refused_for_good_is_not_asked_again(fake: FakeNode) -> None:
    """EINVAL is an answer: the message, its parts, and that three times over."""
    fault = fake.plant(f"{PF1} vf 2", "vlan", Fault(errno.EINVAL, times=1000))
    with pytest.raises(RestoreFailed):
        restored(fake)
    assert 1000 - fault.times <= 6


# Interfaces that do what they like


def test_renamed_while_being_configured(fake: FakeNode) -> None:
    """Writes go by ifindex; the name that somebody gave meanwhile is put right."""
    after(
        fake,
        "attribute='mtu'",
        lambda: fake.change(link_of(fake, 1).index, name="stolen"),
    )
    restored(fake)


def test_an_interface_that_comes_goes_and_comes_again(fake: FakeNode) -> None:
    def again() -> None:
        fake.release("pci", fake.function(3))
        fake.later(3, lambda: fake.attach(fake.function(3), "mlx5_core"))

    after(fake, "attribute='bind'", lambda: fake.later(1, again))
    restored(fake)


def test_an_ifindex_that_another_interface_has_by_now(fake: FakeNode) -> None:
    """Two VFs' interfaces change places between two looks: what went to the wrong one is found."""

    def change_places() -> None:
        one, other = link_of(fake, 0), link_of(fake, 1)
        for link, into in ((one, other), (other, one)):
            fake.tree.hide(link)
            fake.links[link.index] = dataclasses.replace(into, index=link.index)
        for link in (one, other):
            fake.tree.show(fake.links[link.index])

    after(fake, "attribute='mtu'", change_places)
    restored(fake)


def test_vfs_that_come_up_with_each_others_names(fake: FakeNode) -> None:
    names = [f"net{index}" for index in range(COUNT)]
    for index, name in enumerate(reversed(names)):
        fake.names[fake.function(index)] = name
    restored(fake)


def test_functions_that_come_in_any_order_and_late(fake: FakeNode) -> None:
    fake.delays.functions = 2
    fake.delays.netdev = 3
    fake.delays.rename = 5
    restored(fake)


def test_one_vf_that_never_comes_is_named_and_the_others_are_right(fake: FakeNode) -> None:
    fake.missing.add(fake.function(2))
    with pytest.raises(RestoreFailed) as caught:
        restored(fake)
    assert f"pci/{PF1} vf 2" in str(caught.value)
    assert all(f"pci/{PF1} vf {index}" not in str(caught.value) for index in (0, 1, 3))
