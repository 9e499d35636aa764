"""Settings of interfaces that ethtool(8) sets, and files in sysfs beside them."""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from typing import Final

from nodeagent.state.checks import U32, check_sorted, within


class EthtoolKind(StrEnum):
    """The kinds of settings, in the order in which they are set.

    Private flags first, on which others depend (mlx5: rx_striding_rq for rx-gro-hw). Then channels:
    each has rings and coalescing of its own, and igb pairs its queues from five channels on and
    refuses tx-usecs then. Rings and pause restart the interface. Features depend on all of these
    (ndo_fix_features). Then the table of queues, which an n-tuple rule may count on. Then
    the queues' own files, and NAPI's (`nodeagent.state.queues`).
    """

    PRIVFLAGS = "privflags"
    CHANNELS = "channels"
    RINGS = "rings"
    COALESCE = "coalesce"
    PAUSE = "pause"
    FEATURES = "features"
    RSS = "rss"
    RX_FLOW_HASH = "rx-flow-hash"
    NTUPLE = "ntuple"
    QUEUES = "queues"
    NAPI = "napi"


Value = int | bool | str

Setting = tuple[str, Value]
"""A setting: its kind and ethtool(8)'s word for it ("rings.rx"), and its value."""

_KEY: Final = re.compile(rf"({'|'.join(EthtoolKind)})\.[!-~]([ -~]{{0,62}}[!-~])?")
_WORDS: Final = re.compile(r"[A-Za-z0-9 .:,-]*(; [A-Za-z0-9 .:,-]+)*")


@lru_cache
def check_ethtool(settings: tuple[Setting, ...]) -> None:
    """ValueError for what is no setting, or not sorted.

    Cached: hundreds of VFs have the same settings, and a check of each costs more than a look. True
    and 1 are one key of the cache, and both are values.
    """
    check_sorted("ethtool settings", [key for key, _ in settings])
    for key, value in settings:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not an ethtool setting")
        if isinstance(value, str):
            if not _WORDS.fullmatch(value):
                raise ValueError(f"{key}: {value!r} has other than ethtool's words")
        elif type(value) not in {bool, int}:
            raise ValueError(f"{key}: {value!r} is neither a number nor on or off")
        else:
            within(0, U32)(key, value)
