"""A node drawn at random: a pure function of a seed and of the NIC, as lines of shell.

What is drawn is what nodeagent/README.md says is kept. What it says is left out is not drawn, with
the exceptions that `LEFT_OUT` names. A reload must bring all of it back, and the lines are what a
person would type: `scripts/lab roundtrip --show` prints them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

MODULES: Final = "bonding bridge 8021q macvlan ipvlan vrf dummy vfio-pci pci-stub"
LEFT_OUT: Final = {
    "port functions, vDPA devices": "devlink(8) of the lab is too old, and the card's firmware has "
    "vDPA when a test asks for it; tests/lab/connectx has a test of each",
    "VLAN and IPVLAN interfaces on representors": "they have their representor's random MAC",
    "flow_steering_mode": "the emulated card has dmfs alone",
    "software RDMA devices, RDMA's exclusive mode": "nobody has them beside namespaces of pods",
    "interfaces of a macvlan's or bridge's port that are in another namespace": "their CNI's",
    "MACs of igb's VFs": "igb refuses them",
    "hairpin ports of igb": "the emulated switch sends a frame back to its sender: it never ends",
    "bonds of igb's VFs": "the emulated igb can leave a VF in one without an answer: all stalls",
}


@dataclass(frozen=True)
class Nic:
    """What the lab's node has, and what its driver takes."""

    name: str
    pfs: tuple[str, ...]
    """PCI addresses."""
    interfaces: tuple[str, ...]
    vfs: int
    """How many a PF makes here at most."""
    vf: str
    """The name that udev gives a VF, by bus, PF and index."""
    mtu: int

    def vf_name(self, pf: int, index: int) -> str:
        return self.vf.format(bus=pf + 1, pf=pf, index=index)


IGB: Final = Nic(
    "igb", ("0000:01:00.0", "0000:02:00.0"), ("enp1s0", "enp2s0"), 7, "enp{bus}s0v{index}", 9000
)
CONNECTX: Final = Nic(
    "connectx",
    ("0000:01:00.0", "0000:01:00.1"),
    ("enp1s0f0np0", "enp1s0f1np1"),
    7,
    "enp1s0f{pf}v{index}",
    9000,
)
NICS: Final = {nic.name: nic for nic in (IGB, CONNECTX)}


@dataclass(frozen=True)
class Line:
    """A line of shell, and whose network it is for: 0 is the host's, others are pods'."""

    text: str
    pod: int = 0

    def __str__(self) -> str:
        return f"nsenter --net=/proc/$pod{self.pod}/ns/net {self.text}" if self.pod else self.text


@dataclass
class Port:
    """An interface of a function, or what stands on one."""

    name: str
    most: int
    """The largest MTU that it may have."""
    kind: str
    """pf, vf, sf, representor, vlan, macvlan, ipvlan, bond, bridge."""
    bare: bool = True
    """Nothing has been put on it, and it is in nothing."""
    vrf: str = ""
    v6: bool = True
    mtu: int = 1500
    up: bool = False
    bondable: bool = False
    vlans: bool = True
    """Whether it takes VLANs."""
    carrier: bool = True
    """Whether it has it once it is up; what stands on it has it, too."""
    switch: str = ""
    """Of which eswitch in switchdev mode it is a port."""
    function: str = ""
    """In switchdev mode, the VF or subfunction of which it is the interface or the representor."""
    below: str = ""
    """The interface that it stands on."""


@dataclass
class Place:
    """A network namespace, while it is drawn."""

    pod: int
    ports: list[Port] = field(default_factory=list)
    gateways: list[str] = field(default_factory=list)
    """Each with its interface, as `ip nexthop` takes them."""

    @property
    def tag(self) -> str:
        """Part of the names in it."""
        return f"p{self.pod}" if self.pod else "h"


def node(nic: Nic, seed: int) -> list[Line]:
    """All lines of a seed's node, in their order. Pods are numbered from 1."""
    return _Drawn(nic, seed).lines


def pods_of(lines: Sequence[Line]) -> int:
    """How many pods they need."""
    return max(line.pod for line in lines)


