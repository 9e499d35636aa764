"""What a node's tools print of it, in every network namespace, and the difference of two looks.

iproute2, devlink, dcb, rdma, ethtool and sysctl are asked for everything. What must change is
named in `NORMALISED`, row by row, each with its reason; all else has to be the same.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from itertools import chain
from pathlib import Path
from typing import Any, Final

IN_EACH_NAMESPACE: Final = (
    "ip -d -j link show",
    "ip -d -j address show",
    "ip -d -j -4 route show table all",
    "ip -d -j -6 route show table all",
    "ip -d -j -4 rule show",
    "ip -d -j -6 rule show",
    "ip -d -j neigh show nud all",
    "ip -d -j neigh show proxy",
    "ip -j nexthop show",
    "ip -j token show",
    "ip -j maddress show",
    "ip -j -4 netconf show",
    "ip -j -6 netconf show",
    "ip -j ntable show",
    "ip -j vrf show",
    "tc -d -j qdisc show",
    "bridge -d -j link show",
    "bridge -d -j vlan show",
    "bridge -d -j fdb show",
    "bridge -d -j mdb show",
    r"sysctl -a -r '^net\.'",
)
OF_EACH_INTERFACE: Final = (
    "tc -d class show dev {}",
    "tc -d filter show dev {}",
    "ethtool -k {}",
)
OF_EACH_DEVICES_INTERFACE: Final = (
    "ethtool {}",
    *(
        f"ethtool {option} {{}}"
        for option in ("-a", "-c", "-g", "-i", "-l", "-n", "-P", "-T", "-x")
    ),
    *(f"ethtool -n {{}} rx-flow-hash {flow}" for flow in ("tcp4", "udp4", "tcp6", "udp6")),
    "ethtool --show-priv-flags {}",
    "ethtool --show-fec {}",
    "grep -rs . /sys/class/net/{}/queues --include=*ps_*",
    "grep -s . /sys/class/net/{}/gro_flush_timeout",
    "grep -s . /sys/class/net/{}/napi_defer_hard_irqs",
    *(
        f"dcb -j {word} show dev {{}}"
        for word in ("app", "buffer", "dcbx", "ets", "maxrate", "pfc")
    ),
)
OF_THE_NODE: Final = (
    "devlink -j dev show",
    "devlink -j dev param show",
    "devlink -j port show",
    "devlink -j port function rate show",
    "devlink -j health show",
    "devlink -j trap show",
    "devlink -j trap policer show",
    "devlink -j sb show",
    "rdma -d -j dev show",
    "rdma -d -j link show",
    "rdma system show",
)
OF_EACH_PF: Final = (
    "devlink -j dev eswitch show pci/{}",
    "devlink -j dev info pci/{}",
    *(f"cat /sys/kernel/debug/mlx5/{{}}/lag/{file}" for file in ("state", "type", "port_sel_mode")),
)
OF_EACH_FUNCTION: Final = ("sriov_numvfs", "sriov_drivers_autoprobe", "driver", "driver_override")
"""In sysfs, where lspci -k has its drivers from."""
NAMES: Final = ("ifname", "interface", "vf", "vlan", "name", "reporter")
"""What tells one of a list from the others."""


@dataclass(frozen=True)
class Row:
    """What must change, or has no order. A value is dropped unless `becomes` says what is kept."""

    command: str
    """A regular expression for the command, without the interface's name."""
    path: str
    """One for the path to the value, such as `linkinfo.info_data.id`; of text, for the line."""
    reason: str
    becomes: Callable[[Any], Any] | None = None
    of: Callable[[dict[str, Any]], bool] = lambda _: True
    """Of which objects, where not of all."""


def _is_group(mac: str) -> bool:
    return mac.startswith(("33:33:", "01:00:5e:"))


FOREVER: Final = 0xFFFFFFFF
IP: Final = "ip .*"
BRIDGE: Final = r"linkinfo\.info(_slave)?_data\."


def _is_representor(link: dict[str, Any]) -> bool:
    return re.fullmatch(r"pf\d+[sv]f\d+", link.get("phys_port_name", "")) is not None


def _is_local(entry: dict[str, Any]) -> bool:
    return entry.get("state") == "permanent" and "self" not in entry.get("flags", ())


