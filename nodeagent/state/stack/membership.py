"""Interfaces that are ports of a bond, bridge, team or VRF."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Final

from nodeagent.state.checks import one_of, within
from nodeagent.state.stack.kind import OnInterface, Pairs, StackStage, check_pairs, pairs_in_words

MASTER_KINDS: Final = ("bond", "bridge", "team", "vrf")
PVID, UNTAGGED = 0x02, 0x04
"""BRIDGE_VLAN_INFO_* (uapi/linux/if_bridge.h)."""


@dataclass(frozen=True)
class Membership(OnInterface):
    """An interface that is a port of a bond, bridge, team or VRF. `data`: attributes of the port.

    `vlans` is a bridge port's VLAN table: ids, each with its BRIDGE_VLAN_INFO_* flags. `mac` is the
    MAC that the port had before it joined a bond, and `master_mac` the bond's own, which the bond
    loses with its last port. Neither is compared: the port's MAC is an attribute of its netdev.
    """

    stage: ClassVar = StackStage(
        "join masters", "a bond takes a port that is down, a VRF takes it down: IPv6 addresses go"
    )

    master: str
    kind: str
    data: Pairs = ()
    vlans: tuple[tuple[int, int], ...] = ()
    mac: str | None = field(default=None, compare=False)
    master_mac: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        one_of(MASTER_KINDS)("kind", self.kind)
        check_pairs(self.data)
        for vid, flags in self.vlans:
            within(0, 4095)("VLAN", vid)
            within(0, 0xFFFF)("flags", flags)

    def __str__(self) -> str:
        vlans = f" vlans {','.join(str(vid) for vid, _ in self.vlans)}" if self.vlans else ""
        return f"port of {self.kind} {self.master}{pairs_in_words(self.data)}{vlans}"

    @property
    def needs(self) -> tuple[str, ...]:
        return self.dev, self.master

    @property
    def key(self) -> Hashable:
        return Membership, self.dev

    @property
    def task(self) -> str:
        return f"make {self.dev} a port of {self.kind} {self.master}"

    def commands(self) -> Iterator[str]:
        if self.kind in {"bond", "team"}:
            yield f"ip link set dev {self.dev} down"
        yield f"ip link set dev {self.dev} master {self.master}"
        if self.data:
            yield f"ip link set dev {self.dev} type {self.kind}_slave{pairs_in_words(self.data)}"
        for vid, flags in self.vlans:
            words = f"{' pvid' if flags & PVID else ''}{' untagged' if flags & UNTAGGED else ''}"
            yield f"bridge vlan add dev {self.dev} vid {vid}{words}"
