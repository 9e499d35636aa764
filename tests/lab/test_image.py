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
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.support import cni, lab, mounted
from tests.support.kustomize import Object, render
from tests.support.lab import PF1, State
from tests.support.network_operator import driver_daemonset
from tests.support.pod import Container, Image, Pod

pytestmark = pytest.mark.image

ROOT = Path(__file__).parents[2]
BROUGHT = Path("/host/root.ext4")
WORK = Path("/run/lab-image")
"""On a tmpfs: overlayfs does not take another overlay as its upper layer."""
READY = Path("/run/mellanox/drivers/.driver-ready")
PROVEN = READY.with_name(".nodeagent-ready")
"""nodeagent's own flag beside a driver container."""
STATE_DIR = Path("/var/lib/nodeagent")
INVENTORY = Path("/var/opt/mofed-container/inventory")
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
    # what systemd makes of every mount at boot, and the kubelet asks for
    lab.sh(f"modprobe loop; mount -o loop,ro {BROUGHT} {layer}; mount --make-rshared /run")
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


def template(overlay: str, *components: str) -> Object:
    """The pod that a DaemonSet makes."""
    directory = ROOT / "manifests/overlays" / overlay
    objects = render(directory, *(ROOT / "manifests" / name for name in components))
    (found,) = [each for each in objects if each["kind"] == "DaemonSet"]
    spec: Object = found["spec"]["template"]["spec"]
    return copy.deepcopy(spec)


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
    headers = READY.parent / "usr/src"
    while headers.is_mount():  # what a pod that was killed has left
        lab.sh(f"umount -l {headers}")
    for path in (READY.parent, STATE_DIR, INVENTORY.parent):
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
    """The driver container; in the companion's pod, which has none, nodeagent's."""
    name = "mofed-container" if "mofed-container" in running.containers else "nodeagent"
    return running.containers[name]


def is_ready(running: Pod) -> bool:
    return agent(running).status.ready


def is_ready_again(container: Container, number: int) -> bool:
    return container.status.ready and container.log.count("ready: ") == number


def soon(is_so: Callable[[], object], running: Pod, what: str) -> None:
    """Return as soon as it is so; at once, with the log, when the container keeps ending."""

    def is_so_or_hopeless() -> object:
        exits = agent(running).status.exits
        assert len(exits) < 3, f"{what}: it keeps ending: {exits}\n{agent(running).log}"
        return is_so()

    lab.eventually(is_so_or_hopeless, what)


def other_build() -> str:
    return "B" if lab.loaded() == lab.srcversion_of("A") else "A"


def works(container: Container, *shared: Path) -> dict[str, list[str]]:
    """Of tests/support/mounted.py: what works, with each mount of the container away in turn."""
    for directory in (READY.parent, STATE_DIR, cni.DATA, *shared):
        (directory / mounted.TOKEN).touch()
    mounts = [each["mountPath"] for each in container.spec["volumeMounts"]]
    lab.ip("netns add after-its-start")  # not a process has it
    inode = Path("/run/netns/after-its-start").stat().st_ino
    argv = ("-P", "-c", Path(mounted.__file__).read_text(), str(inode), *mounts)
    done = container.exec("python3", *argv)
    lab.ip("netns del after-its-start")
    assert done.returncode == 0, done.stderr
    told: dict[str, list[str]] = json.loads(done.stdout)
    assert told.keys() == {"", *mounts}
    return told


def assert_each_mount_is_needed(container: Container, *shared: Path) -> None:
    """Everything works; with one mount away all but what that one is for."""
    told = works(container, *shared)
    mounts = sorted(told.keys() - {""})
    assert sorted(told[""]) == mounts
    for mount in mounts:
        assert sorted([*told[mount], mount]) == mounts, mount


def asked_for_metrics() -> str:
    """What Prometheus would get."""
    with urllib.request.urlopen("http://127.0.0.1:9790/metrics", timeout=lab.PATIENCE) as answer:
        text: str = answer.read().decode()
    return text