NORMALISED: Final = (
    Row(
        "ip -d -j (link|address) .*",
        "address",
        "mlx5 gives a representor another random MAC each time, and takes no other",
        of=_is_representor,
    ),
    Row(
        "ip -d -j (link|address) .*",
        "qdisc",
        "noop is that of an interface that was never up; the kernel brings VLANs up with their "
        "interface, and they are put down again",
        lambda qdisc: "noqueue" if qdisc == "noop" else qdisc,
    ),
    Row(
        "tc .*",
        "options.quantum",
        "a default qdisc has its quantum of the MTU from before its interface was in a bond",
        of=lambda options: options.get("memory_limit") == 32 << 20,
    ),
    Row(
        "ip -d -j (link|address) .*",
        "permaddr",
        "igbvf makes one up at each probe of a VF without admin MAC; it is shown where the "
        "interface has another",
    ),
    Row(IP, r".*\.link_failure_count", "a counter: the port of a bond was away"),
    Row(
        IP,
        "operstate",
        "UNKNOWN is that of a virtual interface whose carrier has not changed since it was made",
        lambda state: "UP" if state == "UNKNOWN" else state,
    ),
    Row(
        "ethtool -k (bond-|mac).*",
        "large-receive-offload: .*",
        "a bond that was without ports works it out anew from them; none of them has it here; a "
        "macvlan has its bond's",
    ),
    Row("ethtool -P .*", "Permanent address: .*", "likewise"),
    Row(
        "tc -d class .*",
        "class (cake|fq_codel) .*",
        "these have a class for each flow with packets that wait, and none to configure",
    ),
    Row(
        IP,
        r"linkinfo\.info_slave_data\.(designated_port|id|no)",
        "a bridge's port has the lowest number that is free when it joins; only STP looks at it, "
        "after cost and priority",
    ),
    Row(
        "bridge -d -j fdb .*",
        "ifname",
        "the entry of a MAC that bridge and port share is left to the bridge when the port goes",
        of=_is_local,
    ),
    Row(
        "bridge .* mdb .*",
        "mdb",
        "groups that somebody behind a port has asked for: they come by themselves",
        lambda groups: [each for each in groups if each.get("state") != "temp"],
    ),
    Row(
        "sysctl .*",
        r"net\.(iw_cm|rdma_ucm)\..*",
        "openibd loads the whole RDMA stack, also what was not loaded before",
    ),
    Row(
        ".*",
        r"(.*\.)?(ifindex|link_index|netdev_index)",
        "an interface that is made anew has another number; its name is beside it",
    ),
    Row("rdma .*", "ifindex", "likewise an RDMA device"),
    Row(IP, r".*\.expires|expires", "it counts down; that it does is compared", bool),
    Row(
        IP,
        r"addr_info\.(valid|preferred)_life_time",
        "it counts down; that it does is compared",
        lambda seconds: "forever" if seconds == FOREVER else "for a time",
    ),
    Row(
        IP,
        BRIDGE + "(hello|tcn|topology_change|gc|message_age|forward_delay|hold)_timer",
        "a bridge's timers run",
    ),
    Row(
        "ip .* -4 route .*",
        "flags",
        "a route by an IPv6 gateway is linkdown once an event says so of its interface, but not "
        "as soon as it is added without carrier, as others are (fib_check_nh_v6_gw())",
        lambda flags: [each for each in flags if each != "linkdown"],
        of=lambda route: route.get("via", {}).get("family") == "inet6",
    ),
    Row("ip -j ntable .*", "reachable", "drawn at random from base_reachable, again and again"),
    Row("ip -j ntable .*", "refcnt", "how many neighbours, and learned ones, refer to it"),
    Row(
        "ip -j nexthop .*",
        r"resilient_args\.unbalanced_time",
        "how long buckets have waited to go to the nexthop that came back",
    ),
    Row(
        "ip -j maddress .*",
        r"maddr\.(link|users)",
        "groups of IPv6 count on after disable_ipv6, and of a child on its parent",
    ),
    Row("ethtool -T .*", r"PTP Hardware Clock: \d+", "clocks are numbered in order of probes"),
)
LEARNED: Final[Mapping[str, tuple[Callable[[dict[str, Any]], bool], str]]] = {
    "bridge -d -j fdb show": (
        lambda each: each.get("state") not in ("permanent", "static") or _is_group(each["mac"]),
        "learned from frames; or groups that the kernel joins by itself, as `ip maddress` has them",
    ),
    "tc -d -j qdisc show": (
        lambda each: each["handle"] == "0:" and each["kind"] == "noqueue",
        "no queue, as an interface has it that has never been up",
    ),
    "ip -d -j neigh show nud all": (
        lambda each: not {"PERMANENT"} & set(each.get("state", ())),
        "learned by asking, or the kernel's own for a multicast group: they come by themselves",
    ),
}
"""Entries that are no configuration: of which command, which, and why."""


