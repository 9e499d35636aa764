"""A VF becomes a port of a bond again, also where it may not have the MAC that it had before."""

from __future__ import annotations

import errno
import os
import struct
from contextlib import nullcontext
from dataclasses import replace
from ipaddress import IPv6Address
from types import SimpleNamespace
from typing import Any

import pytest

from nodeagent.kernel.events import AddressWatch
from nodeagent.kernel.netlink import attributes
from nodeagent.kernel.rtnl import Link
from nodeagent.kernel.stack.addresses import IFA_FLAGS, IFA_LOCAL, RTM_DELADDR, RTM_NEWADDR
from nodeagent.node import retry
from nodeagent.node.stack import add_stacked
from nodeagent.plan.actions import AddStacked
from nodeagent.state.addresses import Mac
from nodeagent.state.model import DeviceHandle
from nodeagent.state.stack import Address, Child, Membership, NexthopObject
from tests.support.fake_sysctls import af_spec

HANDLE = DeviceHandle("pci", "0000:01:00.0")
OWN, BONDS = Mac("02:00:00:00:00:01"), Mac("02:00:00:00:00:99")
SETS_MAC, JOINS = bytes.fromhex(OWN.replace(":", "")), b"\x08\x00\x0a\x00"
LINKS = {
    3: Link(
        index=3,
        name="ens1v0",
        mac=BONDS,
        mtu=1500,
        up=False,
        carrier=True,
        bus="pci",
        device="0000:01:10.0",
        phys_port_name=None,
    ),
    9: Link(
        index=9,
        name="bond0",
        mac=BONDS,
        mtu=1500,
        up=True,
        carrier=True,
        bus=None,
        device=None,
        phys_port_name=None,
    ),
}


class Kernel:
    """rtnetlink that refuses messages with these bytes in them, so many times."""

    def __init__(
        self, refused: bytes, number: int = errno.EADDRNOTAVAIL, times: int = 1000
    ) -> None:
        self.refused, self.number, self.times = refused, number, times
        self.own: Link | None = None

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def links(self) -> dict[int, Link]:
        return LINKS if self.own is None else {**LINKS, self.own.index: self.own}

    def change(self, changes: list[object]) -> list[OSError | None]:
        return [None for _ in changes]

    def send(self, messages: list[bytearray]) -> list[OSError | None]:
        return [self._answer(message) for message in messages]

    def _answer(self, message: bytearray) -> OSError | None:
        if self.refused not in message or not self.times:
            return None
        self.times -= 1
        return OSError(self.number, "refused")


def node_on(kernel: Kernel, own: Link | None = LINKS[3]) -> Any:
    """`own`: the interface of the VF that things are to stand on."""
    kernel.own = own
    function = None if own is None else own.device
    sysfs = SimpleNamespace(has_functions=lambda _: True, function=lambda *_: function)
    return SimpleNamespace(
        stack=lambda: kernel, rtnl=kernel, sysfs=sysfs, network=nullcontext, stops=()
    )


@pytest.mark.parametrize(("refused", "warnings", "failures"), [(SETS_MAC, 1, 0), (JOINS, 0, 1)])
def test_a_refused_mac_is_said_and_a_refused_port_is_a_failure(
    refused: bytes, warnings: int, failures: int, caplog: pytest.LogCaptureFixture
) -> None:
    action = AddStacked(HANDLE, 0, Membership("ens1v0", "bond0", "bond", mac=OWN))
    assert len(add_stacked(node_on(Kernel(refused)), [action])) == failures
    assert len([line for line in caplog.messages if "before it was a port of bond0" in line]) == (
        warnings
    )


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EAGAIN])
@pytest.mark.parametrize(("times", "failures"), [(3, 0), (1000, 1)])
def test_a_port_that_is_busy_is_made_one_as_soon_as_it_is_not(
    monkeypatch: pytest.MonkeyPatch, number: int, times: int, failures: int
) -> None:
    monkeypatch.setattr(retry, "RETRY_INTERVAL", 0.01)
    monkeypatch.setattr(retry, "BUSY_TIMEOUT", 0.1)
    kernel = Kernel(JOINS, number, times)
    action = AddStacked(HANDLE, 0, Membership("ens1v0", "bond0", "bond"))
    found = add_stacked(node_on(kernel), [action])
    assert [errno.errorcode[number] in text for _, text in found] == [True] * failures
    assert kernel.times == 0 or failures


def test_a_child_that_is_busy_is_made_as_soon_as_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "RETRY_INTERVAL", 0.01)
    kernel = Kernel(b"ens1v0.7", errno.EBUSY, 2)
    action = AddStacked(
        HANDLE, 0, Child("ens1v0.7", "ens1v0", "vlan", (("id", 7),), mtu=1500, up=False)
    )
    assert add_stacked(node_on(kernel), [action]) == []
    assert kernel.times == 0


@pytest.mark.parametrize(
    "own",
    [
        None,
        Link(
            index=4,
            name="stolen",
            mac=OWN,
            mtu=1500,
            up=True,
            carrier=True,
            bus="pci",
            device="0000:01:10.2",
        ),
    ],
)
def test_nothing_is_put_on_another_interface_that_has_the_name(own: Link | None) -> None:
    """Somebody gave it that name in between: the next plan names first, and puts it on then."""
    kernel = Kernel(b"")
    joins = AddStacked(HANDLE, 0, Membership("ens1v0", "bond0", "bond"), "ens1v0")
    child = Child("ens1v0.7", "ens1v0", "vlan", (("id", 7),), mtu=1500, up=False)
    found = add_stacked(node_on(kernel, own), [joins, AddStacked(HANDLE, 0, child, "ens1v0")])
    assert sorted(text for _, text in found) == [
        f"cannot make {what}: ens1v0 is not the interface of pci/0000:01:00.0 vf 0"
        for what in ("ens1v0 a port of bond bond0", "vlan ens1v0.7 on ens1v0")
    ]
    assert kernel.times == 1000
    assert add_stacked(node_on(Kernel(b"nothing")), [joins]) == []


