"""The network manager of an interface, systemd-networkd or NetworkManager, by their files in /run.

networkd's links/<ifindex> has its progress (ADMIN_STATE, src/network/networkd-link.c): it removes
foreign configuration when it begins with an interface, and does not change it any more at the end.
NetworkManager's devices/<ifindex> has whether it manages the interface, and by which connection
(nm-config.c, nm_config_device_state_write()), but not whether it has finished.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent import hostpath
from nodeagent.state.model import ManagerName

_LINKS: Final = Path("systemd/netif/links")
_DEVICES: Final = Path("NetworkManager/devices")
_UNFINISHED_STATES: Final = {"pending", "initialized", "configuring"}


@dataclass(frozen=True)
class Manager:
    """The manager of an interface, and whether it has finished setting it up."""

    name: ManagerName
    settled: bool


def files(ifindex: int, run: Path = Path("/run")) -> tuple[Path, Path]:
    """The managers' files about an interface, to be watched."""
    return run / _LINKS / str(ifindex), run / _DEVICES / str(ifindex)


def known(run: Path = Path("/run")) -> set[int]:
    """The interfaces, by ifindex, that a manager has a file about."""
    found: set[int] = set()
    for directory in (run / _LINKS, run / _DEVICES):
        with suppress(OSError):
            found |= {int(name) for name in hostpath.names(directory) if name.isdecimal()}
    return found


def manager_of(ifindex: int, run: Path = Path("/run")) -> Manager | None:
    """The manager of an interface; None if it is neither of these two."""
    networkd, network_manager = files(ifindex, run)
    state = _values(networkd).get("ADMIN_STATE", "unmanaged")
    if state != "unmanaged":
        return Manager(ManagerName.NETWORKD, state not in _UNFINISHED_STATES)
    found = _values(network_manager)
    if found.get("managed") in {"true", "1"}:
        return Manager(ManagerName.NETWORK_MANAGER, "connection-uuid" in found)
    return None


def _values(path: Path) -> dict[str, str]:
    try:
        text = hostpath.read_text(path)
    except OSError:
        return {}
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key: value for key, _, value in pairs}
