"""The SR-IOV state of a node as a value.

`NodeState` is what `observe()` returns, what a snapshot holds and what `plan()` takes twice: want
and have are the same type. In every field `None` means "not known, not supported or not ours": it
is never compared and never written.

A device is identified by its devlink handle (bus and name, `pci/0000:01:00.0`), a VF by its PF and
its index. Interface names are attributes like any other, never identity.

Values are checked when they are made: none has an invalid address, a name with a slash, or two VFs
with one index; `ValueError` says what is wrong. `nodeagent.state.codec` reads and writes them as
JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Final, NamedTuple, Self

from nodeagent.state.addresses import Mac
from nodeagent.state.attributes import check
from nodeagent.state.checks import U32, check_fields, check_sorted, within
from nodeagent.state.dcb import Dcb
from nodeagent.state.eswitch import EswitchAttributes
from nodeagent.state.ethtool import Setting, check_ethtool
from nodeagent.state.lag import Lag
from nodeagent.state.link import LinkAttributes
from nodeagent.state.namespaces import Namespace
from nodeagent.state.rates import Rate
from nodeagent.state.roce import RocePort
from nodeagent.state.stack import Stack
from nodeagent.state.sysctls import Sysctl, check_sysctls
from nodeagent.state.tuning import Tuned, check_tuning
from nodeagent.state.vf import VfAttributes

NO_DRIVER: Final = "none"

# phys_port_name of a representor, also of a function of another controller
# (devlink_port_attrs, net/devlink/port.c): pf0vf3, c1pf0vf0, pf0sf88, pf0hpf
REPRESENTOR: Final = re.compile(r"(c\d{1,9})?pf\d{1,9}(vf\d{1,9}|sf\d{1,9}|hpf)?")

SUBFUNCTION: Final = re.compile(r"(?:c(\d{1,9}))?pf(\d{1,9})sf(\d{1,9})")
"""The port of a subfunction: controller, pfnum and sfnum."""

OWN_PORT: Final = re.compile(r"sf(\d{1,9})")
"""A subfunction's own side, whose interface has no phys_port_name: `sf88`."""

Port = int | str | None
"""The owner of a netdev: None is the PF, a number a VF, a phys_port_name a representor, `sf88` a
subfunction."""

_RDMA = re.compile(r"[!-$&-.0-~]{1,63}")  # IB_DEVICE_NAME_MAX; a % would be a pattern
_PARAM = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_BUS = re.compile(r"[a-z][a-z0-9_-]{0,30}")
_DEVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._-]{0,62}")
_RECORD = re.compile(r"[!-.0-~]{1,255}")
_DRIVER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
VDPA_NAME: Final = re.compile(r"[!-.0-~]{1,63}")


class _BusAndName(NamedTuple):
    bus: str
    name: str


class DeviceHandle(_BusAndName):
    """The address of a device as devlink writes it: `pci/0000:01:00.0`, `netdevsim/netdevsim1`."""

    __slots__ = ()

    def __new__(cls, bus: str, name: str) -> Self:
        """ValueError if no PF or VF can have that bus and name."""
        if not _BUS.fullmatch(bus) or not _DEVICE.fullmatch(name):
            raise ValueError(f"{bus!r}/{name!r} is not a device handle")
        return super().__new__(cls, bus, name)

    @classmethod
    def reported(cls, bus: str, name: str) -> Self:
        """The handle of any device that the kernel reports, unchecked: it may not be a NIC."""
        return cls._make((bus, name))

    @property
    def slot(self) -> str:
        """The bus and device of a PCI address, which the ports of a card have in common."""
        return self.name.rpartition(".")[0]

    def with_name(self, name: str) -> Self:
        """The device of that name on the same bus, as the function of a VF."""
        return self.reported(self.bus, name)

    def __str__(self) -> str:
        return f"{self.bus}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> DeviceHandle:
        """`BUS/NAME`; ValueError for anything else."""
        bus, slash, name = text.partition("/")
        if not slash:
            raise ValueError(f"{text!r} is not a device handle (BUS/NAME)")
        return cls(bus, name)


class ManagerName(StrEnum):
    """The network managers: programs that set up interfaces."""

    NETWORK_MANAGER = "NetworkManager"
    NETWORKD = "systemd-networkd"


