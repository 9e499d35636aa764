"""Sysctls of an interface, as values: `ipv4.rp_filter`, `ipv6.neigh.gc_stale_time`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from nodeagent.state.checks import U32, check_sorted, within

Sysctl = tuple[str, int]
"""A sysctl of an interface by family and name ("ipv4.rp_filter", "ipv6.neigh.gc_stale_time"), and
its value."""

_SYSCTL = re.compile(r"ipv[46]\.(neigh\.)?[a-z0-9_]{1,64}")


def sysctl_parts(key: str) -> tuple[str, str, str]:
    """Family, tree ("conf" or "neigh") and name of a sysctl's file."""
    family, _, rest = key.partition(".")
    tree, dot, name = rest.partition(".")
    return (family, tree, name) if dot else (family, "conf", rest)


@lru_cache
def check_sysctls(sysctls: tuple[Sysctl, ...]) -> None:
    """ValueError for an invalid name, or a value that no sysctl can have.

    Cached: hundreds of VFs have the same, and a check of each costs more than a look.
    """
    check_sorted("sysctls", [key for key, _ in sysctls])
    for key, value in sysctls:
        if not _SYSCTL.fullmatch(key):
            raise ValueError(f"{key!r} is not a sysctl of an interface")
        within(-(1 << 31), U32)(key, value)


def missing(
    want: tuple[Sysctl, ...], have: tuple[Sysctl, ...], defaults: tuple[Sysctl, ...]
) -> tuple[Sysctl, ...]:
    """Of the sysctls `want`, those that an interface with `have` on a node of `defaults` lacks."""
    has = {**dict(defaults), **dict(have)}
    return tuple((key, value) for key, value in want if has.get(key) != value)


def commands(values: tuple[Sysctl, ...], name: str) -> Iterator[str]:
    """The commands of sysctl(8), with slashes, because an interface's name may have dots."""
    for key, value in values:
        family, tree, entry = sysctl_parts(key)
        yield f"sysctl -qw net/{family}/{tree}/{name}/{entry}={value}"
