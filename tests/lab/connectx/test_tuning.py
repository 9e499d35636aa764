"""MSI-X counts, port functions and health reporters: mlx5_core and firmware forget them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from nodeagent.kernel.devlink import Devlink
from nodeagent.state.model import DeviceHandle
from tests.support import connectx, lab
from tests.support.lab import PF1, PF2, Nodeagent, State

VFS = 4
Change = tuple[int, str, bool | int]
"""A VF, and what its port function is to have."""


def msix(pf: str) -> list[str]:
    """What lspci shows of each VF, bound or not."""
    found = []
    for index in range(VFS):
        said = lab.sh(f"lspci -vv -s {lab.vf(pf, index)}")
        (line,) = (line for line in said.splitlines() if "MSI-X:" in line)
        found.append(line.partition("Count=")[2].split()[0])
    return found


def set_msix(vf: str, count: int) -> None:
    lab.unbind(vf)
    lab.sh(f"echo {count} >/sys/bus/pci/devices/{vf}/sriov_vf_msix_count")
    connectx.bind(vf)


def reporters() -> State:
    """What devlink shows, by the interface of a port: its device has another number each time."""
    ports = json.loads(lab.sh("devlink -j port show"))["port"]
    told = json.loads(lab.sh("devlink -j health show"))["health"]
    return State({ports.get(where, {}).get("netdev", where): each for where, each in told.items()})


def set_reporter(place: str, name: str, *words: str) -> None:
    for each in words:
        lab.sh(f"devlink health set {place} reporter {name} {each}")


def port_of(address: str) -> str:
    """By which devlink has the port of a function's interface."""
    return lab.sh(f"devlink port show {lab.name(address)}").partition(": ")[0].strip()


@pytest.fixture(autouse=True)
def _tuned(no_vfs: None) -> Iterator[None]:
    """A PF and VFs with other counts and reporters, and a PF that has what its driver gives it."""
    for pf in (PF1, PF2):
        lab.make_vfs(pf, VFS)
    for index, count in enumerate((12, 4, 16)):
        set_msix(lab.vf(PF1, index), count)
    lab.settle()
    set_reporter(f"pci/{PF1}", "fw_fatal", "auto_recover false", "grace_period 90000")
    set_reporter(f"pci/{PF1}", "fw", "auto_dump false")
    set_reporter(port_of(PF1), "tx", "grace_period 700", "auto_dump false")
    set_reporter(f"pci/{lab.vf(PF1, 1)}", "fw_fatal", "auto_recover false")
    set_reporter(port_of(lab.vf(PF1, 2)), "rx", "auto_recover false")
    yield
    lab.clean("A")
    lab.reload_by_hand()


def test_counts_and_reporters_are_kept_in_one_pass(nodeagent: Nodeagent) -> None:
    before, told, counts = connectx.read(), reporters(), msix(PF1)
    assert counts == ["12", "4", "16", "8"]
    lab.put_other_build_on_disk()
    reload = nodeagent.call("reload")
    assert msix(PF1) == counts
    assert reporters() == told
    assert connectx.read() == before
    assert reload.log.count("tune VFs: ") == reload.log.count("bind VFs: ") == 1
    assert reload.log.count("set health reporters: ") == 1


def test_lines_of_the_plan_can_be_pasted(nodeagent: Nodeagent, tmp_path: Path) -> None:
    """A VF that has another count is unbound for it, and no other VF is."""
    snapshot, told, counts = str(tmp_path / "snapshot"), reporters(), msix(PF1)
    nodeagent.call("snapshot", "--file", snapshot)
    set_msix(lab.vf(PF1, 0), 6)
    lab.settle()
    set_reporter(port_of(PF1), "tx", "grace_period 500")
    said = " ".join(nodeagent.call("verify", "--snapshot", snapshot, status=1).output().split())
    assert f"pci/{PF1} vf 0 msix 12 6" in said
    assert f"pci/{PF1} port-reporter.tx.grace_period 700 500" in said
    plan = nodeagent.call("plan", "--snapshot", snapshot).output()
    assert plan.count("/unbind") == 1
    lab.sh(plan)
    assert msix(PF1) == counts
    assert reporters() == told
    nodeagent.call("verify", "--snapshot", snapshot)


def functions(pf: str) -> list[Mapping[str, bool | int]]:
    """By VF; devlink(8) of the lab is older than these."""
    with Devlink() as devlink:
        found = devlink.ports().functions
    return [found[DeviceHandle("pci", pf), index][1] for index in range(VFS)]


def set_functions(changes: Sequence[Change]) -> list[Change]:
    """Set them on VFs of the first PF; what they were."""
    before = []
    with Devlink() as devlink:
        ports = devlink.ports().functions
        for index, word, value in changes:
            port, values = ports[DeviceHandle("pci", PF1), index]
            before.append((index, word, values[word]))
            lab.unbind(lab.vf(PF1, index))
            devlink.set_function(port, {word: value})
            connectx.bind(lab.vf(PF1, index))
    return before


@pytest.fixture
def changes() -> Iterator[Sequence[Change]]:
    """Firmware keeps them for the tests that follow: a VF without RoCE is unknown to rdma_cm."""
    connectx.switch(PF1)
    changed = ((0, "roce", False), (1, "max_io_eqs", 8), (2, "migratable", False))
    before = set_functions(changed)
    yield changed
    set_functions(before)


def test_port_functions_are_kept_in_one_pass(
    nodeagent: Nodeagent, changes: Sequence[Change]
) -> None:
    lab.settle()
    before, told = connectx.read(), functions(PF1)
    assert [told[index][word] for index, word, _ in changes] == [value for *_, value in changes]
    lab.put_other_build_on_disk()
    reload = nodeagent.call("reload")
    assert functions(PF1) == told
    assert connectx.read() == before
    assert reload.log.count("tune VFs: ") == reload.log.count("bind VFs: ") == 1
