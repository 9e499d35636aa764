"""A host with a driver of its own, and a stand-in for the command that puts it back.

mlnxofedctl stops with openibd and loads from the host's tree, like the real one; on a host that
never had the packages that finds nothing to load (`no-modules`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import lab

CONTROL = Path("/usr/sbin/mlnxofedctl")
# A host's udevd looks for modules in the host's tree. The lab's one looks in the pod's, where there
# is another build of mlx5_ib.
LOAD = (
    "udevadm control --stop-exec-queue; modprobe -d /host mlx5_ib; status=$?;"
    "udevadm control --start-exec-queue; exit $status"
    if lab.CONNECTX
    else "modprobe -d /host mlx5_core"
)
SCRIPT = f"""#!/bin/bash
echo "$*" >>{lab.RUN}/mlnxofedctl.log
[ "$*" = "--alt-mods force-restart" ] || exit 2
/etc/init.d/openibd force-stop || exit 1
[ ! -e {lab.RUN}/no-modules ] || {{ echo "No HCA kernel modules loaded: [FAILED]"; exit 1; }}
{LOAD}
"""
INBOX = "kernel/drivers/net/ethernet/mellanox/mlx5/core/mlx5_core.ko"


@contextmanager
def hosts_own_driver() -> Iterator[None]:
    """Build A is the host's own driver, where the pod sees the host's tree.

    On the node with a ConnectX the host's own is the kernel's.
    """
    own = f"cp --remove-destination {lab.BUILDS}/A/mlx5_core.ko" if not lab.CONNECTX else ": "
    release = os.uname().release
    tree = Path("/host/lib/modules") / release
    lab.sh(
        f"mkdir -p {tree}; cp /lib/modules/{release}/modules.* {tree};"
        f"cp -r /lib/modules/{release}/kernel {tree};"
        f"{own} {tree}/{INBOX}; depmod -b /host"
    )
    CONTROL.write_text(SCRIPT)
    CONTROL.chmod(0o755)
    yield
    CONTROL.unlink()
    lab.sh(f"rm -r {tree}")
