"""The findings of the checks before a reload."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Check(StrEnum):
    """The checks before a reload."""

    PRIVILEGES = "privileges"
    INSTALLED = "installed"
    LOADABLE = "loadable"
    STORAGE = "storage"
    THIRD_PARTY = "third-party"
    PEERMEM = "peermem"
    MODULES = "modules"
    PROCESSES = "processes"
    REFERENCES = "references"
    VFS = "vfs"
    PODS = "pods"
    UPLINK = "uplink"
    DISK = "disk"


@dataclass(frozen=True)
class Finding:
    """A finding: the check, `what` was found, `why` it matters, and the `remedy`."""

    check: Check
    what: str
    why: str
    remedy: str
    blocks: bool
    pods: tuple[str, ...] = ()
    """UIDs of the pods that would lose a device for good."""
