"""A VF becomes a port of a bond again, also where it may not have the MAC that it had before."""

from __future__ import annotations

import errno
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from nodeagent.kernel.rtnl import Link
from nodeagent.sriov.actions import AddStacked
from nodeagent.sriov.model import DeviceHandle
from nodeagent.sriov.stack import Membership
from nodeagent.sriov.stacking import add_stacked

HANDLE = DeviceHandle("pci", "0000:01:00.0")
OWN, BONDS = "02:00:00:00:00:01", "02:00:00:00:00:99"
SETS_MAC, JOINS = bytes.fromhex(OWN.replace(":", "")), b"\x08\x00\x0a\x00"
LINKS = {
    3: Link(3, "ens1v0", BONDS, 1500, False, True, "pci", "0000:01:10.0", None),
    9: Link(9, "bond0", BONDS, 1500, True, True, None, None, None),
}


class Kernel:
    """rtnetlink that refuses a message which sets a MAC, or one that makes a port."""

    def __init__(self, refused: bytes) -> None:
        self.refused = refused

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def links(self) -> dict[int, Link]:
        return LINKS

    def change(self, changes: list[object]) -> list[OSError | None]:
        return [None for _ in changes]

    def send(self, messages: list[bytearray]) -> list[OSError | None]:
        refusal = OSError(errno.EADDRNOTAVAIL, "refused")
        return [refusal if self.refused in message else None for message in messages]


@pytest.mark.parametrize(("refused", "warnings", "failures"), [(SETS_MAC, 1, 0), (JOINS, 0, 1)])
def test_a_refused_mac_is_said_and_a_refused_port_is_a_failure(
    refused: bytes, warnings: int, failures: int, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = Kernel(refused)
    node: Any = SimpleNamespace(stack=lambda: kernel, rtnl=kernel, network=nullcontext)
    action = AddStacked(HANDLE, 0, Membership("ens1v0", "bond0", "bond", mac=OWN))
    assert len(add_stacked(node, [action])) == failures
    assert len([line for line in caplog.messages if "before it was a port of bond0" in line]) == (
        warnings
    )
