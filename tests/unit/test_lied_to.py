"""Lied to by the kernel, by udev, by whoever else is at work: found, named, and mended or stopped.

More of it stands beside what it concerns: a bind that does nothing, a write that is ignored or
blocks, fewer VFs than asked for (test_perform), a restart that lies (test_nic), events that are
lost or come twice (test_events). The last property of test_reload mixes them.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast
from unittest.mock import Mock

import pytest

from nodeagent.errors import KernelError, RestoreFailed, Stopped
from nodeagent.kernel.events import StopSignal
from nodeagent.kernel.rtnl import Link
from nodeagent.node import retry
from nodeagent.node.conflicts import Conflicts
from nodeagent.node.observe import numvfs, observe
from nodeagent.plan.comparison import Difference, Subject, differences
from nodeagent.restore import restore, verify
from nodeagent.settings import Settings
from nodeagent.snapshot import take_snapshot
from nodeagent.state.addresses import Mac
from nodeagent.state.eswitch import EswitchAttributes, EswitchMode
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Pf, PodNetdev, Vf
from nodeagent.state.namespaces import Holder, Namespace
from nodeagent.state.vf import LinkState, VlanProtocol
from tests.support.fake_kernel import PF1, PF2
from tests.support.fake_node import FakeNode, fake_node
from tests.support.fake_rules import Fault

if TYPE_CHECKING:
    from nodeagent.driver.nic import NicDriver

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
            vlan_proto=VlanProtocol.Q,
            trust=True,
            spoofchk=True,
            link_state=LinkState.AUTO,
            min_tx_rate=0,
            max_tx_rate=0,
            netdev=Netdev(f"net{index}", mac=Mac(f"02:00:00:00:00:{index:02x}"), mtu=1400, up=True),
        )
        for index in range(COUNT)
    )
    netdev = Netdev("uplink0", mac=Mac("52:54:00:00:00:01"), mtu=9000, up=True)
    return NodeState("mlx5_core", (Pf(DeviceHandle("pci", PF1), COUNT, True, netdev, vfs),))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    """The node after a reload: the PF is back, its VFs are not."""
    monkeypatch.setattr(retry, "RETRY_INTERVAL", 0.01)
    monkeypatch.setattr(retry, "BUSY_TIMEOUT", 0.1)
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
        f"pci/{PF1} numvfs: nodeagent set it to 4, and another program made it 2: restoring it once"
        in caplog.text
    )


@pytest.mark.parametrize("count", [0, 2, 7])
def test_numvfs_changed_again_and_again_is_a_clear_stop(fake: FakeNode, count: int) -> None:
    after(fake, MADE, others_loop(fake, count), times=100)
    with pytest.raises(RestoreFailed, match="stops after the second time") as caught:
        restored(fake)
    assert f"pci/{PF1} numvfs: nodeagent set it to 4, and another program made it {count}" in str(
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
    assert "another program made it 2" in caplog.text


def test_nobody_waits_for_vfs_that_another_took_away(fake: FakeNode) -> None:
    fake.delays.functions = 3
    after(fake, MADE, others_loop(fake, 1))
    before = fake.monotonic()
    restored(fake)
    assert fake.monotonic() - before < 60


def vlan_of(fake: FakeNode, index: int, value: int) -> None:
    vf = fake.pfs[PF1].vfs[index]
    vf.held = dataclasses.replace(vf.held, vlan=value)


def test_what_another_set_once_is_said_and_planned_again(
    fake: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    after(fake, "attribute='mtu'", lambda: vlan_of(fake, 2, 999))
    restored(fake)
    line = f"pci/{PF1} vf 2 vlan: nodeagent set it to 102, and now it is 999"
    assert f"{line}: restoring it once more" in caplog.text


def test_what_others_set_again_and_again_is_a_clear_stop(fake: FakeNode) -> None:
    """Two of them, at different things, each time before we look: two plans, and no third."""

    def both() -> None:
        vlan_of(fake, 2, 999)
        fake.change(link_of(fake, 1).index, name="stolen")

    after(fake, "attribute='up'", both, times=100)
    with pytest.raises(RestoreFailed, match="stops after the second time") as caught:
        restored(fake)
    said = str(caught.value)
    assert f"pci/{PF1} vf 2 vlan: nodeagent set it to 102, and now it is 999" in said
    assert f"pci/{PF1} vf 1 name: nodeagent set it to net1, and now it is stolen" in said
    assert len([w for w in fake.writes if w.target == f"{PF1} vf 2" and w.attribute == "vlan"]) == 2


@pytest.mark.parametrize(("first", "fights"), [(3, True), (5, False)])
def test_what_another_sets_after_the_last_plan_is_his(
    fake: FakeNode, first: int, fights: bool
) -> None:
    """Three plans, for another reason. What he undid of the third is his; the rest only differs.

    The refused attribute is tried twice in each plan: a message that is refused is sent in parts.
    """
    tries = itertools.count(1)

    def trace(step: str) -> None:
        is_tried = step.startswith("before") and "vf 3', attribute='trust'" in step
        if is_tried and next(tries) >= first:
            vlan_of(fake, 2, 999)

    fake.trace = trace
    fake.plant(f"{PF1} vf 3", "trust", Fault(errno.EPERM))
    with pytest.raises(RestoreFailed) as caught:
        restored(fake)
    said = str(caught.value)
    assert f"pci/{PF1} vf 2 vlan: want 102, have 999" in said
    assert f"pci/{PF1} vf 3: cannot set its trust: EPERM" in said
    assert ("stops after the second time" in said) == fights


VLAN, MTU = (
    Difference("vf 1", "vlan", 5, 6, Subject.VF),
    Difference("vf 2", "mtu", 1400, 1500, Subject.LINK),
)


def test_who_is_at_work_and_what_is_to_be_done(caplog: pytest.LogCaptureFixture) -> None:
    conflicts = Conflicts()
    conflicts.note_sent("vf 1", "vlan", 5)
    conflicts.check([VLAN], ())
    line = "vf 1 vlan: nodeagent set it to 5, and now it is 6"
    assert caplog.messages == [f"{line}: restoring it once more"]
    with pytest.raises(RestoreFailed) as caught:
        conflicts.check([VLAN, MTU], ["refused"])  # it was not even set again
    assert caught.value.failures == (line, "refused", str(VLAN), str(MTU))
    assert caught.value.hint == (
        "the snapshot stays open: find the program (sriov_numvfs: an SR-IOV operator's config "
        "daemon; else a CNI, a network manager, a udev rule, a script), stop it, and start again"
    )


def test_what_was_undone_once_is_remembered() -> None:
    conflicts = Conflicts()
    conflicts.note_sent("vf 1", "vlan", 5)
    conflicts.check([VLAN], ())
    conflicts.check([], ())
    conflicts.note_sent("vf 2", "mtu", 1400)
    with pytest.raises(RestoreFailed, match="vf 1 vlan: nodeagent set it to 5"):
        conflicts.check([MTU], ())


@pytest.mark.parametrize(
    "differs",
    [
        Difference("vf 1", "vlan", 7, 6, Subject.VF),  # it is to be something else by now
        Difference("vf 1", "vlan", 5, "unknown", Subject.VF),
        MTU,
    ],
)
def test_what_is_nobodys_work(differs: Difference, caplog: pytest.LogCaptureFixture) -> None:
    conflicts = Conflicts()
    conflicts.note_sent("vf 1", "vlan", 5)
    conflicts.check([differs], (), is_last=True)
    assert caplog.messages == []


def test_what_the_driver_ignores_is_named(fake: FakeNode) -> None:
    fake.plant(f"{PF1} vf 2", "vlan", Fault())
    with pytest.raises(RestoreFailed, match="or their driver ignores them") as caught:
        restored(fake)
    assert f"pci/{PF1} vf 2 vlan: nodeagent set it to 102, and now it is 0" in str(caught.value)


def test_nobody_waits_for_the_interface_of_a_vf_that_another_gave_to_vfio(
    fake: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    """It is another's from then on: left alone, and named."""
    function = fake.function(1)

    def take() -> None:
        fake.release("pci", function)
        fake.tree.set("pci", function, "driver_override", "vfio-pci")
        fake.attach(function, "vfio-pci")

    after(fake, "attribute='bind'", lambda: fake.later(1, take), times=100)
    before = fake.monotonic()
    restored(fake)
    assert f"pci/{PF1} vf 1: taken since the snapshot (bound to vfio-pci)" in caplog.text
    assert fake.node(SETTINGS).sysfs.driver("pci", function) == "vfio-pci"
    assert fake.monotonic() - before < SETTINGS.vf_timeout


