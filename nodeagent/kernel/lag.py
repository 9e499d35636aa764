"""The LAG of an mlx5 card in debugfs: mlx5/<pf>/lag/{state,type,port_sel_mode} (lag/debugfs.c).

debugfs announces nothing: who waits for a LAG looks again when the bond's links change. While there
is no LAG, reading `type` and `port_sel_mode` is EINVAL.
"""

from __future__ import annotations

from pathlib import Path

from nodeagent.state.lag import Lag
from nodeagent.state.model import DeviceHandle


def read(pf: DeviceHandle, sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> Lag | None:
    """A PF's; None: not known, as where debugfs is not mounted, or before Linux 6.0.

    A container seldom has debugfs, and finds it in the root directory of the host's init.
    """
    for root in (sys, proc / "1/root/sys") if pf.bus == "pci" else ():
        directory = root / "kernel/debug/mlx5" / pf.name / "lag"
        state = _word(directory / "state")
        if state is not None:
            kind, mode = (_word(directory / name) for name in ("type", "port_sel_mode"))
            # it may have gone between two reads
            return Lag(True, kind, mode) if state == "active" and kind else Lag()
    return None


def _word(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
