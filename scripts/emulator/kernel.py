"""The guest's kernel: Debian's own image and modules, with headers and source for ours."""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

from emulator.host import LabError, Runner, say
from emulator.packages import KERNEL, Apt, Chosen

SOURCES = (
    *("drivers/net/netdevsim", "drivers/net/ethernet/intel/igb*"),
    *("drivers/net/ethernet/mellanox/mlx5", "drivers/net/ethernet/mellanox/mlxfw"),
    *("drivers/infiniband/hw/mlx5", "drivers/vdpa/mlx5", "drivers/vhost"),
)


def fetch(chosen: Chosen, apt: Apt, runner: Runner, directory: Path) -> None:
    """Download and unpack: vmlinux, modules/, headers (usr/), source/ of the drivers we build."""
    say(f"kernel {chosen.kernel}: download and unpack")
    debs = directory / "debs"
    debs.mkdir()
    common = chosen.kernel.removesuffix("-amd64")
    names = (
        f"linux-image-{chosen.kernel}",
        f"linux-headers-{chosen.kernel}",
        f"linux-headers-{common}-common",
        f"linux-kbuild-{common}",
        f"linux-source-{KERNEL}",
    )
    apt.download(debs, *(f"{name}={chosen.version}" for name in names))
    # bookworm's packages hold lib/modules, later ones usr/lib/modules: one place for both.
    (directory / "usr" / "lib").mkdir(parents=True)
    (directory / "lib").symlink_to("usr/lib")
    for deb in debs.iterdir():
        runner.run("dpkg", "-x", deb, directory, what="unpacking the kernel's packages")
    shutil.rmtree(debs)
    image = directory / "boot" / f"vmlinuz-{chosen.kernel}"
    (directory / "vmlinux").write_bytes(_vmlinux(image.read_bytes()))
    _unpack_sources(runner, directory)
    _make_relocatable(chosen, directory)


def headers_of(kernel: Path, chosen: Chosen) -> Path:
    """Where `make -C` builds modules for this kernel."""
    return kernel / "usr" / "src" / f"linux-headers-{chosen.kernel}"


def _unpack_sources(runner: Runner, directory: Path) -> None:
    name = f"linux-source-{KERNEL}"
    archive = directory / "usr" / "src" / f"{name}.tar.xz"
    runner.run(
        *("tar", "-C", directory, "-xJf", archive, "--wildcards"),
        *(f"{name}/{path}/*" for path in SOURCES),
        what="unpacking the drivers' source",
    )
    archive.unlink()
    (directory / name).rename(directory / "source")


def _make_relocatable(chosen: Chosen, directory: Path) -> None:
    """Let the headers work from here: their makefile includes the common part by absolute path.

    Without the vmlinux that the package links to, modules are built without BTF, which needs pahole
    and which nobody reads here.
    """
    headers = headers_of(directory, chosen)
    makefile = headers / "Makefile"
    text = makefile.read_text()
    makefile.write_text(text.replace("include /usr/src/", "include ../"))
    (headers / "vmlinux").unlink(missing_ok=True)


def _vmlinux(image: bytes) -> bytes:
    """The ELF kernel out of a bzImage: decompressing it under emulation would take seconds a boot.

    Offsets of the payload: the x86 boot protocol's setup header (Documentation/arch/x86/boot.rst).
    """
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        # The last four bytes are the uncompressed size, which zstd takes for garbage and reports.
        done = subprocess.run(
            ["zstd", "-dcq"],
            input=payload,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        kernel = done.stdout
    elif payload.startswith(b"\xfd7zXZ\0"):
        kernel = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x1f\x8b"):
        kernel = zlib.decompressobj(31).decompress(payload)
    else:
        raise LabError(f"this kernel is compressed in a way we don't know: {payload[:6].hex()}")
    if not kernel.startswith(b"\x7fELF"):
        raise LabError("the kernel image does not hold an ELF kernel")
    return kernel
