"""The emulated node's PFs and VFs, set and read with iproute2 and sysfs alone.

Nothing here comes from nodeagent, so that what it gets wrong cannot hide: the state before and
after a reload is what `ip -details -json link` and sysfs say.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PCI = Path("/sys/bus/pci/devices")
DRIVER = "mlx5_core"
VFS = 7
"""VFs a PF: what QEMU's igb has."""
RDMA = ("mlx5_ib",)
"""Holds the driver on a ConnectX; where it isn't loaded, modprobe -r has nothing to do."""
PF_MTU = 9000
ATTRIBUTES = (
    *("driver", "netdev", "mac", "admin", "vlan", "qos", "trust", "spoof", "rate", "link", "mtu"),
    *("state", "numvfs", "autoprobe"),
)

State = dict[str, dict[str, str]]
"""`enp1s0`, `enp1s0 vf 3` ... to attribute and value, in the order of devices."""


@dataclass(frozen=True)
class Pf:
    """A PF of this node."""

    number: int
    """From 1, in the order of PCI addresses."""
    address: str
    name: str
    """Its netdev: enp1s0 on igb, enp1s0f0np0 on a ConnectX."""
    offset: int
    stride: int
    """Where its VFs are: routing IDs, from its own."""

    def function(self, vf: int) -> str:
        domain, bus, device, number = re.split("[:.]", self.address)
        own = int(device, 16) << 3 | int(number)
        at = own + self.offset + vf * self.stride
        return f"{domain}:{bus}:{at >> 3:02x}.{at & 7}"

    def netdev(self, vf: int) -> str:
        """A VF's netdev as udev names it: enp1s0v3, enp1s0f0v3."""
        return f"{re.sub('np[0-9]+$', '', self.name)}v{vf}"

    def mac(self, vf: int) -> str:
        return f"02:00:00:00:{self.number:02x}:{vf:02x}"


def held(pf: Pf, vf: int) -> tuple[str, ...]:
    """What the PF is to hold for a VF, before the VF is bound: words for `ip link set PF vf N`."""
    vlan = f"vlan {100 * pf.number + vf} qos {vf}"
    return f"mac {pf.mac(vf)}", vlan, f"spoofchk {_on(vf % 3)}", f"trust {_on(vf % 2)}"


def own(vf: int) -> tuple[str, ...]:
    """What the VF's netdev is to be: words for `ip link set NETDEV`."""
    return f"mtu {1600 + 100 * vf}", "down" if vf % 3 == 1 else "up"


def late(pf: Pf, vf: int) -> tuple[str, ...]:
    """What the PF takes only with carrier: igb computes a rate from the link's speed."""
    return (f"max_tx_rate {100 * pf.number}",) if vf == VFS - 1 else ()


def write_recipe(directory: Path, pfs: Sequence[Pf]) -> None:
    """All of that, each VF different, as files for the shell scripts.

    `pfs` has the PFs, ADDRESS.vfs a PF's VFs; prepare.ip, held.ip, own.ip and late.ip are batches
    for ip(8); FUNCTION.held, .own and .late have one attribute a line.
    """
    directory.mkdir(parents=True)
    write(directory / "pfs", (pf.address for pf in pfs))
    write(directory / "prepare.ip", (f"link set dev {pf.name} mtu {PF_MTU} up" for pf in pfs))
    batches: dict[str, list[str]] = {"held": [], "own": [], "late": []}
    for pf in pfs:
        write(directory / f"{pf.address}.vfs", (pf.function(vf) for vf in range(VFS)))
        for vf in range(VFS):
            holder, netdev = f"{pf.name} vf {vf}", pf.netdev(vf)
            parts = (
                ("held", holder, held(pf, vf)),
                ("own", netdev, own(vf)),
                ("late", holder, late(pf, vf)),
            )
            for name, target, words in parts:
                write(directory / f"{pf.function(vf)}.{name}", words)
                if words:
                    batches[name].append(f"link set dev {target} {' '.join(words)}")
    for name, lines in batches.items():
        write(directory / f"{name}.ip", lines)


