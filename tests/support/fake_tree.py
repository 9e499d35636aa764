"""The files of a fake sysfs: real directories, files and symlinks, laid out as the kernel does."""

from __future__ import annotations

import shutil
from pathlib import Path

from nodeagent.kernel.rtnl import Link


class FakeTree:
    """Devices, drivers and `net/` directories below `root`; no rule of the kernel is in here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bus").mkdir(parents=True)

    def device(self, name: str, bus: str = "pci") -> Path:
        """The directory of a device."""
        return self.root / "devices" / f"{bus}0" / name

    def make_driver(self, bus: str, driver: str) -> None:
        """A driver with its `bind` and `unbind`, and the bus's `drivers_probe`."""
        directory = self.root / "bus" / bus / "drivers" / driver
        directory.mkdir(parents=True, exist_ok=True)
        bus_directory = directory.parents[1]
        for path in (directory / "bind", directory / "unbind", bus_directory / "drivers_probe"):
            path.touch()

    def remove_driver(self, bus: str, driver: str) -> None:
        """It is unloaded."""
        shutil.rmtree(self.root / "bus" / bus / "drivers" / driver)

    def make_device(self, bus: str, name: str) -> None:
        """A device without a driver."""
        self.device(name, bus).mkdir(parents=True)
        link = self.root / "bus" / bus / "devices" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../../devices/{bus}0/{name}")
        if bus == "pci":
            self.set(bus, name, "driver_override", "(null)")

    def remove_device(self, bus: str, name: str) -> None:
        """The device is gone."""
        (self.root / "bus" / bus / "devices" / name).unlink()
        shutil.rmtree(self.device(name, bus))

    def make_function(self, pf: str, index: int, function: str) -> None:
        """A VF's device, with the links between it and its PF."""
        self.make_device("pci", function)
        (self.device(function) / "physfn").symlink_to(f"../{pf}")
        (self.device(pf) / f"virtfn{index}").symlink_to(f"../{function}")

    def make_subfunction(self, pf: str, name: str, number: int) -> None:
        """An active subfunction's auxiliary device, which is below its PF's."""
        self.make_device("auxiliary", name)
        self.set("auxiliary", name, "sfnum", str(number))
        (self.device(pf) / name).symlink_to(self.device(name, "auxiliary"))

    def remove_subfunction(self, pf: str, name: str) -> None:
        """The reverse of `make_subfunction`."""
        (self.device(pf) / name).unlink()
        self.remove_device("auxiliary", name)

    def remove_function(self, pf: str, index: int, function: str) -> None:
        """The reverse of `make_function`."""
        (self.device(pf) / f"virtfn{index}").unlink()
        self.remove_device("pci", function)

    def drive(self, bus: str, name: str, driver: str) -> None:
        """The links between a device and the driver it is bound to."""
        (self.device(name, bus) / "driver").symlink_to(f"../../../bus/{bus}/drivers/{driver}")
        back = self.root / "bus" / bus / "drivers" / driver / name
        back.symlink_to(f"../../../../devices/{bus}0/{name}")

    def undrive(self, bus: str, name: str) -> None:
        """The reverse of `drive`; nothing for a device without a driver."""
        driver = self.driver(name, bus)
        if driver is not None:
            (self.device(name, bus) / "driver").unlink()
            (self.root / "bus" / bus / "drivers" / driver / name).unlink()

    def driver(self, name: str, bus: str = "pci") -> str | None:
        """The driver a device is bound to."""
        link = self.device(name, bus) / "driver"
        return link.readlink().name if link.is_symlink() else None

    def get(self, name: str, attribute: str) -> str:
        """The text of a PCI device's attribute."""
        return (self.device(name) / attribute).read_text().strip()

    def set(self, bus: str, name: str, attribute: str, text: str) -> None:
        """Let an attribute say `text`."""
        (self.device(name, bus) / attribute).write_text(f"{text}\n")

    def show(self, link: Link) -> None:
        """`net/<name>/` of the interface's device."""
        if link.device is not None and link.bus is not None:
            directory = self.device(link.device, link.bus) / "net" / link.name
            directory.mkdir(parents=True)
            (directory / "ifindex").write_text(f"{link.index}\n")
            if link.phys_port_name is not None:
                (directory / "phys_port_name").write_text(f"{link.phys_port_name}\n")

    def hide(self, link: Link) -> None:
        """The reverse of `show`."""
        if link.device is not None and link.bus is not None:
            directory = self.device(link.device, link.bus) / "net" / link.name
            shutil.rmtree(directory, ignore_errors=True)
