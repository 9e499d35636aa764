"""The node's uplinks: the interfaces of its default routes, and the devices below them.

Routes are read from /proc/net (the main and local tables of this network namespace), the layers
below an interface (bond, VLAN, bridge) from the lower_* links of /sys/class/net.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

# include/uapi/linux/route.h
_RTF_UP = 0x1
_RTF_REJECT = 0x200

Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Uplink:
    """An interface that the node needs, the reason, and the PCI functions below it."""

    interface: str
    reason: str
    devices: frozenset[str]


@dataclass(frozen=True)
class Route:
    """A destination and its interface. The route with the lower `metric` is used."""

    to: Network
    interface: str
    metric: int


def uplinks(api_host: str | None, proc: Path, sysfs: Path) -> tuple[Uplink, ...]:
    """The interfaces of all default routes, and of the route to the API server's address.

    If `api_host` is a name, it is not resolved: that would need a network.
    """
    routes = (*_routes4(proc), *_routes6(proc))
    reasons: dict[str, str] = {}
    for route in routes:
        if route.to.prefixlen == 0:
            reasons.setdefault(route.interface, f"the default route (IPv{route.to.version})")
    way = _way_to(api_host, routes)
    if way is not None:
        reasons.setdefault(way, f"the route to the API server {api_host}")
    return tuple(
        Uplink(name, reason, frozenset(_devices(name, sysfs, set())))
        for name, reason in reasons.items()
    )


def _way_to(host: str | None, routes: tuple[Route, ...]) -> str | None:
    try:
        address = ip_address(host or "")
    except ValueError:
        return None
    fits = [route for route in routes if address in route.to]
    best = max(fits, key=lambda route: (route.to.prefixlen, -route.metric), default=None)
    return None if best is None else best.interface


def _routes4(proc: Path) -> Iterator[Route]:
    """/proc/net/route (net/ipv4/fib_trie.c): addresses in hexadecimal, in network byte order."""
    for line in _lines(proc / "net/route")[1:]:
        name, to, _gateway, flags, _, _, metric, mask = line.split()[:8]
        if int(flags, 16) & _RTF_UP and not int(flags, 16) & _RTF_REJECT:
            network = f"{_address4(to)}/{_address4(mask)}"
            yield Route(ip_network(network, strict=False), name, int(metric))


def _routes6(proc: Path) -> Iterator[Route]:
    """/proc/net/ipv6_route (net/ipv6/route.c)."""
    for line in _lines(proc / "net/ipv6_route"):
        to, length, _, _, _, metric, _, _, flags, name = line.split()
        if int(flags, 16) & _RTF_UP and not int(flags, 16) & _RTF_REJECT:
            yield Route(IPv6Network((int(to, 16), int(length, 16))), name, int(metric, 16))


def _address4(text: str) -> IPv4Address:
    return IPv4Address(socket.ntohl(int(text, 16)))


def _devices(interface: str, sysfs: Path, seen: set[str]) -> Iterator[str]:
    """The PCI functions below an interface; for a VF also its PF."""
    seen.add(interface)
    directory = sysfs / "class/net" / interface
    device = directory / "device"
    if device.exists():
        function = device.resolve()
        yield function.name
        if (function / "physfn").exists():
            yield (function / "physfn").resolve().name
    below = [path.name.removeprefix("lower_") for path in directory.glob("lower_*")]
    if not below and not device.exists():
        # sysfs shows nothing below an internal port of Open vSwitch (br-ex): its traffic may
        # leave through any port of the switch.
        below = [path.parent.name for path in sysfs.glob("class/net/*/upper_ovs-system")]
    for name in below:
        if name not in seen:
            yield from _devices(name, sysfs, seen)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []
