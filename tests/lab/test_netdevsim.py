"""netdevsim, 50 VFs, every attribute: the same code, by devlink handle, without functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import lab
from tests.support.lab import NETDEVSIM, Nodeagent

VFS = 50
HANDLE = "netdevsim/netdevsim1"
DEVICE = NETDEVSIM / "devices" / "netdevsim1"
DEBUG = Path("/sys/kernel/debug/netdevsim/netdevsim1")


def make_device() -> None:
    (NETDEVSIM / "new_device").write_text("1 1")
    (DEBUG / "max_vfs").write_text(str(VFS))
    lab.settle()


def make_again() -> None:
    (NETDEVSIM / "del_device").write_text("1")
    make_device()


def reload() -> None:
    lab.sh(f"devlink dev reload {HANDLE}; udevadm settle")


def interface() -> str:
    (path,) = (DEVICE / "net").iterdir()
    return path.name


def read() -> tuple[str, Any]:
    """numvfs, and what iproute2 says of the device, the interface and its VFs."""
    (link,) = json.loads(lab.sh(f"ip -d -j link show {interface()}"))
    params = json.loads(lab.sh("devlink -j dev param show"))["param"][HANDLE]
    told = [lab.read_interface(link), link["vfinfo_list"], params]
    return (DEVICE / "sriov_numvfs").read_text(), told


@pytest.fixture
def fifty_vfs() -> Iterator[None]:
    """Every attribute of every VF has a value that differs from its neighbours'."""
    lab.sh("modprobe netdevsim")
    make_device()
    for line in ("max_macs value 16", "test1 value false"):
        lab.sh(f"devlink dev param set {HANDLE} name {line} cmode driverinit")
    reload()
    (DEVICE / "sriov_numvfs").write_text(str(VFS))
    name = interface()
    on, states = ("off", "on"), ("auto", "enable", "disable")
    for vf in range(VFS):
        at = f"link set {name} vf {vf}"
        lab.ip(
            f"{at} mac 02:00:00:00:00:{vf:02x}",
            f"{at} vlan {vf + 1} qos {vf % 8} proto {('802.1Q', '802.1ad')[vf % 2]}",
            f"{at} min_tx_rate {10 + vf} max_tx_rate {1000 + vf}",
            f"{at} spoofchk {on[vf % 2]}",
            f"{at} trust {on[vf // 2 % 2]}",
            f"{at} query_rss {on[vf // 4 % 2]}",
            f"{at} state {states[vf % 3]}",
        )
    lab.ip(f"link set {name} mtu 4000 up")
    yield
    lab.sh("modprobe -r netdevsim")


@pytest.mark.parametrize("destroy", [make_again, reload], ids=["made-again", "devlink-reload"])
def test_fifty_vfs(
    nodeagent: Nodeagent, fifty_vfs: None, tmp_path: Path, destroy: Callable[[], None]
) -> None:
    nodeagent.environment["DRIVER_MODULE"] = "netdevsim"
    snapshot = str(tmp_path / "snapshot")
    before = read()
    nodeagent.call("snapshot", "--file", snapshot)
    destroy()
    assert read() != before
    nodeagent.call("restore", "--snapshot", snapshot)
    assert read() == before
    nodeagent.call("verify", "--snapshot", snapshot)


def test_a_reload_of_the_device_fails_once(
    nodeagent: Nodeagent, fifty_vfs: None, tmp_path: Path
) -> None:
    """It has no interface then, and shows values that are not in effect: it is reloaded again."""
    nodeagent.environment["DRIVER_MODULE"] = "netdevsim"
    snapshot = str(tmp_path / "snapshot")
    before = read()
    nodeagent.call("snapshot", "--file", snapshot)
    make_again()
    plan = nodeagent.call("plan", "--snapshot", snapshot).output()
    set_ = f"devlink dev param set {HANDLE} name"
    assert f"{set_} test1 value false cmode driverinit; devlink dev reload {HANDLE};" in plan
    lab.sh(plan)
    assert read() == before
    nodeagent.call("verify", "--snapshot", snapshot)
    make_again()
    (DEBUG / "fail_reload").write_text("1")
    restore = nodeagent.call("restore", "--snapshot", snapshot, status=1)
    assert f"cannot reload {HANDLE} with other max_macs, test1" in restore.log
    (DEBUG / "fail_reload").write_text("0")
    nodeagent.call("restore", "--snapshot", snapshot)
    assert read() == before
    nodeagent.call("verify", "--snapshot", snapshot)
