"""Per-interface sysctls that differ from the namespace's `conf/default`.

The value of an interface is its own, or the default of its namespace. Both are compared, and a
default that has changed is a difference like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from nodeagent.state.model import Netdev
from nodeagent.state.sysctls import Sysctl

UNSET: Final = 0
"""The value of a sysctl without default that is not set: `ipv6.mtu`, then the interface's MTU."""

Pair = tuple[Sysctl, int]
"""The wanted sysctl, and its present value."""


class Place(Protocol):
    """A node or a network namespace, which has default sysctls."""

    @property
    def sysctls(self) -> tuple[Sysctl, ...]:
        """The defaults."""


def differing(want: Netdev, have: Netdev | None, wanted: Place, now: Place) -> Iterator[Pair]:
    """Sysctls that are not as wanted, sorted; none if either is not known.

    `have` is None for an interface that does not exist yet and gets the defaults of `now`.
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
        # without a default, like ipv6.mtu, the kernel chooses
        is_now = has.get(key, start.get(key, UNSET))
        if value is not None and value != is_now:
            yield (key, value), is_now


def to_set(want: Netdev, have: Netdev | None, wanted: Place, now: Place) -> tuple[Sysctl, ...]:
    """The sysctls to write to get from `have` to `want`."""
    return tuple(setting for setting, _ in differing(want, have, wanted, now))
