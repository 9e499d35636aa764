"""Mode `sources`: real packages, made by rpmbuild and dpkg-deb, installed by rpm and dpkg.

The sources are a stand-in whose install.pl says and leaves what the real one does. The toolkit is
played by the script that nodeagent hands over, by `nodeagent run dtk-build`, or by a test.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.driver import dtk, host_tree, packages
from nodeagent.driver.nic import NicDriver
from nodeagent.errors import (
    AgentError,
    DataError,
    Stopped,
    StorageError,
    UnavailableError,
    WaitTimeout,
)
from nodeagent.kernel import modules
from nodeagent.kernel.events import StopSignal
from nodeagent.modes import Mode
from nodeagent.settings import Settings
from tests.support import lab
from tests.support.lab import PATIENCE, Gate, Nodeagent, State, sh

RELEASE = os.uname().release
VERSION = lab.DRIVER_VERSION
BUILD_SCRIPT = "dtk_nic_driver_build.sh"


@pytest.fixture(autouse=True)
def _no_packages() -> Iterator[None]:
    """Build A on disk, nothing that packages brought, before and after."""
    lab.remove_faults()
    sh("lab-driver A")
    yield
    sh("lab-driver A")


@pytest.fixture
def driver(tmp_path: Path) -> NicDriver:
    """The toolkit builds, the sources are the stand-in's, and there is an inventory."""
    shutil.copytree("/usr/src/driver", tmp_path / "src")
    (tmp_path / "inventory").mkdir()
    settings = replace(
        Settings(),
        nic_driver_ver=VERSION,
        nic_driver_path=tmp_path / "src",
        inventory=tmp_path / "inventory",
        dtk_build=True,
        dtk_shared_dir=tmp_path / "shared",
        build_timeout=PATIENCE,
    )
    return NicDriver(settings, Mode.SOURCES, None)


def sources(driver: NicDriver) -> Path:
    path = driver.settings.nic_driver_path
    assert path is not None
    return path


def shared(driver: NicDriver) -> dtk.HandOver:
    return dtk.hand_over(driver.settings, RELEASE)


def kept(driver: NicDriver) -> Path:
    """Where the inventory has this kernel's packages."""
    assert driver.settings.inventory is not None
    return driver.settings.inventory / RELEASE


def installed() -> str:
    """The srcversion that modprobe would load."""
    return modules.installed("mlx5_core").srcversion or ""


def rpms() -> set[str]:
    return set(sh("rpm -qa --qf '%{NAME}\\n'").split())


class Delivery(threading.Thread):
    """ensure_built() beside the test; `failure` is what it raised."""

    def __init__(self, driver: NicDriver) -> None:
        super().__init__()
        self._driver = driver
        self.failure: AgentError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._driver.ensure_built()
        except AgentError as error:
            self.failure = error

    def ended(self) -> AgentError | None:
        self.join(PATIENCE)
        assert not self.is_alive()
        return self.failure