class Target(NamedTuple):
    """A PF, a VF (its index), a representor (its phys_port_name) or a subfunction (`sf88`).

    Never an interface's name.
    """

    pf: DeviceHandle
    port: Port = None

    def __str__(self) -> str:
        """`pci/0000:01:00.0`, `pci/0000:01:00.0 vf 3`, `pci/0000:01:00.0 representor pf0vf3`."""
        if self.port is None:
            return str(self.pf)
        if isinstance(self.port, int):
            return f"{self.pf} vf {self.port}"
        kind = "subfunction" if OWN_PORT.fullmatch(self.port) else "representor"
        return f"{self.pf} {kind} {self.port}"


@dataclass(frozen=True)
class Netdev(LinkAttributes):
    """A network interface of a PF or a VF, in the host's network namespace.

    `ethtool` are the settings that its driver supports, sorted. `sysctls` are those that differ
    from the node's defaults (`NodeState.sysctls`), sorted. `manager` is the network manager that
    had set it up: a restore waits for it; it is not compared.
    """

    name: str
    ethtool: tuple[Setting, ...] | None = None
    sysctls: tuple[Sysctl, ...] | None = None
    manager: ManagerName | None = None

    def __post_init__(self) -> None:
        check(self)
        check_sysctls(self.sysctls or ())
        if self.ethtool is not None:
            check_ethtool(self.ethtool)


@dataclass(frozen=True)
class PodNetdev:
    """The interface of a VF in another network namespace, a pod's: `namespace` is its inode.

    `carrier` is IFF_LOWER_UP; it is not compared. `rdma` is the name of the VF's RDMA device if
    that is in the namespace, too (exclusive mode).
    """

    namespace: int
    netdev: Netdev
    carrier: bool = field(default=False, compare=False)
    rdma: str | None = None

    def __post_init__(self) -> None:
        if self.rdma is not None:
            RdmaDevice(self.rdma)


@dataclass(frozen=True)
class RdmaDevice:
    """A function's RDMA device; `soft`: one in software (rdma_rxe) on its netdev.

    `roce` are the ports with other defaults for RoCE than a new device's, by number.
    """

    name: str
    soft: bool = False
    roce: tuple[RocePort, ...] | None = None

    def __post_init__(self) -> None:
        if not _RDMA.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not the name of an RDMA device")


@dataclass(frozen=True)
class Vdpa:
    """A vDPA device of a function (vdpa(8)), which is its management device.

    `driver` is that of the vDPA bus (vhost_vdpa, virtio_vdpa) or `none`. `mac`, `mtu` and `max_vqp`
    (pairs of queues) are known where `features` (virtio's bits) have them. `supported` are the
    features that the management device offers.
    """

    name: str
    driver: str = NO_DRIVER
    mac: Mac | None = None
    mtu: int | None = None
    max_vqp: int | None = None
    features: int | None = None
    supported: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not VDPA_NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not the name of a vDPA device")
        if not _DRIVER.fullmatch(self.driver):
            raise ValueError(f"{self.driver!r} is not a driver name")
        check_fields(self, within(0, 0xFFFF), "mtu", "max_vqp")
        check_fields(self, within(0, 2**64 - 1), "features", "supported")


@dataclass(frozen=True)
class Vf(VfAttributes):
    """One virtual function: what its PF holds for it, what it is bound to, and its own netdev.

    `address` is its PCI address (`None` where VFs are no devices, as on netdevsim): information for
    people and for binding, never compared. `driver` is the name of the bound driver or `none`;
    `driver_override` is what /sys/…/driver_override says, "" when it is not set. Its interface is
    `netdev` in the host's network namespace, or `inside` another. `cni` is SR-IOV CNI's record of
    it, if a pod has it through that. `used_by` names the processes that have it open through VFIO,
    UIO or vhost-vDPA. `vdpa` are its vDPA devices, sorted; None if its driver makes none.
    `driverinit` and `tuning` are described at `Pf`.
    """

    index: int
    address: str | None = None
    driver: str | None = None
    driver_override: str | None = None
    netdev: Netdev | None = None
    inside: PodNetdev | None = None
    rdma: RdmaDevice | None = None
    driverinit: tuple[Param, ...] | None = None
    tuning: tuple[Tuned, ...] | None = None
    vdpa: tuple[Vdpa, ...] | None = None
    cni: CniRecord | None = field(default=None, compare=False)
    used_by: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.netdev is not None and self.inside is not None:
            raise ValueError(f"VF {self.index} has an interface here and in another namespace")
        within(0, 0xFFFF)("index", self.index)
        check(self)
        _check_params(f"VF {self.index}", self.driverinit)
        check_tuning(f"VF {self.index}", self.tuning or ())
        check_sorted(f"VF {self.index}: vDPA devices", [each.name for each in self.vdpa or ()])
        if self.address is not None and not _DEVICE.fullmatch(self.address):
            raise ValueError(f"{self.address!r} is not a device address")
        for driver in (self.driver, self.driver_override or None):
            if driver is not None and not _DRIVER.fullmatch(driver):
                raise ValueError(f"{driver!r} is not a driver name")


