"""The emulated node's PFs and VFs, set and read with iproute2 and sysfs alone.

Nothing here comes from nodeagent, so that what it gets wrong cannot hide: the state before and
after a reload is what `ip -details -json link` and sysfs say.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PCI = Path("/sys/bus/pci/devices")
DRIVER = "mlx5_core"
VFS = 7
"""VFs a PF: what QEMU's igb has."""
ATTRIBUTES = (
    *("driver", "netdev", "mac", "admin", "vlan", "qos", "trust", "spoof", "rate", "link", "mtu"),
    *("state", "numvfs", "autoprobe"),
)

State = dict[str, dict[str, str]]
"""`enp1s0`, `enp1s0 vf 3` ... to attribute and value, in the order of devices."""


@dataclass(frozen=True)
class Pf:
    """A PF as the lab makes it: number N is enpNs0, alone on PCI bus N."""

    number: int

    @property
    def name(self) -> str:
        return f"enp{self.number}s0"

    @property
    def address(self) -> str:
        return f"0000:{self.number:02x}:00.0"

    def function(self, vf: int) -> str:
        """igb's VFs: offset 128, stride 2 from the PF's routing ID."""
        return f"0000:{self.number:02x}:{0x10 + vf // 4:02x}.{vf % 4 * 2}"

    def mac(self, vf: int) -> str:
        return f"02:00:00:00:{self.number:02x}:{vf:02x}"


@dataclass(frozen=True)
class Recipe:
    """Batches for ip(8) that make a node's VFs what they are to be, each VF different.

    `prepare` comes before the VFs exist, `held` before they are bound (what the PF holds), `own`
    after (their netdevs), `late` when the PF has carrier: igb takes a rate only then.
    """

    pfs: tuple[Pf, ...]

    @property
    def prepare(self) -> list[str]:
        return [f"link set dev {pf.name} mtu 9000 up" for pf in self.pfs]

    @property
    def held(self) -> list[str]:
        return [
            f"link set dev {pf.name} vf {vf} mac {pf.mac(vf)} vlan {100 * pf.number + vf} "
            f"qos {vf} spoofchk {_on(vf % 3)} trust {_on(vf % 2)}"
            for pf, vf in self._vfs()
        ]

    @property
    def own(self) -> list[str]:
        return [
            f"link set dev {pf.name}v{vf} mtu {1600 + 100 * vf} {'down' if vf % 3 == 1 else 'up'}"
            for pf, vf in self._vfs()
        ]

    @property
    def late(self) -> list[str]:
        return [f"link set dev {pf.name} vf 6 max_tx_rate {100 * pf.number}" for pf in self.pfs]

    def write(self, directory: Path) -> None:
        """For floor.sh and reference.sh: the batches, the PFs, and each PF's VFs in a file."""
        directory.mkdir(parents=True)
        batches = {"prepare": self.prepare, "held": self.held, "own": self.own, "late": self.late}
        for name, lines in batches.items():
            (directory / f"{name}.ip").write_text("".join(f"{line}\n" for line in lines))
        (directory / "pfs").write_text("".join(f"{pf.address}\n" for pf in self.pfs))
        for pf in self.pfs:
            functions = "".join(f"{pf.function(vf)}\n" for vf in range(VFS))
            (directory / f"{pf.address}.vfs").write_text(functions)

    def _vfs(self) -> Iterator[tuple[Pf, int]]:
        return ((pf, vf) for pf in self.pfs for vf in range(VFS))


def present() -> tuple[Pf, ...]:
    """The PFs of this node."""
    devices = Path("/sys/bus/pci/drivers", DRIVER).glob("0000:*:00.0")
    return tuple(Pf(int(device.name[5:7], 16)) for device in sorted(devices))


def run(*argv: str | Path) -> str:
    """Run a command that must succeed; its stdout. Its stderr is shown."""
    return subprocess.run([*map(str, argv)], check=True, stdout=subprocess.PIPE, text=True).stdout


def wipe() -> None:
    """Unload and load the driver, as a reload does: the VFs are gone, the PFs back and renamed."""
    run("modprobe", "-r", DRIVER)
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
