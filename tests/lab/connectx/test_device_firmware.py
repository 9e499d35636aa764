"""The emulated ConnectX itself, by plain tools: its log, firmware's time, faults, health, pages."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from tests.support import connectx, lab
from tests.support.connectx import Card, asked
from tests.support.lab import PF1

VF_START = 0.3
"""Seconds."""


@pytest.fixture(autouse=True)
def held() -> Iterator[Card]:
    lab.clean()
    with connectx.card() as card:
        yield card
    lab.clean()


class Kernel:
    """What the kernel says from now on."""

    def __init__(self) -> None:
        self._messages = os.open("/dev/kmsg", os.O_RDONLY | os.O_CLOEXEC)
        os.lseek(self._messages, 0, os.SEEK_END)

    def says(self, text: str) -> None:
        """Return when it has."""
        while select.select([self._messages], [], [], lab.PATIENCE)[0]:
            if text.encode() in os.read(self._messages, 8192):
                return
        raise AssertionError(f"the kernel did not say: {text}")

    def close(self) -> None:
        os.close(self._messages)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    opened = Kernel()
    yield opened
    opened.close()


def mark() -> int:
    """A place in the log."""
    return connectx.LOG.stat().st_size


def unbound(count: int) -> list[str]:
    """VFs without a driver."""
    autoprobe = lab.PCI / PF1 / "sriov_drivers_autoprobe"
    autoprobe.write_text("0")
    lab.PCI.joinpath(PF1, "sriov_numvfs").write_text(str(count))
    autoprobe.write_text("1")
    return [lab.vf(PF1, n) for n in range(count)]


def bind_all(addresses: list[str]) -> None:
    """Side by side."""
    with ThreadPoolExecutor(len(addresses)) as pool:
        list(pool.map(connectx.bind, addresses))


def of_pf(command: str) -> str:
    return f"ip link set {lab.name(PF1)} {command}"


def test_each_command_is_on_record_with_function_and_status() -> None:
    since = mark()
    lab.create_vfs(PF1, 2)
    found = asked(since)
    assert {each.function for each in found} == {"pf1", "pf1vf0", "pf1vf1"}
    assert {each.status for each in found} == {"OK"}
    enabled = [each.function for each in found if each.name == "ENABLE_HCA"]
    assert enabled == ["pf1", "pf1", "pf1vf0", "pf1vf1"]
    assert [each.end for each in found] == sorted(each.end for each in found)
    assert "gives 8 pages of function 1" in connectx.remarks(since)


def test_commands_take_their_time(held: Card) -> None:
    lab.create_vfs(PF1, 1)
    held.set(0, "fw-command-us", 2000)
    since = mark()
    lab.sh(of_pf("vf 0 vlan 7"))
    found = asked(since)
    assert found
    assert all(each.took >= 0.002 for each in found)


@pytest.mark.parametrize("parallel", [1, 2, 0], ids=["one", "two", "any"])
def test_vfs_start_side_by_side_as_far_as_firmware_does(held: Card, parallel: int) -> None:
    addresses = unbound(4)
    held.set(0, "fw-vf-ms", int(VF_START * 1000))
    held.set(0, "fw-parallel", parallel)
    since = mark()
    bind_all(addresses)
    # a VF's second event queue
    created = [each for each in asked(since) if each.name == "CREATE_EQ"]
    functions = {each.function for each in created}
    assert len(functions) == 4
    ends = sorted(
        [each.end for each in created if each.function == function][1] for function in functions
    )
    # with N hands, the end of each start is a start's time after the N-th before it
    step = parallel or 4
    assert all(
        later - earlier >= VF_START * 0.999
        for earlier, later in zip(ends, ends[step:], strict=False)
    )
    together = sum(later - earlier < VF_START / 2 for earlier, later in pairwise(ends))
    assert together == {1: 0, 2: 2, 0: 3}[parallel]


def test_a_refusal_has_its_syndrome(held: Card) -> None:
    lab.create_vfs(PF1, 1)
    held.set(0, "fault", "MODIFY_NIC_VPORT_CONTEXT 3/0x1a2b3c 1 0")
    since = mark()
    with pytest.raises(AssertionError, match="Invalid argument"):
        lab.sh(of_pf("vf 0 mac 02:00:00:00:00:76"))
    lab.sh(of_pf("vf 0 mac 02:00:00:00:00:76"))
    (failed,) = [each for each in asked(since) if each.status != "OK"]
    assert (failed.name, failed.status) == ("MODIFY_NIC_VPORT_CONTEXT", "BAD_PARAM")
    assert failed.syndrome == 0x1A2B3C
    assert "syndrome (0x1a2b3c)" in lab.sh("dmesg")


def test_a_command_hangs_until_it_is_released(held: Card) -> None:
    lab.create_vfs(PF1, 1)
    held.set(0, "fault", "MODIFY_NIC_VPORT_CONTEXT hang 1 0")
    since = mark()
    with ThreadPoolExecutor(1) as pool:
        setting = pool.submit(lab.sh, of_pf("vf 0 mac 02:00:00:00:00:77"))
        lab.eventually(lambda: any(each.status == "HELD" for each in asked(since)), "the hang")
        assert not setting.done()
        held.set(0, "fault", "")
        setting.result()
    assert "02:00:00:00:00:77" in lab.sh(f"ip link show {lab.name(PF1)}")


def test_what_is_answered_too_late_times_out(held: Card, kernel: Kernel) -> None:
    """Without that answer the slot stays lost, and the PF with it (`never` in its README)."""
    lab.create_vfs(PF1, 1)
    held.set(0, "fault", "MODIFY_NIC_VPORT_CONTEXT hang 1 0")
    with pytest.raises(AssertionError, match="timed out"):
        lab.sh(of_pf("vf 0 mac 02:00:00:00:00:78"))
    held.set(0, "fault", "")
    kernel.says("Command completion arrived after timeout")
    lab.sh(of_pf("vf 0 mac 02:00:00:00:00:79"))


def test_firmware_that_is_still_initializing_is_waited_for(held: Card, kernel: Kernel) -> None:
    (address,) = unbound(1)
    held.set(0, "initializing", True)
    with ThreadPoolExecutor(1) as pool:
        binding = pool.submit(connectx.bind, address)
        kernel.says("Waiting for FW pre-initializing")
        assert not binding.done()
        held.set(0, "initializing", False)
        binding.result()
    assert lab.driver(address) == "mlx5_core"


def test_a_fatal_health_error_is_reported_and_recovered_from(held: Card, kernel: Kernel) -> None:
    assert connectx.fatal(PF1) == "healthy"
    held.set(0, "health", 0x1)
    kernel.says("Fatal error")
    held.set(0, "health", 0)
    kernel.says("health recovery succeeded")
    assert connectx.fatal(PF1) == "healthy"
    lab.settle()
    lab.sh(of_pf("up"))


def test_firmware_asks_for_pages_and_gives_them_back(held: Card) -> None:
    since = mark()
    held.set(0, "request-pages", 300)
    lab.eventually(lambda: "gives" in connectx.remarks(since), "the pages")
    since = mark()
    held.set(0, "request-pages", -300)
    lab.eventually(lambda: "takes" in connectx.remarks(since), "the pages' return")


def test_a_vf_that_is_disabled_at_work_is_stopped(kernel: Kernel) -> None:
    """`devlink dev reload` of a PF disables its VFs and enables them again; they recover."""
    lab.create_vfs(PF1, 1)
    address = lab.vf(PF1, 0)
    since = mark()
    lab.sh(f"devlink dev reload pci/{PF1}")
    assert "disables function 1, which is at work" in connectx.remarks(since)
    kernel.says(f"{address}: poll_health")
    kernel.says(f"{address}: health recovery succeeded")
    assert ("pf1vf0", "INIT_HCA") in connectx.commands(since)
    lab.settle()
    assert lab.name(address) == lab.vf_name(PF1, 0)
