"""DCB on the genuine mlx5_core, which writes its own ETS at each load and each change of mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import connectx, lab
from tests.support.lab import PF1, PF2, Nodeagent

STRICT = "2:strict 3:strict 4:strict 5:strict 6:strict 7:strict"


def dcb(pf: str, *words: str) -> None:
    for each in words:
        kind, verb, rest = each.split(" ", 2)
        lab.dcb(f"{kind} {verb} dev {lab.name(pf)} {rest}")


def set_up(pf: str) -> None:
    """What a RoCE cluster sets: two classes by ETS, one lossless priority, trust in DSCP."""
    dcb(
        pf,
        "ets set tc-bw 0:30 1:70 2:0 3:0 4:0 5:0 6:0 7:0 "
        f"tc-tsa 0:ets 1:ets {STRICT} prio-tc 0:0 1:1 4:1",
        "maxrate set tc-maxrate 2:1gbit 3:30gbit",
        "pfc set prio-pfc 3:on delay 20",
        "buffer set prio-buffer 3:1",
        "buffer set buffer-size 0:100000 1:100000",
        "app add dscp-prio 24:3 46:6",
    )


@pytest.fixture(autouse=True)
def _without() -> Iterator[None]:
    lab.clean("A")
    before = {pf: connectx.dcb(pf) for pf in (PF1, PF2)}
    yield
    lab.clean("A")
    for pf in (PF1, PF2):
        connectx.reset_dcb(pf)
    assert {pf: connectx.dcb(pf) for pf in (PF1, PF2)} == before


def test_it_is_kept_in_one_pass(nodeagent: Nodeagent) -> None:
    """A PF that has none set keeps the driver's own; VFs have none."""
    lab.make_vfs(PF1, 2)
    set_up(PF1)
    before = connectx.read()
    assert before["dcb"][PF1]["ets"]["tc_bw"][:2] == [30, 70]
    assert before["dcb"][PF1]["pfc"]["delay"] == 20
    assert before["dcb"][PF1] != before["dcb"][PF2]
    lab.put_other_build_on_disk()
    reload = nodeagent.call("reload")
    assert connectx.read() == before
    assert reload.log.count("set PF DCB: 1 actions") == 1
    assert nodeagent.ready.exists()


def test_it_is_kept_in_switchdev_mode(nodeagent: Nodeagent) -> None:
    lab.create_vfs(PF1, 2)
    link = f"link set {lab.name(PF1)}"
    lab.ip(*(f"{link} vf {n} mac 02:00:00:00:01:0{n}" for n in range(2)))
    connectx.switch(PF1)
    set_up(PF1)
    before = connectx.read()
    assert before["eswitches"][PF1]["mode"] == "switchdev"
    lab.put_other_build_on_disk()
    reload = nodeagent.call("reload")
    assert connectx.read() == before
    assert reload.log.count("set DCB: 1 actions") == 1
    assert "set PF DCB" not in reload.log


def test_lines_of_the_plan_can_be_pasted(nodeagent: Nodeagent, tmp_path: Path) -> None:
    snapshot = str(tmp_path / "snapshot")
    set_up(PF1)
    wanted = connectx.dcb(PF1)
    nodeagent.call("snapshot", "--file", snapshot)
    lab.reload_by_hand()
    # trust in DSCP outlasts the driver, which makes an entry of each of the 64
    assert len(connectx.dcb(PF1)["app"]["dscp_prio"]) == 64
    told = nodeagent.call("verify", "--snapshot", snapshot, status=1).output()
    assert all(each in told for each in ("dcb ets", "dcb pfc", "dcb app"))
    lab.sh(nodeagent.call("plan", "--snapshot", snapshot).output())
    assert connectx.dcb(PF1) == wanted
    nodeagent.call("verify", "--snapshot", snapshot)