def test_an_address_that_is_made_anew_goes_first() -> None:
    """Once: in a pod it is set twice, without DAD and then as it was."""
    sent: list[int] = []

    class Recording(Kernel):
        def send(self, messages: list[bytearray]) -> list[OSError | None]:
            sent.extend(int.from_bytes(message[4:6], "little") for message in messages)
            return [None for _ in messages]

    address = Address("ens1v0", "fe80::1/64", scope=253, proto=3)
    node = node_on(Recording(b"never"), replace(LINKS[3], af_spec=af_spec({})))
    node.address_watch = AddressWatch
    assert add_stacked(node, [AddStacked(HANDLE, 0, address, anew=True)], at_once=True) == []
    assert sent == [RTM_DELADDR, RTM_NEWADDR, RTM_NEWADDR]
    sent.clear()
    assert add_stacked(node, [AddStacked(HANDLE, 0, address)]) == []
    assert sent == [RTM_NEWADDR]


def test_what_is_set_twice_in_a_pod() -> None:
    """Only what is to have DAD, and not where the change would take another address's route."""
    sent: list[tuple[str, int]] = []

    class Recording(Kernel):
        def send(self, messages: list[bytearray]) -> list[OSError | None]:
            for message in messages:
                found = dict(attributes(bytes(message), 24))
                (flags,) = struct.unpack("=I", found[IFA_FLAGS])
                sent.append((str(IPv6Address(found[IFA_LOCAL])), flags))
            return [None for _ in messages]

    def add(*addresses: Address) -> list[tuple[str, int]]:
        sent.clear()
        actions = [AddStacked(HANDLE, 0, address) for address in addresses]
        assert add_stacked(node, actions, at_once=True) == []
        return list(sent)

    node = node_on(Recording(b"never"), replace(LINKS[3], af_spec=af_spec({})))
    node.address_watch = AddressWatch
    with_dad = Address("ens1v0", "2001:db8::1/64")
    low = Address("ens1v0", "2001:db8::2/64", metric=32)
    assert add(with_dad) == [("2001:db8::1", 2), ("2001:db8::1", 0)]
    assert add(replace(with_dad, flags=2)) == [("2001:db8::1", 2)]
    assert add(with_dad, low) == [("2001:db8::2", 0), ("2001:db8::1", 0)]
    elsewhere = [Address("ens1v0", "2001:db8:1::2/64", metric=32), replace(low, flags=0x200)]
    for other in elsewhere:
        assert len(add(with_dad, other)) == 4
    assert len(add(replace(with_dad, metric=256), Address("ens1v0", "2001:db8::3/64"))) == 4


def test_a_link_local_address_waits_for_the_kernels_own() -> None:
    """The kernel adds that when IPv6 is ready; the last added one is the source."""
    own = replace(LINKS[3], up=True, carrier=False, af_spec=af_spec({}, ready=False))
    done: list[str] = []

    class Watch:
        """An event is there."""

        def __enter__(self) -> Watch:
            self.event = os.eventfd(1)
            return self

        def __exit__(self, *_: object) -> None:
            os.close(self.event)

        def fileno(self) -> int:
            return self.event

        def drain(self) -> None:
            done.append("ready")
            kernel.own = replace(own, af_spec=af_spec({}))

    class Recording(Kernel):
        def send(self, messages: list[bytearray]) -> list[OSError | None]:
            done.append("sent")
            return [None for _ in messages]

    kernel = Recording(b"never")
    node = node_on(kernel, own)
    node.address_watch = Watch
    without_carrier = Address("ens1v0", "fe80::3/64", tentative=True)
    for addresses in (
        [without_carrier],
        [Address("ens1v0", "fe80::1/64"), Address("ens1v0", "2001:db8::1/64")],
        [Address("ens1v0", "fe80::2/64")],
    ):
        actions = [AddStacked(HANDLE, 0, each) for each in addresses]
        assert add_stacked(node, actions) == []
    assert done == ["sent", "sent", "ready", "sent", "sent"]


def test_nexthops_wait_for_carrier_and_groups_for_nexthops() -> None:
    """ENETDOWN while there is none; the others of the stage are sent again, and are there."""
    nexthop = NexthopObject(7, ("ens1v0",), "192.0.2.1")
    group = NexthopObject(9, ("ens1v0",), group=((7, 1),))
    refusals: list[list[OSError | None]] = [
        [OSError(errno.ENETDOWN, "no carrier"), OSError(errno.EINVAL, "no such nexthop")],
        [None, None],
    ]

    class Recording(Kernel):
        def send(self, messages: list[bytearray]) -> list[OSError | None]:
            assert len(messages) == 2
            return refusals.pop(0)

    node = node_on(Recording(b"never"))
    node.address_watch = AddressWatch
    actions = [AddStacked(HANDLE, 0, each) for each in (group, nexthop)]
    assert add_stacked(node, actions) == []
    assert refusals == []
