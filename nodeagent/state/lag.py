"""A card's LAG, as each of its PFs reports it: driver and firmware treat its ports as one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MULTIPATH: Final = "multipath"
MULTIPORT: Final = "multiport_eswitch"
"""Types of LAG that no bond makes: routes do, or the devlink parameter esw_multiport."""

ESW_MULTIPORT: Final = "esw_multiport"

_WORD: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")


@dataclass(frozen=True)
class Lag:
    """`type` and `mode` are the driver's words, None where it has no LAG, or does not tell.

    mlx5's types are roce, switchdev (VF-LAG), multipath and multiport_eswitch. Its modes, by which
    it selects a port, are hash, queue_affinity and mpesw (core/lag/debugfs.c): what of them it
    takes is its own choice, by the bond's mode and the firmware's capabilities.
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
        """Whether it has to be made before VFs are bound; routes make theirs when they come."""
        return self.active and self.type != MULTIPATH

    def is_met_by(self, now: Lag) -> bool:
        """Whether `now` is this LAG, but perhaps for the mode, which is the driver's choice."""
        return self.active == now.active and self.type in {None, now.type}
