"""What proc(5) says of a process: how often it ran, and how much memory it has."""

from __future__ import annotations

from pathlib import Path


def switches(pid: int) -> int:
    """How often the threads of a process were put on a processor so far, for whatever reason."""
    return sum(
        int(line.split()[1])
        for status in Path(f"/proc/{pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if "ctxt_switches" in line
    )


def resident_mib(pid: int) -> float:
    """MiB of memory that the process has now (VmRSS)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)
