"""A VF becomes a port of a bond again, and gets the MAC that it had before it was one."""

from __future__ import annotations

import errno
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from nodeagent.kernel.rtnl import Link, VfChange
from nodeagent.sriov.actions import AddStacked
from nodeagent.sriov.model import DeviceHandle
from nodeagent.sriov.stack import Membership
from nodeagent.sriov.stacking import add_stacked

HANDLE = DeviceHandle("pci", "0000:01:00.0")
OWN, BONDS = "02:00:00:00:00:01", "02:00:00:00:00:99"
SETS_MAC, JOINS = bytes.fromhex(OWN.replace(":", "")), b"\x08\x00\x0a\x00"
LINKS = {
    2: Link(2, "ens1", OWN, 1500, True, True, "pci", HANDLE.name, None),
    3: Link(3, "ens1v0", BONDS, 1500, False, True, "pci", "0000:01:10.0", None),
    9: Link(9, "bond0", BONDS, 1500, True, True, None, None, None),
}


class Kernel:
    """rtnetlink that refuses a VF another MAC while it is not trusted, and takes notes."""

    def __init__(self, *, trust: bool | None) -> None:
        self.trust = trust
        self.done: list[object] = []

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def links(self) -> dict[int, Link]:
        return LINKS

    def vfs(self, _index: int) -> list[Any]:
        return [SimpleNamespace(index=0, trust=self.trust)]

    def change(self, changes: list[VfChange]) -> list[OSError | None]:
        for change in changes:
            self.trust = change.trust
            self.done.append(f"trust {change.trust}")
        return [None for _ in changes]

    def send(self, messages: list[bytearray]) -> list[OSError | None]:
        results: list[OSError | None] = []
        for message in messages:
            refused = SETS_MAC in message and not self.trust
            results.append(OSError(errno.EADDRNOTAVAIL, "refused") if refused else None)
            if not refused:
                self.done += ["MAC"] * (SETS_MAC in message) + ["join"] * (JOINS in message)
        return results


@pytest.mark.parametrize(
    ("trust", "done", "failures"),
    [
        (True, ["MAC", "join"], 0),
        (False, ["trust True", "MAC", "join", "trust False"], 0),
        (None, ["join"], 1),  # its PF knows no trust
    ],
)
def test_a_vf_is_trusted_only_as_long_as_it_takes(
    trust: bool | None, done: list[str], failures: int
) -> None:
    kernel = Kernel(trust=trust)
    node: Any = SimpleNamespace(
        stack=lambda: kernel,
        rtnl=kernel,
        links_by_device=dict,
        network=nullcontext,
        link_of=lambda _target, _devices: LINKS[2],
    )
    action = AddStacked(HANDLE, 0, Membership("ens1v0", "bond0", "bond", mac=OWN))
    assert len(add_stacked(node, [action])) == failures
    assert kernel.done == done
