"""The state of a node as a table with one line for each PF and VF."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from nodeagent.plan.subfunctions import words
from nodeagent.render import Screen, table, visible
from nodeagent.state.model import Netdev, NodeState, Pf, Vf

HEADERS: Final = (
    "device",
    "driver",
    "netdev",
    "mac",
    "mtu",
    "up",
    "admin_mac",
    "vlan",
    "trust",
    "spoofchk",
    "state",
    "rate",
)


def lines(state: NodeState, screen: Screen) -> list[str]:
    """The table; `-` is a value that is unknown, not supported or absent."""
    rows = [row for pf in state.pfs for row in _rows(pf, state.driver)]
    return [*table(HEADERS, rows, screen), *map(visible, _beside(state))]


def _beside(state: NodeState) -> Iterator[str]:
    """One line for each LAG, subfunction, and interface in another network namespace."""
    for pf in state.pfs:
        if pf.lag is not None and pf.lag.active:
            yield f"{pf.handle}: LAG {pf.lag}"
        for each in pf.subfunctions or ():
            yield f"{pf.handle}: subfunction {each.port} {words(each)}"
    for on, vf in state.vfs():
        if vf.inside is not None:
            yield f"{on}: {vf.inside.netdev.name} is in {state.namespace_of(vf)}"


def _rows(pf: Pf, driver: str) -> Iterator[tuple[str, ...]]:
    yield (str(pf.handle), driver, *_netdev(pf.netdev), *("-",) * 6)
    for vf in pf.vfs:
        yield (
            f"  vf {vf.index}",
            vf.driver or "-",
            *_netdev(vf.netdev if vf.inside is None else vf.inside.netdev),
            vf.admin_mac or "-",
            _vlan(vf),
            _flag(vf.trust),
            _flag(vf.spoofchk),
            vf.link_state or "-",
            _rate(vf),
        )


def _netdev(netdev: Netdev | None) -> tuple[str, str, str, str]:
    if netdev is None:
        return "-", "-", "-", "-"
    mtu = "-" if netdev.mtu is None else str(netdev.mtu)
    return netdev.name, netdev.mac or "-", mtu, _flag(netdev.up)


def _flag(value: bool | None) -> str:
    return "-" if value is None else "on" if value else "off"


def _vlan(vf: Vf) -> str:
    """`100`, `100 qos 3`, `100 qos 3 802.1ad`; defaults are left out."""
    if vf.vlan is None:
        return "-"
    qos = f" qos {vf.qos}" if vf.qos else ""
    protocol = f" {vf.vlan_proto}" if vf.vlan and vf.vlan_proto not in {None, "802.1Q"} else ""
    return f"{vf.vlan}{qos}{protocol}"


def _rate(vf: Vf) -> str:
    """Mbit/s, minimum-maximum; 0 means unlimited."""
    if vf.min_tx_rate is None and vf.max_tx_rate is None:
        return "-"
    return f"{vf.min_tx_rate or 0}-{vf.max_tx_rate or 0}"