def test_an_upgrade_and_the_end(node: State, image: Image, tmp_path: Path) -> None:
    """The driver is in the image; the node's VFs survive, and it says ready where others look.

    All that within the memory that the manifests ask the scheduler for.
    """
    build = other_build()
    lab.ip("netns add workload", f"link set {lab.name(lab.vf(PF1, 1))} netns workload")
    before = lab.read()
    layer = image.with_layer(driver_layer(build))
    spec = template("replace", "metrics")
    for each in spec["containers"]:
        each["resources"]["limits"] = {"memory": each["resources"]["requests"]["memory"]}
    # as in a cluster whose API server does not answer: two more processes, one to the end
    setting(spec, "KUBERNETES_SERVICE_HOST", "127.0.0.1")
    setting(spec, "KUBERNETES_SERVICE_PORT", "9")
    with pod(spec, layer, tmp_path / "pod") as running:
        status = agent(running).status
        soon(lambda: status.ready, running, "ready")
        reloaded = agent(running).used()
        assert status.started
        assert status.restarts == 0
        assert lab.loaded() == lab.srcversion_of(build)
        assert lab.read() == before
        assert "openibd: Loading HCA driver" in agent(running).log
        assert READY.exists()
        assert (READY.parent / "usr/src").is_mount()  # the kernel headers, for the GPU driver
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
        assert_each_mount_is_needed(agent(running))

        serving = running.containers["metrics"]
        told = asked_for_metrics()
        for line in ("ready 1.0", "vfs_wanted 3.0", "vfs_present 3.0", "last_reload_success 1.0"):
            assert f"nodeagent_{line}" in told, told
        for mount in serving.spec["volumeMounts"]:
            assert serving.exec("touch", f"{mount['mountPath']}/x").returncode != 0
        for name, used in (("reload", reloaded), ("metrics", serving.used())):
            sys.stdout.write(f"{name}: {used}\n")
        assert running.end() == {"mofed-container": 0, "metrics": 0}
        assert not READY.exists()
        assert lab.read() == before
    with pod(template("replace"), layer, tmp_path / "again") as running:
        soon(partial(is_ready, running), running, "ready")
        sys.stdout.write(f"at rest: {agent(running).used()}\n")
        assert "nothing is left to restore" in agent(running).log
        assert lab.read() == before


def test_a_long_reload_is_not_killed_and_a_hung_one_is(
    node: State, image: Image, tmp_path: Path
) -> None:
    build = other_build()
    spec = setting(template("replace"), "BEAT_LIMIT", "12")
    spec["containers"][0]["livenessProbe"] |= {"periodSeconds": 1}
    spec["terminationGracePeriodSeconds"] = 3
    STATE_DIR.mkdir(parents=True)
    BLOCK.touch()
    with pod(spec, image.with_layer(driver_layer(build)), tmp_path / "pod") as running:
        status = agent(running).status
        soon(WAITING.exists, running, "in the middle of the restart")
        soon(lambda: status.started, running, "started")
        time.sleep(16)  # longer than the limit, in one and the same wait
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


