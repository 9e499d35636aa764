"""What the kernel and its drivers make of each write to a fake node, and the faults in the way.

What they refuse, `kernel_rules` says; here are the refusals that only this node can meet.
"""

from __future__ import annotations

import dataclasses
import errno
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nodeagent.kernel.rtnl import AltnameChange, Change, Link, VfChange
from nodeagent.state.addresses import Mac
from nodeagent.state.attributes import LEGACY_MAX_SIZE
from nodeagent.state.eswitch import EswitchAttributes, EswitchMode
from nodeagent.state.model import Param
from tests.support import kernel_rules
from tests.support.fake_kernel import DRIVER, SF_DRIVER, ZERO, FakeInstance, FakeKernel, FakePf
from tests.support.kernel_rules import refusal

# the order of do_setlink() and do_setvfinfo() in net/core/rtnetlink.c
LINK_ORDER = (
    *("mac", "mtu", "group", "name", "alias", "up", "promisc", "allmulti", "arp", "multicast"),
    *("txqueuelen", "gso_max_size", "gso_max_segs", "gro_max_size", "gso_ipv4_max_size"),
    "gro_ipv4_max_size",
)
FOREVER = 1_000_000


@dataclass(frozen=True)
class Write:
    """One attribute written, or tried: a device or `0000:01:00.0 vf 3`, its attribute, a value."""

    target: str
    attribute: str
    value: object


@dataclass
class Fault:
    """What happens to a write instead: refused with `errno`; without one, silently ignored.

    `held`: it blocks until that event is set, and is then performed. `count`: a number of VFs that
    is made in place of the one asked for.
    """

    errno: int | None = None
    times: int = FOREVER
    held: threading.Event | None = None
    count: int | None = None


