"""Addresses that are read once and then cannot be wrong."""

from __future__ import annotations

import re
from typing import Final

_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_GUID: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){7}")


class Mac(str):
    """An Ethernet address, lower case with colons: `02:11:22:33:44:50`."""

    __slots__ = ()

    def __new__(cls, text: str) -> Mac:
        lowered = text.lower()
        if not _MAC.fullmatch(lowered):
            raise ValueError(f"{text!r} is not an Ethernet address")
        return super().__new__(cls, lowered)

    @property
    def is_zero(self) -> bool:
        """All zero: no administrator has set this address (`IFLA_VF_MAC` of a fresh VF)."""
        return self == "00:00:00:00:00:00"


class Guid(str):
    """An InfiniBand GUID, lower case with colons: `02:11:22:33:44:55:66:77`."""

    __slots__ = ()

    def __new__(cls, text: str) -> Guid:
        lowered = text.lower()
        if not _GUID.fullmatch(lowered):
            raise ValueError(f"{text!r} is not a GUID")
        return super().__new__(cls, lowered)
