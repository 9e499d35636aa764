"""Queueing disciplines of an interface."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Self

from nodeagent.state.checks import IFNAMSIZ, U32, check_fields, within
from nodeagent.state.stack.kind import Stacked, StackStage

QDISC_ROOT: Final = 0xFFFFFFFF
QDISC_MAJOR: Final = 0xFFFF0000


@dataclass(frozen=True)
class Qdisc(Stacked):
    """A queueing discipline that an administrator made (tc(8)).

    `handle` and `parent` are the kernel's numbers (major << 16 | minor; `QDISC_ROOT`); `options` is
    TCA_OPTIONS in hexadecimal digits, which only its kind understands.
    """

    stage: ClassVar = StackStage(
        "add qdiscs", "a child of another hangs on its handle; they may come any time, so last"
    )

    dev: str
    kind: str
    handle: int
    parent: int
    options: str = ""

    def __post_init__(self) -> None:
        check_fields(self, within(0, U32), "handle", "parent")
        bytes.fromhex(self.options)
        if not self.kind.isprintable() or not 0 < len(self.kind) < IFNAMSIZ:
            raise ValueError(f"{self.kind!r} is no kind of qdisc")

    def __str__(self) -> str:
        options = f" with {self.options}" if self.options else ""
        return f"{self._place}{self.kind}{options}"

    @property
    def _place(self) -> str:
        """Where it hangs and what it is called, in tc(8)'s words: `root handle 8001: `."""
        parent = f"parent {self.parent >> 16:x}:{self.parent & 0xFFFF:x}"
        where = "root" if self.parent == QDISC_ROOT else parent
        return f"{where} handle {self.handle >> 16:x}: "

    @property
    def interfaces(self) -> tuple[str, ...]:
        return (self.dev,)

    @property
    def key(self) -> Hashable:
        return Qdisc, self.dev, self.parent

    def renamed(self, names: Mapping[str, str]) -> Self:
        return replace(self, dev=names.get(self.dev, self.dev))

    def commands(self) -> Iterator[str]:
        options = " # with the options that it had" if self.options else ""
        yield f"tc qdisc replace dev {self.dev} {self._place}{self.kind}{options}"
