"""The attributes of a network interface (`ip link set …`): a row for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodeagent.state.addresses import Mac
from nodeagent.state.attributes import LEGACY_MAX_SIZE, Attributes, attribute
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

    The fresh values are those of every new Ethernet interface (ether_setup(), DEFAULT_TX_QUEUE_LEN,
    alloc_netdev_mqs()).
    """

    mac: Mac | None = attribute("MAC", "address", needs_down=True)
    mtu: int | None = attribute("MTU", "mtu", check=within(0, 0x7FFFFFFF))
    # before Linux 6.2 an interface that is up cannot be renamed
    name: str | None = attribute("name", "name", check=_check_name, needs_down=True)
    txqueuelen: int | None = attribute("txqueuelen", "txqueuelen", fresh=1000, check=within(0, U32))
    group: int | None = attribute("group", "group", fresh=0, check=within(0, U32))
    alias: str | None = attribute("alias", "alias", fresh="", check=_check_alias)
    # netif_set_gso_max_size() sets IPv4's, too; ip(8) has a word for that since 6.2
    gso_max_size: int | None = attribute(
        "GSO limit", "gso_max_size", fresh=LEGACY_MAX_SIZE, check=within(0, U32)
    )
    gso_ipv4_max_size: int | None = attribute(
        "GSO limit",
        "gso_ipv4_max_size",
        follows="gso_max_size",
        fresh=LEGACY_MAX_SIZE,
        check=within(0, U32),
    )
    gso_max_segs: int | None = attribute(
        "GSO segments", "gso_max_segs", fresh=65535, check=within(0, U32)
    )
    gro_max_size: int | None = attribute(
        "GRO limit", "gro_max_size", fresh=LEGACY_MAX_SIZE, check=within(0, U32)
    )
    gro_ipv4_max_size: int | None = attribute(
        "GRO limit",
        "gro_ipv4_max_size",
        follows="gro_max_size",
        fresh=LEGACY_MAX_SIZE,
        check=within(0, U32),
    )
    promisc: bool | None = attribute("promisc", "promisc", fresh=False)
    allmulti: bool | None = attribute("allmulti", "allmulticast", fresh=False)
    arp: bool | None = attribute("arp", "arp", fresh=True)
    multicast: bool | None = attribute("multicast", "multicast", fresh=True)
    up: bool | None = attribute("state", "")
    altnames: tuple[str, ...] | None = attribute("altnames", None, fresh=(), check=_check_altnames)