class FakeRules(FakeKernel):
    """The node and its writes. `trace` is told of each, before and after, and may raise."""

    def __init__(self, root: Path, *, igb: bool) -> None:
        super().__init__(root, igb=igb)
        self.faults: dict[tuple[str, str], Fault] = {}
        self.writes: list[Write] = []
        self.trace: Callable[[str], None] = lambda _: None

    def plant(self, target: str, attribute: str, fault: Fault) -> Fault:
        """From now on a write to that attribute of that target meets the fault."""
        self.faults[target, attribute] = fault
        return fault

    def written(self, *attributes: str) -> list[Write]:
        """The writes of these attributes, in order."""
        return [write for write in self.writes if write.attribute in attributes]

    # the ways in

    def sysfs_write(self, path: Path, value: str) -> None:
        """What write(2) on a file of the tree does."""
        text = value.strip()
        if path.name in {"bind", "unbind", "drivers_probe"}:
            self._perform(Write(text, path.name, path.parent.name), self._bus_write)
        elif path.parent.name in self.pfs or self.tree.device(path.parent.name).exists():
            self._perform(Write(path.parent.name, path.name, text), self._device_write)
        else:
            self.writes.append(Write(path.parent.name, path.name, text))
            path.write_text(text)

    def link_change(self, change: Change) -> None:
        """One RTM_SETLINK or RTM_NEWLINKPROP: attributes in the kernel's order, up to a refusal."""
        link = self.links.get(change.index)
        if link is None or change.index in self.elsewhere:
            raise refusal(errno.ENODEV)
        target = link.device or link.name
        if isinstance(change, VfChange):
            for attribute, value in _vf_attributes(change):
                self._perform(Write(f"{target} vf {change.vf}", attribute, value), self._set_vf)
        elif isinstance(change, AltnameChange):
            write = Write(target, "altname", (change.altname, change.add))
            self._perform(write, lambda write: self._set_altname(link.index, write))
        else:
            for attribute in LINK_ORDER:
                if getattr(change, attribute) is not None:
                    write = Write(target, attribute, getattr(change, attribute))
                    self._perform(write, lambda write: self._set_link(link.index, write))

    def devlink_change(self, pf: FakePf, attribute: str, value: object) -> None:
        """DEVLINK_CMD_ESWITCH_SET or DEVLINK_CMD_PARAM_SET."""
        if pf.eswitch is None:
            raise refusal(errno.EOPNOTSUPP)
        self._perform(Write(pf.name, attribute, value), self._set_devlink)

    def devlink_reload(self, device: str, params: Sequence[Param], before: Sequence[Param]) -> None:
        """DEVLINK_CMD_PARAM_SET of each, and DEVLINK_CMD_RELOAD; where that is refused, back."""
        instance = self.instances[device]
        instance.params |= {each.name: each for each in params}
        try:
            self._perform(Write(device, "reload", None), self._reload)
        except OSError:
            instance.params |= {each.name: each for each in before}
            raise

    def _reload(self, write: Write) -> None:
        """What a function has made goes and comes again; a PF's VFs do not come again."""
        name = write.target
        pf = self.pfs.get(name)
        bus = ("auxiliary" if ".sf." in name else "pci") if pf is None else pf.bus
        driver = SF_DRIVER if bus == "auxiliary" else DRIVER
        if pf is not None:
            self.remove_vfs(pf)
            self.remove_subfunctions(pf)
            pf.eswitch = dataclasses.replace(
                pf.eswitch or EswitchAttributes(), eswitch_mode=EswitchMode.LEGACY
            )
        before = self.instances[name]
        self.release(bus, name)
        self.attach(name, driver, bus)
        reloads = before.reloads + 1
        self.instances[name] = FakeInstance(before.params, dict(before.params), reloads)

    def _perform(self, write: Write, do: Callable[[Write], None]) -> None:
        with self.lock:
            self.trace(f"before {write}")
            self.writes.append(write)
            fault = self.faults.get((write.target, write.attribute))
            if fault is not None:
                fault.times -= 1
                fault = None if fault.times < 0 else fault
        if fault is not None and fault.held is not None:
            fault.held.wait()
        with self.lock:
            if fault is not None and fault.errno is not None:
                raise refusal(fault.errno)
            if fault is not None and fault.count is not None:
                do(dataclasses.replace(write, value=str(fault.count)))
            elif fault is None or fault.held is not None:
                do(write)
            self.trace(f"after {write}")

    def _bus_write(self, write: Write) -> None:
        """bind_store(), unbind_store() and drivers_probe_store() of drivers/base/bus.c."""
        name, now = write.target, self.tree.driver(write.target)
        if not self.tree.device(name).exists():
            raise refusal(errno.ENODEV)
        if write.attribute == "unbind":
            kernel_rules.check_unbind(now, str(write.value))
            if name in self.pfs:
                self.release_pf(self.pfs[name])
            else:
                self.release("pci", name)
            return
        override = self.tree.get(name, "driver_override").replace("(null)", "")
        autoprobe = self.autoprobes(name)
        if write.attribute == "bind":
            driver = str(write.value)
            kernel_rules.check_bind(now, driver, override, DRIVER, autoprobe=autoprobe)
            self.attach(name, driver)
        elif now is None and kernel_rules.takes(
            driver := override or DRIVER, override, DRIVER, autoprobe=autoprobe
        ):
            self.attach(name, driver)

    def _device_write(self, write: Write) -> None:
        name, text = write.target, str(write.value)
        if write.attribute == "sriov_numvfs":
            self._set_numvfs(self.pfs[name], int(text))
        else:
            is_cleared = write.attribute == "driver_override" and not text
            self.tree.set("pci", name, write.attribute, "(null)" if is_cleared else text)

    def _set_numvfs(self, pf: FakePf, count: int) -> None:
        """sriov_numvfs_store() of drivers/pci/iov.c."""
        if count > pf.totalvfs:
            raise refusal(errno.ERANGE)
        if count == pf.numvfs:
            return
        if self.tree.driver(pf.name, pf.bus) is None:
            raise refusal(errno.ENOENT)
        kernel_rules.check_numvfs(pf.numvfs, count)
        if count == 0:
            self.remove_vfs(pf)
        else:
            self.create_vfs(pf, count)

    def _set_vf(self, write: Write) -> None:
        name, _, number = write.target.partition(" vf ")
        vf = self.pfs[name].vfs.get(int(number))
        if vf is None:
            raise refusal(errno.EINVAL)
        changes: dict[str, object] = {write.attribute: write.value}
        match write.attribute, write.value:
            case "vlan", (vlan, qos, protocol):
                changes = {"vlan": vlan, "qos": qos, "vlan_proto": protocol}
            case "mac", mac:
                changes = {"admin_mac": mac}
            case "rate", (lowest, highest):
                changes = {"min_tx_rate": lowest, "max_tx_rate": highest}
        if self.igb:
            self._check_igb(name, changes)
        vf.held = dataclasses.replace(vf.held, **changes)  # type: ignore[arg-type] # by name
        if write.attribute == "mac":
            vf.pf_has_set_mac = write.value != ZERO

    def _check_igb(self, pf: str, changes: dict[str, object]) -> None:
        """igb_ndo_set_vf_*() of drivers/net/ethernet/intel/igb/igb_main.c."""
        if changes.keys() & {"link_state", "query_rss", "node_guid", "port_guid"}:
            raise refusal(errno.EOPNOTSUPP)
        if changes.get("vlan_proto", "802.1Q") != "802.1Q":
            raise refusal(errno.EPROTONOSUPPORT)
        if "max_tx_rate" in changes and (changes["min_tx_rate"] or not self.link(pf).carrier):
            raise refusal(errno.EINVAL)

    def _set_link(self, index: int, write: Write) -> None:
        link, attribute, value = self.links[index], write.attribute, write.value
        if value == getattr(link, attribute):
            return
        kernel_rules.check_link(attribute, value, up=link.up, is_taken=self.is_taken)
        self._check_vf_link(link, write)
        if attribute == "up":
            self.change(index, up=value, carrier=False)
            if value:
                self.later(self.delays.carrier, lambda: self.change(index, carrier=True))
            return
        follower = attribute.replace("_max", "_ipv4_max")  # netif_set_gso_max_size()
        if attribute in {"gso_max_size", "gro_max_size"} and int(str(value)) <= LEGACY_MAX_SIZE:
            self.change(index, **{follower: value})
        self.change(index, **{attribute: value})
        if attribute == "name":
            self.udev_sees_rename(index)

    def _check_vf_link(self, link: Link, write: Write) -> None:
        found = self.vf_of(link.device)
        if found is None:
            return
        pf, vf = found
        if write.attribute == "mac":
            # igb, which has no eswitch; mlx5e_set_mac() asks for no permission
            if pf.eswitch is None and vf.pf_has_set_mac:
                kernel_rules.check_vf_mac(write.value, vf.held.admin_mac)
            if self.igb:
                vf.held = dataclasses.replace(vf.held, admin_mac=Mac(str(write.value)))
        if write.attribute == "mtu":
            kernel_rules.check_vf_mtu(int(str(write.value)), self.link(pf.name).mtu)

    def _set_altname(self, index: int, write: Write) -> None:
        altnames = {*(self.links[index].altnames or ())}
        match write.value:
            case (str(name), True):
                if self.is_taken(name):
                    raise refusal(errno.EEXIST)
                altnames.add(name)
            case (str(name), False):
                # netdev_name_node_alt_destroy(), net/core/dev.c
                if not self.is_taken(name):
                    raise refusal(errno.ENOENT)
                if name not in altnames:
                    raise refusal(errno.EINVAL)
                altnames.remove(name)
        self.change(index, altnames=tuple(sorted(altnames)))

    def _set_devlink(self, write: Write) -> None:
        pf = self.pfs[write.target]
        match write.value:
            case Param() as param:
                pf.params[param.name] = param
            case EswitchAttributes() as wanted if pf.eswitch is not None:
                bound = (self.tree.driver(vf.function) for vf in pf.vfs.values() if vf.function)
                mode = pf.eswitch.eswitch_mode
                kernel_rules.check_eswitch_mode(mode, wanted.eswitch_mode, bound)
                given = {k: v for k, v in dataclasses.asdict(wanted).items() if v is not None}
                pf.eswitch = dataclasses.replace(pf.eswitch, **given)
                self.update_representors(pf)


def _vf_attributes(change: VfChange) -> list[tuple[str, object]]:
    """The attributes of one VF, in order; VLAN and rates as the tuples that the kernel takes."""
    vlan = (change.vlan, change.qos or 0, change.vlan_proto or "802.1Q")
    rates = (change.min_tx_rate or 0, change.max_tx_rate or 0)
    is_rated = change.min_tx_rate is not None or change.max_tx_rate is not None
    every = (
        ("mac", change.admin_mac),
        ("vlan", None if change.vlan is None else vlan),
        ("rate", rates if is_rated else None),
        ("spoofchk", change.spoofchk),
        ("link_state", change.link_state),
        ("query_rss", change.query_rss),
        ("trust", change.trust),
        ("node_guid", change.node_guid),
        ("port_guid", change.port_guid),
    )
    return [(name, value) for name, value in every if value is not None]
