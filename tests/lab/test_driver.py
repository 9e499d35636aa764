"""The driver's restart on the emulated node: a real module, a real /sys, the stand-in's openibd.

Each way in which openibd can end is made on purpose, and nodeagent must read from the kernel what
it did. The waits on links and udev are tried here, too: this node has a real udevd.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.driver import dtk
from nodeagent.driver.nic import NicDriver
from nodeagent.errors import KernelError, Stopped, WaitTimeout
from nodeagent.kernel import modules, process, udev
from nodeagent.kernel.events import LinkWatch, StopSignal, UdevWatch, wait_until_clear
from nodeagent.modes import Mode
from nodeagent.settings import Settings

SWITCHES = Path("/run/lab/openibd.switches")
OPENIBD_LOG = Path("/run/lab/openibd.log")
HOOK = Path("/etc/infiniband/post-stop-hook.sh")
BLACKLIST = Path("/etc/modprobe.d/blacklist-ofed-modules.conf")
NUMVFS = Path("/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs")


def sh(command: str) -> str:
    done = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def switch(*lines: str) -> None:
    SWITCHES.write_text("".join(f"{line}\n" for line in lines))


def runs() -> list[str]:
    return [line.split()[0] for line in OPENIBD_LOG.read_text().splitlines()]


@pytest.fixture(autouse=True)
def _build_a_runs() -> Iterator[None]:
    """Build A loaded, build B on disk, no VFs; whatever the test left is put right after it."""
    SWITCHES.unlink(missing_ok=True)
    sh("lab-driver A")
    if modules.loaded_srcversion("mlx5_core") != modules.installed("mlx5_core").srcversion:
        sh("if [ -d /sys/module/mlx5_core ]; then modprobe -r mlx5_core; fi; modprobe mlx5_core")
    sh("lab-driver B; udevadm settle")
    OPENIBD_LOG.write_text("")
    yield
    SWITCHES.unlink(missing_ok=True)
    HOOK.unlink(missing_ok=True)
    assert not BLACKLIST.exists()


@pytest.fixture
def driver() -> NicDriver:
    settings = replace(Settings(), blacklist_file=BLACKLIST, restart_timeout=60.0)
    return NicDriver(settings, Mode.PRECOMPILED, None)


def failure(driver: NicDriver) -> KernelError:
    with pytest.raises(KernelError) as caught:
        driver.ensure_restarted()
    return caught.value


@pytest.mark.short
def test_upgrade(driver: NicDriver) -> None:
    (before,) = [each for each in driver.srcversions() if each.module == "mlx5_core"]
    assert before.installed != before.loaded is not None
    assert not driver.loaded_is_installed()
    driver.check_reload_is_safe()
    driver.ensure_restarted()
    assert driver.loaded_is_installed()
    assert modules.loaded_srcversion("mlx5_core") == before.installed
    assert runs() == ["begin", "end"]
    driver.ensure_restarted()
    assert runs() == ["begin", "end"]


def test_the_blacklist_stops_udev_and_not_openibd(driver: NicDriver) -> None:
    """It is in place between unload and load; `modprobe -b` is how udev loads."""
    by_udev, by_name, content = (Path(f"/run/lab/{name}") for name in ("udev", "name", "content"))
    HOOK.write_text(
        f"#!/bin/sh\nmodprobe -n -v -b mlx5_core >{by_udev}\n"
        f"modprobe -n -v mlx5_core >{by_name}\ncat {BLACKLIST} >{content}\n"
    )
    HOOK.chmod(0o755)
    driver.ensure_restarted()
    assert by_udev.read_text() == ""
    assert "/mlx5_core.ko" in by_name.read_text()
    assert content.read_text().startswith("# written by nodeagent; removed after the reload\n")


def test_nothing_done_and_exit_0(driver: NicDriver) -> None:
    switch("nothing=1")
    error = failure(driver)
    assert "openibd exited 0, saying: No InfiniBand configuration found" in error.message
    assert "openib.conf" in (error.hint or "")


@pytest.mark.parametrize("fault", ["refuse", "unload"])
def test_old_driver_stays_loaded(driver: NicDriver, fault: str) -> None:
    old = modules.loaded_srcversion("mlx5_core")
    switch(f"fail={fault}")
    error = failure(driver)
    assert f"mlx5_core is loaded as {old}, installed is " in error.message
    assert "openibd exited 1, saying: " in error.message
    assert "mlx5_core is still loaded" in (error.hint or "")
    assert modules.loaded_srcversion("mlx5_core") == old


def test_openibd_leaves_no_driver_and_the_installed_one_is_loaded(
    driver: NicDriver, caplog: pytest.LogCaptureFixture
) -> None:
    switch("fail=load", "once")
    driver.ensure_restarted()
    assert driver.loaded_is_installed()
    assert "openibd left this node without a driver" in caplog.text
    assert "Failed loading kernel module mlx5_core:" in caplog.text


def cut_module_short() -> None:
    """What is on disk is no module any more as soon as openibd has unloaded the old one."""
    on_disk = modules.installed("mlx5_core").filename
    HOOK.write_text(f"#!/bin/sh\ntruncate -s 4096 {on_disk}\n")
    HOOK.chmod(0o755)


def test_no_driver_left_and_the_next_start_mends_it(driver: NicDriver) -> None:
    cut_module_short()
    error = failure(driver)
    assert not modules.is_loaded("mlx5_core")
    assert "this node has NO NIC driver" in error.message
    assert "Failed loading kernel module mlx5_core:" in error.message
    HOOK.unlink()
    sh("lab-driver B")
    assert not driver.loaded_is_installed()
    driver.ensure_restarted()
    assert driver.loaded_is_installed()


def test_the_hosts_own_driver_is_better_than_none(driver: NicDriver) -> None:
    """/host/lib/modules is where the driver pod sees the host's tree: build A is there."""
    cut_module_short()
    old = modules.loaded_srcversion("mlx5_core")
    release = os.uname().release
    tree = Path("/host/lib/modules") / release
    sh(
        f"mkdir -p {tree}/updates {tree}/kernel; cp /lib/modules/{release}/modules.* {tree};"
        f"mount --bind /lib/modules/{release}/kernel {tree}/kernel;"
        f"cp /opt/lab/driver/A/mlx5_core.ko {tree}/updates; depmod -b /host"
    )
    try:
        error = failure(driver)
    finally:
        sh(f"umount {tree}/kernel; rm -r {tree}")
    assert modules.loaded_srcversion("mlx5_core") == old
    assert f"mlx5_core is loaded as {old}" in error.message
    assert "mlx5_core is still loaded, so the node has a driver" in (error.hint or "")


