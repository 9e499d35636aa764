"""A node that reacts: one fake for the whole of sysfs, rtnetlink, devlink and udev.

The sysfs tree is made of real files and symlinks, which `nodeagent.kernel.sysfs.Sysfs` opens and
reads like any other; `write(2)` alone is intercepted, in one place. `FakeRtnl` and `FakeDevlink`
answer with the same truth. What happens by itself is in fake_kernel, what a write does in
fake_rules.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nodeagent.errors import KernelError
from nodeagent.kernel import ethtool, events
from nodeagent.kernel import sysctls as real_sysctls
from nodeagent.kernel import sysfs as real_sysfs
from nodeagent.kernel.dcb import Dcbnl
from nodeagent.kernel.devlink import (
    Cmode,
    Devlink,
    FatalErrors,
    HealthWatch,
    Instance,
    Port,
    Ports,
)
from nodeagent.kernel.ethtool import Ethtool
from nodeagent.kernel.ethtool import Settings as EthtoolSettings
from nodeagent.kernel.events import StopSignal, UdevWatch
from nodeagent.kernel.netns import Namespaces
from nodeagent.kernel.receive import Interface
from nodeagent.kernel.rtnl import Change, Link, Rtnl, VfInfo
from nodeagent.kernel.stack import NO_TABLES, StackEdge
from nodeagent.kernel.sysctls import SysctlTables
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.kernel.vdpa import VdpaEdge
from nodeagent.node import links as real_links
from nodeagent.node import settle as real_settle
from nodeagent.node import subfunctions as real_subfunctions
from nodeagent.node import vdpa as real_vdpa
from nodeagent.node.node import Node
from nodeagent.settings import Settings
from nodeagent.state.addresses import Mac
from nodeagent.state.attributes import given
from nodeagent.state.dcb import App, Dcb
from nodeagent.state.eswitch import EswitchAttributes
from nodeagent.state.model import (
    NO_DRIVER,
    DeviceHandle,
    Netdev,
    NodeState,
    Param,
    Pf,
    Subfunction,
    Vdpa,
    Vf,
)
from nodeagent.state.namespaces import Holder
from nodeagent.state.rates import Rate
from nodeagent.state.stack import Stack
from tests.support import fake_sysctls
from tests.support.fake_kernel import (
    DRIVER,
    PF1,
    ZERO,
    Delays,
    FakeInstance,
    FakePf,
    FakeWatch,
)
from tests.support.fake_rules import FakeRules

HOSTS_PROCESSES = "pid:[4026531836]"
"""/proc/self/ns/pid of a process that sees all processes of the host."""
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextmanager
def fake_node(monkeypatch: pytest.MonkeyPatch, *, igb: bool = True) -> Iterator[FakeNode]:
    """A node without PFs. Its path is short: udev's socket has to fit into 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="node", dir=IN_MEMORY) as directory:
        node = FakeNode(Path(directory), monkeypatch, igb=igb)
        try:
            yield node
        finally:
            node.close()


class FakeStack(StackEdge):
    """Nothing stands on the interfaces of this node, and nobody is asked."""

    def __init__(self) -> None:
        self.requests = 0

    def close(self) -> None:
        """There is no socket."""

    def read(
        self,
        links: Mapping[int, Link],
        roots: Collection[int],
        tables: SysctlTables = NO_TABLES,
        *,
        all_addresses: bool = False,
    ) -> Stack:
        """Nothing."""
        return Stack()

    def parameters(self, proc: Path = Path("/proc")) -> SysctlTables:
        """The defaults of the node's files, and nothing of neighbours."""
        return real_sysctls.tables_of((), proc)


class FakeNamespaces(Namespaces):
    """No other network namespace can be seen."""

    def scan(self) -> dict[int, tuple[Holder, ...]]:
        """None."""
        return {}

    def scan_files(self, wanted: int | None = None) -> dict[int, tuple[Holder, ...]]:
        """None."""
        return {}


def before_its_driver(port: Subfunction) -> Subfunction:
    """A subfunction without what its driver makes."""
    return dataclasses.replace(port, netdev=None, driverinit=None)


