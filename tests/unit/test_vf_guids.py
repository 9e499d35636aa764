"""GUIDs and policy of InfiniBand's VFs in DOCA-OFED's files, where no IPoIB interface has them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.errors import KernelError
from nodeagent.kernel import vf_guids
from nodeagent.kernel.rtnl import VfInfo
from nodeagent.node.observe import observe
from nodeagent.plan.actions import SetVf, Stage
from nodeagent.plan.lines import lines
from nodeagent.plan.plan import plan
from nodeagent.plan.remarks import headless
from nodeagent.plan.stages import StageName
from nodeagent.restore import restore, verify
from nodeagent.settings import Settings
from nodeagent.state.addresses import Guid
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Pf, Vf
from nodeagent.state.vf import LinkState, VfAttributes
from tests.support.fake_kernel import DRIVER, PF1
from tests.support.fake_node import fake_node

PF = DeviceHandle("pci", PF1)
NODE, PORT = Guid("02:11:22:33:44:55:66:77"), Guid("02:11:22:33:44:55:66:78")
ZERO = "00:00:00:00:00:00:00:00"


def files(device: Path, *, count: int) -> None:
    """As a driver makes them with its VFs."""
    for index in range(count):
        directory = device / "sriov" / str(index)
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in (("node", ZERO), ("port", ZERO), ("policy", "Down")):
            (directory / name).write_text(f"{text}\n")


def test_what_the_files_say_is_what_is_set(tmp_path: Path) -> None:
    files(tmp_path, count=2)
    assert vf_guids.read(tmp_path)[1] == VfInfo(1, link_state=LinkState.DISABLE)
    wanted = VfAttributes(node_guid=NODE, port_guid=PORT, link_state=LinkState.AUTO)
    vf_guids.set_vf(tmp_path, 1, wanted)
    assert (tmp_path / "sriov/1/policy").read_text() == "Follow"
    assert vf_guids.read(tmp_path) == {
        0: VfInfo(0, link_state=LinkState.DISABLE),
        1: VfInfo(1, node_guid=NODE, port_guid=PORT, link_state=LinkState.AUTO),
    }


def test_an_ethernet_ports_files_are_others(tmp_path: Path) -> None:
    (tmp_path / "sriov/0").mkdir(parents=True)
    (tmp_path / "sriov/0/mac").write_text("02:00:00:00:00:01\n")
    assert vf_guids.read(tmp_path) == {}
    with pytest.raises(KernelError, match="sriov/0/node"):
        vf_guids.set_vf(tmp_path, 0, VfAttributes(node_guid=NODE))


def test_a_pf_without_an_interface_is_read_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_node(monkeypatch, igb=False) as fake:
        pf = fake.add_pf()
        fake.never.add(PF1)
        fake.give(Pf(PF, 2, True, Netdev("p"), tuple(Vf(n, driver="none") for n in range(2))))
        fake.move_away(PF1)
        files(fake.tree.device(PF1), count=2)
        vf_guids.set_vf(fake.tree.device(PF1), 1, VfAttributes(node_guid=NODE))
        vf_guids.set_vf(fake.tree.device(PF1), 1, VfAttributes(link_state=LinkState.ENABLE))
        node = fake.node(Settings())
        want = observe(node)
        assert headless(want) == ()
        (first, second) = want.pfs[0].vfs
        assert (first.link_state, first.node_guid) == (LinkState.DISABLE, None)
        assert (second.link_state, second.node_guid) == (LinkState.ENABLE, NODE)
        fake.restart()
        fake.create_vfs(pf, 0)
        files(fake.tree.device(PF1), count=2)
        restore(node, want)
        verify(node, want)


def test_a_vf_that_was_bound_without_them_is_bound_again() -> None:
    """They reach its RDMA device at bind only, which nothing else would tell."""
    bound = Vf(0, "0000:01:10.0", DRIVER)
    have = NodeState(DRIVER, (Pf(PF, 1, vfs=(bound,)),))
    want = have.with_pfs((Pf(PF, 1, vfs=(replace(bound, node_guid=NODE, port_guid=PORT),)),))
    names = [stage.name for stage in plan(want, have)]
    assert names.index(StageName.UNBIND_VFS) < names.index(StageName.BIND_VFS)
    assert names.index(StageName.VFS) < names.index(StageName.BIND_VFS)
    assert plan(want, want) == ()


def test_the_lines_of_a_plan() -> None:
    state = NodeState(DRIVER, (Pf(PF, 1, vfs=(Vf(0),)),))
    action = SetVf(PF, 0, node_guid=NODE, link_state=LinkState.AUTO)
    at = f"/sys/bus/pci/devices/{PF1}/sriov/0"
    assert lines([Stage(StageName.VFS, (action,))], state, state) == [
        "# set VFs",
        f"echo {NODE} > {at}/node; echo Follow > {at}/policy",
    ]
