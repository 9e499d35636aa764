"""The built image, run from the rendered manifests as a kubelet would: what they forget, fails.

scripts/lab test --image -m image
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.kustomize import Object, render
from tests.support.lab import PF1, State
from tests.support.pod import Container, Image, Pod

pytestmark = pytest.mark.image

ROOT = Path(__file__).parents[2]
BROUGHT = Path("/host/root.ext4")
WORK = Path("/run/lab-image")
"""On a tmpfs: overlayfs does not take another overlay as its upper layer."""
READY = Path("/run/mellanox/drivers/.driver-ready")
STATE_DIR = Path("/var/lib/nodeagent")
RELEASE = os.uname().release
BLOCK = STATE_DIR / "block"
"""While it exists, the stand-in waits between unload and load."""
WAITING = STATE_DIR / "waiting"


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image that scripts/image built."""
    if not BROUGHT.exists():
        pytest.skip(f"there is no {BROUGHT}: scripts/lab test --image")
    layer = WORK / "image"
    layer.mkdir(parents=True)
    lab.sh(f"modprobe loop; mount -o loop,ro {BROUGHT} {layer}")
    yield Image((layer,), json.loads(Path("/host/config.json").read_text())["config"])
    lab.sh(f"umount {layer}")
    shutil.rmtree(WORK)


def driver_layer(build: str) -> Path:
    """What `FROM nodeagent` plus a driver's packages has more: openibd and the modules."""
    layer = WORK / f"driver-{build}"
    if layer.exists():
        return layer
    modules = layer / "usr/lib/modules" / RELEASE
    (modules / "updates").mkdir(parents=True)
    (layer / "etc/init.d").mkdir(parents=True)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(Path("/lib/modules") / RELEASE / name, modules)
    shutil.copy(f"/opt/lab/driver/{build}/mlx5_core.ko", modules / "updates")
    shutil.copy("/etc/init.d/openibd", layer / "etc/init.d")
    shutil.copytree("/etc/infiniband", layer / "etc/infiniband")
    hook = layer / "etc/infiniband/pre-start-hook.sh"
    hook.write_text(f"#!/bin/bash\ntouch {WAITING}\nwhile [ -e {BLOCK} ]; do sleep 0.1; done\n")
    hook.chmod(0o755)
    lab.sh(f"depmod -b {layer}/usr {RELEASE}")
    return layer


def template(overlay: str) -> Object:
    """The pod that a DaemonSet makes."""
    objects = render(ROOT / "manifests/overlays" / overlay)
    (found,) = [each for each in objects if each["kind"] == "DaemonSet"]
    spec: Object = found["spec"]["template"]["spec"]
    return copy.deepcopy(spec)


def without(spec: Object, mount: str) -> Object:
    """The pod of a manifest that forgot a mount."""
    (container,) = spec["containers"]
    mounts = container["volumeMounts"]
    container["volumeMounts"] = [each for each in mounts if each["mountPath"] != mount]
    assert len(container["volumeMounts"]) == len(mounts) - 1
    return spec


def setting(spec: Object, name: str, value: str) -> Object:
    """The pod with another value of a variable."""
    environment = spec["containers"][0]["env"]
    environment[:] = [each for each in environment if each["name"] != name]
    environment.append({"name": name, "value": value})
    return spec


@pytest.fixture
def node(three_vfs: State) -> Iterator[State]:
    """Three VFs on build A or B; nothing of an earlier pod."""
    _forget()
    yield three_vfs
    _forget()


def _forget() -> None:
    for path in (READY.parent, STATE_DIR, Path("/var/opt/mofed-container")):
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def pod(
    spec: Object, image: Image, directory: Path, others: Mapping[str, Image] | None = None
) -> Iterator[Pod]:
    """A pod that is started, and ended whatever happens."""
    images = {"nodeagent:driver": image, "nodeagent:sidecar": image, **(others or {})}
    made = Pod(spec, images, directory)
    made.start()
    try:
        yield made
    finally:
        made.kill()
        for each in made.containers.values():
            sys.stderr.write(f"--- {each.name}: {each.status}\n{each.log}\n")


def agent(running: Pod) -> Container:
    return running.containers["mofed-container"]


def is_ready(running: Pod) -> bool:
    return agent(running).status.ready


def soon(is_so: Callable[[], object], running: Pod, what: str) -> None:
    """Return as soon as it is so; at once, with the log, when the container keeps ending."""

    def is_so_or_hopeless() -> object:
        exits = agent(running).status.exits
        assert len(exits) < 3, f"{what}: it keeps ending: {exits}\n{agent(running).log}"
        return is_so()

    lab.eventually(is_so_or_hopeless, what)


def other_build() -> str:
    return "B" if lab.loaded() == lab.srcversion_of("A") else "A"


