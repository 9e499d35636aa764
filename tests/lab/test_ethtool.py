"""ethtool settings of PFs, VFs and representors through a reload, as ethtool(8) tells them.

Compared are the whole outputs of `ethtool -k -g -l -c -a -x -n --show-priv-flags` before and after.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.lab import NETDEVSIM, PF1, PF2, Nodeagent

pytestmark = pytest.mark.real_time
"""igb has as many channels as there are processors: with one of them there is nothing to set."""

SHOW = ("-k", "-g", "-l", "-c", "-a", "-x", "-n", "--show-priv-flags")
DEVICE = NETDEVSIM / "devices" / "netdevsim1"


def told(name: str) -> dict[str, str]:
    """What ethtool(8) prints of an interface, or why it does not, by option."""
    return {option: _output(option, name) for option in SHOW}


def _output(option: str, name: str) -> str:
    done = subprocess.run(
        ["ethtool", option, name], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


def told_of_all() -> dict[str, dict[str, str]]:
    """Of both PFs and the VFs of the first, by PCI address."""
    return {address: told(lab.name(address)) for address in (PF1, PF2, *lab.vfs(PF1).values())}


def ethtool(*lines: str) -> None:
    """Lines for ethtool(8); each must succeed."""
    for line in lines:
        lab.sh(f"ethtool {line}")


def load_anew() -> None:
    """All VFs are gone, and all settings are the driver's own."""
    lab.reload_by_hand()


def tune() -> None:
    """Both PFs and VFs 0 and 1 get settings that igb and igbvf can hold; VF 2 gets none."""
    pf, other = lab.name(PF1), lab.name(PF2)
    first, second = (lab.name(lab.vf(PF1, index)) for index in (0, 1))
    ethtool(
        f"--set-priv-flags {pf} legacy-rx on",
        f"-L {pf} combined 1",
        f"-G {pf} rx 512 tx 1024",
        f"-C {pf} rx-usecs 50",
        f"-A {pf} autoneg off rx on tx off",
        f"-N {pf} flow-type ether proto 0x88f7 action 0 loc 3",
        f"-X {other} weight 0 1",
        f"-K {pf} rx-all on gro off rxvlan off txvlan off tx-nocache-copy on",
        f"-G {first} rx 2048 tx 512",
        f"-C {first} rx-usecs 20",
        f"-K {first} tso off gro off rx-udp-gro-forwarding on",
        f"-G {second} tx 256",
        f"-K {second} tx-checksum-ip-generic off",
    )


@pytest.fixture(scope="module")
def tuned() -> Iterator[dict[str, dict[str, str]]]:
    """What ethtool(8) tells of a node that was tuned. Each test leaves it like that."""
    lab.clean()
    load_anew()
    lab.create_vfs(PF1, 3)
    lab.ip(f"link set {lab.name(lab.vf(PF1, 1))} up")
    fresh = told_of_all()
    tune()
    before = told_of_all()
    touched = {PF1, PF2, lab.vf(PF1, 0), lab.vf(PF1, 1)}
    assert {address for address in fresh if fresh[address] != before[address]} == touched
    assert all(before[PF1][option] != fresh[PF1][option] for option in SHOW)
    yield before
    load_anew()