class FakeNode(FakeRules):
    """The node, and what a test may do to it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, *, igb: bool = True) -> None:
        super().__init__(root, igb=igb)
        self.without_info: set[tuple[str, int]] = set()
        self.ethtool: dict[int, dict[str, int | bool | str]] = {}
        self.ethtool_writes: list[ethtool.Change] = []
        self.refused_settings: set[str] = set()
        self.dcb: dict[str, Dcb] = {}
        self.dcb_writes: list[str] = []
        self.rates: dict[str, tuple[Rate, ...]] = {}
        self.rate_writes: list[str] = []
        self.own_ports: set[Port] = set()
        self.vdpa_managers: dict[str, int] = {}
        self.vdpa: dict[str, tuple[DeviceHandle, Vdpa]] = {}
        self.reporters: dict[Port, dict[str, dict[str, bool | int]]] = {}
        self.in_fatal_error: set[str] = set()
        self.never_recovers: set[str] = set()
        self.fatal_errors: dict[str, int] = {}
        self._attach(monkeypatch)
        for driver in (DRIVER, "vfio-pci"):
            self.tree.make_driver("pci", driver)
        self.add_link("lo")
        fake_sysctls.write_defaults(self.proc)
        (self.proc / "self/ns").mkdir(parents=True)
        (self.proc / "self/ns/pid").symlink_to(HOSTS_PROCESSES)

    def _attach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = self

        class FakeLinkWatch(FakeWatch):
            kernel = fake

            def drain(self) -> None:
                fake.pass_time()

            def __enter__(self) -> FakeLinkWatch:
                return self

            def __exit__(self, *_: object) -> None:
                self.close()

        class FakeUdevWatch(FakeWatch, UdevWatch):
            kernel = fake

            def drain(self) -> None:
                return

        class FakeHealthWatch(FakeWatch, HealthWatch):
            kernel = fake

            def __init__(self) -> None:
                super().__init__()
                self.in_fatal_error = set()

            def drain(self) -> None:
                self.in_fatal_error |= {DeviceHandle("pci", each) for each in fake.in_fatal_error}

            def close(self) -> None:
                FakeWatch.close(self)

        monkeypatch.setattr(real_settle, "HealthWatch", FakeHealthWatch)
        monkeypatch.setattr(real_settle, "LinkWatch", FakeLinkWatch)
        for module in (real_subfunctions, real_vdpa):
            monkeypatch.setattr(module, "DeviceWatch", FakeLinkWatch)
        for module in (real_settle, real_links):
            monkeypatch.setattr(module, "UdevWatch", FakeUdevWatch)
        monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=self.monotonic))
        monkeypatch.setattr(real_sysfs, "os", _WatchedOs(self))
        monkeypatch.setattr(real_sysctls, "write", self._write_sysctl)

    def close(self) -> None:
        """End udevd and let every held write go."""
        self.stop_udevd()
        for fault in self.faults.values():
            if fault.held is not None:
                fault.held.set()

    def node(self, settings: Settings, stop: StopSignal | None = None) -> Node:
        """The program's view of this node."""
        return Node(
            settings,
            stop,
            sysfs=Sysfs(self.tree.root),
            rtnl=FakeRtnl(self),
            ethtool=FakeEthtool(self),
            devlink=lambda: FakeDevlink(self),
            dcb=lambda: FakeDcbnl(self),
            vdpa=lambda: FakeVdpa(self),
            stack=FakeStack,
            namespaces=FakeNamespaces(),
            udev_run=self.udev_run,
            proc=self.proc,
            run=self.run,
        )

    # what a test may do to the node

    def add_pf(self, name: str = PF1, *, bus: str = "pci", totalvfs: int = 7) -> FakePf:
        """A PF that is bound, up, named and settled, without VFs."""
        number = len(self.pfs) + 1
        mac = Mac(f"52:54:00:00:00:{number:02x}")
        pf = self.pfs[name] = FakePf(bus, name, mac, totalvfs=totalvfs)
        self.names[name] = f"ens{number}np0"
        self.tree.make_device(bus, name)
        self.tree.make_driver(bus, DRIVER)
        self.tree.drive(bus, name, DRIVER)
        self.instances[name] = FakeInstance()
        self.tree.set(bus, name, "sriov_numvfs", "0")
        if bus == "pci":
            self.tree.set(bus, name, "sriov_drivers_autoprobe", "1")
        self.add_link(self.names[name], pf.mac, bus=bus, device=name, up=True, carrier=True)
        return pf

    def add_link(
        self, name: str, mac: str = ZERO, *, bus: str | None = None, device: str | None = None,
        **facts: object,
    ) -> Link:  # fmt: skip
        """An interface that is there, and that udev has finished with."""
        port = facts.pop("phys_port_name", None)
        link = self.new_link(name, Mac(mac), bus, device, None if port is None else str(port))
        self.change(link.index, **facts)
        self.udev_writes(link.index, "I:1\n")
        return self.links[link.index]

    def set_up(self, state: NodeState) -> None:
        """The PFs of `state` and all that it says of them, whatever the rules of writing are."""
        for pf in state.pfs:
            self.add_pf(pf.handle.name, bus=pf.handle.bus)
        for pf in state.pfs:
            self.give(pf)

    def give(self, state: Pf) -> None:
        """Make a PF that is there, and its VFs, what `state` says."""
        pf = self.pfs[state.handle.name]
        kept, self.delays = self.delays, Delays(0, 0, 0, 0)
        if state.eswitch_mode is not None:
            pf.eswitch = EswitchAttributes(
                eswitch_mode=state.eswitch_mode,
                inline_mode=state.inline_mode,
                encap_mode=state.encap_mode,
            )
            pf.params = {p.name: p for p in state.params}
        self._start_with(pf.name, state.driverinit)
        if state.dcb is not None:
            self.dcb[pf.name] = state.dcb
        if state.rates is not None:
            self.rates[pf.name] = state.rates
        if pf.bus == "pci":
            self.tree.set(pf.bus, pf.name, "sriov_drivers_autoprobe", "0")
        if state.subfunctions is not None:
            pf.subfunctions = {f.port: before_its_driver(f) for f in state.subfunctions}
        self.create_vfs(pf, state.numvfs or 0)
        for each in state.subfunctions or ():
            self._give_subfunction(pf, each)
        for vf in state.vfs:
            self._give_vf(pf, vf)
        if pf.bus == "pci":
            self.tree.set(
                pf.bus, pf.name, "sriov_drivers_autoprobe", str(int(bool(state.autoprobe)))
            )
        if state.netdev is not None:
            self._give_netdev(self.link(pf.name), state.netdev)
        ports = {
            link.phys_port_name: link for link in self.links.values() if link.device == pf.name
        }
        for representor in state.representors:
            self._give_netdev(ports[representor.port], representor.netdev)
        self.delays = kept

    def _give_subfunction(self, pf: FakePf, state: Subfunction) -> None:
        if not state.active:
            return
        self.start_subfunction(pf, state.port)
        device = self.subfunction_of(pf.name, state.port)
        self._start_with(device, state.driverinit)
        if state.netdev is not None:
            self._give_netdev(self.link(device), state.netdev)
        else:
            self.move_away(device)

    def _give_vf(self, pf: FakePf, state: Vf) -> None:
        vf = pf.vfs[state.index]
        if vf.function is not None:
            self._give_function(vf.function, state)
        vf.held = VfInfo(state.index, **given(state))
        vf.pf_has_set_mac = vf.held.admin_mac not in {None, ZERO}

    def _give_function(self, function: str, state: Vf) -> None:
        self.tree.set("pci", function, "driver_override", state.driver_override or "(null)")
        if state.driver not in {None, NO_DRIVER}:
            self.attach(function, state.driver or "")
            if state.driver == DRIVER:
                self._start_with(function, state.driverinit)
        if state.netdev is not None:
            self._give_netdev(self.link(function), state.netdev)
        elif state.driver == DRIVER:
            self.move_away(function)

    def _start_with(self, device: str, params: tuple[Param, ...] | None) -> None:
        """As after a reload with these, but for None: then never reloaded."""
        if params is not None:
            known = {each.name: each for each in params}
            self.instances[device] = FakeInstance(known, dict(known), reloads=1)

    def _give_netdev(self, link: Link, wanted: Netdev) -> None:
        every = {f.name: getattr(wanted, f.name) for f in dataclasses.fields(wanted)}
        settings = every.pop("ethtool")
        if settings is not None:
            self.ethtool[link.index] = dict(settings)
        every.pop("manager")
        every["af_spec"] = fake_sysctls.af_spec(dict(every.pop("sysctls") or ()))
        changes = {name: value for name, value in every.items() if value is not None}
        self.change(link.index, **changes, carrier=bool(wanted.up))

    def _write_sysctl(self, name: str, key: str, value: int, _proc: Path) -> None:
        (link,) = (link for link in self.links.values() if link.name == name)
        values = fake_sysctls.values_of(link.af_spec) | {key: value}
        self.change(link.index, af_spec=fake_sysctls.af_spec(values))

    def move_away(self, device: str) -> None:
        """The device's interface goes into another network namespace."""
        link = self.link(device)
        self.elsewhere.add(link.index)
        self.tree.hide(link)

    def unplug(self, name: str) -> None:
        """The PF is gone, with everything on it."""
        pf = self.pfs.pop(name)
        self.remove_vfs(pf)
        self.release(pf.bus, name)
        self.tree.remove_device(pf.bus, name)

    def restart(self) -> None:
        """The driver is unloaded and loaded: VFs, names, MTUs and states are gone."""
        for pf in self.pfs.values():
            self.release_pf(pf)
        for pf in self.pfs.values():
            self.attach(pf.name, DRIVER, pf.bus)


