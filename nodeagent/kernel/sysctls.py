"""Per-interface sysctls, net.ipv4.conf.X, net.ipv4.neigh.X and IPv6's: a new interface has the
defaults.

They are read from two dumps, which have them for every interface: of links (IFLA_AF_SPEC, filled by
inet_fill_link_af() and inet6_fill_link_af()) and of neighbour tables (NDTA_PARMS, filled by
neightbl_fill_parms()). They are written as files, because only a write to the file has all side
effects. The defaults of a new interface are in `conf/default`, read as files, and in the tables'
own parameters. Numbers are those of uapi/linux/ip.h, ipv6.h and neighbour.h; keys that this kernel
lacks are left out.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from nodeagent.kernel import sysfs
from nodeagent.kernel.netlink import attributes
from nodeagent.state.sysctls import Sysctl, sysctl_parts

_INET_CONF: Final = 1
_INET6_FLAGS: Final = 1
_IF_READY: Final = 0x80000000
"""include/net/if_inet6.h"""
_INET6_CONF: Final = 2
_INET6_ADDR_GEN_MODE: Final = 8
_INET6_TOKEN: Final = 7
_MODE_NONE: Final = 1
_MODE_STABLE_PRIVACY: Final = 2
V4: Final = (
    "forwarding -mc_forwarding proxy_arp accept_redirects secure_redirects send_redirects "
    "shared_media rp_filter accept_source_route bootp_relay log_martians tag arp_filter "
    "medium_id disable_xfrm disable_policy force_igmp_version arp_announce arp_ignore "
    "promote_secondaries arp_accept arp_notify accept_local src_valid_mark proxy_arp_pvlan "
    "route_localnet igmpv2_unsolicited_report_interval igmpv3_unsolicited_report_interval "
    "ignore_routes_with_linkdown drop_unicast_in_l2_multicast drop_gratuitous_arp bc_forwarding "
    "arp_evict_nocarrier"
)
V6: Final = (
    "forwarding hop_limit mtu accept_ra accept_redirects autoconf dad_transmits "
    "router_solicitations router_solicitation_interval router_solicitation_delay use_tempaddr "
    "temp_valid_lft temp_prefered_lft regen_max_retry max_desync_factor max_addresses "
    "force_mld_version accept_ra_defrtr accept_ra_pinfo accept_ra_rtr_pref "
    "router_probe_interval accept_ra_rt_info_max_plen proxy_ndp optimistic_dad "
    "accept_source_route -mc_forwarding disable_ipv6 accept_dad force_tllao ndisc_notify "
    "mldv1_unsolicited_report_interval mldv2_unsolicited_report_interval suppress_frag_ndisc "
    "accept_ra_from_local use_optimistic accept_ra_mtu -stable_secret use_oif_addrs_only "
    "accept_ra_min_hop_limit ignore_routes_with_linkdown drop_unicast_in_l2_multicast "
    "drop_unsolicited_na keep_addr_on_down router_solicitation_max_interval seg6_enabled "
    "seg6_require_hmac enhanced_dad addr_gen_mode disable_policy accept_ra_rt_info_min_plen "
    "ndisc_tclass rpl_seg_enabled ra_defrtr_metric ioam6_enabled ioam6_id ioam6_id_wide "
    "ndisc_evict_nocarrier accept_untracked_na accept_ra_min_lft"
)
"""In the order of the kernel's arrays. Those with `-` are left out: mrouted sets mc_forwarding, and
the kernel does not report stable_secret."""
_SECONDS: Final = {
    *("ipv6.router_solicitation_interval", "ipv6.router_solicitation_delay"),
    *("ipv6.router_solicitation_max_interval", "ipv6.router_probe_interval"),
}
"""Milliseconds in the message, seconds in the file."""
_FAMILIES: Final[dict[int, str]] = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
_NDTA_PARMS: Final = 6
_NDTPA_IFINDEX: Final = 1
_NEIGHBOUR: Final = (
    # NDTPA_*, the file's name, milliseconds of the file's unit (0: no time)
    (4, "base_reachable_time_ms", 1),
    (5, "retrans_time_ms", 1),
    (6, "gc_stale_time", 1000),
    (7, "delay_first_probe_time", 1000),
    (9, "app_solicit", 0),
    (10, "ucast_solicit", 0),
    (11, "mcast_solicit", 0),
    (12, "anycast_delay", 10),
    (13, "proxy_delay", 10),
    (14, "proxy_qlen", 0),
    (15, "locktime", 10),
    (16, "unres_qlen_bytes", 0),
    (17, "mcast_resolicit", 0),
    (19, "interval_probe_time_ms", 1),
)
"""10: the file counts in USER_HZ, a hundredth of a second. The kernel keeps whole ticks of HZ and
rounds down (clock_t_to_jiffies()): 7 is 68 ms with a HZ of 250, so that the way back is up. Read
from the file it would be 6, and that 60 ms."""
_TIMINGS: Final = {
    family: tuple(
        (number, f"{name}.neigh.{parameter}", unit) for number, parameter, unit in _NEIGHBOUR
    )
    for family, name in _FAMILIES.items()
}
"""The same for each family, with the sysctls' keys."""
_UNSIGNED: Final = {"ipv6.ra_defrtr_metric", "ipv6.ioam6_id_wide"}


