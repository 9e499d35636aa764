"""systemd-networkd, the real one, manages PF and VF: it is left to finish, then comes the rest.

networkd runs without systemd here. What it removes when it begins with an interface (addresses and
routes that it does not know) must be there in the end, and what it sets must come from it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from nodeagent.kernel.managers import manager_of
from tests.support import lab
from tests.support.lab import PF1, Nodeagent

NETWORKS: Final = Path("/run/systemd/network")
NETIF: Final = Path("/run/systemd/netif")
PF, VF = "enp1s0", "enp1s0v0"
MANAGED: Final = f"""
[Match]
Name={PF} {VF}
[Network]
DHCP=no
IPv6AcceptRA=no
[Address]
Address=192.0.2.%d/24
[Route]
Destination=203.0.113.0/24
Gateway=192.0.2.%d
"""
BY_HAND: Final = (
    f"address add 198.51.100.7/24 dev {PF}",
    f"route add 198.18.0.0/15 via 198.51.100.9 dev {PF} metric 77",
    f"address add 198.51.101.7/24 dev {VF}",
)


@pytest.fixture
def networkd(no_vfs: None) -> Iterator[None]:
    """networkd manages the first PF and its VF 0, and has finished with them."""
    NETWORKS.mkdir(parents=True, exist_ok=True)
    for number, name in ((10, PF), (20, VF)):
        text = MANAGED % (number, number + 1)
        (NETWORKS / f"10-{name}.network").write_text(text.replace(f"{PF} {VF}", name))
    for name in ("links", "leases", "lldp"):
        (NETIF / name).mkdir(parents=True, exist_ok=True)
    lab.sh(f"chown -R systemd-network:systemd-network {NETIF}")
    lab.create_vfs(PF1, 2)
    lab.settle()
    with subprocess.Popen(["/lib/systemd/systemd-networkd"], stderr=subprocess.DEVNULL) as daemon:
        try:
            lab.eventually(lambda: has_finished(PF) and has_finished(VF), "networkd's work")
            yield
        finally:
            daemon.terminate()
    lab.sh(f"rm -r {NETWORKS} {NETIF}")


def has_finished(name: str) -> bool:
    manager = manager_of(json.loads(lab.sh(f"ip -j link show {name}"))[0]["ifindex"])
    return manager is not None and manager.settled


def read() -> dict[str, Any]:
    """Addresses and routes as ip(8) tells them, without ifindexes and what counts."""
    addresses = {
        name: [
            (each["local"], each["prefixlen"], each.get("broadcast"))
            for each in json.loads(lab.sh(f"ip -j address show {name}"))[0]["addr_info"]
            if each["family"] == "inet"
        ]
        for name in (PF, VF)
    }
    routes = sorted(json.loads(lab.sh("ip -j route show")), key=json.dumps)
    return {"addresses": addresses, "routes": routes}


def test_networkd_does_its_part_and_the_rest_is_added(nodeagent: Nodeagent, networkd: None) -> None:
    lab.ip(*BY_HAND)
    lab.await_carrier(PF1)
    before = read()
    assert "198.51.100.7" in str(before)
    lab.put_other_build_on_disk()
    reload = nodeagent.call("reload", ALLOW_UPLINK_RELOAD="true")
    assert read() == before
    assert "has not finished" not in reload.log
    saved = json.loads(nodeagent.call("snapshot").output())["state"]["pfs"][0]
    assert saved["netdev"]["manager"] == "systemd-networkd"
    assert "manager" not in saved["vfs"][1]["netdev"]
    # nobody undoes it: networkd has finished, and looks at it no more
    lab.ip(f"link set {PF} alias later")
    lab.settle()
    assert read() == before