class FakeRtnl(Rtnl):
    """rtnetlink of a FakeNode; `requests` counts messages, as the real one does."""

    def __init__(self, node: FakeNode) -> None:
        self.requests = 0
        self.closed = False
        self._node = node

    def close(self) -> None:
        self.closed = True

    def links(self) -> dict[int, Link]:
        self.requests += 1
        here = self._node.links.items()
        return {index: link for index, link in here if index not in self._node.elsewhere}

    def vfs(self, index: int) -> tuple[VfInfo, ...]:
        self.requests += 1
        link = self._node.links.get(index)
        if link is None or index in self._node.elsewhere:
            raise KernelError(f"cannot read the VFs of interface {index}", errno=errno.ENODEV)
        pf = self._node.pfs[link.device or ""]
        hidden = self._node.without_info
        return tuple(vf.held for n, vf in sorted(pf.vfs.items()) if (pf.name, n) not in hidden)

    def change(self, changes: Sequence[Change]) -> list[OSError | None]:
        self.requests += len(changes)
        return [self._changed(change) for change in changes]

    def _changed(self, change: Change) -> OSError | None:
        try:
            self._node.link_change(change)
        except OSError as error:
            return error
        return None


class NoIoctls(Interface):
    """A driver that offers nothing by ioctls."""

    def __init__(self, index: int) -> None:
        self._index = index

    def ask(self, body: bytes, kind: int = 0) -> bytes:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


