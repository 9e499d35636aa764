"""Preflight on the emulated node: real modules, devices, namespaces and processes that hold."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeagent.kernel import modules, trial
from tests.support import lab
from tests.support.lab import PF1, Nodeagent

pytestmark = pytest.mark.usefixtures("no_vfs")


def findings(agent: Nodeagent, **environment: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit status, and the findings by check."""
    done = agent.start("preflight", "--output", "json", **environment)
    status = done.wait()
    told = json.loads(done.output())
    found: dict[str, list[dict[str, Any]]] = {}
    for each in told["findings"]:
        found.setdefault(each["check"], []).append(each)
    assert told["blocks"] is bool(status)
    return status, found


@contextmanager
def rxe(interface: str) -> Iterator[None]:
    """Soft RoCE on an interface: uverbs devices, and modules that use ib_core."""
    lab.sh(f"modprobe rdma_rxe; rdma link add rxe0 type rxe netdev {interface}")
    try:
        yield
    finally:
        lab.sh("rdma link delete rxe0 || true; modprobe -r rdma_rxe ib_uverbs || true")


@pytest.mark.short
def test_nothing_is_found_on_a_clean_node(nodeagent: Nodeagent) -> None:
    lab.put_other_build_on_disk()
    assert findings(nodeagent) == (0, {})


def test_a_soft_roce_device_on_a_vf_and_who_has_it_open(nodeagent: Nodeagent) -> None:
    lab.put_other_build_on_disk()
    lab.create_vfs(PF1, 2)
    with rxe(lab.name(lab.vf(PF1, 0))):
        status, found = findings(nodeagent)
        assert status == 1
        assert "rdma_rxe" in found["third-party"][0]["what"]
        assert "ib_uverbs" in found["third-party"][0]["why"]
        holder = subprocess.Popen(["sleep", "60"], stdin=open("/dev/infiniband/uverbs0"))  # noqa: SIM115
        try:
            status, found = findings(nodeagent, UNLOAD_THIRD_PARTY_RDMA_MODULES="true")
        finally:
            holder.kill()
            holder.wait()
        (process,) = found["processes"]
        assert f"sleep (pid {holder.pid}) holds /dev/infiniband/uverbs0" == process["what"]
        assert status == 0


def test_vfs_in_a_namespace_and_with_another_driver(nodeagent: Nodeagent) -> None:
    lab.put_other_build_on_disk()
    lab.create_vfs(PF1, 3)
    lab.give_to("pci-stub", lab.vf(PF1, 1))
    lab.sh(f"ip netns add pod; ip link set {lab.name(lab.vf(PF1, 2))} netns pod")
    try:
        status, found = findings(nodeagent)
        (given,) = found["vfs"]
        assert f"VF 1 ({lab.vf(PF1, 1)}, pci-stub)" in given["what"]
        assert "pods" not in found  # it will be put back
        assert status == 0
        assert findings(nodeagent, SKIP_PREFLIGHT_CHECKS="false")[0] == 1
        (away,) = findings(nodeagent, POD_INTERFACES="report")[1]["pods"]
        assert away["what"] == f"pci/{PF1} vf 2 ({lab.vf(PF1, 2)}) is in /run/netns/pod"
    finally:
        lab.sh("ip netns delete pod")


def test_the_uplink_stops_a_reload_before_anything_is_touched(nodeagent: Nodeagent) -> None:
    lab.put_other_build_on_disk()
    before = lab.loaded()
    name = lab.name(PF1)
    lab.sh(f"ip link set {name} up; ip addr add 192.0.2.2/24 dev {name}")
    lab.sh(f"ip route add default via 192.0.2.1 dev {name}")
    try:
        status, found = findings(nodeagent)
        assert (status, found["uplink"][0]["blocks"]) == (1, True)
        done = nodeagent.call("reload", status=1)
        assert f"uplink: {name} on {PF1} is the default route" in done.log
        assert lab.loaded() == before
        assert lab.restarts() == []
        lab.sh("ip route del default")
        _, found = findings(nodeagent, KUBERNETES_SERVICE_HOST="192.0.2.9")
        assert "is the route to the API server 192.0.2.9" in found["uplink"][0]["what"]
        lab.sh(f"ip route add default via 192.0.2.1 dev {name}")

        def uplink() -> tuple[str, str]:
            """Whether there is carrier at this moment is nobody's setting."""
            routes = lab.sh("ip route").replace(" linkdown", "")
            return routes, lab.sh(f"ip -4 addr show dev {name} | grep inet")

        wanted = uplink()
        nodeagent.call("reload", ALLOW_UPLINK_RELOAD="true")
        assert lab.loaded() != before
        assert uplink() == wanted
        assert "default via 192.0.2.1" in wanted[0]
    finally:
        lab.sh(f"ip addr flush dev {name}")


