"""What this process may not do and a reload needs: told before the driver is gone.

A container can be root and may load modules, and still find /sys read-only: that one is mounted so
for every container that is not privileged. It would unload the driver and could not make the VFs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NEEDED: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_MODULE": 16, "CAP_SYS_ADMIN": 21}
"""Bits (linux/capability.h): for settings, for modules, to enter pods' namespaces and to mount."""


def lacking(sysfs: Path = Path("/sys"), proc: Path = Path("/proc")) -> Iterator[str]:
    """Each thing that is missing, as a clause; nothing where /proc does not tell (proc(5))."""
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