def _keys(family: str, names: str) -> tuple[str | None, ...]:
    """By position in the kernel's array; None for those that are left out."""
    return tuple(None if name.startswith("-") else f"{family}.{name}" for name in names.split())


MTU: Final = "ipv6.mtu"
"""IPv6's own. The kernel sets it to the interface's whenever that changes, and when the interface
becomes ready: with carrier, for the first time since it was set up (addrconf_notify())."""

_KEYS: Final = {"ipv4": _keys("ipv4", V4), "ipv6": _keys("ipv6", V6)}

KEYS: Final = tuple(key for keys in _KEYS.values() for key in keys if key not in {None, MTU})


@dataclass(frozen=True)
class SysctlTables:
    """What the link dump lacks: the sorted `defaults` of a new interface, and by ifindex the
    parameters for `neighbours`."""

    defaults: tuple[Sysctl, ...] = ()
    neighbours: Mapping[int, Mapping[str, int]] = field(default_factory=dict)

    def of(self, index: int, af_spec: bytes, mtu: int) -> tuple[Sysctl, ...]:
        """The sysctls of an interface that differ from the defaults, sorted."""
        own = decoded(af_spec, self.known, mtu)
        values = self.neighbours.get(index)
        if not values:
            return own
        timings = ((key, v) for key, v in values.items() if self.known.get(key, v) != v)
        return tuple(sorted((*own, *timings)))

    @cached_property
    def known(self) -> Mapping[str, int]:
        """The defaults by key."""
        return dict(self.defaults)

    def is_secret_of_its_own(self, af_spec: bytes) -> bool:
        """Whether an interface's IPv6 addresses are made of a secret of its own."""
        private = bytes([_MODE_STABLE_PRIVACY])
        if _of_ipv6(af_spec).get(_INET6_ADDR_GEN_MODE) != private:
            return False
        return self.known.get("ipv6.addr_gen_mode") != _MODE_STABLE_PRIVACY


def tables_of(bodies: Iterable[bytes], proc: Path = Path("/proc")) -> SysctlTables:
    """The tables of an RTM_GETNEIGHTBL dump, and the files of conf/default.

    Parameters without an ifindex are the table's own, which a new interface gets.
    """
    neighbours: dict[int, dict[str, int]] = {}
    for body in bodies:
        family = body[16]
        raw = dict(attributes(body, 20)).get(_NDTA_PARMS)
        if family not in _TIMINGS or raw is None:
            continue
        own = dict(attributes(raw))
        index = int.from_bytes(own.get(_NDTPA_IFINDEX, b""), sys.byteorder)
        neighbours.setdefault(index, {}).update(_timings(family, own))
    starts = neighbours.pop(0, {})
    return SysctlTables(tuple(sorted((*defaults(proc), *starts.items()))), neighbours)


