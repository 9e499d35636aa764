"""The identity of this machine and of its boot."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from nodeagent import hostpath

PROC: Final = Path("/proc")


def boot_id(proc: Path = PROC) -> str:
    """The id of this boot of the node (random(4))."""
    return (proc / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def booted_at(proc: Path = PROC) -> int | None:
    """The time of this boot in seconds since the epoch (proc_stat(5)); None if it is not known."""
    with suppress(OSError, ValueError):
        for line in (proc / "stat").read_text(encoding="ascii").splitlines():
            if line.startswith("btime "):
                return int(line.split()[1])
    return None


_MACHINE_ID: Final = Path("etc/machine-id")


def machine_id() -> str:
    """The host's machine-id(5), in a driver pod from its mount of the host's /etc.

    "" if there is none: a snapshot is then not bound to a machine.
    """
    for root in (Path("/host"), Path("/")):
        with suppress(OSError):
            return hostpath.read_text(hostpath.resolve_in_root(root, _MACHINE_ID)).strip()
    return ""
