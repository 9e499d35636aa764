"""The genuine mlx5_core, mlx5_ib and mlx5_vdpa in builds A and B, for the node with a ConnectX.

They are compiled from the kernel's own source with the kernel's own configuration. MODULE_VERSION
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
VDPA = Path("mlx5_vdpa")

OPTIONS = {
    "CONFIG_MLX5_SF": "y",
    "CONFIG_MLX5_SF_MANAGER": "y",
    "CONFIG_MLX5_VDPA": "y",
    "CONFIG_MLX5_VDPA_NET": "m",
    "CONFIG_VHOST_RING": "m",
}
"""What DOCA-OFED's driver is built with, and Debian's is not: subfunctions, vDPA."""

# DOCA-OFED reports 802.1Q for a VF without a VLAN as well; the kernel's own driver reports 0.
VLAN_PROTOCOL = (
    r"(\tivi->vlan = evport->info\.vlan;\n)",
    "\\1\tivi->vlan_proto = htons(ETH_P_8021Q);\n",
)


def build(chosen: Chosen, kernel: Path, runner: Runner, directory: Path) -> None:
    """Make mlx5_core.ko, mlx5_ib.ko, mlx5_vdpa.ko and vringh.ko of A and B in the directory.

    About 200 s of processor time for A. For B make compiles two files again and links.
    """
    drivers = kernel / "source" / "drivers"
    work = directory / "work"
    # mlx5_core includes a header of its neighbour mlxfw by a path.
    for name in ("mlx5", "mlxfw"):
        source = drivers / "net" / "ethernet" / "mellanox" / name
        shutil.copytree(source, work / "mellanox" / name)
    shutil.copytree(drivers / "infiniband" / "hw" / "mlx5", work / RDMA)
    shutil.copytree(drivers / "vdpa" / "mlx5", work / VDPA)
    edit(work / VDPA / "Makefile", (r"^subdir-ccflags-y.*", "ccflags-y += -I$(src)/core"))
    shutil.copy(drivers / "vhost" / "vringh.c", work)
    (work / "Kbuild").write_text(f"obj-m := {CORE}/ {RDMA}/ {VDPA}/ vringh.o\n")
    edit(work / CORE / "eswitch.c", VLAN_PROTOCOL)
    # as the kernel's autoconf.h has them
    macros = [f"-D{key}{'_MODULE' * (value == 'm')}=1" for key, value in OPTIONS.items()]
    said = r'(MODULE_LICENSE\("Dual BSD/GPL"\);\n)(MODULE_VERSION\(.*\);\n)?'
    for name in BUILDS:
        say(f"mlx5_core, mlx5_ib, mlx5_vdpa: build {name}")
        for module in (CORE, RDMA):
            edit(work / module / "main.c", (said, rf'\1MODULE_VERSION("25.10-lab{name}");\n'))
        runner.run(
            *("make", "-s", f"-j{os.cpu_count()}", "-C", headers_of(kernel, chosen)),
            *(f"{symbol}={value}" for symbol, value in OPTIONS.items()),
            UNTRACED,
            # Nobody reads the debugging information, which is most of what the compiler writes.
            f"KCFLAGS=-g0 {' '.join(macros)}",
            *(f"M={work}", "modules"),
            what="building mlx5_core",
        )
        (directory / name).mkdir()
        for made in work.rglob("*.ko"):
            target = directory / name / made.name
            runner.run("strip", "-g", "-o", target, made, what="stripping mlx5_core")
    shutil.rmtree(work)
