"""sysfs: the devices of a driver, their VFs, and the attributes that create and bind them.

The files' behaviour (Linux 6.12):

- `sriov_numvfs` (drivers/pci/iov.c): a write of the same number does nothing, of another one is
  EBUSY unless either is 0, more than `sriov_totalvfs` is ERANGE, without a driver it is ENOENT. The
  write returns when the functions exist; with autoprobe on, their drivers may be probed meanwhile.
- `virtfnN` links appear one by one during that write, before each function's uevent.
- `bind` is ENODEV for a VF while its PF's `sriov_drivers_autoprobe` is 0, unless `driver_override`
  is set; `drivers_probe` returns no error if no driver takes the device. The `driver` link is
  therefore read after a bind.
- netdevsim has `sriov_numvfs` with the same rules, but neither functions nor autoprobe.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.errors import KernelError, reason
from nodeagent.state.files import CLOCK, FILES, value_of
from nodeagent.state.model import NO_DRIVER, DeviceHandle
from nodeagent.trace import point

PASSED_THROUGH: Final = frozenset(
    {"vfio-pci", "mlx5_vfio_pci", "mlx5-vfio-pci", "pci-stub", "xen-pciback", "uio_pci_generic"}
    | {"igb_uio"}
)
"""Drivers that pass a function to a virtual machine or a process, without an interface."""


_PAGE: Final = 4096
# include/uapi/linux/pci_regs.h
_PCI_CAPABILITY_LIST, _PCI_MSIX, _PCI_CAPABILITIES = 0x34, 0x11, 48


@dataclass(frozen=True)
class RdmaDevice:
    """An RDMA device of the function `device`, or a software device on `netdev`."""

    name: str
    device: DeviceHandle | None
    netdev: str | None = None


@dataclass(frozen=True)
class Sysfs:
    """The sysfs tree under `root`. Devices are named by bus and name, `pci` and `0000:01:00.0`."""

    root: Path = Path("/sys")

    def device(self, bus: str, name: str) -> Path:
        """The directory of a device, whether it exists or not."""
        return Path(self._at(bus, name))

    def _at(self, bus: str, name: str) -> str:
        """The same as text: a look at the node reads thousands of files."""
        return f"{self.root}/bus/{bus}/devices/{name}"

    def has_vdpa(self) -> bool:
        """Whether this node has a vDPA device (drivers/vdpa/vdpa.c)."""
        return any((self.root / "bus/vdpa/devices").glob("*"))

    def knows_vdpa(self) -> bool:
        """Whether the module vdpa is loaded, which has the bus."""
        return (self.root / "bus/vdpa").is_dir()

    def can_have_vdpa(self, bus: str, name: str) -> bool:
        """Whether mlx5_core has made the device that mlx5_vdpa drives (mlx5_vnet_supported()).

        mlx5_vdpa may not have been loaded yet: udev does that when it hears of that device.
        """
        return any(".vnet." in each for each in _names(self._at(bus, name)))

    def any_can_have_vdpa(self) -> bool:
        """The same of any function of this node."""
        return any(".vnet." in each for each in _names(f"{self.root}/bus/auxiliary/devices"))

    def vdpa_devices(self, bus: str, name: str) -> tuple[str, ...]:
        """The vDPA devices of a function, by names that an administrator gave (vdpa(8))."""
        below = self._at(bus, name)
        named = sorted(_names(f"{self.root}/bus/vdpa/devices"))
        return tuple(each for each in named if _link(f"{below}/{each}/subsystem") == "vdpa")

    def has_driver(self, bus: str, driver: str) -> bool:
        """Whether a driver of the bus is registered: its module is loaded.

        Its `bind` goes first when it is unloaded, its directory last, after its devices
        (bus_remove_driver(), drivers/base/bus.c).
        """
        return (self.root / "bus" / bus / "drivers" / driver / "bind").exists()

    def physical_functions(self, driver: str) -> tuple[DeviceHandle, ...]:
        """The devices that are bound to `driver` and are not VFs, sorted."""
        found = []
        for bus in _names(f"{self.root}/bus"):
            directory = f"{self.root}/bus/{bus}/drivers/{driver}"
            for name in _names(directory):
                is_vf = _link(f"{directory}/{name}/physfn") is not None
                if not is_vf and _link(f"{directory}/{name}") == name and self.exists(bus, name):
                    found.append(DeviceHandle.reported(bus, name))
        return tuple(sorted(found))

    def exists(self, bus: str, name: str) -> bool:
        """Whether the device exists."""
        return os.access(self._at(bus, name), os.F_OK)

    def numvfs(self, bus: str, name: str) -> int | None:
        """The number of VFs of a PF; None for a device without SR-IOV.

        The read waits for the device's lock (sriov_numvfs_show(), drivers/pci/iov.c), as does that
        of driver_override() (drivers/pci/pci-sysfs.c): see nodeagent/node/hung_calls.py.
        """
        return number_of(f"{self._at(bus, name)}/sriov_numvfs")

    def totalvfs(self, bus: str, name: str) -> int | None:
        """The number of VFs that a PF can have at most; None for a device without SR-IOV."""
        return number_of(f"{self._at(bus, name)}/sriov_totalvfs")

    def vf_count(self, bus: str, name: str) -> int:
        """The number of VFs, read without the device's lock if they are devices."""
        if self.has_functions(bus):
            return len(self.functions(bus, name))
        return self.numvfs(bus, name) or 0

    def autoprobe(self, bus: str, name: str) -> bool | None:
        """`sriov_drivers_autoprobe`; None if there is no such attribute."""
        value = number_of(f"{self._at(bus, name)}/sriov_drivers_autoprobe")
        return None if value is None else bool(value)

    def has_functions(self, bus: str) -> bool:
        """Whether VFs on this bus are devices with drivers."""
        return bus == "pci"

    def functions(self, bus: str, name: str) -> dict[int, str]:
        """The devices of a PF's VFs by index, from its `virtfnN` links; none on other buses."""
        device, found = self._at(bus, name), {}
        for entry in _names(device) if self.has_functions(bus) else ():
            if entry.startswith("virtfn") and entry[6:].isdecimal():
                target = _link(f"{device}/{entry}")
                if target is not None:
                    found[int(entry[6:])] = target
        return found

    def with_functions(self, pfs: Iterable[DeviceHandle]) -> Iterator[DeviceHandle]:
        """Each PF, with its VFs after it if they are devices, by index."""
        for pf in pfs:
            yield pf
            yield from (pf.with_name(name) for _, name in sorted(self.functions(*pf).items()))

    def function(self, bus: str, name: str, index: int) -> str | None:
        """The device of VF `index`; None unless its `physfn` link points back to this PF."""
        function = _link(f"{self._at(bus, name)}/virtfn{index}")
        if function is None or _link(f"{self._at(bus, function)}/physfn") != name:
            return None
        return function

    def subfunction(self, bus: str, name: str, number: int) -> DeviceHandle | None:
        """The auxiliary device of a PF's active subfunction (its sfnum), `mlx5_core.sf.2`.

        Its driver's number for it is another one each time.
        """
        return self.subfunctions(bus, name).get(number)

    def subfunctions(self, bus: str, name: str) -> dict[int, DeviceHandle]:
        """By sfnum, those of all of a PF's active subfunctions."""
        found = {}
        for path in self.device(bus, name).glob("*.sf.*/sfnum"):
            if (number := number_of(path)) is not None:
                found[number] = DeviceHandle.reported("auxiliary", path.parent.name)
        return found

    def driver(self, bus: str, name: str) -> str:
        """The driver of the device, or `none`."""
        return _link(f"{self._at(bus, name)}/driver") or NO_DRIVER

    def driver_override(self, bus: str, name: str) -> str | None:
        """The only driver that may bind to the device; "" for any; None: no such attribute."""
        text = text_of(f"{self._at(bus, name)}/driver_override")
        return "" if text == "(null)" else text

    def shares_msix(self, bus: str, name: str) -> bool:
        """Whether a PF's driver lets the MSI-X vectors of its VFs be set (drivers/pci/iov.c)."""
        return bool(number_of(f"{self._at(bus, name)}/sriov_vf_total_msix"))

    def msix_vectors(self, bus: str, name: str) -> int | None:
        """How many MSI-X vectors a function has; None if its configuration does not tell.

        The size of the table is in its capability (PCI_MSIX_FLAGS_QSIZE), which is looked for in
        the list of capabilities (pci_regs.h).
        """
        try:
            fd = os.open(f"{self._at(bus, name)}/config", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            (at,) = os.pread(fd, 1, _PCI_CAPABILITY_LIST)
            for _ in range(_PCI_CAPABILITIES):
                kind, following, low, high = os.pread(fd, 4, at & ~3)
                if kind == _PCI_MSIX:
                    return (low | high << 8 & 0x700) + 1
                if not (at := following):
                    break
        except (OSError, ValueError):
            return None  # the function has gone, or its configuration is not all readable
        finally:
            os.close(fd)
        return None

    def set_msix_vectors(self, bus: str, name: str, count: int) -> None:
        """How many a VF without a driver has."""
        write(f"{self._at(bus, name)}/sriov_vf_msix_count", str(count))

    def files(
        self, bus: str, name: str, place: str, index: int | None = None
    ) -> dict[str, tuple[Path, str]]:
        """The files at a place of a device (`nodeagent.state.files`): path and value, by name.

        Every module of DOCA-OFED uses mlx_compat: without it there are none of its own.
        """
        found: dict[str, tuple[Path, str]] = {}
        if place != CLOCK and not os.access(f"{self.root}/module/mlx_compat", os.F_OK):
            return found
        rows = [row for row in FILES if row.place == place]
        # an RDMA device has a thousand files besides, its GIDs
        tops = {row.name.partition("/")[0] for row in rows}
        places = self.device(bus, name).glob(place.format(vf=index))
        for base, top in itertools.product(places, tops):
            for path in (base / top, *(base / top).rglob("*")):
                called = path.relative_to(base).as_posix()
                row = next((row for row in rows if re.fullmatch(row.name, called)), None)
                if row is None or (text := text_of(path)) is None:
                    continue
                if (value := value_of(row, text)) is not None:
                    found[called] = path, value
        return found

    def rate_groups(self, bus: str, name: str) -> list[str]:
        """DOCA-OFED's groups of VFs with rates in common; there is always group 0, without any."""
        groups = _entries(f"{self._at(bus, name)}/sriov/groups")
        return sorted(each.name for each in groups if each.name != "0")

    def interfaces(self, bus: str, name: str) -> tuple[int, ...]:
        """ifindexes of the device's network interfaces in this namespace, lowest first.

        Those of a virtio device are one level deeper (`virtioN/net`). A device that disappears
        meanwhile has none.
        """
        device = self._at(bus, name)
        found = _indexes(f"{device}/net")
        if not found:
            deeper = (each for each in _names(device) if each.startswith("virtio"))
            found = [index for each in deeper for index in _indexes(f"{device}/{each}/net")]
        return tuple(sorted(found))

    def device_of_interface(self, index: int) -> str | None:
        """The name of the device of an interface in this namespace."""
        try:
            return _link(self.root / "class/net" / socket.if_indextoname(index) / "device")
        except OSError:
            return None

    def ports(self, bus: str, name: str) -> dict[str, int]:
        """By phys_port_name, the ifindexes of the device's interfaces that have one."""
        found = {}
        for directory in _entries(f"{self._at(bus, name)}/net"):
            port, index = text_of(f"{directory}/phys_port_name"), number_of(f"{directory}/ifindex")
            if port and index is not None:
                found[port] = index
        return found

    def function_below(self, bus: str, name: str) -> DeviceHandle | None:
        """The device of which one on this bus is a part: below `virtioN`, a PCI function."""
        device = self._at(bus, name)
        try:
            *_, function, _ = os.readlink(device).split("/")  # noqa: PTH115 # not a whole path
        except (OSError, ValueError):
            return None
        below = _link(f"{device}/../subsystem")
        return None if below is None else DeviceHandle.reported(below, function)

    def rdma_devices(self) -> tuple[RdmaDevice, ...]:
        """Every RDMA device of this namespace, by name.

        One of a NIC has its function (`device`); a software device has its netdev (`parent`, an
        attribute of rdma_rxe and siw).
        """
        place = f"{self.root}/class/infiniband"
        return tuple(
            RdmaDevice(name, _parent(f"{place}/{name}"), text_of(f"{place}/{name}/parent"))
            for name in sorted(_names(place))
        )

    def rdma_device(self, bus: str, name: str) -> str | None:
        """The name of a function's own RDMA device, if it has one in this namespace."""
        return min(_names(f"{self._at(bus, name)}/infiniband"), default=None)

    def other_rdma_devices(self) -> dict[DeviceHandle, str]:
        """The names of RDMA devices that are in other network namespaces, by function.

        /sys/class/infiniband shows those of one namespace, ib_uverbs those of all.
        """
        here = set(_names(f"{self.root}/class/infiniband"))
        found = {}
        for entry in _entries(f"{self.root}/class/infiniband_verbs"):
            device, name = _parent(entry), text_of(f"{entry}/ibdev")
            if device is not None and name is not None and name not in here:
                found[device] = name
        return found

    def has_representors_rdma(self, bus: str, name: str) -> bool:
        """Whether mlx5_ib is bound to the PF's auxiliary device for the RDMA of representors.

        That device exists in switchdev mode. mlx5_ib then creates the PF's RDMA device when the
        eswitch's mode is set, not when it is loaded later (mlx5_eswitch_register_vport_reps(),
        mlx5_esw_offloads_rep_load(), core/eswitch_offloads.c).
        """
        return any(self.device(bus, name).glob("*.rdma-rep.*/driver"))

    def rdma_without_driver(self, bus: str, name: str) -> tuple[str, ...]:
        """Auxiliary devices of a function for RDMA that no driver has: mlx5_ib refused them, or is
        not loaded.
        """
        found = self.device(bus, name).glob("*.rdma.*")
        return tuple(sorted(each.name for each in found if not (each / "driver").exists()))

    def has_no_ethernet(self, bus: str, name: str) -> bool:
        """Whether a function has no interface because devlink's enable_eth is off.

        mlx5_core then makes no auxiliary device for it (is_eth_enabled(), core/dev.c). False for a
        driver that makes no such devices at all.
        """
        has_any = any((self.root / "bus/auxiliary/devices").glob("*.eth.*"))
        return has_any and not any(self.device(bus, name).glob("*.eth.*"))

    def without_driver(self, maker: str) -> tuple[str, ...]:
        """Auxiliary devices of a driver that have no driver themselves: `mlx5_core.eth.3`.

        mlx5's network interface and RDMA device belong to drivers of such devices. If the task that
        binds a function is killed, its probe continues, but the kernel refuses it new threads
        (EINTR): the function is bound then, and its auxiliary device is not.
        """
        found = _entries(self.root / "bus/auxiliary/devices")
        ours = (link for link in found if link.name.startswith(f"{maker}."))
        return tuple(sorted(link.name for link in ours if not (link / "driver").exists()))

    def interface_without_driver(self, bus: str, name: str) -> str | None:
        """The auxiliary device of a bound function that is to be its interface, `mlx5_core.eth.3`.

        None if it has a driver, which has made the interface, or if there is no such device. A
        function stays bound if that driver's probe fails (mlx5e_probe(), core/en_main.c).
        """
        at = self._at(bus, name)
        found = (each for each in _names(at) if ".eth." in each)
        return next((each for each in found if _link(f"{at}/{each}/driver") is None), None)

    def set_numvfs(self, bus: str, name: str, count: int) -> None:
        """Create or remove VFs. Blocks until the functions exist or are gone."""
        write(f"{self._at(bus, name)}/sriov_numvfs", str(count))

    def set_autoprobe(self, bus: str, name: str, on: bool) -> None:
        """Whether VFs that are created from now on are probed at once."""
        write(f"{self._at(bus, name)}/sriov_drivers_autoprobe", str(int(on)))

    def set_driver_override(self, bus: str, name: str, driver: str) -> None:
        """The only driver that may bind; "" for any (a bare newline clears it)."""
        write(f"{self._at(bus, name)}/driver_override", f"{driver}\n")

    def bind(self, bus: str, name: str, driver: str) -> None:
        """Bind a device to a driver that knows its ID. Blocks while it is probed."""
        write(self.root / "bus" / bus / "drivers" / driver / "bind", name)

    def unbind(self, bus: str, name: str, driver: str) -> None:
        """Unbind a device from its driver. Blocks while it is removed."""
        write(self.root / "bus" / bus / "drivers" / driver / "unbind", name)

    def probe(self, bus: str, name: str) -> None:
        """Let the drivers of the bus probe an unbound device, by its driver_override."""
        write(self.root / "bus" / bus / "drivers_probe", name)


def write(path: str | Path, value: str, step: str = "write sysfs") -> None:
    """One write(2), as sysfs and /proc/sys require; `step` is its trace point.

    KernelError names the file, the value and the refusal.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            point(step, path)
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError(
            f"cannot write {value.strip()!r} to {path}: {reason(error)}", errno=error.errno
        ) from error


def _names(directory: str | Path) -> list[str]:
    """The names in a directory; none if it does not exist, or disappears meanwhile."""
    try:
        return os.listdir(directory)  # noqa: PTH208 # a path of each costs more than the list
    except OSError:
        return []


def _entries(directory: str | Path) -> list[Path]:
    """The entries of a directory; none if it does not exist, or disappears meanwhile."""
    return [Path(directory, name) for name in _names(directory)]


def text_of(path: str | Path) -> str | None:
    """An attribute's text; None if it does not exist, or disappears meanwhile.

    One read(2) returns it whole: it is never longer than a page
    (Documentation/filesystems/sysfs.rst).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, _PAGE).decode("ascii", "replace").strip()
        finally:
            os.close(fd)
    except OSError:
        return None


def number_of(path: str | Path) -> int | None:
    """The number in it; None also if there is another text."""
    text = text_of(path)
    return int(text) if text is not None and text.isdecimal() else None


def _parent(entry: str | Path) -> DeviceHandle | None:
    """The device of an entry of a class; None for a software device."""
    device, bus = _link(f"{entry}/device"), _link(f"{entry}/device/subsystem")
    return None if device is None or bus is None else DeviceHandle.reported(bus, device)


def _link(path: str | Path) -> str | None:
    """The last part of a symlink's target; None if there is no such link."""
    try:
        return os.readlink(path).rpartition("/")[2]  # noqa: PTH115 # thousands in a look
    except OSError:
        return None


def _indexes(directory: str | Path) -> list[int]:
    """The ifindexes of the interfaces in a directory `net`.

    It is read again if one has none: udev may have renamed it since.
    """
    found: list[int | None] = [None]
    for _ in range(2):
        if None in found:
            found = [number_of(f"{directory}/{name}/ifindex") for name in _names(directory)]
    return [index for index in found if index is not None]