@dataclass(frozen=True)
class CniRecord:
    """SR-IOV CNI's record of a VF, kept from a pod's ADD to its DEL.

    `name` is the record's file: the container's ID, `-`, the interface's name in the pod. `before`
    is what DEL puts back: what ADD has set, as it was, and the interface in the host's namespace.
    An attribute in it that is None was not set by ADD.
    """

    name: str
    before: Vf

    def __post_init__(self) -> None:
        if not _RECORD.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not the name of a record of SR-IOV CNI")


# DEVLINK_PARAM_TYPE_U8, _U16, _U32, _U64, _STRING, _BOOL (net/devlink.h)
_PARAM_KINDS: Final = {1: int, 2: int, 3: int, 4: int, 5: str, 6: bool}


@dataclass(frozen=True)
class Param:
    """A devlink parameter and its value; `kind` is its type as devlink numbers it."""

    name: str
    kind: int
    value: bool | int | str

    def __post_init__(self) -> None:
        if not _PARAM.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is not the name of a devlink parameter")
        if type(self.value) is not _PARAM_KINDS.get(self.kind, None):
            raise ValueError(f"{self.value!r} is no value of a devlink parameter of {self.kind=}")
        if type(self.value) is int:
            within(0, (1 << (8 << self.kind - 1)) - 1)(self.name, self.value)
        if isinstance(self.value, str) and not self.value.isprintable():
            raise ValueError(f"{self.value!r} is not printable")


def _check_params(what: object, params: tuple[Param, ...] | None) -> None:
    check_sorted(f"{what}: parameters", [param.name for param in params or ()])


@dataclass(frozen=True)
class Representor:
    """The representor of a VF or a subfunction; `port` is its phys_port_name, `pf0vf3`."""

    port: str
    netdev: Netdev

    def __post_init__(self) -> None:
        if not REPRESENTOR.fullmatch(self.port):
            raise ValueError(f"{self.port!r} is not a representor's port")


@dataclass(frozen=True)
class Subfunction:
    """A port of the eswitch with a function behind it, which devlink has made.

    `port` is its representor's phys_port_name, `index` its number as devlink's port, which a driver
    gives by the order in which ports are made. Its driver starts with `driverinit` when it is made
    active, and makes `netdev` and an RDMA device only if these say so (mlx5's enable_eth and
    enable_rdma, which are off at first).
    """

    port: str
    index: int = field(compare=False)
    hw_addr: Mac | None = None
    active: bool = False
    roce: bool | None = None
    max_io_eqs: int | None = None
    driverinit: tuple[Param, ...] | None = None
    netdev: Netdev | None = None
    vdpa: tuple[Vdpa, ...] | None = None

    def __post_init__(self) -> None:
        check_sorted(f"{self.port}: vDPA devices", [each.name for each in self.vdpa or ()])
        if not SUBFUNCTION.fullmatch(self.port):
            raise ValueError(f"{self.port!r} is not a subfunction's port")
        check_fields(self, within(0, U32), "index", "max_io_eqs")
        _check_params(self.port, self.driverinit)

    @property
    def numbers(self) -> tuple[int | None, int, int]:
        """Controller (None for this host's), pfnum and sfnum."""
        controller, pf, number = SUBFUNCTION.findall(self.port)[0]
        return int(controller) if controller else None, int(pf), int(number)

    @property
    def own_port(self) -> str:
        """The port of its own side."""
        return self.port[self.port.rindex("sf") :]

    def without_netdev(self) -> Self:
        """The same before its driver has made its interface, and without vDPA devices."""
        return replace(self, netdev=None, vdpa=self.vdpa and ())

    @property
    def is_local(self) -> bool:
        """Whether it belongs to this host, and not to another controller's."""
        return not self.port.startswith("c")


