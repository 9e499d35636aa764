"""The node as it is: observed as a `NodeState`, waited for, and changed stage by stage.

Reading costs one rtnetlink dump for the node and one request a PF, however many VFs there are;
the rest are sysfs links. Nothing here decides what to change: that is `nodeagent.plan.plan`.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from nodeagent.errors import UnavailableError
from nodeagent.kernel import devlink as devlink_edge
from nodeagent.kernel import managers, rooms, udev
from nodeagent.kernel.devlink import Devlink
from nodeagent.kernel.ethtool import Ethtool
from nodeagent.kernel.events import (
    AddressWatch,
    LinkWatch,
    StopSignal,
    UdevWatch,
    Watch,
    wait_until_clear,
)
from nodeagent.kernel.netns import NamespaceGone, Namespaces
from nodeagent.kernel.rdma import Rdma
from nodeagent.kernel.rtnl import Link, Rtnl, VfInfo
from nodeagent.kernel.stack import StackEdge
from nodeagent.kernel.sysctls import Told
from nodeagent.kernel.sysfs import PASSED_THROUGH, Sysfs
from nodeagent.node import namespaces
from nodeagent.node.blocked import Blocked
from nodeagent.node.contested import Contested
from nodeagent.plan.left_behind import LeftBehind, without
from nodeagent.settings import Settings
from nodeagent.state.attributes import given
from nodeagent.state.eswitch import EswitchAttributes
from nodeagent.state.model import (
    NO_DRIVER,
    REPRESENTOR,
    DeviceHandle,
    Netdev,
    NodeState,
    Param,
    Pf,
    Port,
    RdmaDevice,
    Representor,
    Setting,
    Vf,
)
from nodeagent.state.namespaces import Namespace
from nodeagent.state.stack import Stack

log = logging.getLogger(__name__)

Devices = dict[tuple[str, str], list[Link]]
Locked = Mapping[tuple[str, str], tuple[int | None, str | None]]
"""By device: its number of VFs and its driver override."""
UNKNOWN: Final = (None, None)

SettingsByIndex = Mapping[int, tuple[Setting, ...]]
"""What ethtool tells of an interface, by ifindex."""


@dataclass(frozen=True)
class Looked:
    """What one look has found beside links: `ethtool` by ifindex, what is told of sysctls, the RDMA
    device by function, and by ifindex who has set up an interface."""

    ethtool: SettingsByIndex
    sysctls: Told
    rdma: Mapping[tuple[str, str], RdmaDevice] = dataclasses.field(default_factory=dict)
    managers: Mapping[int, str] = dataclasses.field(default_factory=dict)


Target = tuple[DeviceHandle, Port]
"""A PF (None), a VF (its index) or a representor (its port): never a name."""


def target_name(target: Target) -> str:
    """`pci/0000:01:00.0`, `pci/0000:01:00.0 vf 3`, `pci/0000:01:00.0 representor pf0vf3`."""
    handle, port = target
    if port is None:
        return str(handle)
    return f"{handle} vf {port}" if isinstance(port, int) else f"{handle} representor {port}"


class Node:
    """This node's PFs of one driver, through sysfs and rtnetlink. A context manager."""

    def __init__(
        self,
        settings: Settings,
        stop: StopSignal | None = None,
        *,
        sysfs: Sysfs | None = None,
        rtnl: Rtnl | None = None,
        ethtool: Ethtool | None = None,
        devlink: Callable[[], Devlink] = Devlink,
        stack: Callable[[], StackEdge] = StackEdge,
        rdma: Callable[[], Rdma] = Rdma,
        address_watch: Callable[[], AddressWatch] = AddressWatch,
        namespaces: Namespaces | None = None,
        udev_run: Path = Path("/run/udev"),
        proc: Path = Path("/proc"),
        run: Path = Path("/run"),
        network: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.settings = settings
        self.stop = stop
        self.sysfs = sysfs or Sysfs()
        self.rtnl = rtnl or Rtnl()
        self.ethtool = ethtool or Ethtool()
        self.devlink = devlink
        self.stack = stack
        self.rdma = rdma
        self.address_watch = address_watch
        self.namespaces = namespaces or Namespaces()
        self.given_up: dict[Target, str] = {}
        """Targets that a wait reached its deadline for: nobody waits for them a second time."""
        self.contested = Contested()
        """What we have set, so that another's work on the same is noticed."""
        self.blocked = Blocked()
        """Devices of which a call has not come back, and nothing more is asked until it does."""
        self._ports: dict[tuple[str, str], dict[str, int]] = {}
        self.udev_run = udev_run
        self.proc = proc
        self.run = run
        self.network = network
        """A block in which /proc/sys/net is that of the interfaces which this node sees."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.rtnl.close()
        self.ethtool.close()

    def observe(self) -> NodeState:
        """The state of every PF bound to the driver, and of its VFs.

        Of a device that is blocked (`nodeagent.node.blocked`) the number of VFs, or the driver
        override, is not known. UnavailableError when a device reports something that no device can
        be.
        """
        links = self.rtnl.links()
        devices = self.by_device(links)
        indexes = [each.index for each in itertools.chain(*devices.values())]
        looked = Looked(
            self.ethtool.settings(indexes),
            self._sysctls(),
            self._rdma_devices(devices),
            self._managers(indexes),
        )
        driver = self.settings.driver_module
        found = self.sysfs.physical_functions(driver)
        locked = self._under_lock(self._with_functions(found))
        try:
            switches = self._observe_devlink(set(found))
            pfs = tuple(
                self._observe_pf(
                    DeviceHandle(*device), devices, looked, locked, switches.get(device, {})
                )
                for device in found
            )
            state = self._with_insides(driver, sorted(pfs, key=lambda pf: pf.handle))
            state = dataclasses.replace(state, sysctls=looked.sysctls.defaults)
            return dataclasses.replace(state, stack=self._observe_stack(state, links, looked))
        except ValueError as error:
            raise UnavailableError(
                f"cannot make sense of the PFs of {driver}: {error}",
                hint="something may be changing them right now; try again",
            ) from error

    def reachable(self, want: NodeState) -> tuple[NodeState, tuple[LeftBehind, ...]]:
        """`want` without what belongs into namespaces that are gone, or replaced; and what that is.

        With POD_INTERFACES=report: without what belongs into any.
        """
        gone = {}
        for namespace in want.namespaces:
            if self.settings.pod_interfaces == "report":
                gone[namespace.inode] = "POD_INTERFACES=report"
                continue
            try:
                with self.namespaces.opened(namespace):
                    pass
            except NamespaceGone as error:
                gone[namespace.inode] = error.message
        return without(want, gone)

    @contextmanager
    def within(self, namespace: Namespace) -> Iterator[tuple[Node, rooms.Room]]:
        """This node as it is seen from inside a namespace; NamespaceGone when it is another."""
        with rooms.opened(self.namespaces, namespace) as room:
            node = Node(
                self.settings,
                self.stop,
                sysfs=self.sysfs,
                rtnl=room.rtnl,
                ethtool=room.ethtool,
                stack=room.stack,
                address_watch=room.address_watch,
                proc=self.proc,
                network=room.network,
                udev_run=self.udev_run,
            )
            yield node, room

    def _with_insides(self, driver: str, pfs: Iterable[Pf]) -> NodeState:
        """The PFs with what can be told of their VFs' interfaces in other namespaces."""
        pfs = tuple(pfs)
        missing = {
            (pf.handle.bus, vf.address)
            for pf in pfs
            for vf in pf.vfs
            if vf.driver == driver and vf.netdev is None and vf.address is not None
        }
        if not missing:
            return NodeState(driver, pfs)

        def make(link: Link, ethtool: SettingsByIndex, told: Told) -> Netdev:
            return _netdev_of(link, Looked(ethtool, told))

        elsewhere = self.sysfs.rdma_devices_elsewhere()
        found = namespaces.find(self.namespaces, missing, make, self.proc, rdma=elsewhere)

        def placed(pf: Pf, vf: Vf) -> Vf:
            place = found.places.get((pf.handle.bus, vf.address or ""))
            return vf if place is None else dataclasses.replace(vf, inside=place)

        placed_pfs = (
            dataclasses.replace(pf, vfs=tuple(placed(pf, vf) for vf in pf.vfs)) for pf in pfs
        )
        return NodeState(driver, tuple(placed_pfs), namespaces=found.namespaces)

    def _managers(self, indexes: Iterable[int]) -> dict[int, str]:
        """By ifindex, who has set up an interface and has finished with it."""
        found = ((index, managers.manager_of(index, self.run)) for index in indexes)
        return {index: each.name for index, each in found if each is not None and each.settled}

    def rdma_names(self, targets: Iterable[Target]) -> dict[Target, str]:
        """What the RDMA devices of these PFs and VFs are called, where they have one."""
        found = self._rdma_devices(self.links_by_device())
        named = ((target, found.get(self.device_of(target) or ("", ""))) for target in targets)
        return {target: device.name for target, device in named if device is not None}

    def _rdma_devices(self, devices: Devices) -> dict[tuple[str, str], RdmaDevice]:
        """By function: the NIC's own before one in software on the function's netdev."""
        owners = {link.name: device for device, links in devices.items() for link in links}
        found: dict[tuple[str, str], RdmaDevice] = {}
        for each in self.sysfs.rdma_devices():
            soft = each.device is None
            device = owners.get(each.netdev or "") if soft else each.device
            if device is not None and (device not in found or found[device].soft > soft):
                found[device] = RdmaDevice(each.name, soft)
        return found

    def children_elsewhere(self, state: NodeState) -> tuple[str, ...]:
        """A line for each child of an interface of `state` that is in another namespace."""
        wanted = {netdev.name for netdev in state.netdevs()}
        names = {n: link.name for n, link in self.rtnl.links().items() if link.name in wanted}
        return rooms.children_elsewhere(self.namespaces, names)

    @property
    def stops(self) -> tuple[Watch, ...]:
        """What ends a wait, for those who add it to the events that they wait for."""
        return () if self.stop is None else (self.stop,)

    def links_by_device(self) -> Devices:
        """The network interfaces of this namespace by parent device (bus, name): one dump."""
        return self.by_device(self.rtnl.links())

    def by_device(self, links: Mapping[int, Link]) -> Devices:
        """These by parent device; where that is a virtio device, by the function of that."""
        devices: Devices = {}
        for link in links.values():
            if link.bus == "virtio" and link.device is not None:
                device = self.sysfs.function_of_virtio(link.device)
            else:
                device = (link.bus, link.device) if link.bus and link.device else None
            if device is not None:
                devices.setdefault(device, []).append(link)
        return devices

    def _sysctls(self) -> Told:
        with self.stack() as edge:
            return edge.parameters(self.proc)

    def _observe_stack(
        self, state: NodeState, links: Mapping[int, Link], looked: Looked
    ) -> Stack | None:
        """What stands on all our netdevs; None where there are none to stand on."""
        names = {netdev.name for netdev in state.netdevs()}
        roots = {index for index, link in links.items() if link.name in names}
        if not roots:
            return None
        with self.stack() as edge:
            return edge.read(links, roots, looked.sysctls)

    def link_of(self, target: Target, devices: Devices) -> Link | None:
        """The netdev of a PF, a VF or a representor: for a PF its own port, never another's."""
        device = self.device_of(target)
        if device is None:
            return None
        links = devices.get(device, [])
        if isinstance(target[1], str):
            own = [link for link in links if link.phys_port_name == target[1]]
        else:
            own = [link for link in links if not _is_representor(link)]
        return min(own, key=lambda link: link.index, default=None)

    def device_of(self, target: Target) -> tuple[str, str] | None:
        """Bus and name of the device whose interface this is; None while a VF has no function."""
        handle, index = target
        if not isinstance(index, int):
            return handle.bus, handle.name
        if not self.sysfs.has_functions(handle.bus):
            return None
        function = self.sysfs.function(handle.bus, handle.name, index)
        return None if function is None else (handle.bus, function)

    def interface(self, target: Target) -> int | None:
        """The ifindex of a target's netdev in this namespace, from sysfs."""
        device = self.device_of(target)
        return None if device is None else self._interface(target, device)

    def is_bound(self, target: Target) -> bool:
        """Whether there is a device with a driver, so that its interface may still come."""
        device = self.device_of(target)
        return device is not None and self.sysfs.driver(*device) != NO_DRIVER

    def numvfs(self, pf: DeviceHandle) -> int | None:
        """How many VFs a PF has; None without SR-IOV, or while the device is blocked."""
        return self._under_lock([(pf.bus, pf.name)]).get((pf.bus, pf.name), UNKNOWN)[0]

    def is_blocked(self, target: Target) -> bool:
        """Whether a call on it, or on its PF, has not come back."""
        handle, _ = target
        return self.device_of(target) in self.blocked or (handle.bus, handle.name) in self.blocked

    @contextmanager
    def watches(self) -> Iterator[tuple[Watch, ...]]:
        """What a wait for devices sleeps on. Subscribe before acting, so that nothing is missed."""
        with ExitStack() as held:
            watches: list[Watch] = [held.enter_context(LinkWatch())]
            if udev.is_running(self.udev_run):
                watches.append(held.enter_context(UdevWatch()))
            else:
                log.info("no udevd listens: interfaces count as settled once they exist")
            watches += self.stops
            yield tuple(watches)

    def wait_for_pfs(self, state: NodeState) -> None:
        """Wait until every PF of `state` is bound and its netdev settled; WaitTimeout names it."""
        targets: list[Target] = [(pf.handle, None) for pf in state.pfs if pf.netdev is not None]
        with self.watches() as watches:
            self.wait_settled(targets, watches, "PFs", self.settings.pf_timeout)

    def wait_settled(
        self, targets: Iterable[Target], watches: tuple[Watch, ...], what: str, timeout: float
    ) -> None:
        """Wait until each target is bound, has its netdev, and udev has finished with it."""
        finished = next((w.finished for w in watches if isinstance(w, UdevWatch)), set())

        def reason(target: Target) -> str | None:
            return self.unsettled(target, finished)

        wait_until_clear(outstanding(targets, reason), *watches, what=what, timeout=timeout)

    def unsettled(self, target: Target, finished: Collection[int] = ()) -> str | None:
        """Why a PF or VF is not settled yet; None when it is.

        `finished`: ifindexes that udev has broadcast, which is its word even for an interface that
        it failed to rename and never entered into its database.
        """
        device = self.device_of(target)
        if device is None or not self.sysfs.exists(*device):
            return f"{target_name(target)} (no such function)"
        where = target_name(target)
        if isinstance(target[1], int):
            where += f" ({device[1]})"
        driver = self.sysfs.driver(*device)
        if driver == NO_DRIVER:
            return f"{where}: bound to no driver"
        if driver in PASSED_THROUGH:
            # somebody has taken it: no interface will come, and the next look says who has it
            return None
        index = self._interface(target, device)
        if index is None:
            return f"{where}: no network interface"
        if index in finished or udev.is_initialized(index, self.udev_run):
            return None
        if udev.has_given_up(index, self.udev_run) or not udev.is_running(self.udev_run):
            return None
        return f"{where}: udev has not finished with its interface"

    def _interface(self, target: Target, device: tuple[str, str]) -> int | None:
        """The ifindex of a target's netdev, from sysfs.

        Which interface is which port is read once for all representors, and again when one is
        missing or gone: with 300 of them a look at each would be 300 looks at all.
        """
        port = target[1]
        if port is None and len(found := self.sysfs.interfaces(*device)) > 1:
            ports = self.sysfs.ports(*device).items()
            others = {index for name, index in ports if REPRESENTOR.fullmatch(name)}
            return next((index for index in found if index not in others), None)
        if not isinstance(port, str):
            return next(iter(self.sysfs.interfaces(*device)), None)
        known = self._ports.get(device, {}).get(port)
        if known is None or not udev.is_initialized(known, self.udev_run):
            self._ports[device] = self.sysfs.ports(*device)
        return self._ports[device].get(port)

    def _observe_devlink(self, ours: set[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
        """What devlink tells of our devices, as fields of `Pf`: a request a device that has it."""
        with self.devlink() as devlink:
            devices = [device for device in devlink.devices() if device in ours]
            params = devlink.params() if devices else {}
            return {
                device: _devlink_fields(devlink.eswitch(device), params.get(device, ()))
                for device in devices
            }

    def _with_functions(self, pfs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
        for bus, name in pfs:
            yield bus, name
            if self.sysfs.has_functions(bus):
                yield from (
                    (bus, function) for function in self.sysfs.functions(bus, name).values()
                )

    def _under_lock(self, devices: Iterable[tuple[str, str]]) -> Locked:
        """The attributes that the kernel reads under a device's lock."""
        return self.blocked.read(
            tuple(devices),
            lambda device: (self.sysfs.numvfs(*device), self.sysfs.driver_override(*device)),
            *self.stops,
            timeout=self.settings.vf_timeout,
        )

    def _observe_pf(
        self,
        handle: DeviceHandle,
        devices: Devices,
        looked: Looked,
        locked: Locked,
        switch: dict[str, Any],
    ) -> Pf:
        bus, name = handle.bus, handle.name
        numvfs, _ = locked.get((bus, name), UNKNOWN)
        link = self.link_of((handle, None), devices)
        infos = self._vf_infos(link) if numvfs else {}
        functions = self.sysfs.functions(bus, name) if self.sysfs.has_functions(bus) else {}
        indexes = sorted(index for index in {*infos, *functions} if index < (numvfs or 0))
        return Pf(
            handle=handle,
            numvfs=numvfs,
            autoprobe=self.sysfs.autoprobe(bus, name),
            netdev=_netdev(link, looked),
            vfs=tuple(
                self._observe_vf(
                    handle,
                    index,
                    functions.get(index),
                    infos.get(index),
                    devices=devices,
                    looked=looked,
                    override=locked.get((bus, functions.get(index, "")), UNKNOWN)[1],
                )
                for index in indexes
            ),
            representors=_representors(devices.get((bus, name), []), looked),
            rdma=looked.rdma.get((bus, name)),
            **switch,
        )

    def _vf_infos(self, link: Link | None) -> dict[int, VfInfo]:
        return {} if link is None else {info.index: info for info in self.rtnl.vfs(link.index)}

    def _observe_vf(
        self,
        handle: DeviceHandle,
        index: int,
        function: str | None,
        info: VfInfo | None,
        *,
        devices: Devices,
        looked: Looked,
        override: str | None,
    ) -> Vf:
        own = devices.get((handle.bus, function or ""), [])
        return Vf(
            index=index,
            address=function,
            driver=None if function is None else self.sysfs.driver(handle.bus, function),
            driver_override=override,
            netdev=_netdev(min(own, key=lambda link: link.index, default=None), looked),
            rdma=looked.rdma.get((handle.bus, function or "")),
            **({} if info is None else given(info)),
        )


def outstanding(
    targets: Iterable[Target], reason: Callable[[Target], str | None]
) -> Callable[[], Iterator[str]]:
    """A look that begins where the last one stopped, for `wait_until_clear`.

    While something is missing a look costs one check; only when nothing seems to be missing any
    more is everything checked once again, because what has come may have gone.
    """
    waiting = list(targets)
    start = 0

    def look() -> Iterator[str]:
        nonlocal start
        for step in range(len(waiting)):
            position = (start + step) % len(waiting)
            missing = reason(waiting[position])
            if missing is not None:
                start = position
                yield missing

    return look


def _netdev(link: Link | None, looked: Looked) -> Netdev | None:
    return None if link is None else _netdev_of(link, looked)


def _netdev_of(link: Link, looked: Looked) -> Netdev:
    return Netdev(
        **given(link),
        ethtool=looked.ethtool.get(link.index),
        manager=looked.managers.get(link.index),
        sysctls=looked.sysctls.of(link.index, link.af_spec, link.mtu or 0),
    )


def _devlink_fields(
    eswitch: EswitchAttributes, params: Iterable[devlink_edge.Param]
) -> dict[str, Any]:
    return {
        **given(eswitch),
        "params": tuple(Param(param.name, param.kind, param.value) for param in params),
    }


def _representors(links: Iterable[Link], looked: Looked) -> tuple[Representor, ...]:
    found = {link.phys_port_name: link for link in links if _is_representor(link)}
    return tuple(
        Representor(port, netdev)
        for port, link in sorted(found.items(), key=lambda item: str(item[0]))
        if port is not None and (netdev := _netdev(link, looked)) is not None
    )


def _is_representor(link: Link) -> bool:
    return link.phys_port_name is not None and bool(REPRESENTOR.fullmatch(link.phys_port_name))