def test_a_pod_is_killed_recovery_by_hand_and_the_next_pod(
    node: State, image: Image, tmp_path: Path
) -> None:
    """manifests/README.md: killed in the middle, no pod comes up; the next ends the upgrade."""
    build = other_build()
    layer = image.with_layer(driver_layer(build))
    STATE_DIR.mkdir(parents=True)
    READY.parent.mkdir(parents=True, exist_ok=True)
    READY.touch()  # of a pod before that was killed while it was ready
    BLOCK.touch()
    with pod(template("replace"), layer, tmp_path / "killed") as killed:
        soon(WAITING.exists, killed, "in the middle of the restart")
        assert not READY.exists()
        assert lab.BLACKLIST.exists()
        killed.kill()
    assert lab.loaded() is None
    assert (STATE_DIR / "open-snapshot.json").exists()
    with pod(copy.deepcopy(DEBUG), image, tmp_path / "debug") as debug:

        def typed(command: str, status: int = 0) -> str:
            done = agent(debug).exec("sh", "-c", f"{BY_HAND}{command}")
            sys.stdout.write(f"$ {command}\n{done.stdout}{done.stderr}")
            assert done.returncode == status, done
            return done.stdout

        soon(lambda: agent(debug).exec("true").returncode == 0, debug, "there")
        assert "a reload is in progress" in typed("nodeagent status", status=1)
        typed("rm -f /host/etc/modprobe.d/blacklist-ofed-modules.conf")
        typed("chroot /host modprobe mlx5_core")
        assert lab.loaded() is not None
        typed("nodeagent restore")
        typed("nodeagent verify")
        assert lab.read() == node
        assert "restart" in typed("nodeagent timeline")
    BLOCK.unlink()
    with pod(template("replace"), layer, tmp_path / "next") as running:
        soon(partial(is_ready, running), running, "ready")
        assert lab.loaded() == lab.srcversion_of(build)
        assert lab.read() == node
        assert not lab.BLACKLIST.exists()
        assert not (STATE_DIR / "open-snapshot.json").exists()


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
end() {
    rm -f $flag
    if [ "$RESTORE_DRIVER_ON_POD_TERMINATION" = true ]; then /etc/init.d/openibd restart; fi
    exit 0
}
trap end TERM
while :; do sleep 1 & wait $!; done
"""


def driver_container(build: str, image: Image) -> Image:
    """An image with that script and that build of the driver."""
    layer = WORK / f"driver-container-{build}"
    if not layer.exists():
        shutil.copytree(driver_layer(build), layer)
        (layer / "entrypoint").write_text(DRIVER_CONTAINER)
        (layer / "entrypoint").chmod(0o755)
    return Image((layer, *image.layers), {**image.config, "Entrypoint": ["/entrypoint"]})


def operators_pod(environment: Mapping[str, str]) -> Object:
    """The Network Operator's driver pod, of the image doca-driver:x."""
    spec: Object = driver_daemonset("doca-driver:x", environment.items())["spec"]["template"][
        "spec"
    ]
    del spec["initContainers"]  # waits for the operator
    for name in ("run-mlnx-ofed", "etc-network", "drivers-inventory"):
        (volume,) = [each for each in spec["volumes"] if each["name"] == name]
        Path(volume["hostPath"]["path"]).mkdir(parents=True, exist_ok=True)
    return spec


def test_the_operators_driver_pod_leaves_pods_to_the_companion(
    node: State, image: Image, tmp_path: Path
) -> None:
    """Through the policy: it is nodeagent, and cannot see into pods. Alone it is refused."""
    build = other_build()
    lab.ip("netns add workload", f"link set {lab.name(lab.vf(PF1, 1))} netns workload")
    before = lab.read()
    policy = yaml.safe_load((ROOT / "manifests/network-operator/nicclusterpolicy.yaml").read_text())
    told = {each["name"]: each["value"] for each in policy["spec"]["ofedDriver"]["env"]}
    spec = operators_pod(told | {"NVIDIA_NIC_DRIVER_VER": "25.10-1.2.8.0"})
    spec["containers"][0]["startupProbe"]["initialDelaySeconds"] = 1
    layer = image.with_layer(driver_layer(build))
    images = {"doca-driver:x": Image(layer.layers, {**layer.config, "Cmd": ["precompiled"]})}

    alone = Pod(spec, images, tmp_path / "alone")
    alone.start(restart=False)
    try:
        lab.eventually(lambda: agent(alone).status.exits, "its end")
        assert "in a network namespace that is not visible" in agent(alone).log
        assert "deploy the companion" in agent(alone).log
    finally:
        alone.kill()
        sys.stdout.write(f"--- alone\n{agent(alone).log}\n")
    assert lab.read() == before

    with pod(template("companion"), image, tmp_path / "ours") as companion:
        ours = companion.containers["nodeagent"]
        soon(lambda: "-ready to be there" in ours.log, companion, "it waits for the flag")
        with pod(spec, image, tmp_path / "theirs", images) as running:
            soon(partial(is_ready_again, ours, 1), companion, "ready")
            assert "until the companion puts it back" in agent(running).log
            assert lab.loaded() == lab.srcversion_of(build)
            assert lab.read() == before
            soon(lambda: agent(running).status.ready, running, "ready for the operator")
            assert agent(running).status.restarts == ours.status.restarts == 0
            assert running.end() == {"mofed-container": 0}
        assert companion.end() == {"nodeagent": 0}
    assert lab.read() == before