def test_what_was_set_is_set_again_and_nothing_else(
    nodeagent: Nodeagent, tuned: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """Rings, channels, coalescing, pause, private flags and features of igb and igbvf."""
    snapshot = str(tmp_path / "snapshot")
    nodeagent.call("snapshot", "--file", snapshot)
    load_anew()
    assert told(lab.name(PF1)) != tuned[PF1]
    nodeagent.call("restore", "--snapshot", snapshot)
    assert told_of_all() == tuned
    nodeagent.call("verify", "--snapshot", snapshot)


def test_only_what_differs_is_in_the_plan_and_pasting_it_helps(
    nodeagent: Nodeagent, tuned: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """Nothing is reloaded here: somebody has changed three settings of a running node."""
    snapshot = str(tmp_path / "snapshot")
    nodeagent.call("snapshot", "--file", snapshot)
    pf, vf = lab.name(PF1), lab.name(lab.vf(PF1, 0))
    ethtool(f"-G {pf} rx 256", f"-K {pf} gro on", f"-C {vf} rx-usecs 3")
    printed = nodeagent.start("plan", "--snapshot", snapshot)
    printed.wait()
    lines = printed.output().splitlines()
    assert f"ethtool -G {pf} rx 512; ethtool -K {pf} rx-gro off" in lines
    assert f"ethtool -C {vf} rx-usecs 20" in lines
    assert sum("ethtool" in line and not line.startswith("#") for line in lines) == 2
    lab.sh("\n".join(lines))
    assert told_of_all() == tuned
    nodeagent.call("verify", "--snapshot", snapshot)


def test_what_the_driver_refuses_is_named(
    nodeagent: Nodeagent, tuned: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """Another's snapshot asks for more channels than there are: the rest is set, it is named."""
    snapshot = tmp_path / "snapshot"
    nodeagent.call("snapshot", "--file", str(snapshot))
    plain = json.loads(snapshot.read_text())
    plain["state"]["pfs"][0]["netdev"]["ethtool"] |= {"channels.combined": 999, "rings.rx": 1024}
    asked = tmp_path / "asked"
    asked.write_text(json.dumps(plain))
    restore = nodeagent.start("restore", "--snapshot", str(asked))
    assert restore.wait() != 0
    assert "cannot set channels.combined" in restore.log
    assert "channels.combined: want 999, have 1" in restore.log
    assert "rings.rx: want" not in restore.log
    assert "RX:\t\t1024" in told(lab.name(PF1))["-g"]
    nodeagent.call("restore", "--snapshot", str(snapshot))
    assert told_of_all() == tuned


# netdevsim


def interfaces() -> dict[str, str]:
    """netdevsim's interfaces by the port's name: the PF's own and its representors'."""
    links = json.loads(lab.sh("ip -d -j link show"))
    return {
        link.get("phys_port_name", ""): link["ifname"]
        for link in links
        if link.get("parentbus") == "netdevsim"
    }


def told_of_simulated() -> dict[str, dict[str, str]]:
    """What ethtool(8) tells of them, by port."""
    return {port: told(name) for port, name in interfaces().items()}


@pytest.fixture
def simulated() -> Iterator[None]:
    """Four channels, and two representors."""
    lab.sh("modprobe netdevsim")
    (NETDEVSIM / "new_device").write_text("1 1 4")
    lab.settle()
    lab.sh("devlink dev eswitch set netdevsim/netdevsim1 mode switchdev")
    (DEVICE / "sriov_numvfs").write_text("2")
    lab.settle()
    lab.ip(*(f"link set {name} up" for name in interfaces().values()))
    yield
    lab.sh("modprobe -r netdevsim")


def test_netdevsim(nodeagent: Nodeagent, simulated: None, tmp_path: Path) -> None:
    """A devlink reload makes all interfaces anew, with the driver's defaults."""
    nodeagent.environment["DRIVER_MODULE"] = "netdevsim"
    names = interfaces()
    assert len(names) == 3
    for number, name in enumerate(names.values()):
        ethtool(
            f"-K {name} hw-tc-offload on gro off",
            f"-L {name} combined 3",
            f"-G {name} rx {128 + number} rx-mini 16 rx-jumbo 32 tx 64",
            f"-C {name} rx-usecs {9 + number} tx-frames 7 sample-interval 2",
            f"-A {name} rx on tx on",
        )
    before = told_of_simulated()
    snapshot = str(tmp_path / "snapshot")
    nodeagent.call("snapshot", "--file", snapshot)
    lab.sh("devlink dev reload netdevsim/netdevsim1; udevadm settle")
    assert told_of_simulated() != before
    nodeagent.call("restore", "--snapshot", snapshot)
    assert told_of_simulated() == before
    nodeagent.call("verify", "--snapshot", snapshot)
