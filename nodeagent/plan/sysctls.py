"""Per-interface sysctls as values: those that are not as in the namespace's `conf/default`.

What an interface has is its own value, or else the default of its node: so both are compared, and
a default that has changed in between is a difference like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from nodeagent.state.model import Netdev
from nodeagent.state.sysctls import Sysctl

UNSET: Final = 0
"""Of one that has no default and is not set: `ipv6.mtu`, then the interface's own."""

Pair = tuple[Sysctl, int]
"""What is wanted, and what it is now."""


class Place(Protocol):
    """A node or a network namespace: where interfaces start with its defaults."""

    @property
    def sysctls(self) -> tuple[Sysctl, ...]:
        """Those defaults."""


def differing(want: Netdev, have: Netdev | None, wanted: Place, now: Place) -> Iterator[Pair]:
    """What is not as wanted, sorted; nothing where either is not known.

    `have` is None for an interface yet to come, which starts with the defaults of its node `now`.
    """
    theirs = () if have is None else have.sysctls
    if want.sysctls is None or theirs is None:
        return
    if want.sysctls == theirs and wanted.sysctls == now.sysctls:
        return
    own, has = dict(want.sysctls), dict(theirs)
    defaults, start = dict(wanted.sysctls), dict(now.sysctls)
    moved = {key for key, value in wanted.sysctls if start.get(key) != value}
    for key in sorted({*own, *has, *moved}):
        value = own.get(key, defaults.get(key))
        # without a default of its own, like ipv6.mtu: as the kernel chooses it
        is_now = has.get(key, start.get(key, UNSET))
        if value is not None and value != is_now:
            yield (key, value), is_now


def to_set(want: Netdev, have: Netdev | None, wanted: Place, now: Place) -> tuple[Sysctl, ...]:
    """What has to be written to get from `have` to `want`."""
    return tuple(setting for setting, _ in differing(want, have, wanted, now))