@contextmanager
def toolkit(argv: list[str | Path], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """The sidecar's process."""
    with Path("/run/lab/toolkit.log").open("w+") as log:
        process = subprocess.Popen(
            argv, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            log.seek(0)
            sys.stderr.write(log.read())


def handed_over(driver: NicDriver) -> dtk.HandOver:
    files = shared(driver)
    lab.eventually(files.start.exists, "the start flag")
    return files


# With the toolkit


def test_from_sources_to_ready(nodeagent: Nodeagent, three_vfs: State, tmp_path: Path) -> None:
    """Our script builds; the VFs are as before; the next start builds and reloads nothing."""
    build = "B" if lab.loaded() == lab.srcversion_of("A") else "A"
    shutil.copytree("/usr/src/driver", tmp_path / "src")
    (tmp_path / "src/build").write_text(build)
    (tmp_path / "inventory").mkdir()
    settings = {
        "NVIDIA_NIC_DRIVER_PATH": tmp_path / "src",
        "NVIDIA_NIC_DRIVERS_INVENTORY_PATH": tmp_path / "inventory",
        "APPEND_DRIVER_BUILD_FLAGS": "--with-one --extra '--two \"three\" $HOME'",
    }
    run = nodeagent.start("run", "sources", **settings)
    run.wait_for("waiting for the driver toolkit's done flag")
    with toolkit([nodeagent.done_flag.parent / BUILD_SCRIPT]) as sidecar:
        run.wait_for("ready: ")
        sidecar.terminate()
        assert sidecar.wait(PATIENCE) == 0
    assert lab.loaded() == lab.srcversion_of(build)
    assert lab.read() == three_vfs
    assert run.stop() == 0
    arguments = (nodeagent.done_flag.parent / f"MLNX_OFED_SRC-{VERSION}/arguments").read_text()
    assert arguments.splitlines()[-5:] == [
        *("--without-mlnx-nfsrdma", "--without-mlnx-nvme", "--with-one", "--extra"),
        '--two "three" $HOME',
    ]
    shutil.rmtree(nodeagent.shared)

    again = nodeagent.start("run", "sources", **settings)
    again.wait_for("ready: ")
    assert "no build is needed" in again.log
    assert again.stop() == 0
    assert lab.restarts() == ["begin", "end"]
    lab.make_loaded_build_the_one_on_disk()


def test_a_build_that_fails_is_told_at_once_and_the_next_start_builds(driver: NicDriver) -> None:
    (sources(driver) / "fault").write_text(
        "echo compiling; echo 'error: no such header' >&2; exit 3"
    )
    before = installed()
    delivery = Delivery(driver)
    files = handed_over(driver)
    with toolkit([files.directory / "entrypoint", "dtk-build"]) as sidecar:
        assert sidecar.wait(PATIENCE) == 1
    failure = delivery.ended()
    assert isinstance(failure, UnavailableError)
    assert "the driver toolkit could not build the driver" in failure.message
    assert "error: no such header\n" in failure.message
    assert "install.pl exited 3" in failure.message
    assert files.failed.exists()
    assert not files.start.exists()
    assert not files.done.exists()
    assert installed() == before

    (sources(driver) / "fault").unlink()
    delivery = Delivery(driver)
    files = handed_over(driver)
    assert not files.failed.exists()
    with toolkit([files.directory / BUILD_SCRIPT]):
        assert delivery.ended() is None
    assert installed() == lab.srcversion_of("B")


def test_packages_that_are_not_whole_are_never_installed(driver: NicDriver) -> None:
    """A toolkit of another kind: it says done while it is still copying, and later goes on."""
    before = installed()
    delivery = Delivery(driver)
    files = handed_over(driver)
    lab.build_packages(files.sources, "B")
    (package,) = files.sources.glob("RPMS/*/*/mlnx-ofa_kernel-*.rpm")
    whole = package.read_bytes()
    package.write_bytes(whole[: len(whole) // 2])
    files.done.touch()
    failure = delivery.ended()
    assert isinstance(failure, DataError)
    assert f"{package.name} (" in failure.message
    assert "cannot install damaged or incomplete packages" in failure.message
    assert installed() == before
    assert "ofed-scripts" not in rpms()

    package.unlink()
    with pytest.raises(DataError, match="none of the 2 packages has the module mlx5_core"):
        driver.ensure_built()
    assert installed() == before

    package.write_bytes(whole)
    driver.ensure_built()
    assert installed() == lab.srcversion_of("B")
    assert not list(kept(driver).glob(".*"))


def test_packages_that_stay_damaged_are_built_again(driver: NicDriver) -> None:
    """By the script that has built before: it serves on."""
    delivery = Delivery(driver)
    files = handed_over(driver)
    with toolkit([files.directory / BUILD_SCRIPT]):
        assert delivery.ended() is None
        (package,) = files.sources.glob("RPMS/*/*/mlnx-ofa_kernel-*.rpm")
        package.write_bytes(package.read_bytes()[:10000])
        shutil.rmtree(kept(driver))
        assert Delivery(driver).ended() is None
    assert installed() == lab.srcversion_of("B")
    assert len([*(kept(driver) / VERSION).iterdir()]) == 3


def test_a_toolkit_that_dies_is_told_by_what_was_last_seen(driver: NicDriver) -> None:
    """Nothing says so: no flag, no marker, and no further package."""
    (sources(driver) / "fault").write_text("exec -a lab-compiler sleep 600")
    delivery = Delivery(replace(driver, settings=replace(driver.settings, build_timeout=12.0)))
    files = handed_over(driver)
    with toolkit([files.directory / BUILD_SCRIPT]):
        lab.eventually(compiling, "the compiler runs")
    sh("pkill -KILL -f [l]ab-compiler")
    failure = delivery.ended()
    assert isinstance(failure, WaitTimeout)
    assert failure.missing == (str(files.done),)
    assert re.match(r"2 packages, the last new one \d+ s ago; no failure", failure.hint or "")
    assert installed() == lab.srcversion_of("A")


@pytest.mark.parametrize("builder", ["script", "nodeagent"])
def test_sigterm_ends_a_build_at_once(driver: NicDriver, builder: str) -> None:
    """With all that it has started; no flag and no marker; the next one builds."""
    (sources(driver) / "fault").write_text("exec -a lab-compiler sleep 600")
    delivery = Delivery(replace(driver, settings=replace(driver.settings, build_timeout=60.0)))
    files = handed_over(driver)
    start = f". {files.environment}; exec nodeagent run dtk-build"
    argv = ["sh", "-c", start] if builder == "nodeagent" else [files.directory / BUILD_SCRIPT]
    with toolkit([*argv]) as sidecar:
        lab.eventually(compiling, "the compiler runs")
        asked = time.monotonic()
        sidecar.terminate()
        assert sidecar.wait(PATIENCE) != 0
        assert time.monotonic() - asked < 10
        lab.eventually(lambda: not compiling(), "the compiler is ended")
    assert files.start.exists()
    assert not files.failed.exists()
    (files.sources / "fault").unlink()
    with toolkit([*argv]) as sidecar:
        assert delivery.ended() is None
        lab.eventually(lambda: not files.start.exists(), "the start flag is gone")
        sidecar.terminate()
        assert sidecar.wait(PATIENCE) == 0
    assert installed() == lab.srcversion_of("B")


def compiling() -> bool:
    done = subprocess.run(["pgrep", "-f", "lab-compiler"], check=False, capture_output=True)
    return done.returncode == 0


# Right here


@pytest.fixture
def here(driver: NicDriver) -> Iterator[NicDriver]:
    """Without the toolkit: the kernel's headers are there, or what looks like them."""
    headers = Path("/lib/modules", RELEASE, "build")
    headers.mkdir()
    settings = replace(driver.settings, dtk_build=False)
    yield replace(driver, settings=settings)
    headers.rmdir()


def test_built_here_kept_and_built_again_when_anything_differs(
    here: NicDriver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    old, foreign = kept(here).parent / "5.14.0-1.el9.x86_64", kept(here) / "notes"
    for path in (old / "24.10-0.7.0.0", kept(here) / "24.10-0.7.0.0", foreign):
        path.mkdir(parents=True)
    (old / "24.10-0.7.0.0.checksum").touch()
    (kept(here) / "24.10-0.7.0.0/mlnx-ofa_kernel.rpm").touch()
    (foreign / "readme").touch()

    def deliver(driver: NicDriver = here) -> str:
        caplog.clear()
        driver.ensure_built()
        assert installed() == lab.srcversion_of("B")
        return "\n".join(caplog.messages)

    said = deliver()
    assert "a build is needed: there is no " in said
    assert "build: Build mlnx-ofa_kernel 25.10 RPM" in said
    arguments = (sources(here) / "arguments").read_text().split()
    assert arguments[:3] == ["--without-depcheck", "--kernel", RELEASE]
    assert not old.exists()
    assert sorted(path.name for path in kept(here).iterdir()) == [
        VERSION,
        f"{VERSION}.buildconfig",
        f"{VERSION}.checksum",
        "notes",
    ]
    sh(f"cd {kept(here) / VERSION} && sha256sum --quiet -c ../{VERSION}.checksum")

    said = deliver()
    assert "no build is needed: 3 packages in " in said
    assert "build: " not in said

    (package,) = (kept(here) / VERSION).glob("mlnx-tools-*")
    content = package.read_bytes()
    package.write_bytes(content[:-1] + bytes([content[-1] ^ 0xFF]))
    said = deliver()
    assert f"a build is needed: the checksum of {package.name}" in said

    settings = replace(here.settings, append_build_flags="--with-more")
    said = deliver(replace(here, settings=settings))
    assert "was built with other settings" in said
    assert (sources(here) / "arguments").read_text().split()[-1] == "--with-more"


def test_a_kill_in_the_middle_of_rpm_is_survived(here: NicDriver, nodeagent: Nodeagent) -> None:
    """Two packages are there, the third waits in its scriptlet when the container is killed."""
    settings = {
        "NVIDIA_NIC_DRIVER_PATH": sources(here),
        "NVIDIA_NIC_DRIVERS_INVENTORY_PATH": kept(here).parent,
        "DTK_OCP_DRIVER_BUILD": "false",
    }
    (sources(here) / "build").write_text(lab.on_disk())
    with Gate("rpm") as gate:
        (sources(here) / "scriptlet").write_text(
            f"if test -p /run/lab/rpm.open; then {gate.script}; fi"
        )
        killed = nodeagent.start("run", "sources", **settings)
        gate.wait()
        killed.kill_all()
    sh("pkill -KILL -x rpm || true")
    assert "mlnx-ofa_kernel" not in rpms()
    run = nodeagent.start("run", "sources", **settings)
    run.wait_for("ready: ")
    assert "no build is needed" in run.log
    assert {"ofed-scripts", "mlnx-tools", "mlnx-ofa_kernel"} <= rpms()
    assert run.stop() == 0


def test_an_upgrade_in_the_same_root_replaces_what_the_older_packages_brought(
    here: NicDriver,
) -> None:
    """rpm -i would refuse: two versions of one file."""
    lab.build_packages(sources(here), "A", version="25.07")
    (sources(here) / "build").write_text("A")
    here.ensure_built()
    assert installed() == lab.srcversion_of("A")
    shutil.rmtree(sources(here) / "RPMS")
    (sources(here) / "build").write_text("B")
    (sources(here) / "version").write_text("25.10")
    newer = replace(here.settings, nic_driver_ver="25.10-9.9.9.9")
    replace(here, settings=newer).ensure_built()
    assert installed() == lab.srcversion_of("B")
    assert sh("rpm -q mlnx-ofa_kernel").split() == ["mlnx-ofa_kernel-25.10-1.rhel9u4.x86_64"]
    assert [path.name for path in kept(here).iterdir() if path.is_dir()] == ["25.10-9.9.9.9"]


def test_debs(here: NicDriver) -> None:
    """By dpkg, without a look at dependencies; again over what is there; no inventory."""
    (sources(here) / "debs").touch()
    settings = replace(here.settings, inventory=None)
    for _ in range(2):
        replace(here, settings=settings).ensure_built()
        assert installed() == lab.srcversion_of("B")
    state = sh("dpkg-query -W -f '${db:Status-Status} ${Version}' mlnx-ofa-kernel")
    assert state == "installed 25.10-1"
    assert not (Path("/") / packages.STAGE).exists()


def test_a_kill_in_the_middle_of_dpkg_is_survived(here: NicDriver) -> None:
    """dpkg leaves a package in pieces that it refuses to work with but to install it again."""
    (sources(here) / "debs").touch()
    once = lab.RUN / "dpkg-dies"
    once.touch()
    (sources(here) / "scriptlet").write_text(f"rm {once} 2>&- && kill -KILL $PPID || true\n")
    settings = replace(here.settings, inventory=None)
    with pytest.raises(UnavailableError, match="dpkg exited with status -9"):
        replace(here, settings=settings).ensure_built()
    state = "dpkg-query -W -f '${db:Status-Eflag} ${db:Status-Status}' mlnx-ofa-kernel"
    assert sh(state) == "reinstreq half-installed"
    replace(here, settings=settings).ensure_built()
    assert sh(state) == "ok installed"
    assert installed() == lab.srcversion_of("B")


def test_too_little_room_is_found_out_before_anything_is_copied(here: NicDriver) -> None:
    full = kept(here).parent
    sh(f"mount -t tmpfs -o size=12M tmpfs {full}")
    try:
        with pytest.raises(StorageError, match=r"not enough room in .*: 0 MiB are needed"):
            here.ensure_built()
        assert not [path for path in full.rglob("*") if path.is_file()]
    finally:
        sh(f"umount {full}")
    assert installed() == lab.srcversion_of("A")


def test_a_stop_ends_the_build_here(here: NicDriver) -> None:
    (sources(here) / "fault").write_text("exec -a lab-compiler sleep 600")

    def stop_it() -> None:
        lab.eventually(compiling, "the compiler runs")
        os.kill(os.getpid(), signal.SIGTERM)

    with StopSignal() as stop:
        thread = threading.Thread(target=stop_it)
        thread.start()
        with pytest.raises(Stopped):
            replace(here, stop=stop).ensure_built()
        thread.join()
    assert not compiling()


def test_on_rhel_the_modules_are_in_the_hosts_tree_and_labelled(here: NicDriver) -> None:
    """Twice: what the second start installs does not go through the first one's link."""
    for directory in ("/host/etc", "/host/lib"):
        sh(f"mkdir -p {directory}; mount -t tmpfs tmpfs {directory}")
    try:
        Path("/host/etc/os-release").write_text('ID="rhel"\nVERSION_ID="9.4"\n')
        hosts = Path("/host/lib/modules", RELEASE)
        sh(f"mkdir -p {hosts}; cp /lib/modules/{RELEASE}/modules.* {hosts}")
        own = Path("/lib/modules", RELEASE, host_tree.MODULES_DIRECTORY)
        for _ in range(2):
            here.ensure_built()
            assert own.readlink() == hosts / host_tree.MODULES_DIRECTORY
            (module,) = (hosts / host_tree.MODULES_DIRECTORY).rglob("mlx5_core.ko")
            label = os.getxattr(module, "security.selinux")
            assert label == b"system_u:object_r:modules_object_t:s0\0"
            assert installed() == lab.srcversion_of("B")
            assert "mlx5_core.ko" in sh("modinfo -b /host -n mlx5_core")
    finally:
        sh("umount /host/lib /host/etc")


def test_packages_go_where_driver_root_is(driver: NicDriver) -> None:
    """As a sidecar: the driver's files are in another container's root, here that of init."""
    root = Path("/proc/1/root")
    sources_there = replace(driver.settings, driver_root=root, inventory=None)
    sidecar = replace(driver, settings=sources_there)
    delivery = Delivery(sidecar)
    with toolkit([handed_over(sidecar).directory / BUILD_SCRIPT]):
        assert delivery.ended() is None
    assert installed() == lab.srcversion_of("B")
    assert not (root / packages.STAGE).exists()