# A look


def look(namespaces: Mapping[str, str]) -> dict[str, list[str]]:
    """Lines by "namespace: command". `namespaces`: a file to enter each by its name."""
    found: dict[str, list[str]] = {}
    for name, path in namespaces.items():
        asked = _run(path, IN_EACH_NAMESPACE)
        links = json.loads(asked["ip -d -j link show"])
        each = [form.format(link["ifname"]) for link in links for form in OF_EACH_INTERFACE]
        each += [
            form.format(link["ifname"])
            for link in links
            if "parentdev" in link
            for form in OF_EACH_DEVICES_INTERFACE
        ]
        asked |= _run(path, each)
        made_up = {link["ifname"]: made_of(link) for link in links if _is_representor(link)}
        found |= {f"{name}: {each}": lines(each, text, made_up) for each, text in asked.items()}
    pfs = sorted(path.parent.name for path in PCI.glob("*/sriov_numvfs"))
    of_pfs = [form.format(pf) for pf in pfs for form in OF_EACH_PF]
    asked = _run(next(iter(namespaces.values())), [*OF_THE_NODE, *of_pfs])
    found |= {f"node: {command}": lines(command, text) for command, text in asked.items()}
    return found | {"node: sysfs": list(_functions(pfs))}


PCI: Final = Path("/sys/bus/pci/devices")
PCI_CAPABILITY_LIST, PCI_CAP_ID_MSIX, PCI_MSIX_FLAGS_QSIZE = 0x34, 0x11, 0x7FF
AUXILIARY: Final = Path("/sys/bus/auxiliary/devices")
MARK: Final = "--- next: "