@dataclass(frozen=True)
class Pf(EswitchAttributes):
    """One physical function bound to the driver.

    `numvfs` is `None` for a device without SR-IOV; `autoprobe` is `None` where the bus has no
    `sriov_drivers_autoprobe` (netdevsim); what belongs to devlink is `None` or empty where the
    driver has no devlink. `params` are the parameters of the mode runtime; `driverinit` those that
    the driver reads when it starts, `None` if the values in effect are not known. `vfs` is sorted
    by index, `params`, `driverinit`, `tuning` and `representors` by name. `tuning` is `None` if
    what the function has is not known. `dcb` is `None` if the driver has none, or firmware
    negotiates it; `rates`, sorted, if the eswitch is not in switchdev mode or has
    none; `lag` if the driver does not report it; `subfunctions`, sorted by
    port, if it makes none.
    """

    handle: DeviceHandle
    numvfs: int | None = None
    autoprobe: bool | None = None
    netdev: Netdev | None = None
    vfs: tuple[Vf, ...] = ()
    params: tuple[Param, ...] = ()
    driverinit: tuple[Param, ...] | None = None
    tuning: tuple[Tuned, ...] | None = None
    representors: tuple[Representor, ...] = ()
    rdma: RdmaDevice | None = None
    dcb: Dcb | None = None
    rates: tuple[Rate, ...] | None = None
    lag: Lag | None = None
    subfunctions: tuple[Subfunction, ...] | None = None

    def __post_init__(self) -> None:
        check_sorted(f"{self.handle}: subfunctions", [f.port for f in self.subfunctions or ()])
        if self.numvfs is not None:
            within(0, 0xFFFF)("numvfs", self.numvfs)
        check(self)
        _check_params(self.handle, self.params)
        _check_params(self.handle, self.driverinit)
        check_tuning(self.handle, self.tuning or ())
        check_sorted(f"{self.handle}: representors", [each.port for each in self.representors])
        check_sorted(f"{self.handle}: rates", [each.key for each in self.rates or ()])
        indexes = [vf.index for vf in self.vfs]
        check_sorted(f"{self.handle}: VF indexes", indexes)
        if indexes and indexes[-1] >= (self.numvfs or 0):
            raise ValueError(f"{self.handle}: VF {indexes[-1]} but numvfs is {self.numvfs}")

    def vf(self, index: int) -> Vf | None:
        """The VF with that index, or None."""
        return self._vfs_by_index.get(index)

    def subfunction(self, port: str) -> Subfunction | None:
        """The subfunction with that port, or with that own port, or None."""
        ours = self.subfunctions or ()
        return next(
            (f for f in ours if port == f.port or (f.is_local and port == f.own_port)), None
        )

    def representor(self, port: str) -> Representor | None:
        """The representor with that port, or None."""
        return self._representors_by_port.get(port)

    @cached_property
    def _vfs_by_index(self) -> dict[int, Vf]:
        return {vf.index: vf for vf in self.vfs}

    @cached_property
    def _representors_by_port(self) -> dict[str, Representor]:
        return {each.port: each for each in self.representors}

    def netdevs(self) -> Iterator[tuple[Port, Netdev]]:
        """Every netdev of this PF, its VFs, subfunctions and representors, with its owner."""
        if self.netdev is not None:
            yield None, self.netdev
        yield from ((vf.index, vf.netdev) for vf in self.vfs if vf.netdev is not None)
        yield from ((each.port, each.netdev) for each in self.representors)
        for each in self.subfunctions or ():
            if each.netdev is not None:
                yield each.own_port, each.netdev

    def netdev_of(self, port: Port) -> Netdev | None:
        """The netdev of the PF itself, of a VF, a representor or a subfunction, or None."""
        if port is None:
            return self.netdev
        if isinstance(port, int):
            vf = self.vf(port)
            return None if vf is None else vf.netdev
        if OWN_PORT.fullmatch(port):
            own = self.subfunction(port)
            return None if own is None else own.netdev
        representor = self.representor(port)
        return None if representor is None else representor.netdev


