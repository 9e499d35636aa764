"""MAC addresses and GUIDs, checked when they are parsed."""

from __future__ import annotations

import re
from typing import ClassVar, Self


class _Address(str):
    """Octets in hexadecimal, lower case with colons. ValueError for any other text."""

    __slots__ = ()
    form: ClassVar[re.Pattern[str]]
    noun: ClassVar[str]

    def __new__(cls, text: str) -> Self:
        lowered = text.lower()
        if not cls.form.fullmatch(lowered):
            raise ValueError(f"{text!r} is not {cls.noun}")
        return super().__new__(cls, lowered)


class Mac(_Address):
    """An Ethernet address: `02:11:22:33:44:50`."""

    __slots__ = ()
    form = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
    noun = "an Ethernet address"

    @property
    def is_zero(self) -> bool:
        """All zero: no administrator has set this address (`IFLA_VF_MAC` of a fresh VF)."""
        return self == "00:00:00:00:00:00"


class Guid(_Address):
    """An InfiniBand GUID: `02:11:22:33:44:55:66:77`."""

    __slots__ = ()
    form = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){7}")
    noun = "a GUID"