def test_a_hang_while_unloading_is_killed_at_the_deadline_and_only_then(
    driver: NicDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It traps SIGTERM and goes on, so it takes SIGKILL."""
    monkeypatch.setattr(process, "KILL_DELAY", 1.0)
    switch("hang=stop")
    settings = replace(driver.settings, restart_timeout=4.0)
    with pytest.raises(WaitTimeout, match=r"openibd restart to end; .*SIGKILL ended it") as caught:
        replace(driver, settings=settings).ensure_restarted()
    assert (caught.value.hint or "").startswith("mlx5_core is still loaded")
    assert runs() == ["begin"]
    SWITCHES.unlink()
    driver.ensure_restarted()
    assert driver.loaded_is_installed()


def test_a_hang_while_loading_is_killed_and_the_driver_loaded(
    driver: NicDriver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "KILL_DELAY", 1.0)
    switch("hang=start")
    settings = replace(driver.settings, restart_timeout=4.0)
    replace(driver, settings=settings).ensure_restarted()
    assert driver.loaded_is_installed()
    assert "SIGKILL ended it" in caplog.text


def test_sigterm_during_the_restart_waits_for_it(driver: NicDriver) -> None:
    switch("slow-start=2")

    def stop_it() -> None:
        while modules.is_loaded("mlx5_core"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    with StopSignal() as stop:
        thread = threading.Thread(target=stop_it)
        thread.start()
        with pytest.raises(Stopped):
            replace(driver, stop=stop).ensure_restarted()
        thread.join()
    assert driver.loaded_is_installed()
    assert runs() == ["begin", "end"]


def test_the_driver_in_another_containers_root(driver: NicDriver) -> None:
    """As a sidecar sees it: through /proc/<pid>/root, here that of init."""
    settings = replace(driver.settings, driver_root=Path("/proc/1/root"))
    sidecar = replace(driver, settings=settings)
    (before,) = [each for each in sidecar.srcversions() if each.module == "mlx5_core"]
    assert before.installed != before.loaded
    sidecar.check_reload_is_safe()
    switch("fail=load", "once")
    sidecar.ensure_restarted()
    assert modules.loaded_srcversion("mlx5_core") == before.installed


# --- the toolkit's flag, by a process of its own ---

TOOLKIT = """
import os, sys, time
for flag in sys.stdin:
    time.sleep(0.05)
    os.makedirs(os.path.dirname(flag.strip()))
    os.close(os.open(flag.strip(), os.O_CREAT | os.O_WRONLY))
    print(time.monotonic(), flush=True)
"""


def test_the_flag_ends_the_wait_at_once(driver: NicDriver, tmp_path: Path) -> None:
    """Its directories come with it; this kernel's name has a "+" that the directory has not."""
    toolkit = subprocess.Popen(
        [sys.executable, "-c", TOOLKIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert toolkit.stdin is not None
    assert toolkit.stdout is not None
    kernel = os.uname().release.replace("+", "_")
    delays = []
    for trial in range(10):
        settings = replace(
            driver.settings,
            nic_driver_ver="25.10-1.2.8.0",
            dtk_build=True,
            dtk_shared_dir=tmp_path / str(trial),
            build_timeout=30.0,
        )
        flag = settings.dtk_shared_dir / kernel / "dtk_done_compile_25_10_1_2_8_0"
        toolkit.stdin.write(f"{flag}\n")
        toolkit.stdin.flush()
        dtk.wait_for_build(settings, os.uname().release, None)
        delays.append(time.monotonic() - float(toolkit.stdout.readline()))
    toolkit.stdin.close()
    toolkit.wait(10)
    assert sorted(delays)[-2] < 0.1, delays


# --- links and udev ---


def netdevs() -> dict[str, int]:
    return {
        path.name: int((path / "ifindex").read_text())
        for path in Path("/sys/class/net").iterdir()
        if path.name != "bonding_masters"
    }


def vf_netdevs() -> list[Path]:
    return list(Path("/sys/bus/pci/devices/0000:01:00.0").glob("virtfn*/net/*"))


@pytest.fixture
def three_vfs_later() -> Iterator[Callable[[], threading.Thread]]:
    def create() -> threading.Thread:
        thread = threading.Thread(target=lambda: NUMVFS.write_text("3"))
        thread.start()
        return thread

    yield create
    NUMVFS.write_text("0")
    sh("udevadm settle")


def test_vf_netdevs_and_their_names_are_waited_for(
    three_vfs_later: Callable[[], threading.Thread],
) -> None:
    """Links come (LinkWatch), then udev renames them and says so (UdevWatch)."""

    def unsettled() -> Iterator[str]:
        found = vf_netdevs()
        if len(found) < 3:
            yield f"{3 - len(found)} netdevs"
        for path in found:
            try:
                ifindex = int((path / "ifindex").read_text())
            except FileNotFoundError:
                yield f"{path.name}, which is being renamed"
            else:
                if not udev.is_initialized(ifindex):
                    yield path.name

    with LinkWatch() as links, UdevWatch() as watch:
        thread = three_vfs_later()
        wait_until_clear(unsettled, links, watch, what="VFs", timeout=60, resync=60)
        thread.join()
        indexes = {netdevs()[path.name] for path in vf_netdevs()}
        assert not [path.name for path in vf_netdevs() if path.name.startswith("eth")]
        wait_until_clear(
            lambda: indexes - watch.finished, links, watch, what="udev", timeout=10, resync=60
        )


def test_time_out_names_what_udev_has_not_finished(
    three_vfs_later: Callable[[], threading.Thread],
) -> None:
    sh("udevadm control --stop-exec-queue")
    try:
        with UdevWatch() as watch:
            three_vfs_later().join()
            wait_until_clear(
                lambda: [] if len(vf_netdevs()) == 3 else ["netdevs"],
                what="x",
                timeout=20,
                resync=1,
            )
            indexes = {netdevs()[path.name] for path in vf_netdevs()}
            assert not any(udev.is_initialized(index) for index in indexes)
            with pytest.raises(WaitTimeout) as caught:
                wait_until_clear(
                    lambda: sorted(indexes - watch.finished), watch, what="udev", timeout=0.5
                )
            assert caught.value.missing == tuple(str(index) for index in sorted(indexes))
    finally:
        sh("udevadm control --start-exec-queue")


def test_udev_watch_survives_an_overflow() -> None:
    """ENOBUFS: nothing is raised, the socket is empty again, and later events come in."""
    ifindex = netdevs()["lo"]
    with UdevWatch() as watch:
        watch._socket.setsockopt(socket.SOL_SOCKET, 33, 1)  # SO_RCVBUFFORCE: one message
        sh("for i in 1 2 3 4 5; do udevadm trigger --settle -s net; done")
        assert watch._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ENOBUFS
        sh("for i in 1 2 3 4 5; do udevadm trigger --settle -s net; done")
        watch.drain()
        watch.finished.clear()
        sh("udevadm trigger --settle /sys/class/net/lo")
        watch.drain()
        assert watch.finished == {ifindex}


def test_udev_is_running_and_a_killed_one_is_not() -> None:
    assert udev.is_running()
    assert Path("/run/udev/control").is_socket()
    pid = int(sh("pgrep -o -f systemd-udevd").split()[0])
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0]
    os.kill(pid, signal.SIGKILL)
    for _ in range(100):
        if not udev.is_running():
            break
        time.sleep(0.05)
    assert not udev.is_running()
    assert Path("/run/udev/control").is_socket()
    subprocess.run([command, "--daemon"], check=True, timeout=20)
    assert udev.is_running()
    sh("udevadm settle")


# --- the stack beside the driver: the distribution's ib_core, which has no srcversion ---


@pytest.fixture
def ib_core() -> Iterator[None]:
    """Loaded with RDMA devices exclusive to a namespace; a pod's namespace exists."""
    sh("modprobe -r ib_uverbs ib_core; modprobe ib_core netns_mode=0; ip netns add pod")
    yield
    sh("ip netns delete pod; modprobe -r ib_core")


def test_a_module_without_srcversion_is_compared_by_its_build_id(
    driver: NicDriver, ib_core: None
) -> None:
    (found,) = [each for each in driver.srcversions() if each.module == "ib_core"]
    assert (found.installed or "").startswith("build-id ")
    assert found.installed == found.loaded
    assert dict(driver.modules_loaded())["ib_core"] == found.loaded


def test_rdma_netns_mode_is_as_before(driver: NicDriver, ib_core: None) -> None:
    """With a namespace there, `rdma system set` could not change it back."""
    assert modules.parameter("ib_core", "netns_mode") == "N"
    HOOK.write_text("#!/bin/sh\nmodprobe -r ib_core; modprobe ib_core\n")
    HOOK.chmod(0o755)
    driver.ensure_restarted()
    assert modules.parameter("ib_core", "netns_mode") == "N"
    assert not list(Path("/etc/modprobe.d").glob("zz-nodeagent*"))


def test_a_module_of_before_is_loaded_again(driver: NicDriver, ib_core: None) -> None:
    before = [name for name, _ in driver.modules_loaded()]
    HOOK.write_text("#!/bin/sh\nmodprobe -r ib_core\n")
    HOOK.chmod(0o755)
    error = failure(driver)
    assert "ib_core was loaded before and is not now" in error.message
    driver.ensure_companions(before)
    assert modules.is_loaded("ib_core")


def test_the_driver_tells_its_version(driver: NicDriver) -> None:
    """The stand-in reports the kernel's release, as drivers of the kernel do."""
    assert driver.version()
