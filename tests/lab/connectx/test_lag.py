"""VF-LAG on the genuine mlx5_core: firmware makes it only while no VF is bound."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support import connectx, lab
from tests.support.connectx import card
from tests.support.lab import PF1, PF2, Nodeagent, State
from tests.support.pods import Pod

PFS = (PF1, PF2)
VFS = 2
CREATE_LAG: Final = 0x840
BAD_SYS_STATE: Final = 4
NETWORKS: Final = Path("/run/systemd/network")
NETIF: Final = Path("/run/systemd/netif")


def lags() -> State:
    """What debugfs tells of each PF; `type` and `port_sel_mode` are EINVAL without LAG."""
    script = "cat /sys/kernel/debug/mlx5/{}/lag/{{state,type,port_sel_mode}} 2>/dev/null || true"
    return {pf: lab.sh(f"bash -c '{script.format(pf)}'").split() for pf in PFS}


def masters() -> dict[str, str | None]:
    told = {link["ifname"]: link for link in json.loads(lab.sh("ip -j link show"))}
    return {pf: told[lab.name(pf)].get("master") for pf in PFS}


def read() -> State:
    return {**connectx.read(), "lags": lags(), "masters": masters()}


def make_bond(mode: str) -> None:
    lab.ip(f"link add bond9 type bond mode {mode} miimon 100")


def join() -> None:
    for pf in PFS:
        lab.ip(f"link set {lab.name(pf)} down master bond9")
    lab.ip("link set bond9 up")


def is_active() -> bool:
    return all(words[:1] == ["active"] for words in lags().values())


def unbound() -> list[str]:
    """Unbind all VFs; their addresses."""
    every = (address for pf in PFS for address in lab.vfs(pf).values())
    found = [address for address in every if lab.driver(address) == "mlx5_core"]
    for address in found:
        lab.unbind(address)
    return found


def bind(addresses: list[str]) -> None:
    for address in addresses:
        connectx.bind(address)
    lab.settle()


@pytest.fixture(autouse=True)
def _vfs() -> Iterator[None]:
    """Two VFs on each PF; afterwards no bond, which firmware asks to be ended without VFs."""
    lab.clean("A")
    for pf in PFS:
        lab.create_vfs(pf, VFS)
        link = f"link set {lab.name(pf)}"
        lab.ip(*(f"{link} vf {n} mac 02:00:00:0{pf[-1]}:01:0{n}" for n in range(VFS)))
    yield
    unbound()
    lab.sh("ip link del bond9 || true")
    lab.clean("A")


@pytest.fixture
def vf_lag() -> None:
    """All in the order that the driver asks for: modes, bond, LAG, VFs."""
    addresses = unbound()
    for pf in PFS:
        connectx.switch(pf)
    make_bond("balance-xor")
    join()
    lab.eventually(is_active, "LAG")
    bind(addresses)
    lab.eventually(lambda: connectx.rdma().keys() >= {*PFS}, "RDMA devices of both PFs")


def test_it_is_kept_in_one_pass(nodeagent: Nodeagent, vf_lag: None) -> None:
    with Pod() as pod:
        pod.take(lab.vf(PF1, 1), "net1")
        pod.ip("address add 10.1.0.2/24 dev net1", "link set net1 up")
        before, inside = read(), pod.read()
        assert before["lags"] == {pf: ["active", "switchdev", "hash"] for pf in PFS}
        assert (
            f"lag       pci/{PF1} active switchdev hash"
            in nodeagent.call("status", status=1).output()
        )
        plan = nodeagent.call("plan", "--after-reload").output()
        since = connectx.LOG.stat().st_size
        lab.put_other_build_on_disk()
        reload = nodeagent.call("reload")
        assert read() == before
        assert pod.read() == inside
    assert nodeagent.ready.exists()
    assert reload.log.count("make LAG: ") == reload.log.count("bind VFs: ") == 1
    done = [each.name for each in connectx.asked(since) if each.status == "OK"]
    begun = done[done.index("CREATE_LAG") :]
    assert [each for each in begun if each == "ENABLE_HCA"], begun
    assert plan.index("master bond9") < plan.index("lag/state") < plan.index("mlx5_core/bind")


def test_killed_in_the_middle(nodeagent: Nodeagent, vf_lag: None) -> None:
    before = read()
    nodeagent.reload_killed_at("make LAG: ")
    assert read() == before


@pytest.mark.parametrize("mode", ["legacy", "switchdev"])
def test_a_bond_that_is_no_lag_stays_none(nodeagent: Nodeagent, mode: str) -> None:
    """VFs were bound first: firmware refuses it in switchdev mode, and in legacy nobody asks."""
    for pf in PFS:
        connectx.switch(pf, mode)
    make_bond("active-backup")
    join()
    lab.settle()
    before = read()
    assert before["lags"] == {pf: ["disabled"] for pf in PFS}
    lab.put_other_build_on_disk()
    reload = nodeagent.call("reload")
    assert read() == before
    assert "LAG" not in reload.log


def test_one_that_does_not_come_is_named_and_made_by_the_next_start(
    nodeagent: Nodeagent, vf_lag: None
) -> None:
    before = read()
    lab.put_other_build_on_disk()
    with card() as held:
        for pf in range(2):
            held.fail(pf, CREATE_LAG, BAD_SYS_STATE, count=1000)
        log = nodeagent.call("reload", status=1).log
    assert (
        f"pci/{PF1}: LAG by enp1s0f0np0 in bond bond9 is disabled, and was active switchdev hash "
        "after 60 s: "
    ) in log
    assert not nodeagent.ready.exists()
    assert nodeagent.open_snapshot.exists()
    verify = " ".join(nodeagent.call("verify", status=1).output().split())
    assert f"pci/{PF1} lag active switchdev hash disabled" in verify
    assert {lab.driver(each) for each in lab.vfs(PF1).values()} == {"mlx5_core"}
    nodeagent.call("reload")
    assert read() == before


def test_a_fatal_error_of_a_port_ends_the_waits(nodeagent: Nodeagent, vf_lag: None) -> None:
    """Neither its LAG, interface, VFs nor RDMA devices come before its driver has recovered.

    It is left alone: a LAG that is made is lost with the recovery, for good while VFs are bound.
    """
    before = read()
    with card() as held:

        def fail() -> None:
            held.set(0, "health", 1)
            # the driver looks every 2 s, tries once to recover, and meanwhile answers nobody
            connectx.await_failed_recovery(f"pci/{PF1}")

        began = time.monotonic()
        reload = lab.reload_while(nodeagent, fail)
        assert time.monotonic() - began < 60
    assert reload.process.returncode == 1
    named = reload.log.partition("error: ")[2].splitlines()
    assert named[1].startswith(f"  pci/{PF1}: the firmware has had a fatal error, from which")
    assert not nodeagent.ready.exists()
    nodeagent.call("reload")
    assert read() == before


@pytest.fixture
def networkd() -> Iterator[None]:
    """networkd makes a bond of both PFs, of which the card makes a LAG, before VFs are bound."""
    for directory in (NETWORKS, *(NETIF / name for name in ("links", "leases", "lldp"))):
        directory.mkdir(parents=True, exist_ok=True)
    lab.sh(f"chown -R systemd-network:systemd-network {NETIF}")
    (NETWORKS / "5-bond.netdev").write_text(
        "[NetDev]\nName=bond9\nKind=bond\n[Bond]\nMode=802.3ad\n"
    )
    for number, name in ((10, lab.name(PF1)), (20, lab.name(PF2))):
        text = f"[Match]\nName={name}\n[Network]\nBond=bond9\n"
        (NETWORKS / f"{number}-port.network").write_text(text)
    (NETWORKS / "30-bond.network").write_text("[Match]\nName=bond9\n[Network]\nDHCP=no\n")
    addresses = unbound()
    for pf in PFS:
        connectx.switch(pf)
    with subprocess.Popen(["/lib/systemd/systemd-networkd"], stderr=subprocess.DEVNULL) as daemon:
        try:
            lab.eventually(is_active, "LAG")
            bind(addresses)
            yield
        finally:
            daemon.terminate()
    lab.sh(f"rm -r {NETWORKS} {NETIF}")


def test_networkds_bond_is_waited_for(nodeagent: Nodeagent, networkd: None) -> None:
    before = read()
    assert before["lags"] == {pf: ["active", "switchdev", "hash"] for pf in PFS}
    lab.put_other_build_on_disk()
    reload = nodeagent.call("reload")
    assert read() == before
    awaited, _, rest = reload.log.partition("await LAG: ")
    assert "bind VFs: " not in awaited
    assert "bind VFs: " in rest
    assert "make LAG: " not in reload.log
    assert "joining it again" not in reload.log


def test_a_roce_lag_has_its_rdma_device_again(nodeagent: Nodeagent) -> None:
    """Legacy mode without VFs: one device stands for both ports."""
    for pf in PFS:
        (lab.PCI / pf / "sriov_numvfs").write_text("0")
    make_bond("active-backup")
    join()
    lab.eventually(is_active, "LAG")
    lab.settle()
    before = read()
    assert before["lags"] == {pf: ["active", "roce", "hash"] for pf in PFS}
    assert len(before["rdma"]) == 1
    lab.put_other_build_on_disk()
    nodeagent.call("reload")
    assert read() == before
    # a driver that is unloaded before this has ended leaves a first PF without its RDMA device
    lab.ip("link del bond9")
    lab.eventually(lambda: connectx.rdma().keys() == {*PFS}, "the end of the LAG")