class _Drawn:
    """The lines so far, and the chance that draws the next."""

    def __init__(self, nic: Nic, seed: int) -> None:
        self.nic = nic
        self.chance = Random(f"{nic.name} {seed}")  # noqa: S311  no secret
        self.lines: list[Line] = []
        self.host = Place(0)
        self.pods = [Place(number + 1) for number in range(self.chance.randint(1, 3))]
        self.numbers = iter(range(1, 1000))
        self.switchdev = [self._is(0.4) and nic is CONNECTX for _ in nic.pfs]
        self.without_metadata: set[str] = set()
        self.disabled: set[tuple[int, int]] = set()
        self.tagged: set[tuple[int, int]] = set()
        self.bridged: list[set[str]] = []
        self.lag = nic is CONNECTX and self._is(0.2)
        if self.lag:
            self.switchdev = [True] * len(nic.pfs)
        self.mtus = [self._one(1500, 2000, 4000, nic.mtu) for _ in nic.pfs]
        self.names = [*nic.interfaces]
        self._draw()

    # chance

    def _is(self, probability: float) -> bool:
        return self.chance.random() < probability

    def _one(self, *choices: str | int) -> str | int:
        return self.chance.choice(choices)

    def _some(self, probability: float, *choices: str) -> list[str]:
        return [each for each in choices if self._is(probability)]

    # lines

    def _add(self, *texts: str, place: Place | None = None) -> None:
        self.lines += [Line(text, place.pod if place else 0) for text in texts]

    def _settle(self) -> None:
        self._add("udevadm settle")

    # the node

    def _draw(self) -> None:
        self._add(f"modprobe -a {MODULES}")
        defaults = self._some(0.15, *DEFAULT_SYSCTLS)
        early = self._is(0.5)
        if early:
            self._add(*(f"sysctl -qw {each}" for each in defaults))
        for address in self.nic.pfs:
            if self.nic is CONNECTX and self._is(0.2):  # udev then names its interface again
                self._start_with(address, self._some(0.5, *DRIVERINIT) or DRIVERINIT[:1])
        if self._is(0.15):
            self._swap_pfs()
        counts = [self._functions(pf) for pf in range(len(self.nic.pfs))]
        if self.lag:
            self._lag()
        for pf, count in enumerate(counts):
            self._vfs(pf, count)
        if not early:
            self._add(*(f"sysctl -qw {each}" for each in defaults))
        for place in (self.host, *self.pods):
            self._everything_on(place)
        for address in self.nic.pfs:
            if self._is(0.15):
                self._add(f"echo 0 > {PCI}/{address}/sriov_drivers_autoprobe")
        for place in (self.host, *self.pods):
            self._nexthops(place)
        if self.nic is CONNECTX:
            self._reporters()

    def _swap_pfs(self) -> None:
        """PFs with each other's names."""
        one, other = self.names
        self.names = [other, one]
        for old, new in ((one, "spare"), (other, one), ("spare", other)):
            self._add(f"ip link set {old} name {new}")
            self._settle()
            self._without_altname(new, old)

    def _functions(self, pf: int) -> int:
        """A PF, and how many VFs it has, which are unbound now; what it holds for each."""
        address, name = self.nic.pfs[pf], self.names[pf]
        count = self.chance.randint(0, self.nic.vfs)
        if self._is(0.3):
            self.names[pf] = str(self._one(*PF_NAMES)).format(pf=pf)
            self._add(f"ip link set {name} name {self.names[pf]}")
            self._settle()
            self._without_altname(self.names[pf], name)
            name = self.names[pf]
        self._add(f"ip link set {name} mtu {self.mtus[pf]} up")
        # igb is reset by most of it, and then answers no VF that is up
        self._ethtool(self.host, name, "pf")
        if self.nic is CONNECTX:
            self._port(pf)
        if count:
            self._add(f"echo {count} > {PCI}/{address}/sriov_numvfs")
            self._settle()
            self._held(pf, count)
            self._unbind(pf, count)
        if self.switchdev[pf] and (count or self.lag):
            self._add(f"devlink dev eswitch set pci/{address} mode switchdev")
            self._settle()
        mtu = int(self.mtus[pf])
        # a PF of igb that goes down for it, or a VRF (cycle_netdev()), answers no VF that is down
        free = self.nic is CONNECTX or not count
        port = Port(self.names[pf], mtu, "pf", mtu=mtu, up=True, bondable=free)
        port.switch = address if self.switchdev[pf] else ""
        self.host.ports.append(port)
        return count

    def _vfs(self, pf: int, count: int) -> None:
        """Bind the VFs of a PF; which driver they are left to, and whose they are."""
        if not count:
            return
        self._bind(pf)
        if self.switchdev[pf]:
            self._rates(pf, count)
            self._representors(pf, count)
            if self._is(0.3) and not self.lag:
                self._subfunction(pf)
        if self.nic is CONNECTX:
            for index in range(count):
                if self._is(0.07):
                    words = self._some(0.5, *VF_DRIVERINIT) or VF_DRIVERINIT[:1]
                    self._start_with(f"$(basename $(readlink {self._virtfn(pf, index)}))", words)
        self._roles(pf, count)

    def _virtfn(self, pf: int, index: int) -> str:
        return f"{PCI}/{self.nic.pfs[pf]}/virtfn{index}"

    def _start_with(self, address: str, params: Sequence[str]) -> None:
        """Parameters that a driver takes when its devlink instance is reloaded."""
        self._add(
            *(
                f"devlink dev param set pci/{address} name {each} cmode driverinit"
                for each in params
            ),
            f"devlink dev reload pci/{address} >/dev/null",
        )
        self._settle()

    def _held(self, pf: int, count: int) -> None:
        """What the PF holds for its VFs."""
        name, late = self.names[pf], []
        for index in range(count):
            words = []
            # switchdev needs a MAC: mlx5 makes none up for the VFs that it has then
            if self.switchdev[pf] or self._is(0.5):
                words.append(f"mac 02:00:00:{pf:02x}:00:{index:02x}")
            if not self.switchdev[pf]:
                if self._is(0.4):
                    self.tagged.add((pf, index))
                    words.append(f"vlan {self.chance.randint(1, 4094)} qos {self._one(*range(8))}")
                words += self._some(0.4, "trust on")
                words += [f"spoofchk {self._one('on', 'off')}"] if self._is(0.4) else []
                if self.nic is CONNECTX and self._is(0.4):
                    words.append(f"state {self._one('auto', 'enable', 'disable')}")
                    if words[-1] == "state disable":
                        self.disabled.add((pf, index))
            self._add(*(f"ip link set {name} vf {index} {word}" for word in words))
            if self._is(0.3) and not self.switchdev[pf]:
                least = f" min_tx_rate {self._one(10, 100)}" if self.nic is CONNECTX else ""
                late.append(f"vf {index} max_tx_rate {self.chance.randint(2, 9) * 100}{least}")
        if late:
            self._await_carrier(name)
            self._add(*(f"ip link set {name} {each}" for each in late))

    def _await_carrier(self, name: str) -> None:
        self._add(f"until grep -q 1 /sys/class/net/{name}/carrier; do sleep 0.1; done")

    def _unbind(self, pf: int, count: int) -> None:
        """A driver reads what its PF holds at a probe; an eswitch changes without bound VFs."""
        self._each_vf(pf, "unbind")
        if self.nic is CONNECTX and self._is(0.3):
            # those that give vectors back come first
            vectors = sorted(self.chance.sample((2, 4, 6, 12, 16), min(count, 2)))
            few = self.chance.sample(range(count), len(vectors))
            for index, number in zip(few, vectors, strict=True):
                self._add(f"echo {number} > {self._virtfn(pf, index)}/sriov_vf_msix_count")

    def _bind(self, pf: int) -> None:
        self._each_vf(pf, "bind")
        self._settle()

    def _each_vf(self, pf: int, file: str) -> None:
        every = f"for vf in {PCI}/{self.nic.pfs[pf]}/virtfn*; do basename $(readlink $vf)"
        self._add(f"{every} > /sys/bus/pci/drivers/mlx5_core/{file}; done")

    def _roles(self, pf: int, count: int) -> None:
        plain: list[str] = []
        for index in range(count):
            name, virtfn = self.nic.vf_name(pf, index), self._virtfn(pf, index)
            vf = f"vf=$(basename $(readlink {virtfn}))"
            take = f"{vf}; echo $vf > {virtfn}/driver/unbind"
            give = f"; echo %s > {virtfn}/driver_override; echo $vf > /sys/bus/pci/drivers_probe"
            draw = self.chance.random()
            if draw < 0.12:
                self._add(take + give % "vfio-pci")
            elif draw < 0.17:
                self._add(take + give % "pci-stub")
            elif draw < 0.25:
                self._add(take)
            elif draw < 0.5:
                pod = self.pods[self.chance.randrange(len(self.pods))]
                taken = {port.name for port in pod.ports}
                theirs = [f"net{len(taken) + 1}", *self._some(0.15, *self.nic.interfaces, name)]
                there = next(each for each in reversed(theirs) if each not in taken)
                self._add(f"ip link set {name} netns $pod{pod.pod} name {there}")
                pod.ports.append(self._vf_port(there, pf, index))
            else:
                plain.append(name)
                self.host.ports.append(self._vf_port(name, pf, index))
        self._rename(pf, plain)

    def _vf_port(self, name: str, pf: int, index: int) -> Port:
        # igb refuses VLANs of a VF that has one of its PF
        takes = self.nic is CONNECTX or (pf, index) not in self.tagged
        free = self.nic is CONNECTX
        # in switchdev mode a VF has carrier while its representor is up
        carrier = (pf, index) not in self.disabled and not self.switchdev[pf]
        mtu = int(self.mtus[pf])
        port = Port(name, mtu, "vf", bondable=free, vlans=takes, carrier=carrier)
        port.function = f"pf{pf}vf{index}" if self.switchdev[pf] else ""
        return port

    def _rename(self, pf: int, plain: list[str]) -> None:
        """New names, and two with each other's."""
        renames: list[tuple[str, str]] = []
        if len(plain) >= 2 and self._is(0.5):
            first, second, *plain = self.chance.sample(plain, len(plain))
            renames += [(first, "spare"), (second, first), ("spare", second)]
            one, other = self._port_of(first), self._port_of(second)
            one.name, other.name = second, first
        if plain and self._is(0.4):
            new = str(self._one(*VF_NAMES)).format(pf=pf)
            renames.append((plain[0], new))
            self._port_of(plain[0]).name = new
        for old, new in renames:
            self._add(f"ip link set {old} down", f"ip link set {old} name {new}")
            self._settle()
            self._without_altname(new, old)
        names = {port.name for port in self.host.ports}
        gone = [old for old, _ in renames if old not in {*names, "spare"}]
        if gone and len(plain) >= 2 and self._is(0.5):  # udev will call another one so
            self._add(f"ip link property add dev {plain[1]} altname {gone[0]}")

    def _without_altname(self, name: str, old: str) -> None:
        """udev has made one of the old name."""
        self._add(f"ip link property del dev {name} altname {old} 2>/dev/null || true")

    def _port_of(self, name: str) -> Port:
        return next(port for port in self.host.ports if port.name == name)

    # of the ConnectX alone

    def _port(self, pf: int) -> None:
        """DCB, and a devlink parameter that can be set at any time in legacy mode."""
        dev = f"dev {self.names[pf]}"
        if self._is(0.5):
            share = self.chance.randint(1, 9) * 10
            rest = " ".join(f"{tc}:strict" for tc in range(2, 8))
            bandwidth = f"0:{share} 1:{100 - share} 2:0 3:0 4:0 5:0 6:0 7:0"
            classes = " ".join(f"{prio}:{self.chance.randint(0, 3)}" for prio in range(8))
            self._add(
                f"dcb ets set {dev} tc-bw {bandwidth} tc-tsa 0:ets 1:ets {rest} prio-tc {classes}"
            )
        if self._is(0.4):
            self._add(f"dcb maxrate set {dev} tc-maxrate 2:1gbit 3:{self._one(2, 5, 30)}gbit")
        if self._is(0.4):
            lossless = self.chance.randint(1, 7)
            self._add(
                f"dcb pfc set {dev} prio-pfc {lossless}:on delay {self._one(3, 7, 20)}",
                f"dcb buffer set {dev} prio-buffer {lossless}:1",
                f"dcb buffer set {dev} buffer-size 0:100000 1:100000",
            )
        if self._is(0.4):
            dscp = " ".join(f"{self._one(*range(lo, lo + 8))}:{lo // 8 % 8}" for lo in (8, 24, 40))
            self._add(f"dcb app add {dev} dscp-prio {dscp}")
        if self._is(0.3):
            self.without_metadata.add(self.nic.pfs[pf])
            self._add(
                f"devlink dev param set pci/{self.nic.pfs[pf]} "
                "name esw_port_metadata value false cmode runtime"
            )

    def _rates(self, pf: int, count: int) -> None:
        rate, port = "devlink port function rate", f"pci/{self.nic.pfs[pf]}"
        gold = self._is(0.5)
        if gold:
            self._add(f"{rate} add {port}/gold tx_max {self._one(2, 10)}gbit")
        for number in range(1, count + 1):
            words = []
            if self._is(0.3):
                words.append(f"tx_max {self._one(100, 200, 1000)}mbit")
            if self._is(0.2):
                words.append(f"tx_share {self._one(8, 24)}mbit")
            if gold and self._is(0.4):
                words.append("parent gold")
            if words:
                found = f"s|^\\({port}/[0-9]*\\):.* vfnum {number - 1} .*|\\1|p"
                self._add(
                    f"port=$(devlink port show | sed -n '{found}'); "
                    f"{rate} set $port {' '.join(words)}"
                )

    def _lag(self) -> None:
        """A bond of which the card makes a LAG: firmware does so while no VF is bound."""
        first = f"active-backup primary {self.host.ports[0].name}"  # else the first with carrier
        mode = self._one("balance-xor", first, "802.3ad lacp_rate fast")
        self._add(f"ip link add bond-lag type bond mode {mode} miimon 100")
        self._settle()
        for port in self.host.ports:
            self._add(f"ip link set {port.name} down", f"ip link set {port.name} master bond-lag")
            port.bare = port.v6 = port.bondable = False
            port.mtu = 1500
        self._add("ip link set bond-lag up")
        for address in self.nic.pfs:
            self._add(f"until grep -qx active {DEBUGFS}/{address}/lag/state; do sleep 0.1; done")
        self.host.ports.append(Port("bond-lag", 1500, "bond", up=True, switch=self.nic.pfs[0]))

    def _subfunction(self, pf: int) -> None:
        """One with an interface, and one that is not active."""
        address, number, name = self.nic.pfs[pf], next(self.numbers), f"sub{pf}"
        add = f"devlink port add pci/{address} flavour pcisf pfnum {pf} sfnum"
        port = (
            f"devlink port show | sed -n 's|^\\(pci/{address}/[0-9]*\\):.* sfnum {number} .*|\\1|p'"
        )
        found = f"grep -lx {number} {PCI}/{address}/mlx5_core.sf.*/sfnum 2>/dev/null"
        self._add(
            f"{add} {number} >/dev/null",
            *(f"{add} {number + 300} >/dev/null" for _ in range(self.chance.randint(0, 1))),
            f"port=$({port}); devlink port function set $port hw_addr 02:55:00:00:00:{number:02x}; "
            "devlink port function set $port state active",
            f"until file=$({found}); do sleep 0.1; done; "
            "sf=auxiliary/$(basename $(dirname $file)); "
            "until devlink dev show $sf >/dev/null 2>&1; do sleep 0.1; done; "
            "devlink dev param set $sf name enable_eth value true cmode driverinit; "
            "devlink dev reload $sf >/dev/null; udevadm settle; "
            f"old=$(ls ${{file%/sfnum}}/net); ip link set $old name {name}; udevadm settle; "
            f"ip link property del dev {name} altname $old 2>/dev/null || true",
        )
        represented = f"pf{pf}sf{number}"
        self.host.ports.append(Port(name, 9000, "sf", carrier=False, function=represented))
        self._represented(pf, represented, f"rep{pf}s")

    def _reporters(self) -> None:
        """What devlink's health reporters do when something is wrong."""
        for address in self.nic.pfs:
            for words in self._some(0.15, *REPORTERS):
                self._add(f"devlink health set pci/{address} reporter {words}")
        for port in self.host.ports:
            if port.kind in ("pf", "vf") and not port.switch and self._is(0.1):
                handle = f"$(devlink port show {port.name} | sed 's/: .*//')"
                self._add(f"devlink health set {handle} reporter {self._one(*PORT_REPORTERS)}")

    def _representors(self, pf: int, count: int) -> None:
        for index in range(count):
            self._represented(pf, f"pf{pf}vf{index}", f"rep{pf}v{index}")

    def _represented(self, pf: int, port: str, called: str) -> None:
        self._add(
            f"dev=$(grep -slx {port} /sys/class/net/*/phys_port_name | cut -d/ -f5); "
            f"ip link set $dev down; ip link set $dev name {called}; udevadm settle; "
            f"ip link property del dev {called} altname $dev 2>/dev/null || true"
        )
        representor = Port(called, 9000, "representor", switch=self.nic.pfs[pf], function=port)
        self.host.ports.append(representor)

    # what stands on interfaces

    def _everything_on(self, place: Place) -> None:
        functions = [port for port in place.ports if port.kind != "bond"]
        for port in functions:
            self._settings(place, port)
        self._masters(place, [port for port in functions if port.bare])
        for port in [*place.ports]:
            self._children(place, port)
        self._masters_of_children(place)
        for port in place.ports:
            self._sysctls(place, port)
        for port in place.ports:
            self._network(place, port)
        for port in place.ports:
            if port.kind not in ("bridge", "bond"):
                self._qdisc(place, port)
        self._rules(place)

    def _settings(self, place: Place, port: Port) -> None:
        words = []
        if port.kind != "pf" and self._is(0.3):
            port.mtu = self.chance.randint(1400, port.most)
            words.append(f"mtu {port.mtu}")
        if self._is(0.2):
            words.append(f"txqueuelen {self.chance.randint(100, 2000)}")
        if self._is(0.2):
            words.append(f"alias {self._one('rack-4', 'tenant-1', 'to-the-spine')}")
        if self._is(0.15):
            words.append(f"group {self.chance.randint(1, 200)}")
        words += self._some(0.1, "promisc on", "allmulticast on", *LIMITS)
        if port.kind != "pf":  # a PF is up, and in groups that it would have joined before
            words += self._some(0.1, "arp off", "multicast off")
        if port.kind == "vf" and self.nic is CONNECTX and self._is(0.2):
            words.append(f"address 02:11:{next(self.numbers):02x}:00:00:{place.pod:02x}")
        self._add(*(f"ip link set {port.name} {word}" for word in words), place=place)
        if self._is(0.2):
            self._add(
                f"ip link property add dev {port.name} altname {port.name}-{place.tag}", place=place
            )
        if port.kind != "pf":
            self._ethtool(place, port.name, port.kind)
        if not port.up and self._is(0.8):
            self._up(place, port)

    def _up(self, place: Place, port: Port) -> None:
        port.up = True
        self._add(f"ip link set {port.name} up", place=place)

    def _ethtool(self, place: Place, name: str, kind: str) -> None:
        said = self._some(0.15, *ETHTOOL[self.nic.name, kind])
        self._add(*(f"ethtool {each.format(dev=name)}" for each in said), place=place)
        for each in self._some(0.12, *QUEUES[self.nic.name, kind]):
            line = f"cd /sys/class/net/{name}; {each}"
            if place.pod:
                line = f"mount -t sysfs sysfs /sys; {line}"
            self._add(f"unshare -m sh -ec '{line}'", place=place)

    def _masters(self, place: Place, functions: list[Port]) -> None:
        """A bond, a bridge and a VRF, of what is there."""
        left = self.chance.sample(functions, len(functions))
        if len(left) >= 2 and self._is(0.4):
            self._bond(place, left)
        # mlx5 takes ports of one eswitch for a bridge, and none while an eswitch of the card, which
        # looks at ports of the other, too, is without esw_port_metadata
        switches = {port.switch for port in self.host.ports}
        has_metadata = switches.isdisjoint(self.without_metadata)
        switch = next((port.switch for port in left if port.switch and has_metadata), "")
        bridgeable = [port for port in left if port.vlans and port.switch in ("", switch)]
        if bridgeable and self._is(0.5):
            self._bridge(place, bridgeable)
            left = [port for port in left if port.bare]
        if left and self._is(0.4) and (left[-1].kind != "pf" or left[-1].bondable):
            self._vrf(place, left.pop())

    def _bond(self, place: Place, left: list[Port]) -> None:
        members = [port for port in left if port.bondable][:2]
        if len(members) < 2:
            return
        name = f"bond-{place.tag}"
        primary = members[0].name
        mode = self._one(
            f"active-backup primary {primary} fail_over_mac active",
            f"active-backup primary {primary}",
            f"active-backup primary {primary} num_grat_arp 2",
            "balance-xor xmit_hash_policy layer3+4",
            "balance-tlb",
            "broadcast",
            "balance-rr packets_per_slave 7",
        )
        self._add(f"ip link add {name} type bond mode {mode} miimon 100", place=place)
        if not place.pod:
            self._settle()
        for number, member in enumerate(members):
            left.remove(member)
            member.bare = member.v6 = False
            member.up, member.mtu = True, 1500
            self._add(
                f"ip link set {member.name} down",
                f"ip link set {member.name} master {name}",
                place=place,
            )
            if self._is(0.3):
                self._add(
                    f"ip link set {member.name} type bond_slave queue_id {number + 1}", place=place
                )
        self._add(f"ip link set {name} up", place=place)
        if self._is(0.3):
            for port in members:
                port.mtu = 1450
            self._add(f"ip link set {name} mtu 1450", place=place)
        takes = all(member.vlans for member in members)
        port = Port(name, 1500, "bond", mtu=members[0].mtu, up=True, vlans=takes)
        port.switch = "".join(member.switch for member in members)
        place.ports.append(port)

    def _bridge(self, place: Place, left: list[Port]) -> None:
        name, filtering = f"br-{place.tag}", self._is(0.6)
        options = " ".join(
            self._some(0.2, "mcast_snooping 0", "ageing_time 9000", "stp_state 1 forward_delay 200")
        )
        self._add(
            f"ip link add {name} type bridge vlan_filtering {int(filtering)} {options}",
            place=place,
        )
        if not place.pod:
            self._settle()
        self._add(f"ip link set {name} up", place=place)
        members = [left.pop() for _ in range(min(len(left), self.chance.randint(1, 2)))]
        for member in members[: 1 if self._is_loop(members) else None]:
            member.bare = member.v6 = False
            self._add(f"ip link set {member.name} master {name}", place=place)
            # mlx5 offloads a bridge of an eswitch in switchdev mode, and then takes few of them
            offloaded = any(self.switchdev) and member.kind in ("pf", "representor")
            words = self._some(0.2, *(OFFLOADED if offloaded else BRIDGE_PORT))
            if self.nic is IGB and HAIRPIN in words:
                words.remove(HAIRPIN)
            self._add(*(f"bridge link set dev {member.name} {word}" for word in words), place=place)
            if not filtering:
                continue
            for vid in self.chance.sample(range(2, 4000), self.chance.randint(0, 3)):
                how = self._one("", "untagged", "pvid untagged")
                self._add(f"bridge vlan add dev {member.name} vid {vid} {how}", place=place)
            if self._is(0.3):
                self._add(f"bridge vlan add dev {member.name} vid 4001-4010", place=place)
            if self._is(0.3):
                self._add(f"bridge vlan del dev {member.name} vid 1", place=place)
        place.ports.append(Port(name, 1500, "bridge", up=True))

    def _is_loop(self, members: Sequence[Port]) -> bool:
        """A frame that a representor sends is the function's, and the other way round.

        So a bridge of both, or two bridges with two functions between them, flood for ever.
        """
        functions = [member.function for member in members if member.function]
        if len(functions) < 2:
            return False
        if len({*functions}) < 2 or {*functions} in self.bridged:
            return True
        self.bridged.append({*functions})
        return False

    def _masters_of_children(self, place: Place) -> None:
        """A bond or a child in a VRF or bridge of its own."""
        below = {port.below for port in place.ports}
        free = [
            port
            for port in place.ports
            if port.kind in ("bond", "vlan", "macvlan") and port.bare and port.name not in below
        ]
        if free and self._is(0.4):
            self._vrf(place, free.pop(self.chance.randrange(len(free))), "of")
        # a bridge that takes a port's lower MTU again lowers the MTU of IPv6 routes that it kept;
        # mlx5 takes no VLAN or LAG of an eswitch's port
        free = [
            port for port in free if port.kind != "macvlan" and port.mtu >= 1400 and not port.switch
        ]
        if free and self._is(0.4):
            port = free[self.chance.randrange(len(free))]
            name = f"brof-{place.tag}"
            self._add(f"ip link add {name} type bridge", place=place)
            if not place.pod:
                self._settle()
            self._add(
                f"ip link set {port.name} master {name}", f"ip link set {name} up", place=place
            )
            port.bare = port.v6 = False
            place.ports.append(Port(name, 1500, "bridge", up=True))

    def _vrf(self, place: Place, member: Port, of: str = "") -> None:
        name = f"vrf{of}-{place.tag}"
        self._add(
            f"ip link add {name} type vrf table {700 + place.pod + 50 * bool(of)}",
            f"ip link set {name} up",
            f"ip link set {member.name} master {name}",
            place=place,
        )
        member.vrf = name

    def _children(self, place: Place, port: Port, depth: int = 0) -> None:
        """VLAN interfaces on any, MACVLAN or IPVLAN ones on what is in nothing."""
        if port.kind in ("bridge", "ipvlan") or depth > 1 or not self._is(0.5 - 0.2 * depth):
            return
        made: list[Port] = []
        ipvlan_mode = ""
        for _ in range(self.chance.randint(1, 2)):
            number = next(self.numbers)
            kind = str(self._one("vlan", "macvlan", "ipvlan")) if port.bare else "vlan"
            if kind == "vlan" and not port.vlans:
                continue
            if kind != "macvlan" and port.kind == "representor":
                continue
            if any({each.kind, kind} == {"macvlan", "ipvlan"} for each in made):
                continue  # the kernel has one of the two on an interface
            name = str(self._one(f"{kind}{number}", f"{kind[:3]}.{number}"))
            if kind == "vlan":
                options = " ".join((f"id {number + 10}", *self._some(0.15, *VLAN)))
            else:
                mode = str(self._one(*CHILD_MODES[kind]))
                if kind == "ipvlan":  # all on an interface have the mode that was set last
                    ipvlan_mode = mode = ipvlan_mode or mode
                options = f"mode {mode}"
            made.append(Port(name, port.mtu, kind, vlans=port.vlans, mtu=port.mtu))
            made[-1].carrier, made[-1].below = port.carrier, port.name
            made[-1].switch = port.switch
            self._add(
                f"ip link add link {port.name} name {name} type {kind} {options}", place=place
            )
            if not place.pod:
                self._settle()  # udev gives an interface of the host's a MAC of its own
            if kind == "macvlan" and self._is(0.4):
                self._add(f"ip link set {name} address 02:22:00:00:00:{number:02x}", place=place)
            if self._is(0.3):
                made[-1].mtu = self.chance.randint(1300, port.mtu)
                self._add(f"ip link set {name} mtu {made[-1].mtu}", place=place)
            words = self._some(0.12, "alias of-a-tenant", "txqueuelen 77", "group 9", "promisc on")
            words += self._some(0.08, "allmulticast on", "arp off", "multicast off", *LIMITS)
            self._add(*(f"ip link set {name} {word}" for word in words), place=place)
            if self._is(0.2):
                self._add(f"ip link property add dev {name} altname {name}-also", place=place)
            if port.up and self._is(0.85):
                self._up(place, made[-1])
        place.ports += made
        for child in made:
            self._children(place, child, depth + 1)

    def _sysctls(self, place: Place, port: Port) -> None:
        for each in self._some(0.06, *SYSCTLS):
            if each == IPV6_MTU and (port.kind == "representor" or not port.up or not port.carrier):
                continue  # the kernel sets it to the interface's when there is carrier
            key, _, value = each.partition("=")
            family, tree, name = key.split("/")
            if each == DISABLE_IPV6:
                port.v6 = False
            self._add(f"sysctl -qw net/{family}/{tree}/{port.name}/{name}={value}", place=place)
        if self._is(0.08):
            self._add(f"ip link set {port.name} addrgenmode none", place=place)
        if self._is(0.1):  # refused where router advertisements are
            token = f"::{next(self.numbers):x}"
            self._add(f"ip token set {token} dev {port.name} 2>/dev/null || true", place=place)

    def _network(self, place: Place, port: Port) -> None:
        """Addresses, and what leads there."""
        if not port.up or not self._is(0.7) or not (port.bare or port.kind in ("bond", "bridge")):
            return
        number, dev = next(self.numbers), f"dev {port.name}"
        net, net6 = f"10.{number // 250}.{number % 250}", f"2001:db8:{number:x}:"
        vrf = f" vrf {port.vrf}" if port.vrf else ""
        table = vrf or (f" table {self.chance.randint(100, 105)}" if self._is(0.3) else "")
        how = self._address(port)
        on = f"{dev} onlink" if "noprefix" in how else dev
        self._add(f"ip address add {net}.1/24 {how}{dev}", place=place)
        if self._is(0.3):
            self._add(f"ip address add {net}.2/24 {dev}", place=place)
        more = [
            f"10.250.{number}.1 peer 10.250.{number}.2/32 {dev}",
            f"10.251.{number}.1/32 {dev} scope link",
            f"10.252.{number}.1/31 {dev} valid_lft 90000 preferred_lft 80000",
            f"169.254.{number}.1/16 {dev} scope link metric {number}",
            f"{net}.129/25 {dev}",
        ]
        self._add(*(f"ip address add {each}" for each in self._some(0.12, *more)), place=place)
        routes = [
            f"198.18.{number}.0/24 via {net}.9 {on}{table}{self._route()}",
            f"198.19.{number}.0/24 {dev} scope link metric {number}{vrf}",
            f"198.18.{number}.0/25 via {net}.9 {on} src {net}.1{vrf}",
            f"198.51.{number}.0/24{vrf} nexthop via {net}.9 {on} weight 3 nexthop via {net}.8 {on}",
            f"203.0.{number}.0/24 via 192.168.77.1 {dev} onlink tos 0x10{vrf}",
            f"unreachable 203.1.{number}.0/24 metric 77{vrf}",
            f"default via {net}.9 {on} metric {number}{table} proto dhcp src {net}.1",
            f"throw 203.2.{number}.0/24{table}",
            f"198.21.{number}.0/24 via {net}.9 {on} mtu lock 1400 initcwnd 20 rto_min 5ms{table}",
            f"198.22.{number}.0/24 via {net}.9 {on} features ecn quickack 1 hoplimit 9{table}",
            f"multicast 239.1.{number}.0/24 {dev}{table}",
        ]
        if port.v6:
            routes.append(f"198.23.{number}.0/24 via inet6 fe80::9 {dev} onlink{table}")
        self._add(*(f"ip route add {each}" for each in self._some(0.3, *routes)), place=place)
        if _takes_nexthops(port):
            place.gateways.append(f"via {net}.9 {on}")
        neighbours = [
            f"{net}.9 lladdr 02:33:00:00:00:{number:02x} {dev} nud permanent",
            f"proxy {net}.200 {dev}",
        ]
        if port.v6:
            neighbours += [
                f"{net6}:9 lladdr 02:33:00:00:06:{number:02x} {dev} nud permanent",
                f"{net6}:8 lladdr 02:33:00:00:07:{number:02x} {dev} nud permanent router",
            ]
            self._network6(place, port, number)
        self._add(*(f"ip neigh add {each}" for each in self._some(0.3, *neighbours)), place=place)

    def _address(self, port: Port) -> str:
        label = f"label {port.name}:a " if len(port.name) < 13 else ""
        ways = ("", "", "broadcast + ", "noprefixroute ", "metric 77 ", label)
        return str(self._one(*ways))

    def _route(self) -> str:
        return str(self._one("", " mtu 1400", " proto static metric 50", " metric 300 advmss 1300"))

    def _network6(self, place: Place, port: Port, number: int) -> None:
        if not self._is(0.6):
            return
        net6, dev = f"2001:db8:{number:x}:", f"dev {port.name}"
        vrf = f" vrf {port.vrf}" if port.vrf else ""
        # the emulated switch of igb echoes the question of DAD: nobody could use the address
        more = self._one("", " noprefixroute", " home", " valid_lft 90000 preferred_lft 80000")
        self._add(f"ip address add {net6}:1/64 {dev} nodad{more}", place=place)
        others = [
            f"fe80::{number:x}:77/64 {dev} nodad",
            f"{net6}:5/128 {dev} nodad preferred_lft 0",
            f"{net6}:6 peer 2001:db8:99::{number:x}/128 {dev} nodad",
            f"{net6}:7/64 {dev} nodad metric {number}",
        ]
        self._add(*(f"ip address add {each}" for each in self._some(0.12, *others)), place=place)
        routes = [
            f"2001:db8:f{number:03x}::/48 via {net6}:9 {dev}{vrf}",
            f"2001:db8:e{number:03x}::/48 via fe80::9 {dev} metric 77 mtu 1400{vrf}",
            f"2001:db8:d{number:03x}::/48{vrf} nexthop via fe80::9 {dev} nexthop via fe80::8 {dev}",
            f"2001:db8:c{number:03x}::/48 via fe80::7 {dev} src {net6}:1 pref high{vrf}",
            f"2001:db8:a{number:03x}::/48 via fe80::7 {dev} expires 80000{vrf}",
            f"2001:db8:9{number:03x}::/48 {dev} metric 5 advmss 1200 hoplimit 7{vrf}",
            f"default via fe80::9 {dev} metric {number} proto ra{vrf}",
            f"prohibit 2001:db8:8{number:03x}::/48{vrf}",
        ]
        if more == " noprefixroute":
            routes = routes[1:]
        if _takes_nexthops(port):
            place.gateways.append(f"via fe80::9 {dev}")
        self._add(*(f"ip route add {each}" for each in self._some(0.3, *routes)), place=place)

    def _nexthops(self, place: Place) -> None:
        """Nexthop objects, groups of those of a family, and routes by them."""
        families: dict[bool, list[int]] = {}
        for number, gateway in enumerate(place.gateways, 1):
            if self._is(0.3):
                families.setdefault("fe80" in gateway, []).append(number)
                proto = self._one("", " proto static")
                add = f"ip nexthop add id {number} {gateway}{proto}"
                self._add(
                    f"timeout 60 sh -c 'until {add} 2>/dev/null; do sleep 0.2; done'", place=place
                )
        for is_v6, numbers in sorted(families.items()):
            group = 100 + is_v6
            members = "/".join(f"{each},{self.chance.randint(1, 4)}" for each in numbers)
            kind = self._one("", " type resilient buckets 16 idle_timer 60")
            self._add(f"ip nexthop add id {group} group {members}{kind}", place=place)
            for number in (group, *numbers):
                net = f"2001:db8:b{number:03x}::/48" if is_v6 else f"198.20.{number}.0/24"
                self._add(f"ip route add {net} nhid {number}", place=place)

    def _rules(self, place: Place) -> None:
        for port in place.ports:
            if self._is(0.12):
                way = self._one("iif", "oif")
                number = next(self.numbers)
                family = self._one("-4", "-6")
                more = self._one("", "", "fwmark 0x7/0xff ", "ipproto tcp dport 53 ", "not ")
                rest = self._one("", "", " suppress_prefixlength 0", " suppress_ifgroup 7")
                self._add(
                    f"ip {family} rule add {more}{way} {port.name} lookup 10{number % 6} "
                    f"priority {1000 + number}{rest}",
                    place=place,
                )

    def _qdisc(self, place: Place, port: Port) -> None:
        if not self._is(0.3):
            return
        add, number = f"tc qdisc add dev {port.name}", next(self.numbers)
        handle = number + 16 if number % 3 else 1  # most scripts call each root 1:
        draw = self.chance.choice([*QDISCS, *ROOTS, PRIO])
        self._add(f"{add} root handle {handle:x}: {draw}", place=place)
        if draw == PRIO:
            for band in self.chance.sample(range(1, 5), 2):
                inner = self.chance.choice(QDISCS)
                self._add(
                    f"{add} parent {handle:x}:{band} handle {next(self.numbers) + 16:x}: {inner}",
                    place=place,
                )


