"""VFs of the genuine mlx5_core are removed before it is unloaded, also from a switch."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support import connectx, lab
from tests.support.connectx import Card
from tests.support.lab import PCI, PF1, PF2, Nodeagent, State

START = 2.0
"""Seconds of firmware's time for a VF's start, and for its end."""


@pytest.fixture
def mixed(no_vfs: None) -> Iterator[State]:
    """Three VFs in legacy, three in switchdev mode, whose representors are in a bridge."""
    lab.make_vfs(PF1, 3)
    lab.create_vfs(PF2, 3)
    lab.ip(*(f"link set {lab.name(PF2)} vf {n} mac 02:00:00:01:01:0{n}" for n in range(3)))
    connectx.switch(PF2)
    ports = [lab.name(PF2), *lab.representors(PF2).values()]
    lab.ip(
        "link add br0 type bridge",
        *(f"link set {port} master br0 up" for port in ports),
        "link set br0 up",
    )
    yield now()
    lab.ip("link delete br0")


@pytest.fixture
def card() -> Iterator[Card]:
    with connectx.card() as found:
        yield found


def now() -> State:
    """The devices, and the bridge's ports."""
    ports = json.loads(lab.sh("ip -j link show master br0"))
    return {**connectx.read(), "bridge": sorted(port["ifname"] for port in ports)}


def counted_at_the_unload() -> None:
    """Have openibd leave the number of VFs of each PF, as it finds them, in /run/lab/vfs."""
    counts = " ".join(f"{PCI}/{pf}/sriov_numvfs" for pf in (PF1, PF2))
    lab.hook("pre-stop", f"cat {counts} | xargs >{lab.RUN}/vfs")


def seconds(nodeagent: Nodeagent) -> float:
    """Of the phase in the last run."""
    (run,) = json.loads(nodeagent.call("timeline", "--last", "1", "--output", "json").output())
    (found,) = [phase["seconds"] for phase in run["phases"] if phase["name"] == "quiesce"]
    return float(found)


def test_legacy_and_switchdev(nodeagent: Nodeagent, mixed: State, card: Card) -> None:
    """Firmware's time for the ends of six VFs is spent once or twice, not six times."""
    counted_at_the_unload()
    wanted = lab.put_other_build_on_disk()
    for pf in range(2):
        card.set(pf, "fw-vf-ms", int(START * 1000))
    nodeagent.call("reload")
    assert (lab.loaded(), now()) == (wanted, mixed)
    assert (lab.RUN / "vfs").read_text() == "0 0\n"
    assert seconds(nodeagent) < 3 * START


def test_they_come_back_where_openibd_refuses(nodeagent: Nodeagent, mixed: State) -> None:
    old = lab.loaded()
    wanted = lab.put_other_build_on_disk()
    lab.SWITCHES.write_text("fail=refuse\n")
    nodeagent.call("reload", status=71)
    assert (lab.loaded(), now()) == (old, mixed)
    assert nodeagent.open_snapshot.exists()
    lab.SWITCHES.unlink()
    nodeagent.call("reload")
    assert (lab.loaded(), now()) == (wanted, mixed)
