"""The attributes of a network interface (`ip link set …`): a row for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodeagent.state.addresses import Mac
from nodeagent.state.attributes import Attributes, attribute
from nodeagent.state.checks import U32, check_sorted, within

IFALIASZ: Final = 256
ALTIFNAMSIZ: Final = 128


def check_interface_name(name: str) -> str:
    """The kernel's rule for interface names (net/core/dev.c), or ValueError.

    dev_valid_name() allows a "%", but the kernel replaces it with a number: no interface has one.
    """
    if not 0 < len(name.encode()) < 16 or name in {".", ".."}:
        raise ValueError(f"{name!r} is not an interface name")
    if any(c in "/:%" or c.isspace() or not c.isprintable() for c in name):
        raise ValueError(f"{name!r} is not an interface name")
    return name


def check_altname(name: str) -> str:
    """A printable name that the kernel takes (ALTIFNAMSIZ, uapi/linux/if.h), or ValueError.

    It checks the length and nothing else: `a b` and `a/b` are alternative names.
    """
    if not 0 < len(name.encode()) < ALTIFNAMSIZ or not name.isprintable():
        raise ValueError(f"{name!r} is not an alternative interface name")
    return name


def _check_name(_: str, name: str) -> None:
    check_interface_name(name)


def _check_altnames(_: str, altnames: tuple[str, ...]) -> None:
    for altname in altnames:
        check_altname(altname)
    check_sorted("altnames", altnames)


def _check_alias(_: str, alias: str) -> None:
    if len(alias.encode()) >= IFALIASZ:
        raise ValueError("an alias of 256 bytes or more")
    if not alias.isprintable():
        raise ValueError(f"{alias!r} is not an alias")


@dataclass(frozen=True, kw_only=True)
class LinkAttributes(Attributes):
    """An interface's attributes, in the order in which ip(8) and the kernel set them.

    `up` is the administrative state (IFF_UP), never the operational one; `promisc` and `allmulti`
    are what an administrator has set, without what a bridge has added (dev_get_flags()).
    `altnames` are sorted; `alias` is free text, "" for none.

    The fresh values are those of every new Ethernet interface (ether_setup(),
    DEFAULT_TX_QUEUE_LEN).
    """

    mac: Mac | None = attribute("MAC", "address", needs_down=True)
    mtu: int | None = attribute("MTU", "mtu", check=within(0, 0x7FFFFFFF))
    # before Linux 6.2 an interface that is up cannot be renamed
    name: str | None = attribute("name", "name", check=_check_name, needs_down=True)
    txqueuelen: int | None = attribute("txqueuelen", "txqueuelen", fresh=1000, check=within(0, U32))
    group: int | None = attribute("group", "group", fresh=0, check=within(0, U32))
    alias: str | None = attribute("alias", "alias", fresh="", check=_check_alias)
    promisc: bool | None = attribute("promisc", "promisc", fresh=False)
    allmulti: bool | None = attribute("allmulti", "allmulticast", fresh=False)
    arp: bool | None = attribute("arp", "arp", fresh=True)
    multicast: bool | None = attribute("multicast", "multicast", fresh=True)
    up: bool | None = attribute("state", "")
    altnames: tuple[str, ...] | None = attribute("altnames", None, fresh=(), check=_check_altnames)