def test_the_companion_of_the_operators_driver_pods(
    node: State, image: Image, tmp_path: Path
) -> None:
    """Two pods: the operator's, whose end takes the VFs, too; and ours, which puts them back."""
    build = other_build()
    spec = operators_pod({"RESTORE_DRIVER_ON_POD_TERMINATION": "true"})
    images = {"doca-driver:x": driver_container(build, image)}
    with pod(template("companion"), image, tmp_path / "ours") as companion:
        ours = companion.containers["nodeagent"]
        soon(lambda: "-ready to be there" in ours.log, companion, "it waits for the flag")
        assert not ours.status.ready
        with pod(spec, image, tmp_path / "theirs", images) as running:
            soon(partial(is_ready_again, ours, 1), companion, "ready")
            assert agent(running).log.count("reloaded once") == 1
            assert lab.loaded() == lab.srcversion_of(build)
            assert lab.read() == node
            assert "openibd" not in ours.log
            assert "is not held off" not in ours.log
            assert_each_mount_is_needed(ours)

            # it crashes: the VFs are there all the time
            agent(running).kill(signal.SIGKILL)
            soon(partial(is_ready_again, ours, 2), companion, "ready after a crash")
            # it reloads at once, and nodeagent is stopped, or killed, meanwhile
            reload = f"rm {READY} && /etc/init.d/openibd restart && touch {READY}"
            for number, wakes in enumerate((signal.SIGCONT, signal.SIGKILL), 3):
                ours.kill(signal.SIGSTOP)
                assert agent(running).exec("sh", "-c", reload).returncode == 0
                assert lab.read() != node
                ours.kill(wakes)
                soon(partial(is_ready_again, ours, number), companion, "ready once more")
                assert ours.log.count("is being reloaded, unobserved") == number - 2
                assert lab.read() == node
            # the flag goes and comes back within less than 50 ms
            assert agent(running).exec("sh", "-c", f"rm {READY}; touch {READY}").returncode == 0
            soon(partial(is_ready_again, ours, 5), companion, "ready after a short absence")
            assert lab.read() == node
            assert running.end() == {"mofed-container": 0}
        assert lab.read() != node
        assert not PROVEN.exists()
        soon(lambda: not ours.status.ready, companion, "not ready")  # after three probes
        with pod(spec, image, tmp_path / "next", images) as running:
            soon(partial(is_ready_again, ours, 6), companion, "ready with the next driver pod")
            assert "reloaded once" not in agent(running).log
            assert lab.read() == node
            assert ours.status.restarts == 1  # the one that was killed
            assert companion.end() == {"nodeagent": 0}
    assert lab.read() == node