def _takes_nexthops(port: Port) -> bool:
    """The kernel takes no nexthop on an interface without carrier (rtm_to_nh_config())."""
    return port.carrier and not port.vrf and port.kind in ("pf", "vf", "vlan", "macvlan", "ipvlan")


PCI: Final = "/sys/bus/pci/devices"
DEFAULT_SYSCTLS: Final = (
    "net.ipv4.conf.default.rp_filter=2",
    "net.ipv4.conf.default.arp_ignore=1",
    "net.ipv6.conf.default.accept_ra=0",
    "net.ipv6.conf.default.hop_limit=60",
    "net.ipv4.neigh.default.gc_stale_time=70",
)
PF_NAMES: Final = ("uplink{pf}", "eth{pf}", "port.{pf}", "to-the-spine-s{pf}", "net{pf}")
VF_NAMES: Final = ("fifteen-letter{pf}", "data{pf}", "eth1{pf}", "vf.{pf}")
LIMITS: Final = ("gso_max_size 30000", "gso_max_segs 99", "gro_max_size 20000")
DEBUGFS: Final = "/sys/kernel/debug/mlx5"
DRIVERINIT: Final = ("event_eq_size value 2048", "io_eq_size value 512", "fdb_large_groups value 7")
VF_DRIVERINIT: Final = ("io_eq_size value 128", "max_macs value 64", "enable_roce value false")
REPORTERS: Final = (
    "fw auto_dump false",
    "fw_fatal auto_recover false",
    "fw_fatal grace_period 90000",
)
PORT_REPORTERS: Final = ("tx grace_period 700", "tx auto_dump false", "rx auto_recover false")
IPV6_MTU: Final = "ipv6/conf/mtu=1290"
DISABLE_IPV6: Final = "ipv6/conf/disable_ipv6=1"
SYSCTLS: Final = (
    *("ipv4/conf/arp_filter=1", "ipv4/conf/route_localnet=1", "ipv4/conf/shared_media=0"),
    *("ipv4/conf/src_valid_mark=1", "ipv4/conf/secure_redirects=0", "ipv4/conf/tag=7"),
    *("ipv4/conf/accept_source_route=1", "ipv4/conf/accept_redirects=0", "ipv4/conf/medium_id=3"),
    *("ipv4/conf/proxy_arp_pvlan=1", "ipv4/conf/arp_accept=1", "ipv4/conf/bc_forwarding=1"),
    *("ipv4/conf/force_igmp_version=2", "ipv4/conf/disable_policy=1", "ipv4/conf/disable_xfrm=1"),
    *("ipv4/conf/drop_gratuitous_arp=1", "ipv4/conf/arp_evict_nocarrier=0"),
    *("ipv4/conf/drop_unicast_in_l2_multicast=1", "ipv4/conf/igmpv3_unsolicited_report_interval=9"),
    *("ipv6/conf/accept_dad=0", "ipv6/conf/accept_redirects=0", "ipv6/conf/max_addresses=8"),
    *("ipv6/conf/accept_ra_defrtr=0", "ipv6/conf/accept_ra_rt_info_max_plen=64"),
    *("ipv6/conf/force_mld_version=1", IPV6_MTU, "ipv6/conf/ndisc_tclass=9"),
    *("ipv6/conf/seg6_enabled=1", "ipv6/conf/enhanced_dad=0", "ipv6/conf/disable_policy=1"),
    *("ipv6/conf/drop_unsolicited_na=1", "ipv6/conf/suppress_frag_ndisc=0"),
    *("ipv6/conf/ignore_routes_with_linkdown=1", "ipv6/conf/use_oif_addrs_only=1"),
    *("ipv6/conf/temp_prefered_lft=7000", "ipv6/conf/router_solicitation_interval=9"),
    *("ipv4/neigh/proxy_qlen=9", "ipv4/neigh/mcast_solicit=5", "ipv4/neigh/unres_qlen_bytes=90000"),
    *("ipv4/neigh/app_solicit=1", "ipv4/neigh/delay_first_probe_time=9"),
    *("ipv4/neigh/base_reachable_time_ms=15000", "ipv6/neigh/mcast_resolicit=2"),
    *("ipv6/neigh/proxy_delay=70", "ipv6/neigh/anycast_delay=90", "ipv6/neigh/locktime=7"),
    "ipv4/conf/rp_filter=2",
    "ipv4/conf/rp_filter=1",
    "ipv4/conf/arp_ignore=1",
    "ipv4/conf/arp_announce=2",
    "ipv4/conf/forwarding=1",
    "ipv4/conf/proxy_arp=1",
    "ipv4/conf/log_martians=1",
    "ipv4/conf/accept_local=1",
    "ipv4/conf/arp_notify=1",
    "ipv4/conf/promote_secondaries=1",
    "ipv4/conf/send_redirects=0",
    "ipv4/conf/ignore_routes_with_linkdown=1",
    "ipv6/conf/accept_ra=0",
    "ipv6/conf/autoconf=0",
    "ipv6/conf/hop_limit=33",
    "ipv6/conf/dad_transmits=0",
    "ipv6/conf/router_solicitations=0",
    "ipv6/conf/use_tempaddr=-1",
    "ipv6/conf/proxy_ndp=1",
    "ipv6/conf/keep_addr_on_down=1",
    "ipv6/conf/ndisc_notify=1",
    DISABLE_IPV6,
    "ipv4/neigh/gc_stale_time=77",
    "ipv4/neigh/locktime=60",
    "ipv4/neigh/ucast_solicit=4",
    "ipv6/neigh/base_reachable_time_ms=12000",
    "ipv6/neigh/retrans_time_ms=900",
)
HAIRPIN: Final = "hairpin on"
BRIDGE_PORT: Final = (
    *("cost 55", "priority 9", HAIRPIN, "isolated on", "learning off", "flood off"),
    *("guard on", "fastleave on", "mcast_flood off", "bcast_flood off", "neigh_suppress on"),
    *("root_block on", "locked on", "mcast_router 2", "mcast_to_unicast on", "vlan_tunnel on"),
)
OFFLOADED: Final = ("cost 55", "priority 9", "learning off", "flood off", "mcast_flood off")
VLAN: Final = (
    *("protocol 802.1ad", "gvrp on", "loose_binding on", "reorder_hdr off"),
    *("egress-qos-map 1:3 2:5", "ingress-qos-map 4:2"),
)
CHILD_MODES: Final = {
    "macvlan": ("bridge", "private", "vepa", "bridge bcqueuelen 2000"),
    "ipvlan": ("l2", "l3", "l3s", "l2 private", "l3 vepa"),
}
ROOTS: Final = (
    "pfifo_head_drop limit 78",
    "pie limit 500 target 20ms tupdate 30ms alpha 3 beta 22 ecn bytemode",
    "cake bandwidth 50mbit diffserv4 dual-srchost nat ack-filter rtt 50ms overhead 18 mpu 64",
    "ets bands 6 strict 2 quanta 3000 2000 1500 1000 priomap 0 1 2 3 4 5 5 5 5 5 5 5 5 5 5 5",
)
PRIO: Final = "prio bands 4 priomap 1 2 2 2 1 2 0 0 1 1 1 1 1 1 1 3"
QDISCS: Final = (
    "fq limit 777 flow_limit 33 quantum 5000 initial_quantum 9000 maxrate 50mbit nopacing",
    "fq_codel limit 2000 flows 512 target 7ms interval 90ms noecn ce_threshold 3ms",
    "codel limit 300 target 6ms interval 80ms ecn",
    "tbf rate 5mbit burst 20kb latency 50ms peakrate 7mbit minburst 2000",
    "pfifo limit 77",
    "bfifo limit 7777",
)
ETHTOOL: Final = {
    ("igb", "pf"): (
        "--set-priv-flags {dev} legacy-rx on",
        "-G {dev} rx 512 tx 1024",
        "-C {dev} rx-usecs 50",
        "-A {dev} autoneg off rx on tx off",
        "-K {dev} gro off rxvlan off",
        "-K {dev} tso off",
    ),
    ("igb", "vf"): (
        "-G {dev} rx 2048 tx 512",
        "-C {dev} rx-usecs 20",
        "-K {dev} tso off gro off",
        "-K {dev} rx-udp-gro-forwarding on",
    ),
    ("connectx", "pf"): (
        "-G {dev} rx 512 tx 2048",
        "-C {dev} adaptive-rx off rx-usecs 33 rx-frames 64",
        "-A {dev} rx off tx off",
        "-K {dev} gro off rxvlan off",
        "-K {dev} rx-udp-gro-forwarding on",
        "--set-priv-flags {dev} rx_cqe_moder on",
        "-X {dev} hfunc xor",
        "-N {dev} flow-type udp4 dst-ip 10.0.0.0 m 0.0.0.255 dst-port 53 action -1 loc 5",
        "-L {dev} combined 1",
        "-K {dev} rxhash off rx off",
        "-K {dev} rx-fcs on",
        "--set-priv-flags {dev} skb_tx_mpwqe off",
    ),
    ("connectx", "vf"): (
        "-G {dev} rx 256",
        "-C {dev} adaptive-tx off tx-usecs 20",
        "-K {dev} tso off gro off",
        "-K {dev} rx-udp-gro-forwarding on",
        "--set-priv-flags {dev} rx_no_csum_complete on",
        "-N {dev} rx-flow-hash udp4 sd",
        "-N {dev} flow-type ether dst 02:00:00:00:00:09 m 00:00:00:00:00:00 action 0 loc 3",
        "-X {dev} hkey " + ":".join(["5a"] * 40),
        "-K {dev} sg off",
    ),
    ("connectx", "sf"): ("-G {dev} rx 256", "-K {dev} tso off gro off", "-L {dev} combined 1"),
    ("connectx", "representor"): ("-G {dev} rx 256 tx 512", "-K {dev} gro off"),
}


RECEIVING: Final = (
    "echo 1 > queues/rx-0/rps_cpus",
    "echo 256 > queues/rx-0/rps_flow_cnt",
    "echo 20000 > gro_flush_timeout; echo 2 > napi_defer_hard_irqs",
)
SENDING: Final = ("echo 0 > queues/tx-0/xps_cpus", "echo 1 > queues/tx-0/xps_rxqs")
QUEUES: Final = {
    # the kernel has no XPS where there can be one queue only
    ("igb", "pf"): RECEIVING,
    ("igb", "vf"): RECEIVING,
    ("connectx", "pf"): (*RECEIVING, *SENDING),
    ("connectx", "vf"): (*RECEIVING, *SENDING),
    ("connectx", "sf"): RECEIVING,
    ("connectx", "representor"): RECEIVING,
}


def script(nic: Nic, seed: int) -> Iterator[str]:
    """The node as a script for a shell."""
    lines = node(nic, seed)
    yield f"# the node of seed {seed} on {nic.name}"
    for pod in range(1, pods_of(lines) + 1):
        yield f"unshare --net sh -c 'ip link set lo up; exec sleep 100000' & pod{pod}=$!"
    yield from map(str, lines)


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in script(NICS[sys.argv[1]], int(sys.argv[2])))
