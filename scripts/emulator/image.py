"""The guest's disk and initramfs: Debian, kernel modules, and the lab's own files."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from emulator.host import LabError, Runner, say

GUEST = Path(__file__).parent / "guest"
SIZE = "768M"

MODULES = """
    virtio_blk loop ext4 quota_v2 overlay 9p 9pnet_virtio dca i2c-algo-bit ipv6 vfio-pci pci-stub
    igb igbvf mlx5_core mlx5_ib mlx5_fwctl mlx5_dpll mlx5_vdpa mlx5_vfio_pci vhost_vdpa virtio_vdpa
    virtio_net
    ib_core ib_uverbs ib_umad ib_ipoib ib_cm iw_cm rdma_cm rdma_ucm rdma_rxe siw crc32_generic
    ib_iser ib_isert ib_srp ib_srpt nvme_rdma nvmet_rdma rpcrdma
    8021q dummy veth macvlan macvtap ipvlan bridge bonding team team_mode_activebackup vrf ifb
    sch_ingress sch_htb sch_prio sch_fq sch_fq_codel sch_mqprio sch_tbf sch_sfq sch_codel sch_netem
    sch_ets sch_etf sch_pie sch_cake sch_multiq
    cls_flower cls_matchall cls_u32 cls_basic act_mirred act_gact act_vlan
    psample macsec tls mlxfw pci-hyperv-intf vdpa nfnetlink xt_conntrack
"""
"""Put into the guest with what they depend on. A name that this kernel has built in, or does not
have at all, is passed over."""

SIGNED = ("mlx5_core.ko",)
"""The kernel's own modules that keep their signatures, for the test of one that does not fit. To
hash a module, and to read its types (BTF), is most of its load under emulation, and nobody here
needs them. A signature comes after the ELF file, and objcopy(1) leaves out what does."""

UNUSED_RULES = """
    60-autosuspend 60-cdrom_id 60-drm 60-evdev 60-fido-id 60-input-id 60-persistent-alsa
    60-persistent-input 60-persistent-storage-tape 60-persistent-v4l 60-sensor 60-serial 70-camera
    70-joystick 70-mouse 70-power-switch 70-touchpad 70-uaccess 71-seat 73-seat-late 75-probe_mtd
    78-sound-card 85-hwclock
"""
"""udev's rules for what the node does not have: seats, sound, input, tapes. It goes through all of
them for each event, of which a VF makes about 20."""

INITRAMFS_MODULES = "virtio_blk ext4 overlay"


@dataclass(frozen=True)
class Ingredients:
    """Directories of the parts, and the kernel's release."""

    release: str
    kernel: Path
    modules: Path
    mlx5: Path | None
    """The genuine mlx5_core's builds, for the node with a ConnectX."""
    debian: Path
    python: Path


def make(parts: Ingredients, runner: Runner, directory: Path) -> None:
    """root.ext4, initrd.cpio and vmlinux, ready to boot."""
    say("image: modules, packages and the lab's own files on one disk")
    root = directory / "root"
    root.mkdir()
    runner.run(
        *("tar", "-C", root, "-xf", parts.debian / "rootfs.tar", "--exclude=./dev/*"),
        what="unpacking the root file system",
    )
    shutil.copytree(GUEST / "root", root, dirs_exist_ok=True, symlinks=True)
    _install_modules(parts, root, runner)
    _install_python(parts.python / "site", root)
    _tidy(root)
    # No journal and no checksums: the disk is only ever read.
    runner.run(
        *("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-d", root),
        *(directory / "root.ext4", SIZE),
        what="making the guest's disk",
    )
    _make_initramfs(parts.release, root, directory / "initrd.cpio", runner)
    shutil.copy(parts.kernel / "vmlinux", directory / "vmlinux")
    shutil.rmtree(root)


