"""The LAG of a card, as each of its PFs reports it: the card's ports work as one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MULTIPATH: Final = "multipath"
"""The type of a LAG that the driver makes of routes, without a bond."""

ESW_MULTIPORT: Final = "esw_multiport"
"""The devlink parameter that makes a LAG without a bond."""

_WORD: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True)
class Lag:
    """`type` and `mode` are the driver's words; None if there is no LAG, or they are not reported.

    mlx5's types are roce, switchdev (VF-LAG), multipath and multiport_eswitch. Its modes, the ways
    to select a port, are hash, queue_affinity and mpesw (core/lag/debugfs.c). The driver chooses
    the mode, by that of the bond and the firmware's capabilities.
    """

    active: bool = False
    type: str | None = None
    mode: str | None = None

    def __post_init__(self) -> None:
        for word in (self.type, self.mode):
            if word is not None and not _WORD.fullmatch(word):
                raise ValueError(f"{word!r} is not a type or mode of LAG")

    def __str__(self) -> str:
        """`active switchdev hash`, `disabled`."""
        if not self.active:
            return "disabled"
        return " ".join(("active", *filter(None, (self.type, self.mode))))

    @property
    def is_made(self) -> bool:
        """Whether a restore makes it, before VFs are bound. Routes make a multipath LAG later."""
        return self.active and self.type != MULTIPATH

    def is_met_by(self, now: Lag) -> bool:
        """Whether `now` is this LAG. The mode is not compared: the driver chooses it."""
        return self.active == now.active and self.type in {None, now.type}
