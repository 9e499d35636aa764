"""A host in a directory: a tree like /sys and /proc, and tools that are small real executables.

What openibd does to this host, a test writes as a shell script with `load` and `unload`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nodeagent.driver.nic import NicDriver
from nodeagent.modes import Mode
from nodeagent.settings import Settings

# modinfo -0 [-b ROOT] MODULE...: what `installed` and `described` have written of each.
MODINFO: Final = """#!/bin/sh
while case $1 in -0) shift ;; -b) shift 2 ;; *) false ;; esac; do :; done
status=0
for module; do
    file={root}/installed/$module
    if ! test -e "$file"; then
        echo "modinfo: ERROR: Module $module not found." >&2; status=1; continue
    fi
    filename=$file.ko
    test ! -e "$file.filename" || filename=$(cat "$file.filename")
    printf 'filename:       %s\\0' "$filename"
    test ! -s "$file" || printf 'srcversion=%s\\0' "$(cat "$file")"
    for field in version vermagic signer depends; do
        test ! -e "$file.$field" || printf '%s=%s\\0' "$field" "$(cat "$file.$field")"
    done
    printf 'name=%s\\0' "$module"
done
exit $status
"""

# What a script of a test can do to the kernel.
OPENIBD: Final = """#!/bin/sh
unload() {{ rm -r "{root}/sys/module/$1"; }}
load() {{
    mkdir -p "{root}/sys/module/$1/holders"
    echo live > "{root}/sys/module/$1/initstate"
    echo 0 > "{root}/sys/module/$1/refcnt"
    test -s "{root}/installed/$1" && cp "{root}/installed/$1" "{root}/sys/module/$1/srcversion"
}}
echo "$1" >> {root}/openibd.calls
cp {root}/modprobe.d/blacklist.conf {root}/blacklist.seen
{body}
"""

# chroot(1) into this host: what it has of its own, else what is on PATH.
CHROOT: Final = """#!/bin/sh
root=$1; shift
if test -x "$root$1"; then command=$root$1; shift; exec "$command" "$@"; fi
exec "$@"
"""

# Loads what is installed and not in `broken`; with -d what is in that tree's lib/modules.
MODPROBE: Final = """#!/bin/sh
echo "modprobe $*" >> {root}/kmod.calls
from={root}/installed
if test "$1" = -d; then from={root}$2/lib/modules/$(uname -r); shift 2; fi
directory={root}/sys/module/$1
test -d "$directory" && exit 0
if test ! -e "$from/$1" || test -e "{root}/broken/$1"; then
    echo "modprobe: FATAL: Module $1 not found" >&2; exit 1
fi
mkdir -p "$directory/holders"
echo live > "$directory/initstate"
echo 0 > "$directory/refcnt"
test ! -s "$from/$1" || cp "$from/$1" "$directory/srcversion"
"""

RMMOD: Final = """#!/bin/sh
echo "rmmod $*" >> {root}/kmod.calls
if test "$(cat {root}/sys/module/$1/refcnt)" != 0; then
    echo "rmmod: ERROR: Module $1 is in use" >&2; exit 1
