"""The genuine mlx5_vdpa: vDPA devices of VFs, by plain tools and in a reload."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import connectx, lab
from tests.support.lab import PF1, Nodeagent, State

BLUE = "mac 02:00:00:00:00:b1 mtu 1400 max_vqp 4"


@pytest.fixture
def devices() -> Iterator[State]:
    """Two, of VFs 0 and 1: one with vhost_vdpa, one with virtio_vdpa."""
    lab.clean("A")
    with connectx.card() as card:
        card.set(0, "vdpa", True)
        lab.make_vfs(PF1, 2)
        # udev has loaded mlx5_vdpa by the alias of mlx5_core.vnet.N
        lab.sh("modprobe -a vhost_vdpa virtio_vdpa")
        first, second = (f"pci/{function(index)}" for index in (0, 1))
        lab.sh(f"vdpa dev add name blue mgmtdev {first} {BLUE}")
        lab.sh(f"vdpa dev add name red mgmtdev {second} mac 02:00:00:00:00:b2")
        bind("red", "virtio_vdpa")
        lab.settle()
        yield read()
        lab.sh("modprobe -r mlx5_vdpa")
    lab.clean("A")


def function(index: int) -> str:
    """The PCI address of a VF of the first PF."""
    return (lab.PCI / PF1 / f"virtfn{index}").readlink().name


def bind(name: str, driver: str) -> None:
    """Give a vDPA device to another driver of its bus."""
    (Path("/sys/bus/vdpa/devices") / name / "driver/unbind").write_text(name)
    (Path("/sys/bus/vdpa/drivers") / driver / "bind").write_text(name)


def read() -> State:
    """What vdpa(8) tells of the devices, and the driver of each."""
    found = Path("/sys/bus/vdpa/devices").iterdir()
    return {
        "devices": json.loads(lab.sh("vdpa -j dev show")),
        "config": json.loads(lab.sh("vdpa -j dev config show")),
        "drivers": {each.name: (each / "driver").readlink().name for each in found},
    }


@contextmanager
def held(name: str) -> Iterator[None]:
    """The file of a vDPA device, open as QEMU has it."""
    (file,) = (Path("/sys/bus/vdpa/devices") / name).glob("vhost-vdpa-*")
    fd = os.open(f"/dev/{file.name}", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.close(fd)


def test_what_vdpa_shows(devices: State) -> None:
    managers = json.loads(lab.sh("vdpa -j mgmtdev show"))["mgmtdev"]
    assert {*managers} == {f"pci/{function(index)}" for index in (0, 1)}
    assert devices["devices"]["dev"]["blue"]["mgmtdev"] == f"pci/{function(0)}"
    blue = devices["config"]["config"]["blue"]
    assert (blue["mac"], blue["mtu"], blue["max_vq_pairs"]) == ("02:00:00:00:00:b1", 1400, 4)
    assert devices["drivers"] == {"blue": "vhost_vdpa", "red": "virtio_vdpa"}


def test_an_open_one_refuses_a_reload_and_closed_ones_outlast_it(
    nodeagent: Nodeagent, devices: State
) -> None:
    lab.put_other_build_on_disk()
    with held("blue"):
        refused = nodeagent.call("reload", status=1)
        assert f"(pid {os.getpid()}) holds /dev/vhost-vdpa-" in refused.log
        assert not nodeagent.open_snapshot.exists()
        assert read() == devices
    run = nodeagent.start("reload")
    run.wait_for("bind VFs: ")
    run.kill_all()
    assert nodeagent.open_snapshot.exists()
    nodeagent.call("reload")
    assert read() == devices
    nodeagent.call("verify")
