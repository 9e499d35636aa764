"""switchdev with 50 representors on netdevsim, renamed, two of them swapped; and 300 VFs, and 400.

Read with iproute2 before and after; only ifindexes, counters and the switch's id may differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import lab
from tests.support.lab import NETDEVSIM, Nodeagent

DEVICE = NETDEVSIM / "devices" / "netdevsim1"
DEBUG = Path("/sys/kernel/debug/netdevsim/netdevsim1")
HANDLE = "netdevsim/netdevsim1"


def make_device() -> None:
    (NETDEVSIM / "new_device").write_text("1 1")
    (DEBUG / "max_vfs").write_text("512")
    lab.settle()


def make_again() -> None:
    (NETDEVSIM / "del_device").write_text("1")
    make_device()


def reload() -> None:
    lab.sh(f"devlink dev reload {HANDLE}; udevadm settle")


def remove_vfs() -> None:
    (DEVICE / "sriov_numvfs").write_text("0")
    lab.settle()


def give_vfs(count: int) -> None:
    (DEVICE / "sriov_numvfs").write_text(str(count))
    lab.ip(
        *(
            f"link set eni1np1 vf {vf} mac 02:00:00:00:{vf // 256:02x}:{vf % 256:02x}"
            f" vlan {vf + 1} qos {vf % 8} trust on spoofchk on state enable"
            for vf in range(count)
        ),
        "link set eni1np1 up",
    )


def rename(old: str, new: str) -> None:
    """udevd adds the old name as an altname of what was renamed; an administrator takes it away."""
    lab.sh(f"ip link set {old} name {new}; udevadm settle")
    lab.sh(f"ip link property del dev {new} altname {old} 2>/dev/null || true")


def read() -> dict[str, Any]:
    """What iproute2 and devlink say of every interface of the device, by phys_port_name."""
    found: dict[str, Any] = {"mode": lab.sh(f"devlink dev eswitch show {HANDLE}")}
    for link in json.loads(lab.sh("ip -d -j link show")):
        directory = DEVICE / "net" / link["ifname"]
        if directory.exists():
            port = (directory / "phys_port_name").read_text().strip()
            vfs = link.get("vfinfo_list")
            found[port] = [link["ifname"], link.get("altnames"), lab.read_interface(link), vfs]
    return found


@pytest.fixture
def simulated(nodeagent: Nodeagent) -> Iterator[Nodeagent]:
    lab.sh("modprobe netdevsim")
    make_device()
    nodeagent.environment["DRIVER_MODULE"] = "netdevsim"
    yield nodeagent
    lab.sh("modprobe -r netdevsim")


@pytest.mark.parametrize(("destroy", "vfs"), [(make_again, 8), (reload, 50), (remove_vfs, 8)])
def test_representors_come_back_by_port_whatever_they_are_called(
    simulated: Nodeagent, tmp_path: Path, destroy: Callable[[], None], vfs: int
) -> None:
    snapshot = str(tmp_path / "snapshot")
    give_vfs(vfs)
    lab.sh(f"devlink dev eswitch set {HANDLE} mode switchdev; udevadm settle")
    rename("eni1npf0vf1", "tmpx")
    rename("eni1npf0vf2", "eni1npf0vf1")
    rename("tmpx", "eni1npf0vf2")
    lab.ip(
        "link set eni1npf0vf3 name custom3",
        "link set eni1npf0vf4 mtu 4000 up",
        "link property add dev eni1npf0vf5 altname port-of-vf5",
        "link set eni1npf0vf6 address 02:00:00:00:66:06 txqueuelen 77 alias tenant-6",
    )
    lab.settle()
    before = read()
    assert len(before) == vfs + 2
    simulated.call("snapshot", "--file", snapshot)
    destroy()
    assert read() != before
    simulated.call("restore", "--snapshot", snapshot)
    assert read() == before
    simulated.call("verify", "--snapshot", snapshot)


def test_udev_calls_the_pf_something_else_and_a_representor_does_not_come_back(
    simulated: Nodeagent, tmp_path: Path
) -> None:
    snapshot = tmp_path / "snapshot"
    give_vfs(3)
    lab.sh(f"devlink dev eswitch set {HANDLE} mode switchdev; udevadm settle")
    before = read()
    simulated.call("snapshot", "--file", str(snapshot))
    taken = json.loads(snapshot.read_text())
    representors = taken["state"]["pfs"][0]["representors"]
    representors.append({"port": "pf0vf3", "netdev": {"name": "of-vf3"}})
    snapshot.write_text(json.dumps(taken))
    lab.RULES.mkdir(exist_ok=True)
    (lab.RULES / "99-lab.rules").write_text(
        'SUBSYSTEM=="net", ACTION=="add", ATTR{phys_port_name}=="p1", NAME="odd0"\n'
    )
    lab.sh("udevadm control --reload")
    reload()
    assert (DEVICE / "net" / "odd0").exists()
    failed = simulated.call("restore", "--snapshot", str(snapshot), status=1, VF_TIMEOUT=3)
    assert f"{HANDLE} representor pf0vf3: no network interface" in failed.log
    assert read() == before


def test_300_vfs_come_back_and_a_cut_list_of_400_is_refused(
    simulated: Nodeagent, tmp_path: Path
) -> None:
    snapshot = str(tmp_path / "snapshot")
    give_vfs(300)
    simulated.call("snapshot", "--file", snapshot)
    saved = json.loads(Path(snapshot).read_text())["state"]["pfs"][0]
    assert [vf["index"] for vf in saved["vfs"]] == list(range(300))
    assert len({vf["admin_mac"] for vf in saved["vfs"]}) == 300
    make_again()
    simulated.call("restore", "--snapshot", snapshot)
    simulated.call("verify", "--snapshot", snapshot)
    remove_vfs()
    (DEVICE / "sriov_numvfs").write_text("400")
    refused = simulated.call("snapshot", status=71)
    assert "66 of the 400 VFs" in refused.output() + refused.log