fi
rm -r "{root}/sys/module/$1"
for link in {root}/sys/module/*/holders/"$1"; do
    test -e "$link" || continue
    rm "$link"
    module=${{link%/holders/*}}
    echo $(($(cat "$module/refcnt") - 1)) > "$module/refcnt"
done
"""

RESTART: Final = """
unload mlx5_core; echo 'Unloading HCA driver: [  OK  ]'
load mlx5_core; echo 'Loading HCA driver and Access Layer: [  OK  ]'
"""


@dataclass
class Host:
    """A node in a directory."""

    root: Path
    driver: NicDriver

    def loaded(self, module: str, srcversion: str | None, holders: tuple[str, ...] = ()) -> None:
        directory = self.root / "sys/module" / module
        (directory / "holders").mkdir(parents=True)
        (directory / "initstate").write_text("live\n")
        (directory / "refcnt").write_text(f"{len(holders)}\n")
        if srcversion is not None:
            (directory / "srcversion").write_text(f"{srcversion}\n")
        for holder in holders:
            (directory / "holders" / holder).touch()

    def installed(self, module: str, srcversion: str) -> None:
        (self.root / "installed").mkdir(exist_ok=True)
        (self.root / "installed" / module).write_text(f"{srcversion}\n" if srcversion else "")

    def described(self, module: str, **fields: str) -> None:
        """What modinfo says of an installed module beside its srcversion."""
        for field, text in fields.items():
            (self.root / "installed" / f"{module}.{field}").write_text(f"{text}\n")

    def file(self, path: str, text: str) -> None:
        """A file of /sys or /proc: `sys/kernel/security/lockdown`."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def pf(self, address: str, *vfs: str) -> None:
        """A PF bound to the driver, with VFs each bound to one: `mlx5_core`, `vfio-pci`, `none`."""
        devices = self.root / "sys/bus/pci/devices"
        self._bound(address, "mlx5_core")
        for index, driver in enumerate(vfs):
            vf = f"{address[:-1]}{index + 2}"
            self._bound(vf, driver)
            (devices / address / f"virtfn{index}").symlink_to(devices / vf)
            (devices / vf / "physfn").symlink_to(devices / address)

    def interface(self, address: str, name: str, index: int) -> None:
        """A network interface of a device, in this namespace."""
        device = self.root / "sys/bus/pci/devices" / address
        self.file(str((device / "net" / name / "ifindex").relative_to(self.root)), f"{index}\n")
        link = self.root / "sys/class/net" / name
        link.mkdir(parents=True)
        (link / "device").symlink_to(device)

    def _bound(self, address: str, driver: str) -> None:
        device = self.root / "sys/bus/pci/devices" / address
        device.mkdir(parents=True)
        if driver != "none":
            directory = self.root / "sys/bus/pci/drivers" / driver
            directory.mkdir(parents=True, exist_ok=True)
            (device / "driver").symlink_to(directory)
            (directory / address).symlink_to(device)

    def openibd(self, body: str) -> None:
        self.script("etc/init.d/openibd", OPENIBD.format(root=self.root, body=body))

    def modinfo(self) -> None:
        self.script("bin/modinfo", MODINFO.format(root=self.root))

    def kmod(self) -> list[str]:
        """The calls of modprobe and rmmod, in order."""
        path = self.root / "kmod.calls"
        return path.read_text().splitlines() if path.exists() else []

    def broken(self, module: str) -> None:
        """The installed module cannot be loaded."""
        self.file(f"broken/{module}", "")

    def hosts_own(self, module: str, srcversion: str) -> None:
        """A module in the host's tree, as the driver pod sees it."""
        self.file(f"host/lib/modules/{os.uname().release}/{module}", f"{srcversion}\n")

    def calls(self) -> list[str]:
        path = self.root / "openibd.calls"
        return path.read_text().splitlines() if path.exists() else []

    def has_blacklist(self) -> bool:
        return (self.root / "modprobe.d/blacklist.conf").exists()

    def script(self, name: str, text: str) -> None:
        """An executable."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)


def make(tmp_path: Path) -> Host:
    """Build A loaded, build B installed, and an openibd that does its work."""
    settings = replace(
        Settings(),
        driver_root=tmp_path,
        blacklist_file=tmp_path / "modprobe.d/blacklist.conf",
        dtk_shared_dir=tmp_path / "shared",
        state_dir=tmp_path / "state",
        ready_path=tmp_path / "ready",
        restart_timeout=5.0,
        build_timeout=0.1,
    )
    driver = NicDriver(
        settings, Mode.PRECOMPILED, None, sysfs=tmp_path / "sys", proc=tmp_path / "proc"
    )
    host = Host(tmp_path, driver)
    settings.blacklist_file.parent.mkdir()
    host.modinfo()
    host.script("bin/chroot", CHROOT)
    host.script("bin/modprobe", MODPROBE.format(root=tmp_path))
    host.script("bin/rmmod", RMMOD.format(root=tmp_path))
    host.openibd(RESTART)
    host.loaded("mlx5_core", "AAAA")
    host.installed("mlx5_core", "BBBB")
    return host
