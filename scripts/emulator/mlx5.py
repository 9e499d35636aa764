"""The genuine mlx5_core and mlx5_ib in builds A and B, for the node with a ConnectX.

Both are compiled from the kernel's own source with the kernel's own configuration. MODULE_VERSION
makes them builds of a vendor, as DOCA-OFED has it: with that modpost gives them a srcversion, which
the kernel's own build lacks.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from emulator.host import Runner, say
from emulator.kernel import headers_of
from emulator.modules import UNTRACED, edit
from emulator.packages import Chosen

BUILDS = ("A", "B")
CORE = Path("mellanox/mlx5/core")
RDMA = Path("mlx5_ib")

SUBFUNCTIONS = ("CONFIG_MLX5_SF", "CONFIG_MLX5_SF_MANAGER")
"""What DOCA-OFED's driver is built with, and Debian's is not."""

# DOCA-OFED reports 802.1Q for a VF without a VLAN as well; the kernel's own driver reports 0.
VLAN_PROTOCOL = (
    r"(\tivi->vlan = evport->info\.vlan;\n)",
    "\\1\tivi->vlan_proto = htons(ETH_P_8021Q);\n",
)


def build(chosen: Chosen, kernel: Path, runner: Runner, directory: Path) -> None:
    """Make A/mlx5_core.ko, A/mlx5_ib.ko and the same of B in the directory.

    About 200 s of processor time for A. For B make compiles two files again and links.
    """
    drivers = kernel / "source" / "drivers"
    work = directory / "work"
    # mlx5_core includes a header of its neighbour mlxfw by a path.
    for name in ("mlx5", "mlxfw"):
        source = drivers / "net" / "ethernet" / "mellanox" / name
        shutil.copytree(source, work / "mellanox" / name)
    shutil.copytree(drivers / "infiniband" / "hw" / "mlx5", work / RDMA)
    (work / "Kbuild").write_text(f"obj-m := {CORE}/ {RDMA}/\n")
    edit(work / CORE / "eswitch.c", VLAN_PROTOCOL)
    said = r'(MODULE_LICENSE\("Dual BSD/GPL"\);\n)(MODULE_VERSION\(.*\);\n)?'
    for name in BUILDS:
        say(f"mlx5_core and mlx5_ib: build {name}")
        for module in (CORE, RDMA):
            edit(work / module / "main.c", (said, rf'\1MODULE_VERSION("25.10-lab{name}");\n'))
        runner.run(
            *("make", "-s", f"-j{os.cpu_count()}", "-C", headers_of(kernel, chosen)),
            *(f"{symbol}=y" for symbol in SUBFUNCTIONS),
            UNTRACED,
            # Nobody reads the debugging information, which is most of what the compiler writes.
            "KCFLAGS=" + " ".join(("-g0", *(f"-D{symbol}=1" for symbol in SUBFUNCTIONS))),
            *(f"M={work}", "modules"),
            what="building mlx5_core",
        )
        (directory / name).mkdir()
        for made in work.rglob("*.ko"):
            target = directory / name / made.name
            runner.run("strip", "-g", "-o", target, made, what="stripping mlx5_core")
    shutil.rmtree(work)