class FakeEthtool(Ethtool):
    """ethtool of a FakeNode: interfaces that have settings, and keys that a driver refuses."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node

    def close(self) -> None:
        return

    def interface(self, index: int) -> Interface:
        return NoIoctls(index)

    def directory(self, index: int) -> None:
        return None

    def settings(self, indexes: Collection[int]) -> dict[int, EthtoolSettings]:
        known = self._node.ethtool
        return {
            index: tuple(sorted(known[index].items()))
            for index in indexes
            if index in known and index in self._node.links
        }

    def change(self, changes: Sequence[ethtool.Change]) -> list[OSError | None]:
        return [self._changed(change) for change in changes]

    def _changed(self, change: ethtool.Change) -> OSError | None:
        refused = [key for key, _ in change.values if key in self._node.refused_settings]
        if refused:
            return OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._node.ethtool.setdefault(change.index, {}).update(change.values)
        self._node.ethtool_writes.append(change)
        return None


class FakeDevlink(Devlink):
    """devlink of a FakeNode: the PFs that have an eswitch."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node

    def close(self) -> None:
        return

    def instances(self) -> dict[DeviceHandle, Instance]:
        found: dict[DeviceHandle, Instance] = {}
        for pf in (each for each in self._node.pfs.values() if each.eswitch):
            for name in (pf.name, *(vf.function for vf in pf.vfs.values())):
                if name is not None and (own := self._node.instances.get(name)) is not None:
                    found[DeviceHandle(pf.bus, name)] = Instance(own.reloads, own.failed)
            for port in pf.subfunctions or ():
                name = self._node.subfunction_of(pf.name, port)
                if (own := self._node.instances.get(name)) is not None:
                    device = DeviceHandle("auxiliary", name)
                    found[device] = Instance(own.reloads, own.failed)
        return found

    def makes_subfunctions(self, device: DeviceHandle) -> bool:
        return self._node.pfs[device.name].subfunctions is not None

    def add_subfunction(self, device: DeviceHandle, wanted: Subfunction) -> None:
        pf = self._node.pfs[device.name]
        if wanted.port in self._node.refused_settings:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if pf.subfunctions is None or pf.eswitch is None or not pf.eswitch.is_switchdev:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if wanted.port in pf.subfunctions:
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        index = 100 + len(pf.subfunctions)
        pf.subfunctions[wanted.port] = Subfunction(wanted.port, index, ZERO, roce=True)
        self._node.update_representors(pf)

    def set_function(self, port: Port, changes: Mapping[str, Any]) -> None:
        pf = self._node.pfs[port.device.name]
        now = next(each for each in (pf.subfunctions or {}).values() if each.index == port.number)
        if pf.subfunctions is not None:
            pf.subfunctions[now.port] = dataclasses.replace(now, **changes)
        if changes.get("active") and not now.active:
            self._node.start_subfunction(pf, now.port)
        if changes.get("active") is False:
            self._node.stop_subfunction(pf, now.port)

    def eswitch(self, device: DeviceHandle) -> EswitchAttributes:
        return self._node.pfs[device[1]].eswitch or EswitchAttributes()

    def set_eswitch(self, device: DeviceHandle, wanted: EswitchAttributes) -> None:
        self._node.devlink_change(self._node.pfs[device[1]], "eswitch", wanted)

    def params(self) -> dict[Cmode, dict[DeviceHandle, tuple[Param, ...]]]:
        pfs = self._node.pfs.values()
        runtime = {DeviceHandle(pf.bus, pf.name): pf.params for pf in pfs}
        driverinit = {each: self._node.instances[each.name].params for each in self.instances()}
        return {
            mode: {each: tuple(params[name] for name in sorted(params)) for each, params in of_mode}
            for mode, of_mode in zip(Cmode, (runtime.items(), driverinit.items()), strict=True)
        }

    def driverinit(self, device: DeviceHandle, name: str) -> Param | None:
        if (own := self._node.instances.get(device.name)) is None:
            raise KernelError(f"cannot read {name} of {device}: ENODEV", errno=errno.ENODEV)
        return own.params.get(name)

    def reload(
        self, device: DeviceHandle, params: Sequence[Param] = (), before: Sequence[Param] = ()
    ) -> None:
        self._node.devlink_reload(device.name, params, before)

    def set_param(self, device: DeviceHandle, param: Param) -> None:
        self._node.devlink_change(self._node.pfs[device[1]], param.name, param)

    def rates(self) -> dict[DeviceHandle, tuple[Rate, ...]]:
        pfs = self._node.pfs.values()
        found = ((DeviceHandle(pf.bus, pf.name), self._node.rates.get(pf.name)) for pf in pfs)
        return {device: rates for device, rates in found if rates is not None}

    def ports(self) -> Ports:
        subfunctions = {
            DeviceHandle(pf.bus, pf.name): tuple(
                pf.subfunctions[p] for p in sorted(pf.subfunctions)
            )
            for pf in self._node.pfs.values()
            if pf.subfunctions
        }
        return Ports(frozenset(self._node.own_ports), {}, subfunctions)

    def reporters(self) -> dict[Port, dict[str, dict[str, bool | int]]]:
        return {
            port: {name: dict(values) for name, values in reporters.items()}
            for port, reporters in self._node.reporters.items()
        }

    def in_fatal_error(self) -> frozenset[DeviceHandle]:
        return frozenset(map(self._device, self._node.in_fatal_error))

    def fatal_errors(self) -> dict[DeviceHandle, FatalErrors]:
        counts = dict.fromkeys(self._node.in_fatal_error, 1) | self._node.fatal_errors
        return {
            self._device(name): FatalErrors(count, name not in self._node.in_fatal_error)
            for name, count in counts.items()
        }

    @staticmethod
    def _device(name: str) -> DeviceHandle:
        return DeviceHandle("auxiliary" if ".sf." in name else "pci", name)

    def recover(self, device: DeviceHandle) -> None:
        if device.name in self._node.never_recovers:
            raise OSError(errno.EIO, "Input/output error")
        self._node.in_fatal_error.discard(device.name)

    def set_reporter(self, port: Port, name: str, word: str, value: bool | int) -> None:
        self._node.reporters[port][name][word] = value

    def add_rate_node(self, device: DeviceHandle, name: str) -> None:
        self._write_rate(device, Rate(name=name, is_node=True))

    def set_rate(self, device: DeviceHandle, rate: Rate, changes: Mapping[str, Any]) -> None:
        now = {each.key: each for each in self._node.rates[device.name]}[rate.key]
        self._write_rate(device, dataclasses.replace(now, **changes))

    def _write_rate(self, device: DeviceHandle, rate: Rate) -> None:
        if str(rate) in self._node.refused_settings:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._node.rate_writes.append(f"{rate}: {rate.words()}")
        now = {each.key: each for each in self._node.rates.get(device.name, ())} | {rate.key: rate}
        self._node.rates[device.name] = tuple(each for _, each in sorted(now.items()))


