"""The privileges that a reload needs, checked before the driver is unloaded.

A container that runs as root and may load modules can still have a read-only /sys, if it is not
privileged. It would unload the driver, and could not create the VFs afterwards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_MODULE": 16, "CAP_SYS_ADMIN": 21}
"""Bits (linux/capability.h): to set links, to load modules, to enter namespaces and mount."""


def missing(sysfs: Path = Path("/sys"), proc: Path = Path("/proc")) -> Iterator[str]:
    """One clause for each missing privilege; none if /proc does not show them (proc(5))."""
    try:
        status = (proc / "self/status").read_text()
    except OSError:
        status = ""
    if effective := re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE):
        names = [name for name, bit in CAPABILITIES.items() if not int(effective[1], 16) >> bit & 1]
        if names:
            yield f"this process has no {', '.join(names)}"
    if os.statvfs(sysfs).f_flag & os.ST_RDONLY:
        yield f"{sysfs} is mounted read-only"
