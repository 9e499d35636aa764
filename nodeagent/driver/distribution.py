"""Which distribution this is, as os-release(5) says: flags, package tools and places differ."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent import hostpath
from nodeagent.driver.other_modules import HOST_ROOT

_RELEASE: Final = Path("etc/os-release")

_FAMILIES: Final = {
    "ubuntu": "ubuntu",
    "debian": "ubuntu",
    "sles": "sles",
    "suse": "sles",
    "rhel": "redhat",
    "fedora": "redhat",
    "centos": "redhat",
    "rhcos": "redhat",
}


@dataclass(frozen=True)
class Distribution:
    """`family` is ubuntu, sles, redhat, or "" for another; `name` is what it calls itself."""

    name: str
    family: str
    is_openshift: bool


def of_root(root: Path) -> Distribution:
    """The distribution whose packages and tools are in `root`."""
    return _read(root)


def of_host(root: Path) -> Distribution:
    """The node's own, through the driver pod's mount of /etc; else that of `root`."""
    host = root / HOST_ROOT.relative_to("/")
    return _read(host if hostpath.is_file(hostpath.resolve_in_root(host, _RELEASE)) else root)


def _read(root: Path) -> Distribution:
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
        family=next((_FAMILIES[each] for each in ids if each in _FAMILIES), ""),
        # RHCOS had an ID of its own and is a variant of RHEL now; both name the cluster's version
        is_openshift="rhcos" in ids or "OPENSHIFT_VERSION" in fields,
    )


def _unquoted(value: str) -> str:
    try:
        return " ".join(shlex.split(value))
    except ValueError:
        return value
