"""The fabric learns where an interface is: gratuitous ARP, unsolicited neighbour advertisements.

The kernel sends them by itself when an interface's address is set, if `arp_notify` and
`ndisc_notify` say so (inetdev_event(), net/ipv4/devinet.c; ndisc_netdev_event(), net/ipv6/ndisc.c).
So both are on for as long as the MAC that the interface has is set once more, which no driver is
asked for (dev_set_mac_address()). Packets of our own would take a packet socket in the pod; this
takes the netlink socket that is there, and speaks for every address that the kernel knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from nodeagent.kernel.netns import entered
from nodeagent.kernel.rtnl import Link, LinkChange, Rtnl

NOTIFY: Final = ("ipv4/conf/{}/arp_notify", "ipv6/conf/{}/ndisc_notify")


def announce(fd: int, rtnl: Rtnl, links: Sequence[Link], net: Path = Path("/proc/sys/net")) -> None:
    """Announce the addresses of `links`, which have carrier, in the namespace `fd`.

    What is refused is left: the fabric learns it from the next packet. IPv6 may be off.
    """
    with entered(fd), ExitStack() as held:
        for link in links:
            for name in NOTIFY:
                held.enter_context(_on(net / name.format(link.name)))
        rtnl.change([LinkChange(link.index, mac=link.mac) for link in links])


@contextmanager
def _on(path: Path) -> Iterator[None]:
    """The sysctl is 1 meanwhile."""
    try:
        before = path.read_text()
        if int(before) == 0:
            path.write_text("1")
    except OSError:
        yield
        return
    try:
        yield
    finally:
        if int(before) == 0:
            path.write_text(before)
