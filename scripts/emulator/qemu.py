"""The QEMU of the ConnectX node: the distribution's source, the lab's devices only, and our own.

Nothing in QEMU's source is changed but where it lists what to build: the files of connectx/ are put
beside its NICs, with a symbol in Kconfig and a line for meson.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from emulator.cache import digest
from emulator.host import LabError, Runner, locked, say
from emulator.packages import Apt, Chosen

CONNECTX = Path(__file__).parent / "connectx"
REQUIREMENTS = Path(__file__).parent.parent / "requirements-qemu.lock"
BINARY = "qemu-system-x86_64"
FIRMWARE = ("/usr/share/seabios", "/usr/share/qemu")
"""Where Debian's packages keep the BIOS; the source package has none."""
PYTHON = "/usr/bin/python3"
TOOLS = {"ninja": "ninja-build", "pkg-config": "pkgconf"}
HEADERS = {
    "/usr/include/stdio.h": "libc6-dev",
    "/usr/include/zlib.h": "zlib1g-dev",
    "/usr/include/glib-2.0/glib.h": "libglib2.0-dev",
}
"""Commands and headers, and the packages that bring them."""

SYMBOL = "LAB_CONNECTX"
KCONFIG = f"""
config {SYMBOL}
    bool
    depends on PCI_EXPRESS && MSI_NONBROKEN
"""
SYMBOLS = (
    *("Q35", "PCIE_PORT", "VTD", SYMBOL),
    *("VIRTIO_PCI", "VIRTIO_BLK", "VIRTIO_RNG", "VIRTIO_SERIAL", "VIRTIO_9P"),
)
"""All that the machine has (machine.py)."""
CONFIGURE = (
    *("--target-list=x86_64-softmmu", "--without-default-features", "--without-default-devices"),
    *("--with-devices-x86_64=lab", "--enable-system", "--enable-tcg"),
    *("--enable-virtfs", "--enable-attr"),
    *("--disable-docs", "--disable-tools", "--disable-gio", "--disable-fdt"),
    *("--disable-debug-info", "--disable-install-blobs", "--disable-download"),
    # For speed: what translated code calls is at fixed addresses.
    *("--disable-pie", "--extra-ldflags=-no-pie"),
)

WITHOUT_CONNECTX = "The igb node needs no QEMU of its own: --nic igb, the default"


def device_files() -> list[Path]:
    """The sources of the ConnectX."""
    return sorted(CONNECTX.glob("*.[ch]"))


def tree_parts(version: str) -> dict[str, str]:
    """What a tree to build in is made from: little, because it is costly to make."""
    return {"version": version, "edits": KCONFIG, "requirements": digest(REQUIREMENTS)}


def build_parts() -> dict[str, str]:
    """What a build is made from, beside the tree, the kernel's headers and the compiler."""
    return {"configuration": repr((SYMBOLS, CONFIGURE)), "device": digest(*device_files())}


def install_tools(apt: Apt) -> None:
    """Install what is missing to build QEMU on this machine."""
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    missing += [package for header, package in HEADERS.items() if not Path(header).exists()]
    missing += [] if importlib.util.find_spec("ensurepip") else ["python3-venv"]
    if missing:
        apt.install(*missing)


def unpack(version: str, apt: Apt, runner: Runner, directory: Path) -> None:
    """source/ and python/, a venv with meson: what a build is configured from."""
    say(f"QEMU {version}: its source package")
    archive = apt.download_source(directory, "qemu", version)
    source = directory / "source"
    source.mkdir()
    runner.run(
        # roms/: two thirds of the source, for other firmware than a PC's
        *("tar", "-C", source, "--strip-components=1", "--exclude=*/roms/*", "-xf", archive),
        what="unpacking QEMU's source",
    )
    archive.unlink()
    with (source / "hw" / "net" / "Kconfig").open("a") as kconfig:
        kconfig.write(KCONFIG)
    with (source / "hw" / "net" / "meson.build").open("a") as meson:
        meson.write("\nsubdir('connectx')\n")
    # Debian's source has no firmware either.
    (source / "pc-bios" / "meson.build").write_text("roms = []\n")
    environment = directory / "python"
    runner.run(PYTHON, "-m", "venv", environment, what="making a venv for meson")
    runner.run(
        *(environment / "bin" / "python3", "-m", "pip", "install", "--quiet"),
        *("--disable-pip-version-check", "--require-hashes", "--only-binary", ":all:"),
        *("--no-deps", "-r", REQUIREMENTS),
        what="installing meson",
    )


def build(tree: Path, chosen: Chosen, kernel: Path, runner: Runner, directory: Path) -> None:
    """Put the QEMU that the tree's source and connectx/ make into the directory.

    The tree keeps its build: another time ninja compiles the device's file and links, in seconds.
    """
    headers = kernel / "usr" / "src" / f"linux-headers-{_common(chosen.kernel)}-common"
    with locked(tree / "lock"):
        source = tree / "source"
        put_device(source / "hw" / "net" / "connectx", headers)
        made = tree / "build"
        made.mkdir(exist_ok=True)
        symbols = "".join(f"CONFIG_{symbol}=y\n" for symbol in SYMBOLS)
        (source / "configs" / "devices" / "x86_64-softmmu" / "lab.mak").write_text(symbols)
        configure = [
            source / "configure",
            *(f"--python={tree}/python/bin/python3", f"--cc={chosen.compiler}", *CONFIGURE),
        ]
        configured = made / "configured"
        given = f"{configure}\n{symbols}"
        if not configured.exists() or configured.read_text() != given:
            say("QEMU: configuring the build")
            configured.unlink(missing_ok=True)
            runner.run(*configure, cwd=made, what="configuring QEMU")
            configured.write_text(given)
        say("QEMU: compiling it with the ConnectX")
        runner.run(
            *("ninja", f"-j{os.cpu_count()}", BINARY),
            cwd=made,
            what="building QEMU",
            progress=True,
        )
        shutil.copy(made / BINARY, directory / BINARY)


def _common(release: str) -> str:
    return release.removesuffix("-amd64")


def put_device(target: Path, headers: Path) -> None:
    """The device's files and the layouts of the firmware's commands, touched only where changed."""
    ours = {path.name: path.read_bytes() for path in device_files()}
    units = sorted(name for name in ours if name.endswith(".c"))
    recipe = f"system_ss.add(when: 'CONFIG_{SYMBOL}', if_true: files({units}))\n"
    files = {
        **ours,
        "meson.build": recipe.encode(),
        **{
            f"mlx5_ifc/{path.name}": path.read_bytes()
            for path in (headers / "include" / "linux" / "mlx5").glob("*.h")
        },
    }
    if "mlx5_ifc/mlx5_ifc.h" not in files:
        raise LabError(f"{headers} has no include/linux/mlx5/mlx5_ifc.h", hint=WITHOUT_CONNECTX)
    (target / "mlx5_ifc").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = target / name
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
    for path in target.glob("*.[ch]"):
        if path.name not in files:
            path.unlink()
