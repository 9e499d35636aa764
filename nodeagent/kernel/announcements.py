"""Announce an interface's addresses: gratuitous ARP, unsolicited neighbour advertisements.

The kernel sends them when an interface's MAC is set, if `arp_notify` and `ndisc_notify` are on
(inetdev_event(), net/ipv4/devinet.c; ndisc_netdev_event(), net/ipv6/ndisc.c). Both are therefore
turned on while the present MAC is set once more, which does not reach the driver
(dev_set_mac_address()). This needs no packet socket in the pod, and covers every address that the
kernel knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from nodeagent.kernel.netns import entered
from nodeagent.kernel.rtnl import Link, LinkChange, Rtnl
from nodeagent.kernel.sysfs import number_of

ARP: Final = "ipv4/conf/{}/arp_notify"
NDISC: Final = "ipv6/conf/{}/ndisc_notify"
IPV4: Final = ((ARP, 1), (NDISC, 0))
IPV6: Final = ((ARP, 1), (NDISC, 1))
"""The sysctls for an announcement of IPv4 addresses only, and of all addresses. If a CNI has set
them permanently, each change of a MAC is announced."""


def announce(
    fd: int,
    rtnl: Rtnl,
    links: Sequence[Link],
    families: Sequence[tuple[str, int]],
    net: Path = Path("/proc/sys/net"),
) -> None:
    """Announce the addresses of `links`, which have carrier, in the namespace `fd`.

    `families`: IPV4 while there are IPv6 addresses that are not used yet. Refusals are ignored
    (IPv6 may be off): switches learn from the next packet.
    """
    with entered(fd), ExitStack() as held:
        if families is IPV4 and number_of(net / NDISC.format("all")):
            return  # it applies to all interfaces, also to those that are not ours
        for link in links:
            for name, value in families:
                held.enter_context(_set(net / name.format(link.name), value))
        rtnl.change([LinkChange(link.index, mac=link.mac) for link in links])


@contextmanager
def _set(path: Path, value: int) -> Iterator[None]:
    """Give the sysctl that value during the block."""
    before = number_of(path)
    if before in {None, value}:
        yield
        return
    try:
        path.write_text(str(value))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        path.write_text(str(before))
