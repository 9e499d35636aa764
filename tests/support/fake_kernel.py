"""What happens by itself on a fake node: functions, drivers, interfaces, udevd, and time.

What comes late comes after a number of ticks, and a tick is one drain of a watch: time passes only
while the program waits. When it waits and nothing is on its way, time jumps beyond every deadline.
So nothing sleeps, and nothing depends on how fast the machine is.

A netdev is a `Link` and what a PF holds for a VF is a `VfInfo`, the very types of the real edge.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from nodeagent.kernel.rtnl import Link, VfInfo
from nodeagent.state.addresses import Mac
from nodeagent.state.attributes import fresh, given
from nodeagent.state.eswitch import EswitchAttributes
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import Param, Subfunction
from nodeagent.state.vf import LinkState, VlanProtocol
from tests.support.fake_tree import FakeTree
from tests.support.simulate import FRESH_DRIVERINIT

ZERO = Mac("00:00:00:00:00:00")
PF1, PF2 = "0000:01:00.0", "0000:02:00.0"
DRIVER = "mlx5_core"
SF_DRIVER = f"{DRIVER}.sf"
AGES = 1e6
"""Seconds: longer than anybody waits for anything."""
IGB_VF = VfInfo(
    0,
    admin_mac=ZERO,
    vlan=0,
    qos=0,
    vlan_proto=VlanProtocol.Q,
    spoofchk=True,
    trust=False,
    link_state=LinkState.AUTO,
    min_tx_rate=0,
    max_tx_rate=0,
    query_rss=None,
)
NETDEVSIM_VF = VfInfo(
    0,
    admin_mac=ZERO,
    vlan=0,
    qos=0,
    vlan_proto=None,
    spoofchk=False,
    trust=False,
    link_state=LinkState.AUTO,
    min_tx_rate=0,
    max_tx_rate=0,
    query_rss=False,
)


@dataclass
class Delays:
    """In ticks; 0 is at once, inside the write."""

    functions: int = 0
    netdev: int = 1
    rename: int = 1
    carrier: int = 1


@dataclass
class FakeVf:
    """One VF: what its PF holds, and its function (None where VFs are no devices)."""

    held: VfInfo
    function: str | None
    pf_has_set_mac: bool = False


@dataclass
class FakePf:
    """One PF. `eswitch` is None for a device without devlink, which igb is."""

    bus: str
    name: str
    mac: Mac
    numvfs: int = 0
    totalvfs: int = 7
    vfs: dict[int, FakeVf] = field(default_factory=dict)
    eswitch: EswitchAttributes | None = None
    params: dict[str, Param] = field(default_factory=dict)
    subfunctions: dict[str, Subfunction] | None = None


@dataclass
class FakeInstance:
    """A function's devlink instance: what was set, what is in effect, how often it was reloaded."""

    params: dict[str, Param] = field(
        default_factory=lambda: {each.name: each for each in FRESH_DRIVERINIT}
    )
    in_effect: dict[str, Param] = field(default_factory=dict)
    reloads: int = 0
    failed: bool = False


class FakeWatch:
    """A descriptor that is always readable: to wait is to let time pass, which `drain` does."""

    kernel: FakeKernel
    left = 0

    def __init__(self) -> None:
        self.finished: set[int] = set()
        self.finished_at: dict[int, float] = {}
        self.descriptor = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.kernel.watches.append(self)

    def fileno(self) -> int:
        return self.descriptor

    def close(self) -> None:
        self.kernel.watches.remove(self)
        os.close(self.descriptor)


def is_representor(link: Link) -> bool:
    """Whether the interface stands for a VF or a subfunction: its port is `pf0vfN` or `pf0sfN`."""
    return (link.phys_port_name or "").startswith(("pf0vf", "pf0sf"))