class FakeVdpa(VdpaEdge):
    """The family vdpa of a FakeNode: `FakeNode.vdpa` by name, of bound `FakeNode.vdpa_managers`.

    The latter have the features that each offers. A new device is given to vhost_vdpa.
    """

    def __init__(self, node: FakeNode) -> None:
        self._node = node

    def close(self) -> None:
        return

    def managers(self) -> dict[DeviceHandle, int | None]:
        node, found = self._node, self._node.vdpa_managers.items()
        return {DeviceHandle("pci", name): v for name, v in found if node.tree.driver(name)}

    def devices(self) -> dict[DeviceHandle, tuple[Vdpa, ...]]:
        found: dict[DeviceHandle, list[Vdpa]] = {each: [] for each in self.managers()}
        for manager, each in list(self._node.vdpa.values()):
            if manager in found:
                found[manager].append(each)
            else:
                self.delete(each.name)  # with the driver of its function
        return {manager: tuple(devices) for manager, devices in found.items()}

    def add(self, manager: DeviceHandle, wanted: Vdpa) -> None:
        offered = self._node.vdpa_managers[manager.name]
        if (wanted.features or 0) & ~offered or wanted.name in self._node.refused_settings:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        made = dataclasses.replace(wanted, driver=NO_DRIVER, supported=offered)
        self._node.vdpa[wanted.name] = manager, made
        for driver in ("vhost_vdpa", "virtio_vdpa"):
            self._node.tree.make_driver("vdpa", driver)
        self._node.tree.make_device("vdpa", wanted.name)
        self._node.tree.drive("vdpa", wanted.name, "vhost_vdpa")

    def delete(self, name: str) -> None:
        del self._node.vdpa[name]
        self._node.tree.undrive("vdpa", name)
        self._node.tree.remove_device("vdpa", name)


