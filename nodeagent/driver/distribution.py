"""The Linux distribution, by os-release(5): flags, package tools and paths depend on it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from nodeagent import hostpath
from nodeagent.driver import other_modules

_RELEASE: Final = Path("etc/os-release")


class Family(StrEnum):
    """The families of distributions that nodeagent knows."""

    UBUNTU = "ubuntu"
    SLES = "sles"
    REDHAT = "redhat"
    OTHER = ""


_FAMILIES: Final = {
    "ubuntu": Family.UBUNTU,
    "debian": Family.UBUNTU,
    "sles": Family.SLES,
    "suse": Family.SLES,
    "rhel": Family.REDHAT,
    "fedora": Family.REDHAT,
    "centos": Family.REDHAT,
    "rhcos": Family.REDHAT,
}


@dataclass(frozen=True)
class Distribution:
    """A distribution; `name` is its PRETTY_NAME."""

    name: str
    family: Family
    is_openshift: bool


def of_root(root: Path) -> Distribution:
    """The distribution that is installed in `root`."""
    try:
        # a link to ../usr/lib/os-release on most (os-release(5))
        lines = hostpath.read_text(hostpath.resolve_in_root(root, _RELEASE)).splitlines()
    except OSError:
        lines = []
    fields = {}
    for line in lines:
        name, is_set, value = line.partition("=")
        if is_set and not line.startswith("#"):
            fields[name.strip()] = _unquoted(value)
    ids = [fields.get("ID", ""), *fields.get("ID_LIKE", "").split()]
    return Distribution(
        name=fields.get("PRETTY_NAME") or fields.get("ID") or "unknown",
        family=next((_FAMILIES[each] for each in ids if each in _FAMILIES), Family.OTHER),
        # older RHCOS has an ID of its own, newer RHCOS that of RHEL and OPENSHIFT_VERSION
        is_openshift="rhcos" in ids or "OPENSHIFT_VERSION" in fields,
    )


def of_host(root: Path) -> Distribution:
    """The host's distribution, from the driver pod's mount of /etc; else that of `root`."""
    host = other_modules.host(root)
    return of_root(host if hostpath.is_file(hostpath.resolve_in_root(host, _RELEASE)) else root)


def _unquoted(value: str) -> str:
    try:
        return " ".join(shlex.split(value))
    except ValueError:
        return value