def test_a_pf_that_is_unbound_in_the_middle(
    fake: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    after(fake, MADE, lambda: fake.tree.undrive("pci", PF1))
    restored(fake)
    assert (
        f"pci/{PF1} driver: it was mlx5_core, and another program made it not bound" in caplog.text
    )


def test_an_interface_that_another_has_taken_to_a_namespace_is_found_there() -> None:
    (pf,) = wanted().pfs
    place = Namespace(4, 4026532000, "boot", (Holder(None, None, "/run/netns/blue"),))
    netdev = pf.vfs[1].netdev
    assert netdev is not None
    taken = dataclasses.replace(pf.vfs[1], netdev=None, inside=PodNetdev(place.inode, netdev))
    moved = dataclasses.replace(pf, vfs=(pf.vfs[0], taken, *pf.vfs[2:]))
    have = NodeState("mlx5_core", (moved,), namespaces=(place,))
    (only,) = differences(wanted(), have)
    assert str(only) == f"pci/{PF1} vf 1 netdev: want net1, have net1 in /run/netns/blue"


# A device that does not answer


@contextmanager
def silent(fake: FakeNode, device: str, attribute: str) -> Iterator[None]:
    """Whoever reads or writes it waits, as for the device's lock: a FIFO that nobody else has."""
    path = fake.tree.root / "bus/pci/devices" / device / attribute
    kept = path.read_text()
    path.unlink()
    os.mkfifo(path)
    try:
        yield
    finally:
        # whoever waits goes on: one end of each kind
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
        path.unlink()
        path.write_text(kept)


def test_a_pf_that_does_not_answer_is_named_and_the_others_go_on(fake: FakeNode) -> None:
    fake.add_pf(PF2)
    (first,) = wanted().pfs
    other = Pf(DeviceHandle("pci", PF2), 2, True)
    want = NodeState("mlx5_core", (first, other))
    hasty = dataclasses.replace(SETTINGS, vf_timeout=0.5)
    with silent(fake, PF1, "sriov_numvfs"), fake.node(hasty) as node:
        with pytest.raises(RestoreFailed) as caught:
            restore(node, want)
        with pytest.raises(
            KernelError, match=f"cannot save the state of this node: pci/{PF1}"
        ) as no:
            take_snapshot(node, cast("NicDriver", Mock()))
        assert no.value.hint == (
            "a driver or a virtual machine keeps the device's lock: dmesg and /proc/PID/stack of "
            "the tasks in state D say which"
        )
        with pytest.raises(RestoreFailed, match="want 4, have unknown"):
            verify(node, want)
        assert node.sysfs.numvfs("pci", PF2) == 2
        assert node.sysfs.vf_count("pci", PF1) == 0
    said = str(caught.value)
    assert (
        f"pci/{PF1}: the kernel has not reported its state for 0.5 s; the thread that asked" in said
    )
    assert f"pci/{PF1} numvfs: want 4, have unknown" in said
    assert {write.target for write in fake.written("sriov_numvfs")} == {PF2}


def test_a_vf_that_does_not_answer_is_named_and_the_others_go_on(fake: FakeNode) -> None:
    restored(fake)
    fake.change(link_of(fake, 1).index, mtu=1500)
    fake.change(link_of(fake, 3).index, mtu=1500)
    hasty = dataclasses.replace(SETTINGS, vf_timeout=0.5)
    with silent(fake, fake.function(1), "driver_override"), fake.node(hasty) as node:
        with pytest.raises(RestoreFailed) as caught:
            restore(node, wanted())
        assert (link_of(fake, 1).mtu, link_of(fake, 3).mtu) == (1500, 1400)
    assert f"pci/{fake.function(1)}: the kernel has not reported its state for 0.5 s" in str(
        caught.value
    )
    restored(fake)


def test_a_stop_ends_the_wait_for_an_answer(fake: FakeNode) -> None:
    with silent(fake, PF1, "sriov_numvfs"), StopSignal() as stop:
        timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        timer.start()
        with fake.node(SETTINGS, stop) as node, pytest.raises(Stopped):
            observe(node)
        timer.join()


def test_one_that_answers_after_all_is_asked_again(fake: FakeNode) -> None:
    hasty = dataclasses.replace(SETTINGS, vf_timeout=0.2)
    with fake.node(hasty) as node:
        with silent(fake, PF1, "sriov_numvfs"):
            assert observe(node).pfs[0].numvfs is None
            assert numvfs(node, DeviceHandle("pci", PF1)) is None
        while node.hung_calls.lines():
            time.sleep(0.01)
        assert observe(node).pfs[0].numvfs == 0


@pytest.mark.parametrize("text", ["", "many\n", "-1\n"])
def test_a_number_of_vfs_that_is_none_is_not_saved(fake: FakeNode, text: str) -> None:
    """Read as "no SR-IOV" it would mean that a reload loses them, and nobody says so."""
    restored(fake)
    fake.tree.set("pci", PF1, "sriov_numvfs", text)
    with (
        fake.node(SETTINGS) as node,
        pytest.raises(KernelError, match="it has VFs, and its sriov_numvfs is not a number") as no,
    ):
        take_snapshot(node, cast("NicDriver", Mock()))
    assert no.value.hint == "`cat` it: the device may be failing, see dmesg"


def test_a_write_that_hangs_is_not_followed_by_another(fake: FakeNode) -> None:
    """The VF's own lock is held by then: it is left out, and the others are as they were."""
    fake.plant(fake.function(1), "bind", Fault(held=threading.Event()))
    hasty = dataclasses.replace(SETTINGS, vf_timeout=0.5)
    with fake.node(hasty) as node, pytest.raises(RestoreFailed) as caught:
        restore(node, wanted())
    line = f"pci/{PF1} vf 1: still blocked in the kernel after 0.5 s; its thread is left there"
    assert str(caught.value).count(line) == 1
    assert len(fake.written("bind")) == COUNT
    assert all(f"vf {n}" not in str(caught.value) for n in (0, 2, 3))


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
def test_an_eswitch_that_is_busy_for_a_while(
    fake: FakeNode, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    caplog.set_level(logging.INFO)
    want = dataclasses.replace(wanted().pfs[0], eswitch_mode=EswitchMode.LEGACY)
    fake.pfs[PF1].eswitch = EswitchAttributes(eswitch_mode=EswitchMode.SWITCHDEV)
    fake.plant(PF1, "eswitch", Fault(number, times=3))
    with fake.node(SETTINGS) as node:
        restore(node, NodeState("mlx5_core", (want,)))
    assert fake.pfs[PF1].eswitch == EswitchAttributes(eswitch_mode=EswitchMode.LEGACY)
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