class FakeDcbnl(Dcbnl):
    """dcbnl of a FakeNode: `FakeNode.dcb` by PF, which names what is not there."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node

    def close(self) -> None:
        return

    def dcb(self, name: str) -> Dcb | None:
        return self._node.dcb.get(self._pf(name))

    def set(self, name: str, part: str, value: Any) -> None:
        self._write(name, part, **{part: value})

    def add_apps(self, name: str, apps: Iterable[App]) -> None:
        now = self._node.dcb[self._pf(name)].app or ()
        self._write(name, "app", app=tuple(sorted({*now, *apps})))

    def delete_apps(self, name: str, apps: Iterable[App]) -> None:
        now = self._node.dcb[self._pf(name)].app or ()
        self._write(name, "app", app=tuple(sorted({*now} - {*apps})))

    def _write(self, name: str, part: str, **values: Any) -> None:
        if part in self._node.refused_settings:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._node.dcb_writes.append(part)
        pf = self._pf(name)
        self._node.dcb[pf] = dataclasses.replace(self._node.dcb[pf], **values)

    def _pf(self, name: str) -> str:
        links = self._node.links.values()
        return next((link.device or "" for link in links if link.name == name), "")


class _WatchedOs:
    """`os` as nodeagent.kernel.sysfs sees it: all is real but write(2) on a file of the tree."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def write(self, fd: int, data: bytes) -> int:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if not path.is_relative_to(self._node.tree.root):
            return os.write(fd, data)
        self._node.sysfs_write(path, data.decode())
        return len(data)