def _install_modules(parts: Ingredients, root: Path, runner: Runner) -> None:
    """The listed modules, decompressed and unsigned: the guest has better things to do than that.

    Build A, the genuine driver's or the stand-in's, lies in updates/, where depmod prefers it to
    the kernel's own mlx5_core, and all builds in /opt/lab/driver, where lab-driver finds them.
    """
    runner.run("depmod", "-b", parts.kernel, parts.release, what="indexing the kernel's modules")
    source = parts.kernel / "lib" / "modules" / parts.release
    target = root / "lib" / "modules" / parts.release
    target.mkdir(parents=True)
    for name in ("modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(source / name, target / name)
    order = (source / "modules.order").read_text()
    (target / "modules.order").write_text(order.replace(".ko.xz", ".ko"))
    for module in _with_dependencies(parts.kernel, parts.release, MODULES):
        path = target / module.relative_to(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, path)
    compressed = list(target.rglob("*.ko.xz"))
    if compressed:
        runner.run("xz", "-d", *compressed, what="decompressing the kernel's modules")
    for module in target.rglob("*.ko"):
        if module.name not in SIGNED:
            runner.run("objcopy", "-R", ".BTF", module, what="taking a module's signature away")
    updates = target / "updates"
    updates.mkdir()
    builds = root / "opt" / "lab" / "driver"
    for name in ("netdevsim", "lab_eoi"):
        shutil.copy(parts.modules / name / f"{name}.ko", updates)
    if parts.mlx5:
        for made in parts.mlx5.iterdir():
            if made.is_dir():
                shutil.copytree(made, builds / made.name)
        shutil.copytree(parts.mlx5 / "A", updates, dirs_exist_ok=True)
        (builds / "inbox").mkdir()  # nothing in updates/: then the kernel's own is loaded
        shutil.copytree(GUEST / "connectx", root, dirs_exist_ok=True)
        # It keeps the genuine drivers away from igb.
        (root / "etc" / "modprobe.d" / "lab.conf").unlink()
    else:
        shutil.copy(parts.modules / "lab_ib" / "lab_ib.ko", updates)
        for build in ("A", "B", "C"):
            shutil.copytree(parts.modules / build, builds / build)
        shutil.copytree(parts.modules / "A", updates, dirs_exist_ok=True)
    runner.run("depmod", "-b", root, parts.release, what="indexing the guest's modules")


def _with_dependencies(root: Path, release: str, names: str) -> list[Path]:
    """Files of the modules and of all that they need, each after what it needs."""
    files: dict[Path, None] = {}
    for name in names.split():
        shown = subprocess.run(
            ["modprobe", "-d", root, "-S", release, "--show-depends", name],
            capture_output=True,
            text=True,
            check=False,
        )
        for line in shown.stdout.splitlines():
            if line.startswith("insmod "):
                files[Path(line.split()[1])] = None
    return list(files)


def _install_python(site: Path, root: Path) -> None:
    python = next((root / "usr" / "lib").glob("python3.*"), None)
    if python is None:
        raise LabError("the guest's root file system has no python3")
    target = root / "usr" / "local" / "lib" / python.name / "dist-packages"
    shutil.copytree(site, target, dirs_exist_ok=True)


def _tidy(root: Path) -> None:
    """Among others without the names of vendors and models: udev would look each function up."""
    (root / "usr" / "lib" / "udev" / "hwdb.bin").unlink(missing_ok=True)
    for rule in UNUSED_RULES.split():
        (root / "usr" / "lib" / "udev" / "rules.d" / f"{rule}.rules").unlink(missing_ok=True)
    shutil.rmtree(root / "var" / "lib" / "apt", ignore_errors=True)
    shutil.rmtree(root / "var" / "cache", ignore_errors=True)
    (root / "etc" / "mtab").unlink(missing_ok=True)
    (root / "etc" / "mtab").symlink_to("/proc/mounts")
    (root / "etc" / "hostname").write_text("lab\n")
    (root / "etc" / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")


def _make_initramfs(release: str, root: Path, archive: Path, runner: Runner) -> None:
    """busybox, the modules that the disk needs, and guest/initramfs/init."""
    tree = archive.with_name("initramfs")
    for name in ("bin", "m", "proc", "sys", "dev", "root"):
        (tree / name).mkdir(parents=True)
    busybox = next(path for path in root.glob("usr/bin/busybox"))
    shutil.copy(busybox, tree / "bin" / "busybox")
    shutil.copy(GUEST / "initramfs" / "init", tree / "init")
    modules = _with_dependencies(root, release, INITRAMFS_MODULES)
    for module in modules:
        shutil.copy(module, tree / "m")
    (tree / "modules").write_text("".join(f"{module.name}\n" for module in modules))
    runner.run(
        *("sh", "-c", 'cd "$1" && find . | cpio -o -H newc --quiet -R 0:0 >"$2"', "sh"),
        *(tree, archive),
        what="making the guest's initramfs",
    )
    shutil.rmtree(tree)
