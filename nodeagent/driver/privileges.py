"""The privileges that a reload needs, checked before the driver is unloaded.

A container that runs as root and may load modules can still have a read-only /sys, unless it is
privileged. It would unload the driver and then not be able to create the VFs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NEEDED: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_MODULE": 16, "CAP_SYS_ADMIN": 21}
"""Bits (linux/capability.h): to set links, to load modules, to enter namespaces and mount."""


def lacking(sysfs: Path = Path("/sys"), proc: Path = Path("/proc")) -> Iterator[str]:
    """One clause for each missing privilege; none if /proc does not show them (proc(5))."""
    try:
        status = (proc / "self/status").read_text()
    except OSError:
        status = ""
    if effective := re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE):
        missing = [name for name, bit in NEEDED.items() if not int(effective[1], 16) >> bit & 1]
        if missing:
            yield f"this process has no {', '.join(missing)}"
    if os.statvfs(sysfs).f_flag & os.ST_RDONLY:
        yield f"{sysfs} is mounted read-only"
