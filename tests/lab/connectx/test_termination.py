"""From the kernel's own mlx5_core to a vendor's build and back, with the VFs on it.

The vendor's build reports 802.1Q for a VF without a VLAN, as DOCA-OFED does, and has a srcversion;
the kernel's own has neither.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import connectx, lab
from tests.support.hosts_driver import hosts_own_driver
from tests.support.lab import PF1, Nodeagent, State


@pytest.fixture
def host() -> Iterator[State]:
    """The kernel's own driver runs on the host, with four VFs, two of them without a VLAN."""
    with hosts_own_driver():
        lab.clean("inbox")
        lab.make_vfs(PF1, 4, mtu=9000)
        lab.ip(f"link set {lab.name(PF1)} vf 0 vlan 0", f"link set {lab.name(PF1)} vf 1 vlan 0")
        yield connectx.read()
    lab.clean("A")


def test_there_and_back(nodeagent: Nodeagent, host: State) -> None:
    settings = {"RESTORE_DRIVER_ON_POD_TERMINATION": "true"}
    assert lab.loaded() == ""
    lab.put_on_disk("A")
    run = nodeagent.start("run", "precompiled", **settings)
    run.wait_for("ready: ")
    assert lab.loaded() == lab.srcversion_of("A")
    assert connectx.read() == host

    assert run.stop() == 0
    assert lab.loaded() == ""
    assert connectx.read() == host
    assert not nodeagent.ready.exists()
    assert not nodeagent.open_snapshot.exists()

    # and the same again, from the kernel's own driver
    again = nodeagent.start("run", "precompiled", **settings)
    again.wait_for("ready: ")
    assert lab.loaded() == lab.srcversion_of("A")
    assert connectx.read() == host
    assert again.stop() == 0
    assert connectx.read() == host
