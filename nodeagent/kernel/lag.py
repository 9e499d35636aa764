"""The LAG of an mlx5 card in debugfs: mlx5/<pf>/lag/{state,type,port_sel_mode} (lag/debugfs.c).

debugfs has no events: to wait for a LAG, read it again when the bond's links change. While there is
no LAG, reading `type` and `port_sel_mode` fails with EINVAL.
"""

from __future__ import annotations

from pathlib import Path

from nodeagent.kernel.sysfs import text_of
from nodeagent.state.lag import Lag
from nodeagent.state.model import DeviceHandle


def read(pf: DeviceHandle, sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> Lag | None:
    """The LAG of a PF; None if it is not known: debugfs is not mounted, or Linux is older than 6.0.

    In a container without debugfs, it is read through the root directory of the host's init.
    """
    for root in (sys, f"{proc}/1/root/sys") if pf.bus == "pci" else ():
        directory = f"{root}/kernel/debug/mlx5/{pf.name}/lag"
        state = text_of(f"{directory}/state")
        if state is not None:
            kind, mode = (text_of(f"{directory}/{name}") for name in ("type", "port_sel_mode"))
            # the LAG can end between two reads
            return Lag(True, kind, mode) if state == "active" and kind else Lag()
    return None
