"""Rates of ports and groups in switchdev mode: the genuine mlx5_core forgets them with the mode."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import connectx, lab
from tests.support.lab import PF1, PF2, Nodeagent, State

VFS = 3


def rate(*lines: str) -> None:
    for line in lines:
        lab.sh(f"devlink port function rate {line}")


def told() -> State:
    return State(json.loads(lab.sh("devlink -j port function rate show"))["rate"])


@pytest.fixture(autouse=True)
def _switchdev() -> Iterator[None]:
    """A PF in switchdev mode with rates, and one with one that ip(8) has set in that mode."""
    lab.clean("A")
    for pf in (PF1, PF2):
        lab.create_vfs(pf, VFS)
        link = f"link set {lab.name(pf)}"
        lab.ip(*(f"{link} vf {n} mac 02:00:00:0{pf[-1]}:01:0{n}" for n in range(VFS)))
        connectx.switch(pf)
    pf = f"pci/{PF1}"
    rate(
        f"add {pf}/gold tx_share 2gbit tx_max 10gbit",
        f"add {pf}/spare",
        f"set {pf}/1 tx_max 200mbit",
        f"set {pf}/2 tx_share 24mbit tx_max 1gbit parent gold",
        f"set {pf}/3 parent gold",
    )
    lab.ip(f"link set {lab.name(PF2)} vf 1 max_tx_rate 300")
    lab.settle()
    yield
    lab.clean("A")


def test_ports_and_groups_are_kept_in_one_pass(nodeagent: Nodeagent) -> None:
    before = connectx.read()
    rates = before["rates"]["rate"]
    assert rates[f"pci/{PF1}/gold"] == {"type": "node", "tx_share": 250e6, "tx_max": 1250e6}
    assert rates[f"pci/{PF1}/2"]["parent"] == "gold"
    assert all(each == {"type": "leaf"} for key, each in rates.items() if PF2 in key)
    assert before["devices"][PF2]["vfs"][1]["told by its PF"]["rate"]["max_tx"] == 300
    lab.put_other_build_on_disk()
    reload = nodeagent.call("reload")
    assert connectx.read() == before
    assert reload.log.count("set rates: 1 actions") == 1
    assert reload.log.count("set VFs late: ") == 1
    assert reload.log.count("set eswitch: ") == 1
    assert "set VFs: " in reload.log.partition("set eswitch: ")[0]
    assert "set VFs: " not in reload.log.partition("set eswitch: ")[2]
    assert nodeagent.ready.exists()


def test_lines_of_the_plan_can_be_pasted(nodeagent: Nodeagent, tmp_path: Path) -> None:
    snapshot, pf = str(tmp_path / "snapshot"), f"pci/{PF1}"
    before = told()
    nodeagent.call("snapshot", "--file", snapshot)
    rate(f"set {pf}/1 tx_max 0 parent gold", f"set {pf}/2 tx_max 2gbit noparent")
    rate(f"set {pf}/3 noparent", f"del {pf}/spare", f"set {pf}/gold tx_share 0")
    said = " ".join(nodeagent.call("verify", "--snapshot", snapshot, status=1).output().split())
    assert f"{pf} rate node spare none missing" in said
    assert f"{pf} rate of port 3 parent gold none" in said
    plan = nodeagent.call("plan", "--snapshot", snapshot).output()
    assert f"devlink port function rate add {pf}/spare" in plan
    lab.sh(plan)
    assert told() == before
    nodeagent.call("verify", "--snapshot", snapshot)
