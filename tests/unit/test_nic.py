"""The driver: compared, restarted, and judged by what the kernel says.

openibd and modinfo are small real executables; the kernel is a tree like /sys that they write.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.driver import dtk
from nodeagent.driver.nic import SrcVersions
from nodeagent.driver.preflight import PreflightFailed
from nodeagent.errors import (
    ConfigError,
    KernelError,
    Stopped,
    WaitTimeout,
)
from nodeagent.kernel import process
from nodeagent.kernel.events import StopSignal
from tests.support.host import RESTART, Host, make


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return make(tmp_path)


def failure(host: Host) -> KernelError:
    with pytest.raises(KernelError) as caught:
        host.driver.ensure_restarted()
    assert not host.has_blacklist()
    return caught.value


# --- build ---


def test_precompiled_is_built(host: Host) -> None:
    host.driver.ensure_built()


def test_sources_without_the_toolkit_is_not_in_this_version(host: Host) -> None:
    with pytest.raises(ConfigError, match="not in this version") as caught:
        replace(host.driver, mode="sources").ensure_built()
    assert "DTK_OCP_DRIVER_BUILD=true" in (caught.value.hint or "")


def test_sources_with_the_toolkit_waits_for_its_flag(host: Host) -> None:
    settings = replace(host.driver.settings, dtk_build=True, nic_driver_ver="25.10-1.2.8.0")
    driver = replace(host.driver, mode="sources", settings=settings)
    with pytest.raises(WaitTimeout):
        driver.ensure_built()
    flag = dtk.done_flag(settings.dtk_shared_dir, os.uname().release, "25.10-1.2.8.0")
    flag.parent.mkdir(parents=True)
    flag.touch()
    driver.ensure_built()


# --- compare ---


def test_srcversions(host: Host) -> None:
    host.installed("mlx5_ib", "CCCC")
    host.loaded("ib_core", "DDDD")
    assert host.driver.srcversions() == (
        SrcVersions("mlx5_core", installed="BBBB", loaded="AAAA"),
        SrcVersions("mlx5_ib", installed="CCCC", loaded=None),
        SrcVersions("ib_core", installed=None, loaded="DDDD"),
    )


def test_another_driver_is_compared_alone(host: Host) -> None:
    host.loaded("netdevsim", None)
    host.installed("netdevsim", "")
    driver = replace(host.driver, settings=replace(host.driver.settings, driver_module="netdevsim"))
    assert driver.srcversions() == (SrcVersions("netdevsim", None, None),)
    assert driver.loaded_is_installed()


def test_nfsrdma_adds_its_modules(host: Host) -> None:
    for module in ("nvme_rdma", "rpcrdma"):
        host.installed(module, "EEEE")
    assert len(host.driver.srcversions()) == 1
    settings = replace(host.driver.settings, enable_nfsrdma=True)
    assert len(replace(host.driver, settings=settings).srcversions()) == 3


def same(host: Host) -> None:
    host.installed("mlx5_core", "AAAA")


def other_module_not_loaded(host: Host) -> None:
    same(host)
    host.installed("mlx5_ib", "CCCC")


def none_has_a_srcversion(host: Host) -> None:
    same(host)
    host.loaded("ib_core", None)
    host.installed("ib_core", "")


@pytest.mark.parametrize("prepare", [same, other_module_not_loaded, none_has_a_srcversion])
def test_nothing_to_reload(host: Host, prepare: Callable[[Host], None]) -> None:
    prepare(host)
    assert host.driver.loaded_is_installed()
    host.driver.ensure_restarted()
    assert host.calls() == []


def not_loaded(host: Host) -> None:
    (host.root / "sys/module/mlx5_core/initstate").unlink()


def not_loaded_nor_installed(host: Host) -> None:
    not_loaded(host)
    (host.root / "installed/mlx5_core").unlink()


def other_module_differs(host: Host) -> None:
    same(host)
    host.loaded("mlx5_ib", "CCCC")
    host.installed("mlx5_ib", "DDDD")


def inbox_build_without_srcversion(host: Host) -> None:
    (host.root / "sys/module/mlx5_core/srcversion").unlink()


@pytest.mark.parametrize(
    "prepare",
    [
        lambda host: None,
        not_loaded,
        not_loaded_nor_installed,
        other_module_differs,
        inbox_build_without_srcversion,
    ],
)
def test_something_to_reload(host: Host, prepare: Callable[[Host], None]) -> None:
    prepare(host)
    assert not host.driver.loaded_is_installed()


# --- before the reload ---


def test_reload_is_safe(host: Host) -> None:
    host.driver.check_reload_is_safe()
    assert host.calls() == []
    assert not host.has_blacklist()


def test_no_openibd(host: Host) -> None:
    (host.root / "etc/init.d/openibd").unlink()
    with pytest.raises(PreflightFailed, match=r"there is no .*openibd"):
        host.driver.check_reload_is_safe()


def test_no_driver_installed(host: Host) -> None:
    (host.root / "installed/mlx5_core").unlink()
    with pytest.raises(PreflightFailed, match="no module mlx5_core is installed"):
        host.driver.check_reload_is_safe()


def test_no_place_for_the_blacklist(host: Host) -> None:
    host.driver.settings.blacklist_file.parent.rmdir()
    with pytest.raises(PreflightFailed, match="there is no directory"):
        host.driver.check_reload_is_safe()


# --- the restart ---


def test_restart(host: Host) -> None:
    host.driver.ensure_restarted()
    assert host.calls() == ["restart"]
    assert host.driver.loaded_is_installed()
    assert "blacklist mlx5_core\n" in (host.root / "blacklist.seen").read_text()
    assert not host.has_blacklist()
    host.driver.ensure_restarted()
    assert host.calls() == ["restart"]


def test_restart_that_says_it_failed_but_did_not(host: Host) -> None:
    host.openibd(RESTART + "exit 1")
    host.driver.ensure_restarted()


def test_restart_of_a_driver_that_an_earlier_run_left_unloaded(host: Host) -> None:
    not_loaded(host)
    host.openibd("load mlx5_core")
    host.driver.ensure_restarted()
    assert host.driver.loaded_is_installed()


def test_exit_0_with_nothing_done(host: Host) -> None:
    host.openibd("echo 'No InfiniBand configuration found'; exit 0")
    error = failure(host)
    assert "mlx5_core is loaded as AAAA, installed is BBBB" in error.message
    assert "openibd exited 0, saying: No InfiniBand configuration found" in error.message
    assert "openib.conf" in (error.hint or "")


def test_refused(host: Host) -> None:
    (host.root / "sys/module/mlx5_core/holders/mlx5_ib").touch()
    (host.root / "sys/module/mlx5_core/refcnt").write_text("3\n")
    host.openibd("echo 'Error: Cannot unload the Infiniband driver stack'; exit 1")
    error = failure(host)
    assert "(held by mlx5_ib, reference count 3)" in error.message
    assert "exited 1, saying: Error: Cannot unload" in error.message
    assert "mlx5_core is still loaded" in (error.hint or "")


def test_half_unloaded(host: Host) -> None:
    host.loaded("mlx5_ib", "CCCC")
    host.installed("mlx5_ib", "DDDD")
    host.openibd(
        "unload mlx5_ib; echo 'Unloading mlx5_core [FAILED]'; echo rmmod: in use >&2; exit 1"
    )
    error = failure(host)
    assert "mlx5_core is loaded as AAAA" in error.message
    assert "mlx5_ib was loaded before and is not now" in error.message
    assert "Unloading mlx5_core [FAILED] | rmmod: in use" in error.message


def test_no_driver_left(host: Host) -> None:
    host.openibd("unload mlx5_core; echo 'Failed loading kernel module mlx5_core:'; exit 1")
    error = failure(host)
    assert "mlx5_core is not loaded: this node has NO NIC driver" in error.message
    assert "Failed loading kernel module mlx5_core:" in error.message
    assert "run `modprobe mlx5_core`" in (error.hint or "")


def test_exit_0_and_no_driver_left(host: Host) -> None:
    host.openibd("unload mlx5_core")
    error = failure(host)
    assert "openibd exited 0, saying nothing" in error.message
    assert "NO NIC driver" in (error.hint or "")


def test_a_module_is_not_loaded_again(host: Host) -> None:
    host.loaded("mlx5_ib", "CCCC")
    host.installed("mlx5_ib", "DDDD")
    host.openibd("unload mlx5_ib" + RESTART)
    error = failure(host)
    assert "mlx5_ib was loaded before and is not now" in error.message
    assert "the installed mlx5_core is loaded" in (error.hint or "")


def test_only_the_last_words_are_quoted(host: Host) -> None:
    host.openibd("for i in 1 2 3 4 5 6 7 8 9; do echo line $i; done; exit 1")
    assert "saying: line 4 | line 5 | line 6 | line 7 | line 8 | line 9" in failure(host).message


def test_time_out_says_what_is_loaded(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 0.3)
    host.openibd("unload mlx5_core; trap '' TERM; while :; do sleep 0.1; done")
    settings = replace(host.driver.settings, restart_timeout=0.5)
    with pytest.raises(WaitTimeout, match="SIGKILL ended it") as caught:
        replace(host.driver, settings=settings).ensure_restarted()
    assert (caught.value.hint or "").startswith("this node has NO NIC driver now")
    assert not host.has_blacklist()


def test_stop_during_the_restart_waits_for_it(host: Host) -> None:
    host.openibd("unload mlx5_core; sleep 0.5; load mlx5_core")
    with StopSignal() as stop:
        timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(Stopped):
            replace(host.driver, stop=stop).ensure_restarted()
        timer.join()
    assert host.driver.loaded_is_installed()
    assert not host.has_blacklist()
