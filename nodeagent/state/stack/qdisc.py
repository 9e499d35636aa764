"""Queueing disciplines of an interface."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

from nodeagent.state.checks import IFNAMSIZ, U32, check_fields, within
from nodeagent.state.stack.kind import OnInterface, StackStage

QDISC_ROOT: Final = 0xFFFFFFFF
QDISC_MAJOR: Final = 0xFFFF0000


@dataclass(frozen=True)
class Qdisc(OnInterface):
    """A queueing discipline that an administrator added (tc(8)).

    `handle` and `parent` are the kernel's numbers (major << 16 | minor; `QDISC_ROOT`); `options` is
    TCA_OPTIONS in hexadecimal digits, in the format of its kind.
    """

    stage: ClassVar = StackStage(
        "add qdiscs", "no other object needs them; a qdisc refers to its parent by handle"
    )

    kind: str
    handle: int
    parent: int
    options: str = ""

    def __post_init__(self) -> None:
        check_fields(self, within(0, U32), "handle", "parent")
        bytes.fromhex(self.options)
        if not self.kind.isprintable() or not 0 < len(self.kind) < IFNAMSIZ:
            raise ValueError(f"{self.kind!r} is not a kind of qdisc")

    def __str__(self) -> str:
        options = f" with {self.options}" if self.options else ""
        return f"{self._place}{self.kind}{options}"

    @property
    def _place(self) -> str:
        """Its parent and handle, in tc(8)'s words: `root handle 8001: `."""
        parent = f"parent {self.parent >> 16:x}:{self.parent & 0xFFFF:x}"
        where = "root" if self.parent == QDISC_ROOT else parent
        return f"{where} handle {self.handle >> 16:x}: "

    @property
    def key(self) -> Hashable:
        return Qdisc, self.dev, self.parent

    def commands(self) -> Iterator[str]:
        options = " # with its former options" if self.options else ""
        yield f"tc qdisc replace dev {self.dev} {self._place}{self.kind}{options}"
