"""Who else looks after an interface: systemd-networkd or NetworkManager, by their files in /run.

networkd's links/<ifindex> says how far it is (ADMIN_STATE, src/network/networkd-link.c); it removes
what it does not know of an interface when it begins with one, and leaves it alone once it is done.
NetworkManager's devices/<ifindex> says whether it manages the interface, and by which connection
(nm-config.c, nm_config_device_state_write()), not whether it has finished with that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent import hostpath
from nodeagent.state.model import ManagerName

_LINKS: Final = Path("systemd/netif/links")
_DEVICES: Final = Path("NetworkManager/devices")
_AT_WORK: Final = {"pending", "initialized", "configuring"}


@dataclass(frozen=True)
class Manager:
    """Who manages an interface, and whether it has finished setting it up."""

    name: ManagerName
    settled: bool


def files(ifindex: int, run: Path = Path("/run")) -> tuple[Path, Path]:
    """The files in which the managers report an interface, to be watched."""
    return run / _LINKS / str(ifindex), run / _DEVICES / str(ifindex)


def manager_of(ifindex: int, run: Path = Path("/run")) -> Manager | None:
    """Who manages an interface; None: nobody, as far as these two go."""
    networkd, network_manager = files(ifindex, run)
    state = _values(networkd).get("ADMIN_STATE", "unmanaged")
    if state != "unmanaged":
        return Manager(ManagerName.NETWORKD, state not in _AT_WORK)
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