def test_beside_an_unchanged_driver_container(node: State, image: Image, tmp_path: Path) -> None:
    """That one reloads, once, and loses every VF; nodeagent kept them and puts them back."""
    build = other_build()
    images = {
        "doca-driver:{set-it-by-images-in-your-kustomization}": driver_container(build, image)
    }
    with pod(template("sidecar"), image, tmp_path / "pod", images) as running:
        ours = running.containers["nodeagent"]
        soon(lambda: ours.status.ready, running, "ready")
        assert agent(running).log.count("reloaded once") == 1
        assert "openibd" not in ours.log
        assert "is not held off" not in ours.log
        assert lab.loaded() == lab.srcversion_of(build)
        assert lab.read() == node
        assert_each_mount_is_needed(ours)

        agent(running).kill(signal.SIGKILL)
        soon(lambda: "it restarts, or ends" in ours.log, running, "nodeagent has seen the flag go")
        soon(partial(is_ready_again, ours, 2), running, "ready again")
        assert agent(running).log.count("reloaded once") == 1
        assert ours.status.restarts == 0
        assert lab.read() == node

        # too late to see a reload: the flag is another one by then, and so is the driver
        reload = f"rm {READY} && /etc/init.d/openibd restart && touch {READY}"
        for number, (wakes, restarts) in enumerate(((signal.SIGCONT, 0), (signal.SIGKILL, 1)), 3):
            ours.kill(signal.SIGSTOP)
            assert agent(running).exec("sh", "-c", reload).returncode == 0
            assert lab.read() != node
            ours.kill(wakes)
            soon(partial(is_ready_again, ours, number), running, "ready once more")
            assert ours.log.count("is being reloaded, unobserved") == number - 2
            assert ours.status.restarts == restarts
            assert lab.read() == node
        assert running.end() == {"mofed-container": 0, "nodeagent": 0}
    assert lab.read() == node


def test_without_its_permissions_it_says_so(node: State, image: Image, tmp_path: Path) -> None:
    """Privileged, root and the host's network: without each of them it is never ready."""
    layer = image.with_layer(driver_layer(other_build()))

    def ended(spec: Object, name: str) -> str:
        made = Pod(spec, {"nodeagent:driver": layer}, tmp_path / name)
        made.start(restart=False)
        try:
            lab.eventually(lambda: agent(made).status.exits, f"{name}: its end")
            assert agent(made).status.exits == [1]
            assert not READY.exists()
            return agent(made).log
        finally:
            made.kill()
            sys.stdout.write(f"--- {name}\n{agent(made).log}\n")

    plain = template("replace")
    (container,) = plain["containers"]
    allowed = ["SYS_MODULE", "NET_ADMIN", "SYS_ADMIN"]
    container["securityContext"] = {"capabilities": {"add": allowed}}
    container["volumeMounts"][0]["mountPropagation"] = "None"
    user = template("replace")
    user["containers"][0]["securityContext"]["runAsUser"] = 1000
    assert "this needs root" in ended(user, "user")
    said = ended(plain, "plain")  # it could unload the driver, and make no VF
    assert "nothing was touched" in said
    assert "/sys is mounted read-only" in said
    said = ended(template("replace") | {"hostNetwork": False}, "alone")
    assert "nothing was touched" in said
    assert lab.read() == node


def test_a_first_install_by_the_toolkit(node: State, image: Image, tmp_path: Path) -> None:
    """OpenShift, and no driver is loaded: the toolkit builds it, it is installed and loaded."""
    build = other_build()
    lab.sh("modprobe -r mlx5_core")
    layer = WORK / "sources"
    shutil.copytree("/etc/infiniband", layer / "etc/infiniband")
    (layer / "etc/init.d").mkdir()
    shutil.copy("/etc/init.d/openibd", layer / "etc/init.d")
    shutil.copytree("/usr/src/driver", layer / "opt/driver-sources")
    (layer / "opt/driver-sources/build").write_text(build)
    toolkit = Image((Path("/"),), {"Env": image.config["Env"]})
    images = {"driver-toolkit:{set-it-by-images-in-your-kustomization}": toolkit}
    spec = template("openshift")
    with pod(spec, image.with_layer(layer), tmp_path / "pod", images) as running:
        soon(lambda: agent(running).status.ready, running, "ready")
        assert lab.loaded() == lab.srcversion_of(build)
        assert agent(running).status.restarts == 0
        assert "Build passed" in running.containers["openshift-driver-toolkit-ctr"].log
        assert list(INVENTORY.rglob("*.rpm"))
        assert_each_mount_is_needed(agent(running), INVENTORY, running.volume("toolkit"))
        began = time.monotonic()
        assert running.end() == {"mofed-container": 0, "openshift-driver-toolkit-ctr": 0}
        assert time.monotonic() - began < spec["terminationGracePeriodSeconds"] / 2