def test_an_upgrade_and_the_end(node: State, image: Image, tmp_path: Path) -> None:
    """The driver is in the image; the node's VFs survive, and it says ready where others look."""
    build = other_build()
    lab.ip("netns add workload", f"link set {lab.name(lab.vf(PF1, 1))} netns workload")
    before = lab.read()
    layer = image.with_layer(driver_layer(build))
    with pod(template("replace"), layer, tmp_path / "pod") as running:
        status = agent(running).status
        soon(lambda: status.ready, running, "ready")
        assert status.started
        assert status.restarts == 0
        assert lab.loaded() == lab.srcversion_of(build)
        assert lab.read() == before
        assert "openibd: Loading HCA driver" in agent(running).log
        assert READY.exists()
        assert (STATE_DIR / "last-snapshot.json").exists()
        assert not lab.BLACKLIST.exists()
        assert "no udevd" not in agent(running).log
        # the driver container's stock probes, and what people type
        for line in ("ls /run/mellanox/drivers/.driver-ready", "lsmod | grep mlx5_core"):
            assert agent(running).exec("sh", "-c", line).returncode == 0, line
        shown = agent(running).exec("nodeagent", "status")
        assert shown.returncode == 0, shown.stdout
        began = time.monotonic()
        assert agent(running).exec("nodeagent", "probe", "live").returncode == 0
        sys.stdout.write(f"a probe, with crun exec: {time.monotonic() - began:.3f} s\n")
        assert running.end() == {"mofed-container": 0}
        assert not READY.exists()
        assert lab.read() == before
    with pod(template("replace"), layer, tmp_path / "again") as running:
        soon(partial(is_ready, running), running, "ready")
        assert "nothing is left to restore" in agent(running).log
        assert lab.read() == before


def test_a_long_reload_is_not_killed_and_a_hung_one_is(
    node: State, image: Image, tmp_path: Path
) -> None:
    build = other_build()
    spec = setting(template("replace"), "BEAT_LIMIT", "6")
    spec["containers"][0]["livenessProbe"] |= {"periodSeconds": 1}
    spec["terminationGracePeriodSeconds"] = 3
    STATE_DIR.mkdir(parents=True)
    BLOCK.touch()
    with pod(spec, image.with_layer(driver_layer(build)), tmp_path / "pod") as running:
        status = agent(running).status
        soon(WAITING.exists, running, "in the middle of the restart")
        soon(lambda: status.started, running, "started")
        time.sleep(15)  # longer than the limit, in one and the same wait
        assert status.restarts == 0
        assert not status.ready
        assert not [each for each in status.events if "liveness" in each]
        assert lab.loaded() is None

        agent(running).kill(signal.SIGSTOP)
        soon(lambda: status.restarts == 1, running, "killed and started anew")
        assert "Killing: livenessProbe failed" in status.events
        BLOCK.unlink()
        soon(lambda: status.ready, running, "ready")
        assert status.restarts == 1
        assert lab.loaded() == lab.srcversion_of(build)
        assert lab.read() == node
        assert running.end(grace=60) == {"mofed-container": 0}


def test_a_pod_that_is_killed_is_finished_by_the_next(
    node: State, image: Image, tmp_path: Path
) -> None:
    build = other_build()
    layer = image.with_layer(driver_layer(build))
    STATE_DIR.mkdir(parents=True)
    BLOCK.touch()
    with pod(template("replace"), layer, tmp_path / "first") as killed:
        soon(WAITING.exists, killed, "in the middle of the restart")
        killed.kill()
    assert lab.loaded() is None
    assert (STATE_DIR / "open-snapshot.json").exists()
    assert not READY.exists()
    BLOCK.unlink()
    with pod(template("replace"), layer, tmp_path / "second") as running:
        soon(partial(is_ready, running), running, "ready")
        assert lab.loaded() == lab.srcversion_of(build)
        assert lab.read() == node
        assert not lab.BLACKLIST.exists()


def _snapshot(container: Container) -> dict[str, bool]:
    shown = container.exec("nodeagent", "snapshot")
    assert shown.returncode == 0, shown.stderr
    told = json.loads(shown.stdout)
    return {
        "machine": bool(told["machine_id"]),
        "interfaces_seen": "can't be seen" not in shown.stderr,
    }


def _udev_is_seen(container: Container) -> bool:
    script = "from nodeagent.kernel import udev; raise SystemExit(not udev.is_running())"
    return container.exec("python3", "-c", script).returncode == 0


def _needs_are_found(container: Container) -> bool:
    return container.exec("modprobe", "-n", "-d", "/host", "dca").returncode == 0


DEBUG: Object = {  # what `kubectl debug node/NAME --profile=sysadmin` makes
    "hostNetwork": True,
    "hostPID": True,
    "hostIPC": True,
    "containers": [
        {
            "name": "mofed-container",
            "image": "nodeagent:driver",
            "command": ["sleep", "3600"],
            "securityContext": {"privileged": True},
            "volumeMounts": [{"name": "host-root", "mountPath": "/host"}],
        }
    ],
    "volumes": [{"name": "host-root", "hostPath": {"path": "/"}}],
}
BY_HAND = """
export STATE_DIR=/host/var/lib/nodeagent
export DRIVER_READY_PATH=/host/run/mellanox/drivers/.driver-ready
export LOCK_FILE_PATH=/host/run/mellanox/drivers/.lock
"""


