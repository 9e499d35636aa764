"""Subfunctions of a PF in switchdev mode, with what their drivers have made, outlast a reload."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import connectx, lab
from tests.support.lab import PF1, Nodeagent, State


def add(sfnum: int) -> str:
    """A subfunction as an administrator makes it; its devlink port."""
    lab.sh(f"devlink port add pci/{PF1} flavour pcisf pfnum 0 sfnum {sfnum}; udevadm settle")
    return next(name for name, each in ports().items() if each["sfnum"] == sfnum)


def ports() -> State:
    """What devlink shows of subfunctions, by port."""
    told = json.loads(lab.sh("devlink -j port show"))["port"]
    return {name: each for name, each in told.items() if each["flavour"] == "pcisf"}


def device(sfnum: int) -> Path:
    """Its auxiliary device, whose number is another one each time."""
    (found,) = (
        path.parent
        for path in (lab.PCI / PF1).glob("*.sf.*/sfnum")
        if int(path.read_text()) == sfnum
    )
    return found


def own_interface(sfnum: int) -> str:
    """The interface that its driver has made."""
    (path,) = (device(sfnum) / "net").iterdir()
    return path.name


@pytest.fixture
def subfunctions() -> Iterator[State]:
    """One at work, with an address and an RDMA device; one that is not active; two VFs."""
    lab.clean("A")
    lab.make_vfs(PF1, 2)
    connectx.switch(PF1)
    port = add(88)
    add(7)
    lab.sh(f"devlink port function set {port} hw_addr 02:00:00:00:00:88")
    lab.sh(f"devlink port function set {port} state active")
    lab.eventually(lambda: "mlx5_core.sf." in lab.sh("devlink dev show"), "its driver")
    handle = f"auxiliary/{device(88).name}"
    for word in ("enable_eth", "enable_rdma"):
        lab.sh(f"devlink dev param set {handle} name {word} value true cmode driverinit")
    lab.sh(f"devlink dev reload {handle}; udevadm settle")
    lab.ip(
        f"link set {own_interface(88)} name tenant mtu 1400 up", "addr add 10.88.0.1/24 dev tenant"
    )
    lab.ip(f"link set {lab.representors(PF1)['pf0sf88']} mtu 1450 up")
    lab.settle()
    yield read()
    lab.clean("A")


def read() -> State:
    """What devlink, ip and rdma tell of the subfunctions, beside all of the node."""
    interface = json.loads(lab.sh("ip -j addr show dev tenant"))[0]
    return {
        **connectx.read(),
        "ports": ports(),
        "tenant": {name: interface[name] for name in ("address", "mtu", "flags", "operstate")},
        "addresses": [each["local"] for each in interface["addr_info"]],
        "device": sorted(path.name.rstrip("0123456789") for path in device(88).iterdir()),
    }


def test_they_outlast_a_reload_that_is_killed(nodeagent: Nodeagent, subfunctions: State) -> None:
    nodeagent.reload_killed_at("set eswitch: ")
    assert read() == subfunctions
    nodeagent.call("verify")


def test_a_fatal_error_when_they_are_made(nodeagent: Nodeagent, subfunctions: State) -> None:
    """Of their PF, which forgets them when its driver recovers: the next start makes them anew."""
    lab.put_other_build_on_disk()
    run = nodeagent.start("reload")
    run.wait_for("start subfunctions: ")
    run.kill_all()
    with connectx.card() as held:
        held.set(0, "health", 1)
        connectx.await_failed_recovery(f"pci/{PF1}")
    nodeagent.call("reload")
    assert read() == subfunctions


def test_a_fatal_error_of_one(nodeagent: Nodeagent, subfunctions: State) -> None:
    """It is named while it cannot recover, and left alone; then it is as before."""
    lab.put_other_build_on_disk()
    run = nodeagent.start("reload")
    run.wait_for("start subfunctions: ")
    run.kill_all()
    failed = f"auxiliary/{device(88).name}"
    with connectx.card() as held:
        held.set(0, "health-vf", 0x8000)
        held.set(0, "health", 1)
        connectx.await_failed_recovery(failed)
        log = nodeagent.call("reload", status=1).log
    assert f"pci/{PF1} subfunction sf88: the firmware has had a fatal error" in log
    assert "actions  elapsed" not in log
    assert f"{failed}: recovered" in nodeagent.call("reload").log
    assert read() == subfunctions


def test_a_driver_that_makes_none(nodeagent: Nodeagent, subfunctions: State) -> None:
    """Debian's own mlx5_core is built without CONFIG_MLX5_SF."""
    assert subfunctions["ports"]
    lab.put_on_disk("inbox")
    reload = nodeagent.call("reload")
    for sfnum in (7, 88):
        assert f"no longer has it: pci/{PF1} subfunction pf0sf{sfnum} (" in reload.log
    assert ports() == {}
    assert nodeagent.ready.exists()
