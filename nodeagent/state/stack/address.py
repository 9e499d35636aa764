"""IP addresses of interfaces."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from typing import ClassVar, Final

from nodeagent.state.checks import U32, check_fields, within
from nodeagent.state.stack.kind import OnInterface, Stacked, StackStage, fields_in_words
from nodeagent.state.sysctls import Sysctl

FLAGS: Final = (
    (0x02, "nodad"),
    (0x10, "home"),
    (0x100, "mngtmpaddr"),
    (0x200, "noprefixroute"),
    (0x400, "autojoin"),
)
"""IFA_F_* (uapi/linux/if_addr.h), and their words in ip-address(8)."""


@dataclass(frozen=True)
class Address(OnInterface):
    """An address with its prefix length: `192.0.2.10/24`. `peer`: of a point-to-point link.

    `flags` are those that an administrator sets (IFA_F_NODAD, _HOMEADDRESS, _NOPREFIXROUTE,
    _MANAGETEMPADDR, _MCAUTOJOIN). `tentative`: duplicate address detection (IPv6) has not ended, or
    has found a duplicate; `failed`: it has found one, and the kernel never uses the address
    (dadfailed). `expires`: it has a lifetime; `valid_until` and `preferred_until` are Unix times in
    seconds, not compared, because they are computed from the kernel's rounded lifetimes.
    """

    stage: ClassVar = StackStage(
        "add addresses", "the kernel removes IPv6 addresses of a link set down (addrconf_ifdown())"
    )

    address: str
    scope: int = 0
    flags: int = 0
    peer: str | None = None
    broadcast: str | None = None
    label: str | None = None
    metric: int | None = None
    proto: int = 0
    expires: bool = False
    tentative: bool = field(default=False, compare=False)
    failed: bool | None = field(default=None, compare=False)
    valid_until: int | None = field(default=None, compare=False)
    preferred_until: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        ip_interface(self.address)
        for address in (self.peer and self.peer.partition("/")[0], self.broadcast):
            if address:
                ip_address(address)
        check_fields(self, within(0, U32), "flags", "metric")
        check_fields(self, within(0, 0xFF), "scope", "proto")

    def __str__(self) -> str:
        return fields_in_words(self, "address") + (
            ", never used (dadfailed)" if self.failed else ""
        )

    @property
    def key(self) -> Hashable:
        return Address, self.dev, self.address

    @property
    def is_v6(self) -> bool:
        """Whether it is an IPv6 address."""
        return ":" in self.address

    @property
    def is_the_kernels(self) -> bool:
        """Whether it is a link-local address that was not in use yet: the kernel adds it again."""
        return self.tentative and self.is_link_local

    @property
    def is_link_local(self) -> bool:
        """Whether it is an IPv6 link-local address."""
        return self.is_v6 and ip_interface(self.address).is_link_local

    def is_met_by(self, found: Stacked, defaults: tuple[Sysctl, ...]) -> bool:
        """An address that was in use must be in use again."""
        del defaults
        return self == found and (self.tentative or not found.failed)

    def removal(self) -> Iterator[str]:
        yield f"ip address del {self.address} dev {self.dev}"

    def commands(self) -> Iterator[str]:
        yield " ".join(self._words())

    def _words(self) -> Iterator[str]:
        own, _, length = self.address.partition("/")
        peer = f"{own} peer {self.peer}/{length}" if self.peer else self.address
        yield f"ip address replace {peer} dev {self.dev}"
        for word, value in (("broadcast", self.broadcast), ("label", self.label)):
            if value is not None:
                yield f"{word} {value}"
        if self.scope:
            yield f"scope {self.scope}"
        if self.metric is not None:
            yield f"metric {self.metric}"
        yield from (word for bit, word in FLAGS if self.flags & bit)
        if self.expires:
            yield "# with the rest of its lifetime"
