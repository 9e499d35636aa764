"""A host in a directory: a tree like /sys and /proc, and tools that are small real executables.

What openibd does to this host, a test writes as a shell script with `load` and `unload`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nodeagent.driver.nic import NicDriver
from nodeagent.settings import Settings

MODINFO: Final = """#!/bin/sh
for module; do :; done
file={root}/installed/$module
if ! test -e "$file"; then echo "modinfo: ERROR: Module $module not found." >&2; exit 1; fi
while test "$1" != -F; do shift; done
case "$2" in
srcversion) cat "$file" ;;
filename) echo "$file.ko" ;;
*) test ! -e "$file.$2" || cat "$file.$2" ;;
esac
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
        self._script("etc/init.d/openibd", OPENIBD.format(root=self.root, body=body))

    def modinfo(self) -> None:
        self._script("bin/modinfo", MODINFO.format(root=self.root))

    def calls(self) -> list[str]:
        path = self.root / "openibd.calls"
        return path.read_text().splitlines() if path.exists() else []

    def has_blacklist(self) -> bool:
        return (self.root / "modprobe.d/blacklist.conf").exists()

    def _script(self, name: str, text: str) -> None:
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
        settings, "precompiled", None, sysfs=tmp_path / "sys", proc=tmp_path / "proc"
    )
    host = Host(tmp_path, driver)
    settings.blacklist_file.parent.mkdir()
    host.modinfo()
    host.openibd(RESTART)
    host.loaded("mlx5_core", "AAAA")
    host.installed("mlx5_core", "BBBB")
    return host