def _run(namespace: str, commands: Iterable[str]) -> dict[str, str]:
    """What commands print, on stderr too: a refusal is part of what a tool tells.

    The interfaces in sysfs are those of the namespace in which it was mounted.
    """
    script = "mount -t sysfs sysfs /sys\n"
    script += "".join(f"echo '{MARK}{each}'\n{each} 2>&1\n" for each in commands)
    done = subprocess.run(
        ["nsenter", f"--net={namespace}", "unshare", "--mount", "sh"],
        input=script,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    _, *answers = _with_owners(done.stdout).split(MARK)
    return dict(answer.split("\n", 1) for answer in answers)


def _with_owners(text: str) -> str:
    """Auxiliary devices by their function: mlx5 numbers them in order of probes."""
    owners = {path.name: _owner(path) for path in AUXILIARY.glob("mlx5_core.*")}
    return re.sub(
        r"(mlx5_core\.\w+)\.\d+", lambda found: f"{found[1]} of {owners.get(found[0])}", text
    )


def _owner(device: Path) -> str:
    """A subfunction, which is such a device itself, by its number."""
    owner = device.resolve().parent
    number = owner / "sfnum"
    if number.exists():
        return f"subfunction {number.read_text().strip()} of {owner.parent.name}"
    return owner.name


def _functions(pfs: Iterable[str]) -> Iterator[str]:
    for pf in pfs:
        vfs = sorted((PCI / pf).glob("virtfn*"))
        for path in (PCI / pf, *(vf.resolve() for vf in vfs)):
            for name in OF_EACH_FUNCTION:
                file = path / name
                if file.is_dir():
                    yield f"{path.name} {name} = {file.resolve().name}"
                elif file.exists():
                    yield f"{path.name} {name} = {file.read_text().strip()}"
            yield f"{path.name} MSI-X vectors = {msix((path / 'config').read_bytes())}"


def msix(config: Sequence[int]) -> int:
    """The size of the MSI-X table, by a function's PCI configuration; 0 if it has none."""
    at = config[PCI_CAPABILITY_LIST]
    while at:
        if config[at] == PCI_CAP_ID_MSIX:
            return ((config[at + 3] << 8 | config[at + 2]) & PCI_MSIX_FLAGS_QSIZE) + 1
        at = config[at + 1]
    return 0


# Its lines

NONE: Final[Mapping[str, Sequence[str]]] = {}


def lines(command: str, text: str, made_up: Mapping[str, Sequence[str]] = NONE) -> list[str]:
    """What a command printed as lines, "path = value" where it is JSON, normalised and sorted.

    `made_up`: by interface, the addresses that are other ones after a reload.
    """
    rows = [row for row in NORMALISED if re.fullmatch(row.command, command)]
    try:
        told = json.loads(text)
    except ValueError:  # text, or a refusal
        kept = (line.rstrip() for line in text.splitlines() if line.strip())
        return [line for line in kept if not any(re.fullmatch(row.path, line) for row in rows)]
    if isinstance(told, list) and made_up:
        told = [_without_made_up(command, each, made_up) for each in told]
    if command in LEARNED:
        told = [each for each in told if not LEARNED[command][0](each)]
    return sorted(_flat(_normal(told, rows, ""), ""))


def made_of(link: Mapping[str, Any]) -> tuple[str, ...]:
    """The MAC that mlx5 has given a representor, its link-local address, and that one's group.

    The kernel makes no address of it where addr_gen_mode is none: one that was made before that
    comes back as it was.
    """
    octets = [int(each, 16) for each in link["address"].split(":")]
    if link.get("inet6_addr_gen_mode") == "none":
        return (link["address"],)
    host = bytes((octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
    local = str(IPv6Address(bytes((0xFE, 0x80, *[0] * 6)) + host))
    group = str(IPv6Address(IPv6Address("ff02::1:ff00:0").packed[:13] + host[5:]))
    return link["address"], local, group


def _without_made_up(command: str, told: Any, made_up: Mapping[str, Sequence[str]]) -> Any:
    """A child of a representor keeps its MAC; a bridge has that as an entry under its own name."""
    text = json.dumps(told)
    for name, addresses in made_up.items():
        if name in (told.get("ifname"), told.get("dev")) or "fdb" in command:
            for each in addresses:
                text = text.replace(f'"{each}"', f'"made up for {name}"')
    return json.loads(text)


def _normal(value: Any, rows: Iterable[Row], path: str) -> Any:
    if isinstance(value, list):
        return [_normal(each, rows, path) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, each in value.items():
        where = f"{path}.{key}".lstrip(".")
        of_it = (row for row in rows if re.fullmatch(row.path, where) and row.of(value))
        row = next(of_it, None)
        if row is None:
            kept[key] = _normal(each, rows, where)
        elif row.becomes is not None:
            kept[key] = row.becomes(each)
    return kept


def _flat(value: Any, path: str) -> Iterator[str]:
    """A line for each value; one for a whole dict that has no name of its own among others."""
    if isinstance(value, dict) and value:
        for key, each in value.items():
            yield from _flat(each, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        key = _key(value)
        ordered = path.endswith("addr_info")  # the first address of a subnet is the primary one
        for number, each in enumerate(value):
            if key is not None:
                yield from _flat(each, f"{path}[{each[key]}]")
            elif each:
                mark = f"[{number}]" if ordered else ""
                yield f"{path}{mark} {json.dumps(each, sort_keys=True)}"
    elif value != {}:
        yield f"{path} = {json.dumps(value)}"


def _key(items: list[Any]) -> str | None:
    """What tells them apart, if something does."""
    for key in NAMES:
        values = [each.get(key) for each in items]
        if None not in values and len(set(map(str, values))) == len(values):
            return key
    return None


# Their difference


def difference(before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> list[str]:
    """What has gone (-) and what has come (+), below the command that tells it; [] if the same."""
    found: list[str] = []
    for command in sorted({*before, *after}):
        was, now = Counter(before.get(command, ())), Counter(after.get(command, ()))
        if was != now:
            gone = (f"  - {line}" for line in sorted((was - now).elements()))
            come = (f"  + {line}" for line in sorted((now - was).elements()))
            found += [command, *chain(gone, come)]
    return found
