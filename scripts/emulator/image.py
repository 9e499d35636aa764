"""The guest's disk and initramfs: a minimal Debian, the kernel's modules, ours, and Python packages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from emulator.host import LabError, Runner, say
from emulator.packages import Apt, Chosen

GUEST = Path(__file__).parent / "guest"
REQUIREMENTS = Path(__file__).parent.parent / "requirements.lock"
PYTHON = "/usr/bin/python3"
SIZE = "640M"

MODULES = """
    virtio_blk ext4 overlay 9p 9pnet_virtio dca i2c-algo-bit ipv6 vfio-pci pci-stub
    igb igbvf mlx5_core mlx5_ib mlx5_fwctl mlx5_dpll mlx5_vdpa
    ib_core ib_uverbs ib_umad ib_ipoib ib_cm iw_cm rdma_cm rdma_ucm rdma_rxe siw
    ib_iser ib_isert ib_srp ib_srpt nvme_rdma nvmet_rdma rpcrdma
    8021q dummy veth macvlan macvtap ipvlan bridge bonding team team_mode_activebackup vrf ifb
    sch_ingress sch_htb sch_prio sch_fq sch_fq_codel sch_mqprio
    cls_flower cls_matchall cls_u32 cls_basic act_mirred act_gact act_vlan
    psample macsec tls mlxfw pci-hyperv-intf vdpa nfnetlink xt_conntrack
"""
"""Put into the guest with what they depend on. A name that this kernel has built in, or does not
have at all, is passed over."""

INITRAMFS_MODULES = ("virtio_blk", "ext4", "overlay")


def make_rootfs(chosen: Chosen, apt: Apt, runner: Runner, directory: Path) -> None:
    """A tar of the guest's Debian, before anything of ours is in it."""
    say(f"root file system: {len(chosen.guest)} packages of {chosen.suite} and what they need")
    runner.run(
        *("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root"),
        '--aptopt=APT::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")),
        f"--include={','.join(chosen.guest)}",
        *(chosen.suite, directory / "rootfs.tar", apt.sources()),
        what="making the guest's root file system",
    )


def make_site(runner: Runner, directory: Path) -> None:
    """The Python packages of requirements.lock, as site/ for the guest's python3.

    The guest's Debian is the host's, so the host's python3 picks the right files and compiles them.
    Byte code without a source check: stat and read of the source cost more under emulation.
    """
    say("python packages of requirements.lock")
    environment = directory / "venv"
    runner.run(PYTHON, "-m", "venv", environment, what="making a venv to run pip")
    runner.run(
        *(environment / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--require-hashes", "--only-binary", ":all:", "--no-deps", "--no-compile"),
        *("--target", directory / "site", "-r", REQUIREMENTS),
        what="installing the python packages",
    )
    runner.run(
        *(PYTHON, "-m", "compileall", "-q", "-j0", "--invalidation-mode", "unchecked-hash"),
        *("-s", directory / "site", "-p", "/usr/local/lib/site-packages", directory / "site"),
        what="compiling the python packages",
    )
    shutil.rmtree(environment)


def make_image(
    chosen: Chosen,
    kernel: Path,
    modules: Path,
    rootfs: Path,
    site: Path,
    runner: Runner,
    directory: Path,
) -> None:
    """root.ext4, initrd.cpio and vmlinux, ready to boot."""
    say("image: modules, packages and the lab's own files into root.ext4 and initrd.cpio")
    root = directory / "root"
    root.mkdir()
    runner.run(
        "tar",
        "-C",
        root,
        "-xf",
        rootfs / "rootfs.tar",
        "--exclude=./dev/*",
        what="unpacking the root file system",
    )
    _install_modules(chosen.kernel, kernel, modules, root, runner)
    _install_python(site, root)
    shutil.copytree(GUEST / "root", root, dirs_exist_ok=True, symlinks=True)
    _tidy(root)
    runner.run(
        *("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-d", root),
        *(directory / "root.ext4", SIZE),
        what="making the guest's disk",
    )
    _make_initramfs(chosen.kernel, root, directory)
    shutil.copy(kernel / "vmlinux", directory / "vmlinux")
    shutil.rmtree(root)


def _install_modules(release: str, kernel: Path, modules: Path, root: Path, runner: Runner) -> None:
    """The chosen modules, decompressed: the guest has better things to do than xz.

    The stand-in's build A lies in updates/, where depmod prefers it to the kernel's own mlx5_core,
    and both builds in /opt/lab, where lab-driver finds them.
    """
    runner.run("depmod", "-b", kernel, release, what="reading the kernel's modules")
    source = kernel / "lib" / "modules" / release
    target = root / "lib" / "modules" / release
    target.mkdir(parents=True)
    for name in ("modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(source / name, target / name)
    order = (source / "modules.order").read_text()
    (target / "modules.order").write_text(order.replace(".ko.xz", ".ko"))
    for module in _with_dependencies(kernel, release, MODULES.split()):
        path = target / module.relative_to(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, path)
        if path.suffix == ".xz":
            runner.run("xz", "-d", path, what="decompressing a kernel module")
    (target / "updates").mkdir()
    shutil.copy(modules / "netdevsim" / "netdevsim.ko", target / "updates")
    shutil.copy(modules / "A" / "mlx5_core.ko", target / "updates")
    for name in ("A", "B"):
        shutil.copytree(modules / name, root / "opt" / "lab" / "driver" / name)
    runner.run("depmod", "-b", root, release, what="indexing the guest's modules")


def _with_dependencies(root: Path, release: str, names: list[str]) -> list[Path]:
    """Files of the modules and of all that they need, each after what it needs."""
    files: dict[Path, None] = {}
    for name in names:
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
    shutil.copytree(site / "site", target, dirs_exist_ok=True)


def _tidy(root: Path) -> None:
    for path in (
        "usr/share/doc",
        "usr/share/man",
        "usr/share/locale",
        "var/lib/apt/lists",
        "var/cache/apt",
    ):
        shutil.rmtree(root / path, ignore_errors=True)
    (root / "etc" / "mtab").unlink(missing_ok=True)
    (root / "etc" / "mtab").symlink_to("/proc/mounts")
    (root / "etc" / "hostname").write_text("lab\n")
    (root / "etc" / "machine-id").write_text("0123456789abcdef0123456789abcdef\n")


def _make_initramfs(release: str, root: Path, directory: Path) -> None:
    """busybox, the modules that the disk needs, and guest/initramfs/init."""
    tree = directory / "initramfs"
    for name in ("bin", "m", "proc", "sys", "dev", "root"):
        (tree / name).mkdir(parents=True)
    shutil.copy(
        next(
            path
            for path in (root / "bin" / "busybox", root / "usr" / "bin" / "busybox")
            if path.exists()
        ),
        tree / "bin" / "busybox",
    )
    shutil.copy(GUEST / "initramfs" / "init", tree / "init")
    modules = _with_dependencies(root, release, list(INITRAMFS_MODULES))
    for module in modules:
        shutil.copy(module, tree / "m")
    (tree / "modules").write_text("".join(f"{module.name}\n" for module in modules))
    names = subprocess.run(["find", "."], cwd=tree, capture_output=True, check=True)
    with (directory / "initrd.cpio").open("wb") as archive:
        subprocess.run(
            ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"],
            cwd=tree,
            input=names.stdout,
            stdout=archive,
            check=True,
        )
    shutil.rmtree(tree)