@dataclass(frozen=True)
class NodeState:
    """Every PF bound to `driver`, sorted by handle, with its VFs and what is configured on them.

    `sysctls` are the defaults of a new interface (net.ipv4.conf.default, net.ipv6.conf.default).
    `namespaces`, sorted by inode, are those with VFs in them.
    """

    driver: str
    pfs: tuple[Pf, ...] = ()
    stack: Stack | None = None
    sysctls: tuple[Sysctl, ...] = ()
    namespaces: tuple[Namespace, ...] = ()

    def __post_init__(self) -> None:
        check_sysctls(self.sysctls)
        inodes = [each.inode for each in self.namespaces]
        check_sorted("namespaces", inodes)
        for pf in self.pfs:
            for vf in pf.vfs:
                if vf.inside is not None and vf.inside.namespace not in inodes:
                    raise ValueError(f"{pf.handle} vf {vf.index} is in a namespace that is missing")
        if not _DRIVER.fullmatch(self.driver):
            raise ValueError(f"{self.driver!r} is not a driver name")
        check_sorted("PF handles", [pf.handle for pf in self.pfs])
        names = [netdev.name for netdev in self.netdevs()]
        if len(names) != len(set(names)):
            raise ValueError("two netdevs have one name")

    def pf(self, handle: DeviceHandle) -> Pf | None:
        """The PF with that handle, or None."""
        return self._pfs_by_handle.get(handle)

    @cached_property
    def _pfs_by_handle(self) -> dict[DeviceHandle, Pf]:
        return {pf.handle: pf for pf in self.pfs}

    def namespace(self, inode: int) -> Namespace:
        """The namespace with that inode. KeyError if none of our VFs is in it."""
        return {each.inode: each for each in self.namespaces}[inode]

    def vf(self, target: Target) -> Vf | None:
        """The VF with that PF and index, or None."""
        pf = self.pf(target.pf)
        return pf.vf(target.port) if pf is not None and isinstance(target.port, int) else None

    def vfs(self) -> Iterator[tuple[Target, Vf]]:
        """Every VF of every PF."""
        return ((Target(pf.handle, vf.index), vf) for pf in self.pfs for vf in pf.vfs)

    def function(self, target: Target) -> Pf | Vf | None:
        """The PF, or the VF of a PF, or None."""
        return self.pf(target.pf) if target.port is None else self.vf(target)

    def functions(self) -> Iterator[tuple[Target, Pf | Vf]]:
        """Every PF, with its VFs after it."""
        for pf in self.pfs:
            yield Target(pf.handle), pf
            yield from ((Target(pf.handle, vf.index), vf) for vf in pf.vfs)

    def with_vfs(self, change: Callable[[Target, Vf], Vf]) -> Self:
        """The same state with each VF changed."""

        def changed(pf: Pf) -> Pf:
            vfs = (change(Target(pf.handle, vf.index), vf) for vf in pf.vfs)
            return replace(pf, vfs=tuple(vfs))

        return replace(self, pfs=tuple(map(changed, self.pfs)))

    def with_pfs(self, pfs: tuple[Pf, ...]) -> Self:
        """The same state with these PFs, and without what is on interfaces that they lack."""
        changed = replace(self, pfs=pfs)
        gone = {each.name for each in self.netdevs()} - {each.name for each in changed.netdevs()}
        return replace(changed, stack=self.stack.without(gone)) if gone and self.stack else changed

    def namespace_of(self, vf: Vf) -> Namespace | None:
        """The namespace that one of its VFs is in; None for the host's."""
        return None if vf.inside is None else self.namespace(vf.inside.namespace)

    def netdev_of(self, target: Target) -> Netdev | None:
        """The netdev of a PF, a VF or a representor in the host's namespace, or None."""
        pf = self.pf(target.pf)
        return None if pf is None else pf.netdev_of(target.port)

    def netdevs(self) -> Iterable[Netdev]:
        """Every netdev of every PF, VF and representor in the host's namespace."""
        return (netdev for _, netdev in self.targets())

    def targets(self) -> Iterator[tuple[Target, Netdev]]:
        """The same, each with its owner."""
        for pf in self.pfs:
            yield from ((Target(pf.handle, port), netdev) for port, netdev in pf.netdevs())

    @property
    def vf_count(self) -> int:
        """The number of VFs of all PFs."""
        return sum(pf.numvfs or 0 for pf in self.pfs)

    @property
    def counts(self) -> str:
        """How many PFs and VFs there are, for people."""
        return f"{len(self.pfs)} PFs, {self.vf_count} VFs"


@dataclass(frozen=True)
class Snapshot:
    """A `NodeState` on disk, with when and where it was taken.

    `taken_at` is ISO 8601 in UTC; `machine_id` and `boot_id` are those of the host (machine-id(5),
    /proc/sys/kernel/random/boot_id); `srcversions` are pairs of module and loaded srcversion.
    """

    taken_at: str
    machine_id: str
    boot_id: str
    kernel: str
    srcversions: tuple[tuple[str, str], ...]
    state: NodeState

    def __post_init__(self) -> None:
        netdevs = self.state.netdevs()
        names = [name for netdev in netdevs for name in (netdev.name, *(netdev.altnames or ()))]
        if len(names) != len(set(names)):
            raise ValueError("two netdevs share a name or altname")
