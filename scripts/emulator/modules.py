"""The modules that Debian does not have: netdevsim, lab_eoi, lab_ib, three builds of our mlx5_core.

The stand-in is Debian's igb and igbvf built as one module named mlx5_core, so that PFs and VFs both
bind to /sys/bus/pci/drivers/mlx5_core as they do on the real NIC. Its builds A, B and C differ in
MODULE_VERSION, which goes into modpost's srcversion: loading another one is a genuine upgrade. Its
module parameters add the time that a ConnectX's firmware takes (`FIRMWARE`).
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from emulator.host import LabError, Runner, say
from emulator.kernel import headers_of
from emulator.packages import Chosen

OURS = tuple(Path(__file__).parent / name for name in ("lab_eoi.c", "lab_ib.c"))
"""Modules of one file each, which says what it is for."""
HOLDER = Path(__file__).parent / "mlx5_holder.c"
UNTRACED = "CC_FLAGS_FTRACE="
"""For make: modules without calls for ftrace.

When a module is loaded, ftrace looks up the name of each function that it could trace in the
module's symbols, one after the other (ftrace_module_enable(), find_kallsyms_symbol()): functions
times symbols, which for mlx5_core is two seconds of a processor that emulates another.
"""

IGB = (
    "igb_main igb_ethtool igb_ptp igb_hwmon "
    "e1000_82575 e1000_i210 e1000_mac e1000_mbx e1000_nvm e1000_phy"
)
IGBVF = "vf mbx ethtool netdev"

# What the driver of a ConnectX waits for its firmware; igb has none. A task sleeps for that time:
# what is done side by side is quicker. Off by default; a line in modprobe.d(5) sets it:
# `options mlx5_core vf_probe_ms=500 vf_remove_ms=500 fw_parallel=16`.
FIRMWARE = """
static unsigned int vf_probe_ms, vf_remove_ms, pf_load_ms, eswitch_ms, fw_parallel;
module_param(vf_probe_ms, uint, 0644);
MODULE_PARM_DESC(vf_probe_ms, "Milliseconds that the probe of a VF waits for firmware");
module_param(vf_remove_ms, uint, 0644);
MODULE_PARM_DESC(vf_remove_ms, "Milliseconds that the removal of a bound VF waits for firmware");
module_param(pf_load_ms, uint, 0644);
MODULE_PARM_DESC(pf_load_ms, "Milliseconds that the probe of a PF waits for firmware");
module_param(eswitch_ms, uint, 0644);
MODULE_PARM_DESC(eswitch_ms, "Milliseconds that firmware takes when a PF's VFs come or go");
module_param(fw_parallel, uint, 0644);
MODULE_PARM_DESC(fw_parallel, "How many of these waits firmware serves at once; 0: all");
static unsigned int lab_fw_busy;
static DEFINE_SPINLOCK(lab_fw_lock);
static DECLARE_WAIT_QUEUE_HEAD(lab_fw_free);
static bool lab_fw_begins(void)
{
	bool begins;

	spin_lock(&lab_fw_lock);
	begins = !fw_parallel || lab_fw_busy < fw_parallel;
	lab_fw_busy += begins;
	spin_unlock(&lab_fw_lock);
	return begins;
}
static void lab_fw(unsigned int ms)
{
	if (!ms)
		return;
	wait_event_idle_exclusive(lab_fw_free, lab_fw_begins());
	msleep(ms);
	spin_lock(&lab_fw_lock);
	lab_fw_busy--;
	spin_unlock(&lab_fw_lock);
	wake_up(&lab_fw_free);
}
"""
PROBE = """
int igbvf_probe(struct pci_dev *pdev, const struct pci_device_id *ent);
void igbvf_remove(struct pci_dev *pdev);
static int lab_probe(struct pci_dev *pdev, const struct pci_device_id *ent)
{
	lab_fw(pdev->is_virtfn ? vf_probe_ms : pf_load_ms);
	return pdev->is_virtfn ? igbvf_probe(pdev, ent) : igb_probe(pdev, ent);
}
static void lab_remove(struct pci_dev *pdev)
{
	if (pdev->is_virtfn) {
		igbvf_remove(pdev);
		lab_fw(vf_remove_ms);
	} else {
		lab_fw(pci_num_vf(pdev) ? eswitch_ms : 0);
		igb_remove(pdev);
	}
}
/* igb closes its PF and opens it again when the VFs go, which costs it 1.5 s; mlx5's stays up. */
static int lab_sriov_configure(struct pci_dev *pdev, int num_vfs)
{
	lab_fw(eswitch_ms);
	return num_vfs ? igb_pci_sriov_configure(pdev, num_vfs) : igb_disable_sriov(pdev, false);
}
static void lab_shutdown(struct pci_dev *pdev)
{ if (!pdev->is_virtfn) igb_shutdown(pdev); }
int mlx5_lab_use(void);
int mlx5_lab_use(void)
{ return 0; }
EXPORT_SYMBOL_GPL(mlx5_lab_use);
"""
VF_IDS = """
\t{ PCI_VDEVICE(INTEL, 0x10CA), 0 }, /* 82576 VF */
\t{ PCI_VDEVICE(INTEL, 0x1520), 1 }, /* i350 VF */
"""

# igb's watchdog pings all VFs when carrier comes, while igb_enable_sriov() has counted them and not
# yet allocated vf_data, or igb_disable_sriov() has freed it: a NULL dereference that was seen here
# once in some hundred reloads, because a virtual processor may stand still in the middle.
PING = (
    r"(\t\tping = E1000_PF_CONTROL_MSG;\n\t\tif \()adapter->vf_data"
    r"(\[i\]\.flags & IGB_VF_FLAG_CTS)",
    "\t\tstruct vf_data_storage *vfs = READ_ONCE(adapter->vf_data);\n\n"
    r"\t\tif (!vfs)\n\t\t\tbreak;\n\1vfs\2",
)


def build(chosen: Chosen, kernel: Path, runner: Runner, directory: Path) -> None:
    """Make netdevsim, ours, and the stand-in's A, B, C: each NAME/MODULE.ko in the directory."""
    say("modules: netdevsim, and the stand-in for mlx5_core in builds A, B and C")
    drivers = kernel / "source" / "drivers" / "net"
    work = directory / "work"
    shutil.copytree(drivers / "netdevsim", work / "first" / "netdevsim")
    for source in OURS:
        _own(source, work / "first" / source.stem)
    _stand_in(drivers / "ethernet" / "intel", work / "first" / "A", "A")
    for directory_of, name in (("second", "B"), ("third", "C")):
        _stand_in(drivers / "ethernet" / "intel", work / directory_of / name, name)
    shutil.copy(HOLDER, work / "first" / "A")
    with (work / "first" / "A" / "Makefile").open("a") as makefile:
        makefile.write(f"obj-m += {HOLDER.stem}.o\n")
    # Two of one name can't be made by one make.
    for part in sorted(work.iterdir()):
        (part / "Kbuild").write_text(
            f"obj-m := {' '.join(f'{path.name}/' for path in part.iterdir())}\n"
        )
        runner.run(
            *("make", "-s", f"-j{os.cpu_count()}", "-C", headers_of(kernel, chosen)),
            UNTRACED,
            *(f"M={part}", "CONFIG_NETDEVSIM=m", "modules"),
            what="building the kernel modules",
        )
    for made in work.rglob("*.ko"):
        runner.run("strip", "-g", made, what="stripping the kernel modules")
        target = directory / made.relative_to(made.parent.parent)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(made, target)
    shutil.rmtree(work)