class FakeKernel:
    """The truth about the node, and its physics."""

    def __init__(self, root: Path, *, igb: bool) -> None:
        self.igb = igb
        self.tree = FakeTree(root / "sys")
        self.udev_run = root / "udev"
        self.proc = root / "proc"
        self.run = root / "run"
        self.delays = Delays()
        self.pfs: dict[str, FakePf] = {}
        self.links: dict[int, Link] = {}
        self.elsewhere: set[int] = set()  # ifindexes that are in another network namespace
        self.never: set[str] = set()  # devices whose interface does not come
        self.missing: set[str] = set()  # functions that do not come
        self.instances: dict[str, FakeInstance] = {}  # of functions of PFs with devlink
        self.names: dict[str, str] = {}  # what udev calls the interface of a device
        self.watches: list[FakeWatch] = []
        self.lock = threading.RLock()
        self.skipped = 0.0
        self._pending: list[tuple[int, Callable[[], None]]] = []
        self._indexes = itertools.count(2)
        self._macs = itertools.count(1)
        self._events = 0
        (self.udev_run / "data").mkdir(parents=True)
        self._udevd: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._udevd.bind(str(self.udev_run / "control"))
        self._udevd.listen()

    # time

    def pass_time(self) -> None:
        """Somebody waits: one tick, or, when nothing is on its way, the end of all patience."""
        with self.lock:
            if self._pending:
                self.tick()
            else:
                self.skipped += AGES

    def monotonic(self) -> float:
        """What a wait takes for the time, in seconds."""
        return time.monotonic() + self.skipped

    def tick(self) -> None:
        """One tick: what is due happens."""
        with self.lock:
            due = [do for ticks, do in self._pending if ticks <= 1]
            self._pending = [(ticks - 1, do) for ticks, do in self._pending if ticks > 1]
            for do in due:
                do()

    def is_busy(self) -> bool:
        """Whether something is on its way."""
        return bool(self._pending)

    def settle(self) -> None:
        """Everything that is on its way comes."""
        while self._pending:
            self.tick()

    def later(self, ticks: int, do: Callable[[], None]) -> None:
        """`do` after so many ticks."""
        if ticks == 0:
            do()
        else:
            self._pending.append((ticks, do))

    # functions and drivers

    def function(self, index: int, pf: str = PF1) -> str:
        """The PCI address of a VF: offset 128, stride 2, as igb has it."""
        slot = 128 + 2 * index
        return f"{pf[:8]}{slot >> 3:02x}.{slot & 7}"

    def create_vfs(self, pf: FakePf, count: int) -> None:
        """The functions of `count` VFs, at once or one by one later."""
        pf.numvfs = count
        self.tree.set(pf.bus, pf.name, "sriov_numvfs", str(count))
        is_device = pf.bus == "pci"
        kind = IGB_VF if is_device else NETDEVSIM_VF
        for index in range(count):
            function = self.function(index, pf.name) if is_device else None
            pf.vfs[index] = FakeVf(dataclasses.replace(kind, index=index), function)
            if is_device:
                self._add_later(pf, index)
        self.update_representors(pf)

    def remove_vfs(self, pf: FakePf) -> None:
        """numvfs becomes 0: functions go, and with them their interfaces, wherever those are."""
        for index, vf in pf.vfs.items():
            if vf.function is not None and self.tree.device(vf.function).exists():
                self.release("pci", vf.function)
                self.tree.remove_function(pf.name, index, vf.function)
        pf.vfs.clear()
        pf.numvfs = 0
        self.tree.set(pf.bus, pf.name, "sriov_numvfs", "0")
        self.update_representors(pf)

    def update_representors(self, pf: FakePf) -> None:
        """In switchdev each VF has one, in legacy none has."""
        is_switch = pf.eswitch is not None and pf.eswitch.is_switchdev
        wanted = {f"pf0vf{index}" for index in pf.vfs} if is_switch else set()
        if not is_switch:
            self.remove_subfunctions(pf)
        wanted.update(pf.subfunctions or ())
        for link in [link for link in self.links.values() if link.device == pf.name]:
            port = link.phys_port_name or ""
            if is_representor(link) and port not in wanted:
                self._remove_link(link)
            wanted.discard(port)
        for port in sorted(wanted):
            self._add_representor_later(pf, port)

    def start_subfunction(self, pf: FakePf, port: str) -> None:
        """Its driver probes it, and makes an interface."""
        number = int(port[port.rindex("sf") + 2 :])
        name = self.subfunction_of(pf.name, port)
        self.tree.make_subfunction(pf.name, name, number)
        self.names[name] = f"own{number}"
        self.tree.make_driver("auxiliary", SF_DRIVER)
        self.later(self.delays.functions, lambda: self.attach(name, SF_DRIVER, "auxiliary"))

    def stop_subfunction(self, pf: FakePf, port: str) -> None:
        """Its driver lets go of it, and the device is gone."""
        name = self.subfunction_of(pf.name, port)
        if self.tree.device(name, "auxiliary").exists():
            self.release("auxiliary", name)
            self.tree.remove_subfunction(pf.name, name)

    def remove_subfunctions(self, pf: FakePf) -> None:
        """All of them, where the driver makes any."""
        for port in list(pf.subfunctions or ()):
            self.stop_subfunction(pf, port)
        if pf.subfunctions is not None:
            pf.subfunctions = {}

    @staticmethod
    def subfunction_of(pf: str, port: str) -> str:
        """The auxiliary device of a subfunction: no other PF has one of that name."""
        card = "".join(filter(str.isdigit, pf))
        return f"{DRIVER}.sf.{port[port.rindex('sf') + 2 :]}{card}"

    def autoprobes(self, name: str) -> bool:
        """pci_device_can_probe(): a VF asks its PF."""
        physfn = self.tree.device(name) / "physfn"
        return not physfn.exists() or (physfn / "sriov_drivers_autoprobe").read_text() == "1\n"

    def attach(self, name: str, driver: str, bus: str = "pci") -> None:
        """The device is bound, and its driver makes an interface."""
        self.tree.drive(bus, name, driver)
        if driver in {DRIVER, SF_DRIVER}:
            self.instances[name] = FakeInstance()
        if driver in {DRIVER, SF_DRIVER} and name not in self.never:
            self.later(self.delays.netdev, lambda: self._add_netdev(bus, name))

    def release(self, bus: str, name: str) -> None:
        """The driver lets go of the device."""
        for link in [link for link in self.links.values() if link.device == name]:
            self._remove_link(link)
        self.instances.pop(name, None)
        self.tree.undrive(bus, name)

    def release_pf(self, pf: FakePf) -> None:
        """The driver lets go of a PF, and of its VFs and subfunctions."""
        self.remove_vfs(pf)
        self.remove_subfunctions(pf)
        self.release(pf.bus, pf.name)

    def _remove_link(self, link: Link) -> None:
        self.tree.hide(link)
        del self.links[link.index]
        self.elsewhere.discard(link.index)
        (self.udev_run / "data" / f"n{link.index}").unlink(missing_ok=True)

    def _add_representor_later(self, pf: FakePf, port: str) -> None:
        mac = self._own_mac()

        def add() -> None:
            is_there = any(
                (link.device, link.phys_port_name) == (pf.name, port)
                for link in self.links.values()
            )
            is_switch = pf.eswitch is not None and pf.eswitch.is_switchdev
            if is_switch and not is_there:
                self._announce(self.new_link(self._ethernet(), mac, pf.bus, pf.name, port))

        self.later(self.delays.netdev, add)

    def _add_later(self, pf: FakePf, index: int) -> None:
        self.later(self.delays.functions, lambda: self._add_function(pf, index))

    def _add_function(self, pf: FakePf, index: int) -> None:
        vf = pf.vfs.get(index)
        if vf is None or vf.function is None or vf.function in self.missing:
            return
        if self.tree.device(vf.function).exists():
            return  # of VFs that were removed and made again while these were on their way
        self.tree.make_function(pf.name, index, vf.function)
        self.names.setdefault(vf.function, f"{self.names[pf.name]}v{index}")
        if self.autoprobes(vf.function):
            self.attach(vf.function, DRIVER)

    # interfaces

    def link(self, device: str) -> Link:
        """The interface of a device."""
        links = (link for link in self.links.values() if link.device == device)
        return next(link for link in links if not is_representor(link))

    def vf_of(self, function: str | None) -> tuple[FakePf, FakeVf] | None:
        """The PF and the VF whose device that is."""
        for pf in self.pfs.values():
            for vf in pf.vfs.values():
                if function is not None and vf.function == function:
                    return pf, vf
        return None

    def is_taken(self, name: str) -> bool:
        """Whether an interface has that name or alternative name."""
        here = (link for link in self.links.values() if link.index not in self.elsewhere)
        return any(name == link.name or name in (link.altnames or ()) for link in here)

    def change(self, index: int, **changes: object) -> None:
        """Give an interface other attributes, if it is still there."""
        link = self.links.get(index)
        if link is not None:
            self.tree.hide(link)
            changed = dataclasses.replace(link, **changes)  # type: ignore[arg-type] # by name
            self.links[index] = changed
            if index not in self.elsewhere:
                self.tree.show(changed)

    def new_link(
        self, name: str, mac: Mac, bus: str | None, device: str | None, port: str | None = None
    ) -> Link:
        """An interface, down, as alloc_etherdev() makes it."""
        index = 1 if name == "lo" else next(self._indexes)
        link = Link(
            index=index,
            name=name,
            mac=mac,
            mtu=1500,
            up=False,
            carrier=False,
            bus=bus,
            device=device,
            phys_port_name=port,
            **given(fresh(LinkAttributes)),
        )
        self.links[index] = link
        self.tree.show(link)
        return link

    def _add_netdev(self, bus: str, name: str) -> None:
        has_one = any(link.device == name for link in self.links.values())
        if not has_one and self.tree.driver(name, bus) in {DRIVER, SF_DRIVER}:
            self._announce(self.new_link(self._ethernet(), self._mac(name), bus, name))

    def _announce(self, link: Link) -> None:
        self._udev_later(lambda: self._udev_finishes(link.index))

    def _ethernet(self) -> str:
        return next(name for n in itertools.count() if not self.is_taken(name := f"eth{n}"))

    def _own_mac(self) -> Mac:
        number = f"{next(self._macs):06x}"
        return Mac(f"06:00:00:{number[:2]}:{number[2:4]}:{number[4:]}")

    def _mac(self, device: str) -> Mac:
        """A VF asks its PF for its MAC when it is bound: a PF that is down gives none.

        An igb VF that gets none tells its PF the one that it made up.
        """
        found = self.vf_of(device)
        if found is None:
            return self.pfs[device].mac if device in self.pfs else self._own_mac()
        pf, vf = found
        own = self._own_mac()
        if not any(link.up for link in self.links.values() if link.device == pf.name):
            return own
        if self.igb and not vf.pf_has_set_mac:
            vf.held = dataclasses.replace(vf.held, admin_mac=own)
        return vf.held.admin_mac if vf.pf_has_set_mac and vf.held.admin_mac else own

    # udevd

    def stop_udevd(self) -> None:
        """udevd is killed: its socket's file stays, and nobody listens."""
        if self._udevd is not None:
            self._udevd.close()
            self._udevd = None

    def udev_sees_rename(self, index: int) -> None:
        """Another has renamed an interface: udevd will run its rules for the `move` event."""
        self._udev_later(lambda: self._udev_follows(index))

    def _udev_later(self, do: Callable[[], None]) -> None:
        """An event for udevd; its queue's file is there until it has no more."""
        if self._udevd is None:
            return
        self._events += 1
        (self.udev_run / "queue").touch()

        def event() -> None:
            do()
            self._events -= 1
            if self._events == 0:
                (self.udev_run / "queue").unlink(missing_ok=True)

        self.later(self.delays.rename, event)

    def udev_writes(self, index: int, text: str) -> None:
        """An entry of udev's database."""
        (self.udev_run / "data" / f"n{index}").write_text(text)

    def _path_name(self, link: Link) -> str:
        name = self.names.get(link.device or "", link.name)
        return f"{name}_{link.phys_port_name}" if is_representor(link) else name

    def _udev_finishes(self, index: int) -> None:
        """Rename, then the database, then the broadcast; a rename that fails leaves no I: line."""
        link = self.links.get(index)
        if self._udevd is None or link is None or index in self.elsewhere:
            return
        wanted = self._path_name(link)
        if wanted == link.name:
            self.udev_writes(index, "I:1\n")
        elif link.up or self.is_taken(wanted):
            self.udev_writes(index, "E:ID_RENAMING=1\n")
        else:
            self.change(index, name=wanted)
            self.udev_writes(index, "I:1\n")
        self._udev_broadcasts(index)

    def _udev_follows(self, index: int) -> None:
        """The path's name becomes an alternative one (AlternativeNamesPolicy), where it is free."""
        link = self.links.get(index)
        if self._udevd is None or link is None:
            return
        path_name = self._path_name(link)
        if not self.is_taken(path_name):
            self.change(index, altnames=tuple(sorted({*(link.altnames or ()), path_name})))
        self._udev_broadcasts(index)

    def _udev_broadcasts(self, index: int) -> None:
        for watch in self.watches:
            watch.finished.add(index)
