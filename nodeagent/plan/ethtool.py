"""ethtool settings as values: which of them have to be set, which are gone, and as lines.

A setting is compared only where the interface offers it. What an interface starts with is its
driver's choice, and a new driver may not have what the old one had: that is not a difference that
anybody could remove, so it is named (`no_longer_offered`) and not waited for.

Creating VFs makes igb's channels anew (igb_init_queue_configuration()): those of the PF are set
before it goes up, and where that did not last the second look finds it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Final

from nodeagent.state.model import Netdev, NodeState, Setting

OPTIONS: Final = {
    "privflags": "--set-priv-flags",
    "channels": "-L",
    "rings": "-G",
    "coalesce": "-C",
    "pause": "-A",
    "features": "-K",
}
"""ethtool(8)'s option for each kind, in the order in which they are set."""


def differing(want: Netdev, have: Netdev) -> Iterator[tuple[Setting, int | bool]]:
    """What is not as wanted, with what it is now. Nothing where either is not known."""
    now = dict(have.ethtool or ())
    for key, value in want.ethtool or ():
        if key in now and now[key] != value:
            yield (key, value), now[key]


def to_set(want: Netdev, have: Netdev | None) -> tuple[Setting, ...]:
    """What has to be set to get from `have` to `want`, sorted; an interface yet to come: nothing.

    The next look at the node finds what a new interface started with. A setting that `have` does
    not tell goes along with others of its kind: with adaptive coalescing on, the kernel's rx-usecs
    are nobody's, and they count again once it is off.
    """
    changes = {setting for setting, _ in differing(want, have)} if have is not None else set()
    kinds = {_kind(key) for key, _ in changes}
    now = dict((have and have.ethtool) or ())
    return tuple(
        setting
        for setting in want.ethtool or ()
        if setting in changes or (setting[0] not in now and _kind(setting[0]) in kinds)
    )


def no_longer_offered(want: NodeState, have: NodeState) -> Iterator[str]:
    """A line for each setting that an interface had and that its driver does not have any more."""
    for pf in want.pfs:
        known = have.pf(pf.handle)
        for port, netdev in pf.netdevs():
            now = None if known is None else known.netdev_of(port)
            if now is None or now.ethtool is None:
                continue
            offered = {key for key, _ in now.ethtool}
            for key, value in netdev.ethtool or ():
                if key not in offered:
                    yield f"{now.name} ({pf.handle}) {key}: was {_word(value)}"


def commands(values: tuple[Setting, ...], name: str) -> Iterator[str]:
    """Lines for ethtool(8), one a kind: `ethtool -G enp1s0 rx 512 tx 512`."""
    for kind, option in OPTIONS.items():
        words = [
            f"{shlex.quote(key.partition('.')[2])} {_word(value)}"
            for key, value in values
            if _kind(key) == kind
        ]
        if words:
            yield f"ethtool {option} {name} {' '.join(words)}"


def _kind(key: str) -> str:
    return key.partition(".")[0]


def _word(value: int | bool) -> str:
    return str(value) if type(value) is int else ("on" if value else "off")