def _own(source: Path, directory: Path) -> None:
    directory.mkdir()
    shutil.copy(source, directory)
    (directory / "Makefile").write_text(f"obj-m := {source.stem}.o\n")


def _stand_in(intel: Path, directory: Path, name: str) -> None:
    for driver in ("igb", "igbvf"):
        shutil.copytree(intel / driver, directory / driver)
    edit(
        directory / "igb" / "igb_main.c",
        (r'(char igb_driver_name\[\] = )"igb"', r'\1"mlx5_core"'),
        (r"(static const struct pci_device_id igb_pci_tbl\[\] = \{\n)", r"\1" + VF_IDS),
        (r"(?=static struct pci_driver igb_driver = \{)", FIRMWARE + PROBE),
        (r"(\.probe\s*=\s*)igb_probe,", r"\1lab_probe,"),
        (r"(\.remove\s*=\s*)igb_remove,", r"\1lab_remove,"),
        (r"(\.shutdown\s*=\s*)igb_shutdown,", r"\1lab_shutdown,"),
        (r"(\.sriov_configure\s*=\s*)igb_pci_sriov_configure,", r"\1lab_sriov_configure,"),
        (r'(MODULE_LICENSE\("GPL v2"\);)', rf'\1\nMODULE_VERSION("24.10-lab{name}");'),
        PING,
    )
    edit(
        directory / "igbvf" / "netdev.c",
        (r'(char igbvf_driver_name\[\] = )"igbvf"', r'\1"mlx5_core"'),
        (r"static (int igbvf_probe\([^)]*\))", r"\1;\n\1"),
        (r"static (void igbvf_remove\([^)]*\))", r"\1;\n\1"),
        # igb has a parameter of the same name.
        (r"module_param\(debug.*\nMODULE_PARM_DESC\(debug.*\n", ""),
        # From its device table to the end of the file it is a driver of its own: leave that out.
        (r"(static const struct pci_device_id igbvf_pci_tbl)", r"#if 0\n\1"),
        (r"(MODULE_DEVICE_TABLE\(pci, igbvf_pci_tbl\);)(?s:.*)", r"\1\n#endif\n"),
    )
    objects = [f"igb/{file}.o" for file in IGB.split()]
    objects += [f"igbvf/{file}.o" for file in IGBVF.split()]
    (directory / "Makefile").write_text(
        f"obj-m := mlx5_core.o\nmlx5_core-y := {' '.join(objects)}\n"
    )


def edit(path: Path, *changes: tuple[str, str]) -> None:
    """Replace each pattern, which must occur once: another kernel's source may look different."""
    text = path.read_text()
    for pattern, replacement in changes:
        text, count = re.subn(pattern, replacement, text)
        if count != 1:
            raise LabError(
                f"the lab's mlx5_core can't be made from this kernel's {path.name}: "
                f"{pattern!r} occurs {count} times"
            )
    path.write_text(text)
