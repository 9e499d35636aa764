"""IPv6 tokens of interfaces."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import ClassVar

from nodeagent.state.stack.kind import OnInterface, StackStage


@dataclass(frozen=True)
class Token(OnInterface):
    """The interface identifier of the IPv6 addresses that are made of router advertisements
    (ip-token(8)): `::77`."""

    stage: ClassVar = StackStage(
        "set tokens",
        "after sysctls: the kernel takes none where advertisements are not accepted "
        "(inet6_set_iftoken())",
    )

    token: str

    def __post_init__(self) -> None:
        IPv6Address(self.token)

    def __str__(self) -> str:
        return self.token

    @property
    def key(self) -> Hashable:
        return Token, self.dev

    def commands(self) -> Iterator[str]:
        yield f"ip token set {self.token} dev {self.dev}"