def test_recovery_by_hand(node: State, image: Image, tmp_path: Path) -> None:
    """README: a pod was killed in the middle and none comes up; all from a debug container."""
    layer = image.with_layer(driver_layer(other_build()))
    STATE_DIR.mkdir(parents=True)
    BLOCK.touch()
    with pod(template("replace"), layer, tmp_path / "killed") as killed:
        soon(WAITING.exists, killed, "in the middle of the restart")
        killed.kill()
    with pod(copy.deepcopy(DEBUG), image, tmp_path / "debug") as debug:

        def typed(command: str, status: int = 0) -> str:
            done = agent(debug).exec("sh", "-c", f"{BY_HAND}{command}")
            sys.stdout.write(f"$ {command}\n{done.stdout}{done.stderr}")
            assert done.returncode == status, done
            return done.stdout

        soon(lambda: agent(debug).exec("true").returncode == 0, debug, "there")
        assert "this node" in typed("nodeagent status", status=1) or lab.loaded() is None
        typed("rm -f /host/etc/modprobe.d/blacklist-ofed-modules.conf")
        typed("chroot /host modprobe mlx5_core")
        assert lab.loaded() is not None
        typed("nodeagent restore")
        typed("nodeagent verify")
        assert lab.read() == node
        typed("nodeagent timeline")


FORGOTTEN: dict[str, Callable[[Container], object]] = {
    "/run/mellanox/drivers": lambda container: READY.exists(),
    "/var/lib/nodeagent": lambda container: (STATE_DIR / "journal.jsonl").exists(),
    "/run/netns": lambda container: _snapshot(container)["interfaces_seen"],
    "/host/etc": lambda container: _snapshot(container)["machine"],
    "/run/udev": _udev_is_seen,
    "/host/lib/modules": _needs_are_found,
}


def test_each_mount_is_needed(node: State, image: Image, tmp_path: Path) -> None:
    """A pod with nothing to do; each mount taken away in turn makes one thing fail, and only it."""
    mine = "A" if lab.loaded() == lab.srcversion_of("A") else "B"
    layer = image.with_layer(driver_layer(mine))
    lab.ip("netns add workload", f"link set {lab.name(lab.vf(PF1, 1))} netns workload")
    mounts = [each["mountPath"] for each in template("replace")["containers"][0]["volumeMounts"]]
    assert sorted(mounts) == sorted(FORGOTTEN)
    for number, forgotten in enumerate(["", *mounts]):
        _forget()
        spec = template("replace")
        spec = without(spec, forgotten) if forgotten else spec
        with pod(spec, layer, tmp_path / f"pod-{number}") as running:
            soon(partial(is_ready, running), running, "ready")
            works = {mount: bool(check(agent(running))) for mount, check in FORGOTTEN.items()}
        assert works == {mount: mount != forgotten for mount in FORGOTTEN}, forgotten


DRIVER_CONTAINER = """#!/bin/bash
# Stands in for a driver container of before: reloads by itself, and knows nothing of nodeagent.
flag=/run/mellanox/drivers/.driver-ready
exec 9>/run/mellanox/drivers/.lock
flock -n 9 || { echo "another instance"; exit 1; }
rm -f $flag
if [ "$(modinfo -F srcversion mlx5_core)" != "$(cat /sys/module/mlx5_core/srcversion)" ]; then
    /etc/init.d/openibd restart && echo "reloaded once" || exit 1
fi
touch $flag
trap 'rm -f $flag; exit 0' TERM
while :; do sleep 1 & wait $!; done
"""


def test_beside_an_unchanged_driver_container(node: State, image: Image, tmp_path: Path) -> None:
    """That one reloads, once, and loses every VF; nodeagent kept them and puts them back."""
    build = other_build()
    layer = WORK / "driver-container"
    shutil.copytree(driver_layer(build), layer)
    (layer / "entrypoint").write_text(DRIVER_CONTAINER)
    (layer / "entrypoint").chmod(0o755)
    theirs = Image((layer, *image.layers), {**image.config, "Entrypoint": ["/entrypoint"]})
    images = {"doca-driver:latest": theirs}
    with pod(template("sidecar"), image, tmp_path / "pod", images) as running:
        ours = running.containers["nodeagent"]
        soon(lambda: ours.status.ready, running, "ready")
        assert agent(running).log.count("reloaded once") == 1
        assert "openibd" not in ours.log
        assert lab.loaded() == lab.srcversion_of(build)
        assert lab.read() == node

        agent(running).kill(signal.SIGKILL)
        soon(lambda: "starts anew" in ours.log, running, "nodeagent has seen the flag go")
        soon(lambda: ours.status.ready and ours.log.count("ready: ") == 2, running, "ready again")
        assert agent(running).log.count("reloaded once") == 1
        assert ours.status.restarts == 0
        assert lab.read() == node
        assert running.end() == {"mofed-container": 0, "nodeagent": 0}
    assert lab.read() == node
