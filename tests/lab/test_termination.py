"""The end of the agent: the host's own driver and the VFs on it, and nothing left of ours.

mlnxofedctl is a stand-in, see tests/support/hosts_driver.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.hosts_driver import CONTROL, hosts_own_driver
from tests.support.lab import PF1, Gate, Nodeagent, State

RULE = Path("/etc/udev/rules.d/77-mlnx-net-names.rules")


@pytest.fixture(scope="module", autouse=True)
def _a_host_of_its_own() -> Iterator[None]:
    """Build A is the host's own driver; the pod's is B."""
    with hosts_own_driver():
        yield


@pytest.fixture
def three_vfs_on_a(three_vfs: State) -> State:
    """The host's own driver runs, and B is installed."""
    if lab.loaded() != lab.srcversion_of("A"):
        lab.clean("A")
        lab.make_vfs(PF1, 3)
    lab.put_on_disk("B")
    return lab.read()


def mounts_at(pid: int | str, path: Path) -> list[str]:
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split()[4] == str(path)]


def property_of(device: str, name: str) -> str:
    told = lab.sh(f"udevadm info -q property -p /sys/class/net/{lab.name(device)}")
    return dict(line.split("=", 1) for line in told.splitlines()).get(name, "")


def test_a_life_from_the_hosts_driver_to_the_hosts_driver(
    nodeagent: Nodeagent, three_vfs_on_a: State, tmp_path: Path
) -> None:
    """With stale mounts, names that would get ports, and a host that lacks OFED's packages."""
    headers, drivers = tmp_path / "src", tmp_path / "drivers"
    for path in (headers / "new", drivers, tmp_path / "old"):
        path.mkdir(parents=True)
    shared = drivers / str(headers).lstrip("/")
    lab.sh(
        f"mount -t tmpfs tmpfs {drivers}; mount --make-shared {drivers}; mkdir -p {shared};"
        f"mount -t tmpfs tmpfs {headers}/new;"
        f"mount --bind {tmp_path}/old {shared}; mount --bind {tmp_path}/old {shared}"
    )
    assert len(mounts_at("self", shared)) == 2
    # the new driver tells of ports, also in the names of VFs
    ports = lab.RUN / "ports"
    name = 'SUBSYSTEM=="net", KERNELS=="{}", ENV{{ID_NET_NAME_PATH}}="{}"\n'
    names = {PF1: "enp1s0np0", lab.vf(PF1, 2): "enp1s0np0v2"}
    ports.write_text("".join(name.format(*each) for each in names.items()))
    lab.RULES.mkdir(exist_ok=True)
    lab.hook("post-stop", f"cp {ports} {lab.RULES}/76-lab.rules; udevadm control --reload")
    lab.RUN.joinpath("no-modules").touch()

    settings = {
        "RESTORE_DRIVER_ON_POD_TERMINATION": "true",
        "CREATE_IFNAMES_UDEV": "true",
        "MLX_UDEV_RULES_FILE": RULE,
        "MLX_DRIVERS_MOUNT": drivers,
        "SHARED_KERNEL_HEADERS_DIR": headers,
    }
    # a mount namespace of its own, like a pod's with Bidirectional propagation
    unshare = ("unshare", "--mount", "--propagation", "unchanged", "nodeagent")
    try:
        run = nodeagent.start_command(*unshare, "run", "precompiled", **settings)
        run.wait_for("ready: ")
        assert lab.loaded() == lab.srcversion_of("B")
        assert lab.read() == three_vfs_on_a
        assert RULE.exists()
        assert property_of(PF1, "ID_NET_NAME_PATH") == "enp1s0"
        assert property_of(lab.vf(PF1, 2), "ID_NET_NAME_PATH") == "enp1s0v2"
        assert len(mounts_at(run.process.pid, shared)) == 1
        (on_host,) = mounts_at("self", shared)
        assert "shared:" in on_host
        assert len(mounts_at("self", shared / "new")) == 1
        (debug,) = mounts_at(run.process.pid, Path("/sys/kernel/debug"))
        assert "unbindable" in debug
        (sysfs,) = mounts_at(run.process.pid, Path("/sys"))
        assert not {"unbindable", "shared"} & set(sysfs.replace(":", " ").split())

        assert run.stop() == 0
        assert lab.loaded() == lab.srcversion_of("A")
        assert lab.read() == three_vfs_on_a
        assert not nodeagent.ready.exists()
        assert not nodeagent.open_snapshot.exists()
        assert not RULE.exists()
        assert mounts_at("self", shared) == []
        assert not shared.exists()
    finally:
        RULE.unlink(missing_ok=True)
        lab.sh(f"umount -R {drivers}; umount {headers}/new; mount --make-rshared /sys")
    assert (lab.RUN / "mlnxofedctl.log").read_text() == "--alt-mods force-restart\n"
    asked = nodeagent.call("timeline", "--last", "2", "--output", "json")
    before, after = json.loads(asked.output())
    assert (before["result"], after["mode"], after["result"]) == (
        "ready",
        "terminate",
        "terminated",
    )
    phases = [(phase["name"], phase["result"]) for phase in after["phases"]]
    done = ("preflight", "snapshot", "inbox", "quiesce", "unbind", "restore", "verify")
    assert phases == [(name, "done") for name in done]


def test_killed_while_the_hosts_driver_comes_back(
    nodeagent: Nodeagent, three_vfs_on_a: State
) -> None:
    """The grace period was too short: the next start has the snapshot, and finishes."""
    settings = {"RESTORE_DRIVER_ON_POD_TERMINATION": "true"}
    run = nodeagent.start("run", "precompiled", **settings)
    run.wait_for("ready: ")
    with Gate("unloaded") as gate:
        lab.hook("post-stop", gate.script)
        run.process.terminate()
        gate.wait()
        run.kill_all()
    (lab.HOOKS / "post-stop-hook.sh").unlink()
    assert lab.loaded() is None
    assert nodeagent.open_snapshot.exists()
    assert not nodeagent.ready.exists()

    again = nodeagent.start("run", "precompiled", **settings)
    again.wait_for("ready: ")
    assert lab.loaded() == lab.srcversion_of("B")
    assert lab.read() == three_vfs_on_a
    CONTROL.chmod(0o644)  # cannot be done: said, and the driver stays
    assert again.stop() == 1
    CONTROL.chmod(0o755)
    assert "cannot load the host's own driver: there is no /usr/sbin/mlnxofedctl" in again.log
    assert lab.loaded() == lab.srcversion_of("B")
    assert lab.read() == three_vfs_on_a