def test_an_uplink_that_is_bonded_is_detected_and_comes_back(nodeagent: Nodeagent) -> None:
    lab.put_other_build_on_disk()
    name = lab.name(PF1)
    lab.sh(
        f"ip link set {name} down; ip link add bond7 type bond mode active-backup;"
        f"ip link set {name} master bond7; ip link set bond7 up;"
        "ip addr add 192.0.2.2/24 dev bond7; ip route add default via 192.0.2.1 dev bond7"
    )
    try:
        status, found = findings(nodeagent)
        assert status == 1
        assert found["uplink"][0]["what"] == f"bond7 on {PF1} is the default route (IPv4)"

        def bond() -> tuple[str, str, str]:
            port = lab.sh(f"cat /sys/class/net/{name}/master/uevent /sys/class/net/bond7/address")
            routes = lab.sh("ip route").replace(" linkdown", "")
            return port, routes, lab.sh("ip -4 -o addr show dev bond7 scope global")

        before, loaded = bond(), lab.loaded()
        nodeagent.call("reload", ALLOW_UPLINK_RELOAD="true")
        assert lab.loaded() != loaded
        assert bond() == before
        assert "INTERFACE=bond7" in before[0]
        assert "default via 192.0.2.1 dev bond7" in before[1]
    finally:
        lab.sh(f"ip link delete bond7; ip link set {name} down")


def test_a_packet_capture_is_named(nodeagent: Nodeagent) -> None:
    lab.put_other_build_on_disk()
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n"
        f"s.bind(({lab.name(PF1)!r}, 3))\nprint(flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        ["python3", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as capture:
        assert capture.stdout is not None
        capture.stdout.readline()
        _, found = findings(nodeagent)
        assert capture.stdin is not None
        capture.stdin.close()
    (process,) = found["processes"]
    assert f"(pid {capture.pid}) holds a packet socket on pci/{PF1}" in process["what"]


@pytest.mark.both_nics
def test_a_signature_that_does_not_fit_and_nothing_is_touched(nodeagent: Nodeagent) -> None:
    """The kernel's own mlx5_core, signed, with one letter changed: refused before the unload."""
    lab.create_vfs(PF1, 2)
    before, running = lab.read(), lab.loaded()
    release = os.uname().release
    (signed,) = Path(f"/lib/modules/{release}/kernel").rglob("mlx5_core.ko")
    target = Path(lab.sh("modinfo -F filename mlx5_core").strip())
    build = lab.on_disk()
    try:
        target.write_bytes(signed.read_bytes().replace(b"5th generation", b"6th generation"))
        status, found = findings(nodeagent)
        assert status == 1
        (finding,) = found["loadable"]
        assert finding["what"] == (
            f"the kernel refuses the installed mlx5_core ({target}): Key was rejected by service"
        )
        refused = nodeagent.call("reload", status=1)
        assert "the driver is not reloaded, nothing was touched:" in refused.log
    finally:
        target.unlink()
        lab.sh(f"lab-driver {build}")
    assert (lab.loaded(), lab.read(), lab.restarts()) == (running, before, [])


@pytest.mark.both_nics
def test_asking_the_kernel_changes_nothing() -> None:
    """Of a module that is loaded, of another build of it, and of one that is not loaded."""

    def facts() -> tuple[object, ...]:
        listed = Path("/proc/modules").read_text()
        tainted = Path("/proc/sys/kernel/tainted").read_text()
        return listed, tainted, modules.loading("mlx5_core"), modules.loading("dummy")

    lab.sh("if [ -d /sys/module/dummy ]; then modprobe -r dummy; fi")
    before = facts()
    asked = modules.all_installed(("mlx5_core", "ib_core", "dummy"))
    for build in lab.BUILDS.glob("[AB]"):
        asked[f"build {build.name}"] = modules.Installed(f"{build}/mlx5_core.ko", {})
    assert len(asked) == 5
    assert {trial.refusal(module) for module in asked.values()} == {None}
    assert facts() == before