def _timings(family: int, own: Mapping[int, bytes]) -> dict[str, int]:
    found = {}
    for number, key, unit in _TIMINGS[family]:
        if number in own:
            value = int.from_bytes(own[number], sys.byteorder)
            found[key] = -(-value // unit) if unit else value
    return found


def decoded(af_spec: bytes, defaults: Mapping[str, int], mtu: int) -> tuple[Sysctl, ...]:
    """The sysctls of an interface that differ from `defaults`, sorted.

    `MTU` is among them if it is not the interface's.
    """
    fourth = dict(attributes(dict(attributes(af_spec)).get(socket.AF_INET, b"")))
    fourth_conf = fourth.get(_INET_CONF, b"")
    sixth_conf = _of_ipv6(af_spec).get(_INET6_CONF, b"")
    values = {**_values("ipv4", fourth_conf), **_values("ipv6", sixth_conf)}
    found = {key: value for key, value in values.items() if defaults.get(key, value) != value}
    if values.get(MTU, mtu) < mtu:
        found[MTU] = values[MTU]
    if found.get("ipv6.addr_gen_mode") == _MODE_STABLE_PRIVACY:
        del found["ipv6.addr_gen_mode"]  # EINVAL without the secret, which is not saved
    return tuple(sorted(found.items()))


def keeps_mtu(af_spec: bytes) -> bool:
    """Whether the kernel leaves `MTU` as it is: IPv6 is ready, or disabled."""
    sixth = _of_ipv6(af_spec)
    if _values("ipv6", sixth.get(_INET6_CONF, b"")).get("ipv6.disable_ipv6"):
        return True
    flags = int.from_bytes(sixth.get(_INET6_FLAGS, b""), sys.byteorder)
    return bool(flags & _IF_READY)


def makes_no_address(af_spec: bytes) -> bool:
    """Whether the kernel adds no link-local address to this interface (addr_gen_mode none)."""
    return _of_ipv6(af_spec).get(_INET6_ADDR_GEN_MODE) == bytes([_MODE_NONE])


def token(af_spec: bytes) -> IPv6Address | None:
    """The interface identifier of an interface's IPv6 addresses, if one is set (ip-token(8))."""
    raw = _of_ipv6(af_spec).get(_INET6_TOKEN, b"")
    return IPv6Address(raw) if any(raw) else None


def takes_token(af_spec: bytes) -> bool:
    """Whether the kernel lets one be set now (inet6_set_iftoken(), ipv6_accept_ra())."""
    values = _values("ipv6", _of_ipv6(af_spec).get(_INET6_CONF, b""))
    accepts = {2} if values.get("ipv6.forwarding") else {1, 2}
    return values.get("ipv6.accept_ra") in accepts and values.get("ipv6.router_solicitations") != 0


@lru_cache(maxsize=64)
def _of_ipv6(af_spec: bytes) -> Mapping[int, bytes]:
    """A look at the node asks for several of an interface's attributes in turn."""
    return dict(attributes(dict(attributes(af_spec)).get(socket.AF_INET6, b"")))


@lru_cache(maxsize=8)
def _values(family: str, raw: bytes) -> Mapping[str, int]:
    """Each as its file has it. An older kernel's array is shorter, a newer one's longer.

    Most interfaces of a node have the same.
    """
    numbers = struct.unpack_from(f"={len(raw) // 4}i", raw)
    pairs = zip(_KEYS[family], numbers, strict=False)
    found = {key: number for key, number in pairs if key is not None}
    for key in _SECONDS & found.keys():
        found[key] //= 1000
    for key in _UNSIGNED & found.keys():
        found[key] &= 0xFFFFFFFF
    return found


def defaults(proc: Path = Path("/proc")) -> tuple[Sysctl, ...]:
    """The defaults of an interface of this network namespace, sorted."""
    found = []
    base = str(proc)  # ninety files per look, and a Path costs five times as much as reading one
    for key in KEYS:
        try:
            found.append((key, int(_read(_path(base, "default", key)))))
        except (OSError, ValueError):
            continue  # a kernel without this one, or without IPv6
    return tuple(sorted(found))


def write(name: str, key: str, value: int, proc: Path = Path("/proc")) -> None:
    """Set one sysctl of an interface. KernelError names it and the refusal."""
    sysfs.write(_path(str(proc), name, key), f"{value}\n", "sysctl")


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64)
    finally:
        os.close(fd)


def _path(proc: str, name: str, key: str) -> str:
    family, tree, entry = sysctl_parts(key)
    return f"{proc}/sys/net/{family}/{tree}/{name}/{entry}"
