"""A reload that does not get there: the node keeps a driver and its VFs, and says what is wrong."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.lab import PF1, Nodeagent, State


@contextmanager
def hosts_tree(build: str) -> Iterator[None]:
    """The host's own modules, as the driver pod sees them, with that build of the driver."""
    release = os.uname().release
    tree = Path("/host/lib/modules") / release
    lab.sh(
        f"mkdir -p {tree}/updates; cp /lib/modules/{release}/modules.* {tree};"
        f"cp -r /lib/modules/{release}/kernel {tree};"
        f"cp /opt/lab/driver/{build}/mlx5_core.ko {tree}/updates; depmod -b /host"
    )
    try:
        yield
    finally:
        lab.sh(f"rm -r {tree}")


def test_vfs_are_restored_on_the_old_driver(nodeagent: Nodeagent, three_vfs: State) -> None:
    """The new one cannot be loaded; the next start, with a whole file, completes the work."""
    old = lab.loaded()
    build = "A" if old == lab.srcversion_of("A") else "B"
    wanted = lab.put_other_build_on_disk()
    on_disk = lab.sh("modinfo -F filename mlx5_core").strip()
    lab.hook("post-stop", f"truncate -s 4096 {on_disk}")
    with hosts_tree(build):
        failed = nodeagent.call("reload", status=71)
    assert f"mlx5_core is loaded as {old}" in failed.log
    assert lab.loaded() == old
    assert lab.read() == three_vfs
    assert not nodeagent.ready.exists()
    assert nodeagent.open_snapshot.exists()
    assert not lab.BLACKLIST.exists()
    lab.remove_faults()
    lab.sh(f"lab-driver {'B' if build == 'A' else 'A'}")
    nodeagent.call("reload")
    assert lab.loaded() == wanted
    assert lab.read() == three_vfs
    assert nodeagent.ready.exists()
    assert not nodeagent.open_snapshot.exists()


@pytest.mark.parametrize("switch", ["fail=refuse", "nothing=1"])
def test_a_stop_that_is_refused_costs_nothing_without_a_quiesce(
    switch: str, nodeagent: Nodeagent, three_vfs: State
) -> None:
    old = lab.loaded()
    made = (lab.PCI / PF1 / "virtfn0/net").stat().st_ino
    lab.put_other_build_on_disk()
    lab.SWITCHES.write_text(f"{switch}\n")
    failed = nodeagent.call("reload", status=71, QUIESCE="off")
    assert "openibd restart did not bring in the installed driver" in failed.log
    assert (lab.loaded(), lab.read()) == (old, three_vfs)
    assert (lab.PCI / PF1 / "virtfn0/net").stat().st_ino == made
    assert not nodeagent.ready.exists()
    assert not lab.BLACKLIST.exists()


def test_a_module_that_is_in_use_is_not_forced(nodeagent: Nodeagent, three_vfs: State) -> None:
    """Soft RoCE on a VF with its device open: rmmod refuses, and openibd is not even called."""
    old = lab.loaded()
    lab.put_other_build_on_disk()
    lab.sh(f"modprobe rdma_rxe; rdma link add rxe0 type rxe netdev {lab.name(lab.vf(PF1, 1))}")
    with Path("/dev/infiniband/uverbs0").open("rb") as device:
        holder = subprocess.Popen(["sleep", "60"], stdin=device)
    try:
        failed = nodeagent.call("reload", status=71, UNLOAD_THIRD_PARTY_RDMA_MODULES="true")
        assert "cannot unload the module rdma_rxe: " in failed.log
        assert (lab.loaded(), lab.read()) == (old, three_vfs)
        assert lab.restarts() == []
    finally:
        holder.kill()
        holder.wait()
        lab.sh("rdma link delete rxe0; modprobe -r rdma_rxe")


def test_third_party_modules_go_if_allowed(nodeagent: Nodeagent, three_vfs: State) -> None:
    """And come back: the RDMA of another vendor's NIC is not lost to a reload of ours."""
    wanted = lab.put_other_build_on_disk()
    lab.sh(f"modprobe rdma_rxe; rdma link add rxe0 type rxe netdev {lab.name(lab.vf(PF1, 1))}")
    refused = nodeagent.call("reload", status=1)
    assert "third-party: other vendors' RDMA modules are loaded: rdma_rxe" in refused.log
    lab.hook("post-stop", "ls /sys/module >/run/lab/modules")
    nodeagent.call("reload", UNLOAD_THIRD_PARTY_RDMA_MODULES="true")
    try:
        assert "rdma_rxe" not in Path("/run/lab/modules").read_text().split()
        assert Path("/sys/module/rdma_rxe").exists()
        assert (lab.loaded(), lab.read()) == (wanted, three_vfs)
    finally:
        lab.sh("modprobe -r rdma_rxe")


def test_a_module_that_depends_on_the_driver(nodeagent: Nodeagent, three_vfs: State) -> None:
    """Unknown it stops a reload; come too late it is a real refusal; named it goes and comes."""
    old = lab.loaded()
    holder = Path("/sys/module/mlx5_holder")
    wanted = lab.put_other_build_on_disk()
    try:
        lab.sh("modprobe mlx5_holder")
        refused = nodeagent.call("reload", status=1)
        assert "modules: the module mlx5_holder uses mlx5_core" in refused.log
        assert lab.restarts() == []

        lab.sh("rmmod mlx5_holder")
        lab.hook("pre-stop", "modprobe mlx5_holder")
        failed = nodeagent.call("reload", status=71)
        assert "openibd: modprobe: FATAL: Module mlx5_core is in use" in failed.log
        assert "(held by mlx5_holder, reference count 1)" in failed.log
        assert (lab.loaded(), lab.read()) == (old, three_vfs)
        assert nodeagent.open_snapshot.exists()
        assert not lab.BLACKLIST.exists()

        (lab.HOOKS / "pre-stop-hook.sh").unlink()
        assert holder.exists()
        nodeagent.call("reload", MLX5_AUXILIARY_MODULES="mlx5_holder")
        assert (lab.loaded(), lab.read()) == (wanted, three_vfs)
        assert holder.exists()
    finally:
        lab.sh("if [ -d /sys/module/mlx5_holder ]; then rmmod mlx5_holder; fi")


def test_the_driver_of_before_from_wherever_it_lies(nodeagent: Nodeagent, three_vfs: State) -> None:
    """No host's tree beside: the packages' file is broken, another is where kmod does not look."""
    old = lab.loaded()
    build = "A" if old == lab.srcversion_of("A") else "B"
    lab.put_other_build_on_disk()
    on_disk = lab.sh("modinfo -F filename mlx5_core").strip()
    hidden = Path("/lib/modules") / os.uname().release / "kernel/hidden"
    hidden.mkdir()
    lab.sh(f"cp /opt/lab/driver/{build}/mlx5_core.ko {hidden}")
    lab.hook("post-stop", f"truncate -s 4096 {on_disk}")
    try:
        failed = nodeagent.call("reload", status=71)
    finally:
        lab.sh(f"rm -r {hidden}")
    assert f"loading the previous mlx5_core from {hidden}/mlx5_core.ko" in failed.log
    assert (lab.loaded(), lab.read()) == (old, three_vfs)
    assert not nodeagent.ready.exists()
    lab.remove_faults()
    lab.sh(f"lab-driver {build}")
    nodeagent.call("reload")
    assert nodeagent.ready.exists()
