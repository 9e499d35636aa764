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
    "driverinit parameters": "in work: they need a reload of the devlink instance",
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
    """pf, vf, representor, vlan, macvlan, ipvlan, bond, bridge."""
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
        for pf in range(len(self.nic.pfs)):
            self._functions(pf)
        if not early:
            self._add(*(f"sysctl -qw {each}" for each in defaults))
        for place in (self.host, *self.pods):
            self._everything_on(place)
        for address in self.nic.pfs:
            if self._is(0.15):
                self._add(f"echo 0 > {PCI}/{address}/sriov_drivers_autoprobe")
        for place in (self.host, *self.pods):
            self._nexthops(place)

    def _functions(self, pf: int) -> None:
        """A PF and its VFs: how many, what it holds for each, which driver and whose they are."""
        address, name = self.nic.pfs[pf], self.names[pf]
        count = self.chance.randint(0, self.nic.vfs)
        if self._is(0.25):
            self.names[pf] = f"uplink{pf}"
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
            tagged = self._held(pf, count)
            self._bind_again(pf, count)
            self._roles(pf, count, tagged)
        mtu = int(self.mtus[pf])
        # a PF of igb that goes down for it no longer answers its VFs
        free = self.nic is CONNECTX or not count
        port = Port(self.names[pf], mtu, "pf", mtu=mtu, up=True, bondable=free)
        port.switch = address if self.switchdev[pf] else ""
        self.host.ports.append(port)

    def _held(self, pf: int, count: int) -> set[int]:
        """What the PF holds for its VFs; those with a VLAN."""
        name, late, tagged = self.names[pf], [], set()
        for index in range(count):
            words = []
            # switchdev needs a MAC: mlx5 makes none up for the VFs that it has then
            if self.switchdev[pf] or self._is(0.5):
                words.append(f"mac 02:00:00:{pf:02x}:00:{index:02x}")
            if not self.switchdev[pf]:
                if self._is(0.4):
                    tagged.add(index)
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
        return tagged

    def _await_carrier(self, name: str) -> None:
        self._add(f"until grep -q 1 /sys/class/net/{name}/carrier; do sleep 0.1; done")

    def _bind_again(self, pf: int, count: int) -> None:
        """A driver reads what its PF holds at a probe; an eswitch changes without bound VFs."""
        address = self.nic.pfs[pf]
        driver = "/sys/bus/pci/drivers/mlx5_core"
        every = f"for vf in {PCI}/{address}/virtfn*; do basename $(readlink $vf)"
        self._add(f"{every} > {driver}/unbind; done")
        if self.switchdev[pf]:
            self._add(f"devlink dev eswitch set pci/{address} mode switchdev")
            self._settle()
        self._add(f"{every} > {driver}/bind; done")
        self._settle()
        if self.switchdev[pf]:
            self._rates(pf, count)
            self._representors(pf, count)

    def _roles(self, pf: int, count: int, tagged: set[int]) -> None:
        plain: list[str] = []
        for index in range(count):
            name, virtfn = self.nic.vf_name(pf, index), f"{PCI}/{self.nic.pfs[pf]}/virtfn{index}"
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
                there = f"net{len(pod.ports) + 1}"
                self._add(f"ip link set {name} netns $pod{pod.pod} name {there}")
                pod.ports.append(self._vf_port(there, pf, index, index in tagged))
            else:
                plain.append(name)
                self.host.ports.append(self._vf_port(name, pf, index, index in tagged))
        self._rename(pf, plain)

    def _vf_port(self, name: str, pf: int, index: int, tagged: bool) -> Port:
        # igb refuses VLANs of a VF that has one of its PF
        takes = self.nic is CONNECTX or not tagged
        free = self.nic is CONNECTX
        # in switchdev mode a VF has carrier while its representor is up
        carrier = (pf, index) not in self.disabled and not self.switchdev[pf]
        mtu = int(self.mtus[pf])
        return Port(name, mtu, "vf", bondable=free, vlans=takes, carrier=carrier)

    def _rename(self, pf: int, plain: list[str]) -> None:
        """New names, and two with each other's."""
        renames: list[tuple[str, str]] = []
        if len(plain) >= 2 and self._is(0.5):
            first, second, *plain = self.chance.sample(plain, len(plain))
            renames += [(first, "spare"), (second, first), ("spare", second)]
            one, other = self._port_of(first), self._port_of(second)
            one.name, other.name = second, first
        if plain and self._is(0.4):
            new = str(self._one(f"fifteen-letter{pf}", f"data{pf}"))
            renames.append((plain[0], new))
            self._port_of(plain[0]).name = new
        for old, new in renames:
            self._add(f"ip link set {old} down", f"ip link set {old} name {new}")
            self._settle()
            self._without_altname(new, old)

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

    def _representors(self, pf: int, count: int) -> None:
        for index in range(count):
            port, called = f"pf{pf}vf{index}", f"rep{pf}v{index}"
            self._add(
                f"dev=$(grep -slx {port} /sys/class/net/*/phys_port_name | cut -d/ -f5); "
                f"ip link set $dev down; ip link set $dev name {called}; udevadm settle; "
                f"ip link property del dev {called} altname $dev 2>/dev/null || true"
            )
            self.host.ports.append(Port(called, 9000, "representor", switch=self.nic.pfs[pf]))

    # what stands on interfaces

    def _everything_on(self, place: Place) -> None:
        functions = [*place.ports]
        for port in functions:
            self._settings(place, port)
        self._masters(place, functions)
        for port in [*place.ports]:
            self._children(place, port)
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
        words += self._some(0.1, "promisc on", "allmulticast on", "gso_max_size 30000")
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
        # mlx5 takes ports of one eswitch for a bridge, and none without esw_port_metadata
        switches = [port.switch for port in left if port.switch not in self.without_metadata]
        switch = next(filter(None, switches), "")
        bridgeable = [port for port in left if port.vlans and port.switch in ("", switch)]
        if bridgeable and self._is(0.5):
            self._bridge(place, bridgeable)
            left = [port for port in left if port.bare]
        if left and self._is(0.4):
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
            "balance-xor xmit_hash_policy layer3+4",
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
        for member in [left.pop() for _ in range(min(len(left), self.chance.randint(1, 2)))]:
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

    def _vrf(self, place: Place, member: Port) -> None:
        name = f"vrf-{place.tag}"
        self._add(
            f"ip link add {name} type vrf table {700 + place.pod}",
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
            made[-1].carrier = port.carrier
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
            words += self._some(0.08, "allmulticast on", "arp off", "multicast off")
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
        if self._is(0.15):
            self._add(
                f"ip address add 10.250.{number}.1 peer 10.250.{number}.2/32 {dev}", place=place
            )
        routes = [
            f"198.18.{number}.0/24 via {net}.9 {on}{table}{self._route()}",
            f"198.19.{number}.0/24 {dev} scope link metric {number}{vrf}",
            f"198.18.{number}.0/25 via {net}.9 {on} src {net}.1{vrf}",
            f"198.51.{number}.0/24{vrf} nexthop via {net}.9 {on} weight 3 nexthop via {net}.8 {on}",
            f"203.0.{number}.0/24 via 192.168.77.1 {dev} onlink tos 0x10{vrf}",
            f"unreachable 203.1.{number}.0/24 metric 77{vrf}",
        ]
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
        return str(self._one("", "", "broadcast + ", "noprefixroute ", "metric 77 ", label))

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
        routes = [
            f"2001:db8:f{number:03x}::/48 via {net6}:9 {dev}{vrf}",
            f"2001:db8:e{number:03x}::/48 via fe80::9 {dev} metric 77 mtu 1400{vrf}",
            f"2001:db8:d{number:03x}::/48{vrf} nexthop via fe80::9 {dev} nexthop via fe80::8 {dev}",
            f"2001:db8:c{number:03x}::/48 via fe80::7 {dev} src {net6}:1 pref high{vrf}",
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
                self._add(
                    f"ip {family} rule add {way} {port.name} lookup 10{number % 6} "
                    f"priority {1000 + number}",
                    place=place,
                )

    def _qdisc(self, place: Place, port: Port) -> None:
        if not self._is(0.3):
            return
        add, number = f"tc qdisc add dev {port.name}", next(self.numbers)
        handle = number + 16 if number % 3 else 1  # most scripts call each root 1:
        draw = self.chance.choice([*QDISCS, PRIO])
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
DISABLE_IPV6: Final = "ipv6/conf/disable_ipv6=1"
SYSCTLS: Final = (
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
    ),
    ("connectx", "vf"): (
        "-G {dev} rx 256",
        "-C {dev} adaptive-tx off tx-usecs 20",
        "-K {dev} tso off gro off",
        "-K {dev} rx-udp-gro-forwarding on",
        "--set-priv-flags {dev} rx_no_csum_complete on",
        "-N {dev} rx-flow-hash udp4 sd",
    ),
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