def write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def present() -> tuple[Pf, ...]:
    """The PFs of this node."""
    devices = Path("/sys/bus/pci/drivers", DRIVER).glob("0000:*")
    pfs = sorted(each for each in devices if (each / "sriov_numvfs").exists())
    return tuple(
        Pf(
            number,
            pf.name,
            next(path.name for path in (pf / "net").iterdir()),
            int(_text(pf / "sriov_offset")),
            int(_text(pf / "sriov_stride")),
        )
        for number, pf in enumerate(pfs, 1)
    )


def run(*argv: str | Path) -> str:
    """Run a command that must succeed; its stdout. Its stderr is shown."""
    return subprocess.run([*map(str, argv)], check=True, stdout=subprocess.PIPE, text=True).stdout


def wipe() -> None:
    """Unload and load the driver, as a reload does: the VFs are gone, the PFs back and renamed."""
    run("modprobe", "-r", *RDMA, DRIVER)
    run("modprobe", DRIVER)
    run("udevadm", "settle")


def state(pfs: Sequence[Pf]) -> State:
    """Every PF and VF with everything that is to survive a reload."""
    links = json.loads(run("ip", "-details", "-json", "link", "show"))
    by_device = {link["parentdev"]: link for link in links if "parentdev" in link}
    found: State = {}
    for pf in pfs:
        link = by_device.get(pf.address, {})
        found[pf.name] = _device(pf.address, link) | {
            "numvfs": _text(PCI / pf.address / "sriov_numvfs"),
            "autoprobe": _text(PCI / pf.address / "sriov_drivers_autoprobe"),
        }
        for held in link.get("vfinfo_list", []):
            function = _target(PCI / pf.address / f"virtfn{held['vf']}")
            own = _device(function, by_device.get(function, {}))
            found[f"{pf.name} vf {held['vf']}"] = own | _held(held)
    return found


def differences(before: State, after: State) -> list[str]:
    """Each value that is not as before, as a line."""
    return [
        f"{target} {name}: {before.get(target, {}).get(name, 'none')} before, "
        f"{after.get(target, {}).get(name, 'none')} after"
        for target in dict.fromkeys((*before, *after))
        for name in ATTRIBUTES
        if before.get(target, {}).get(name) != after.get(target, {}).get(name)
    ]


def values(found: State) -> int:
    """How many values a comparison compares."""
    return sum(len(each) for each in found.values())


def _device(function: str, link: Mapping[str, object]) -> dict[str, str]:
    flags = link.get("flags", [])
    return {
        "driver": _target(PCI / function / "driver"),
        "netdev": str(link.get("ifname", "none")),
        "mac": str(link.get("address", "none")),
        "mtu": str(link.get("mtu", "none")),
        "state": "up" if isinstance(flags, list) and "UP" in flags else "down",
    }


def _held(vf: Mapping[str, object]) -> dict[str, str]:
    """What the PF holds for a VF. iproute2 leaves out what is 0, or what the driver lacks."""
    vlans = vf.get("vlan_list")
    vlan = vlans[0] if isinstance(vlans, list) and vlans else {}
    rate = vf.get("rate")
    rates = rate if isinstance(rate, dict) else {}
    return {
        "admin": str(vf.get("address", "none")),
        "vlan": str(vlan.get("vlan", 0)),
        "qos": str(vlan.get("qos", 0)),
        "trust": _on(vf.get("trust")),
        "spoof": _on(vf.get("spoofchk")),
        "link": str(vf.get("link_state", "none")),
        "rate": str(rates.get("max_tx", 0)),
    }


def _on(value: object) -> str:
    return "on" if value else "off"


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else "none"


def _target(link: Path) -> str:
    return link.readlink().name if link.is_symlink() else "none"
