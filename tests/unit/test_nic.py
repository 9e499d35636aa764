"""The driver: compared, restarted, and judged by what the kernel says.

openibd and modinfo are small real executables; the kernel is a tree like /sys that they write.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.driver.nic import NicDriver, SrcVersions
from nodeagent.driver.preflight import PreflightFailed
from nodeagent.errors import (
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


def test_what_is_in_use_is_named_before_an_unbind(host: Host) -> None:
    """Modules of the stack that use each other are unloaded together; others are not."""
    held_by(host, "mlx5_core", "mlx5_ib")
    assert host.driver.in_use() == ()
    (host.root / "sys/module/mlx5_core/holders/smc").touch()
    host.file("sys/module/mlx5_core/refcnt", "2\n")
    host.file("sys/module/mlx5_ib/refcnt", "1\n")
    assert set(host.driver.in_use()) == {
        "smc uses mlx5_core",
        "mlx5_ib is in use (reference count 1)",
    }


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
    host.broken("mlx5_core")
    host.openibd("unload mlx5_core; echo 'Failed loading kernel module mlx5_core:'; exit 1")
    error = failure(host)
    assert "mlx5_core is not loaded: this node has NO NIC driver" in error.message
    assert "Failed loading kernel module mlx5_core:" in error.message
    assert "run `modprobe mlx5_core`" in (error.hint or "")


def test_exit_0_and_no_driver_left(host: Host) -> None:
    host.broken("mlx5_core")
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
    monkeypatch.setattr(process, "KILL_DELAY", 0.3)
    host.broken("mlx5_core")
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


def test_openibd_leaves_no_driver_and_the_installed_one_is_loaded(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.openibd("unload mlx5_core; echo 'Failed loading kernel module mlx5_core:'; exit 1")
    host.driver.ensure_restarted()
    assert host.driver.loaded_is_installed()
    assert host.kmod() == ["modprobe mlx5_core"]
    assert "openibd left this node without a driver" in caplog.text
    assert "Failed loading kernel module mlx5_core:" in caplog.text
    assert not host.has_blacklist()


def test_neither_openibd_nor_modprobe_and_the_hosts_own_is_loaded(host: Host) -> None:
    host.broken("mlx5_core")
    host.hosts_own("mlx5_core", "CCCC")
    host.openibd(f"unload mlx5_core; rm {host.root}/broken/mlx5_core; exit 1")
    (host.root / "installed/mlx5_core").write_text("BBBB")
    host.script("bin/modprobe", FAILS_WITHOUT_D.format(root=host.root))
    error = failure(host)
    assert "mlx5_core is loaded as CCCC, installed is BBBB" in error.message
    assert "mlx5_core is still loaded" in (error.hint or "")
    assert host.driver.is_loaded()


FAILS_WITHOUT_D = """#!/bin/sh
test "$1" = -d || {{ echo "modprobe: ERROR: Invalid argument" >&2; exit 1; }}
mkdir -p {root}/sys/module/$3/holders
echo live > {root}/sys/module/$3/initstate
echo 0 > {root}/sys/module/$3/refcnt
cp {root}/host/lib/modules/$(uname -r)/$3 {root}/sys/module/$3/srcversion
"""


def test_killed_at_the_deadline_and_the_installed_one_is_loaded(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its unload is played before openibd begins, which half a second may be too short for."""
    monkeypatch.setattr(process, "KILL_DELAY", 0.3)
    host.openibd("while :; do sleep 0.1; done")
    hurried = replace(host.driver, settings=replace(host.driver.settings, restart_timeout=0.5))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # openibd inherits it
    try:
        hurried.ensure_restarted(lambda: shutil.rmtree(host.root / "sys/module/mlx5_core"))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert host.driver.loaded_is_installed()
    assert "SIGKILL ended it" in caplog.text


# --- the modules around the stack ---


def with_settings(host: Host, **changes: object) -> NicDriver:
    return replace(host.driver, settings=replace(host.driver.settings, **changes))  # type: ignore[arg-type] # names of fields


def held_by(host: Host, module: str, *holders: str) -> None:
    """Loaded modules that use a loaded one."""
    for holder in holders:
        host.loaded(holder, None)
        (host.root / "sys/module" / module / "holders" / holder).touch()
    host.file(f"sys/module/{module}/refcnt", f"{len(holders)}\n")


def test_auxiliary_modules_go_before_and_come_back(host: Host) -> None:
    held_by(host, "mlx5_core", "mlx5_vdpa", "mlx5_dpll")
    host.installed("mlx5_vdpa", "")
    host.installed("mlx5_dpll", "")
    before = host.driver.modules_loaded()
    assert before == (("mlx5_core", "AAAA"), ("mlx5_vdpa", "none"), ("mlx5_dpll", "none"))
    host.driver.ensure_restarted()
    assert sorted(host.kmod()) == ["rmmod mlx5_dpll", "rmmod mlx5_vdpa"]
    host.driver.ensure_companions(name for name, _ in before)
    assert host.kmod()[2:] == ["modprobe mlx5_vdpa", "modprobe mlx5_dpll"]
    host.driver.ensure_companions(name for name, _ in before)
    assert len(host.kmod()) == 4


def test_what_openibd_unloaded_is_loaded_again(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """It loads only what openib.conf asks for. What the new driver lacks is named."""
    for name in ("mlx5_vfio_pci", "fwctl", "mlx5_fpga_tools"):
        host.loaded(name, None)
    before = dict(host.driver.modules_loaded())
    assert [*before][1:] == ["mlx5_fpga_tools", "mlx5_vfio_pci", "fwctl"]
    for name in before:
        shutil.rmtree(host.root / "sys/module" / name)
    for name in ("mlx5_core", "mlx5_vfio_pci", "fwctl"):
        host.installed(name, "")
    host.driver.ensure_companions(before)
    assert "modprobe mlx5_vfio_pci" in host.kmod()
    assert "modprobe fwctl" in host.kmod()
    assert "mlx5_fpga_tools: modprobe: FATAL" in caplog.text
    assert "it was loaded before the restart" in caplog.text


def test_storage_that_a_setting_lets_go_is_loaded_again(host: Host) -> None:
    host.loaded("ib_iser", None)
    assert "ib_iser" not in dict(host.driver.modules_loaded())
    driver = with_settings(host, unload_storage_modules=True)
    assert "ib_iser" in dict(driver.modules_loaded())


def test_one_that_was_loaded_and_cannot_be_loaded_again_is_an_error(host: Host) -> None:
    with pytest.raises(KernelError, match="cannot load the module mlx5_ib: modprobe: FATAL"):
        host.driver.ensure_companions(("mlx5_core", "mlx5_ib"))


def test_one_that_does_not_go_stops_the_restart(host: Host) -> None:
    held_by(host, "mlx5_core", "mlx5_vdpa")
    host.file("sys/module/mlx5_vdpa/refcnt", "1\n")
    error = failure(host)
    assert "cannot unload the module mlx5_vdpa: rmmod: ERROR: Module mlx5_vdpa is in use" in (
        error.message
    )
    assert host.calls() == []


def test_storage_and_third_party_modules_go_if_allowed_dependents_first(host: Host) -> None:
    host.loaded("ib_core", "AAAA")
    host.installed("ib_core", "AAAA")
    held_by(host, "ib_core", "xprtrdma", "siw")
    held_by(host, "xprtrdma", "rpcrdma")
    with_settings(
        host, unload_storage_modules=True, unload_third_party_modules=True
    ).ensure_restarted()
    assert sorted(host.kmod()) == ["rmmod rpcrdma", "rmmod siw", "rmmod xprtrdma"]
    assert host.kmod().index("rmmod rpcrdma") < host.kmod().index("rmmod xprtrdma")
    blacklist = (host.root / "blacklist.seen").read_text()
    assert "blacklist siw\n" in blacklist
    assert "blacklist rpcrdma\n" not in blacklist


def test_and_stay_if_not(host: Host) -> None:
    host.loaded("siw", None)
    host.loaded("rpcrdma", None)
    host.driver.ensure_restarted()
    assert host.kmod() == []
    assert "blacklist siw\n" not in (host.root / "blacklist.seen").read_text()


def test_peermem_that_came_back_is_unloaded_last(host: Host) -> None:
    held_by(host, "mlx5_core", "mlx5_vdpa")
    host.loaded("nvidia_peermem", None)
    host.driver.ensure_restarted()
    assert host.kmod() == ["rmmod mlx5_vdpa", "rmmod nvidia_peermem"]


def test_peermem_in_use_at_the_doorstep_stops_the_restart(host: Host) -> None:
    host.loaded("nvidia_peermem", None)
    host.file("sys/module/nvidia_peermem/refcnt", "1\n")
    assert "nvidia_peermem is in use (1 references)" in failure(host).message
    assert host.calls() == []


def test_what_the_driver_needs_comes_from_the_hosts_tree(host: Host) -> None:
    """mlxdevm is the driver's own; what that needs counts as well; tls is loaded already."""
    host.described("mlx5_core", depends="mlxdevm,psample,tls")
    host.installed("mlxdevm", "DDDD")
    host.described("mlxdevm", depends="mlxfw")
    host.loaded("tls", None)
    for module in ("psample", "mlxfw", "tls"):
        host.hosts_own(module, "HHHH")
    host.driver.ensure_restarted()
    assert sorted(host.kmod()) == ["modprobe -d /host mlxfw", "modprobe -d /host psample"]


def test_a_need_that_the_host_lacks_stops_the_restart(host: Host) -> None:
    host.described("mlx5_core", depends="psample")
    host.hosts_own("other", "HHHH")
    assert "cannot load the module psample" in failure(host).message
    assert host.calls() == []


def test_without_a_hosts_tree_modprobe_finds_them(host: Host) -> None:
    host.described("mlx5_core", depends="psample")
    host.driver.ensure_restarted()
    assert host.kmod() == []


def test_nfs_over_rdma_is_loaded_on_request(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    driver = with_settings(host, enable_nfsrdma=True)
    driver.ensure_companions(())
    assert "NFS over RDMA is not available: cannot load the module rpcrdma" in caplog.text
    host.installed("rpcrdma", "EEEE")
    driver.ensure_companions(())
    assert host.kmod() == ["modprobe rpcrdma"] * 2
    host.driver.ensure_companions(())
    assert len(host.kmod()) == 2


@pytest.mark.parametrize("mode", ["Y", "N"])
def test_rdma_netns_mode_is_given_to_the_new_ib_core(host: Host, mode: str) -> None:
    (host.root / "etc/modprobe.d").mkdir()
    host.loaded("ib_core", "AAAA")
    host.installed("ib_core", "AAAA")
    host.file("sys/module/ib_core/parameters/netns_mode", f"{mode}\n")
    host.openibd(RESTART + f"cat {host.root}/etc/modprobe.d/zz-* > {host.root}/options")
    host.driver.ensure_restarted()
    assert f"options ib_core netns_mode={mode}\n" in (host.root / "options").read_text()
    assert not [*(host.root / "etc/modprobe.d").iterdir()]


def test_rdma_netns_mode_that_changed_is_said(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    (host.root / "etc/modprobe.d").mkdir()
    host.loaded("ib_core", "AAAA")
    host.installed("ib_core", "AAAA")
    host.file("sys/module/ib_core/parameters/netns_mode", "N\n")
    host.openibd(RESTART + f"echo Y > {host.root}/sys/module/ib_core/parameters/netns_mode")
    host.driver.ensure_restarted()
    assert "were exclusive between network namespaces and are shared now" in caplog.text


def test_a_stale_rdma_file_is_swept(host: Host) -> None:
    name = "zz-nodeagent-rdma-netns.conf"
    host.file(f"etc/modprobe.d/{name}", "options ib_core netns_mode=N\n")
    host.file(f"etc/modprobe.d/.{name}.0123456789abcdef.tmp", "opti")
    host.driver.ensure_companions(())
    assert not [*(host.root / "etc/modprobe.d").iterdir()]


# --- builds without srcversion ---

NOTE = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0"


def without_srcversion(host: Host, on_disk: bytes, loaded: bytes, suffix: str = "") -> None:
    host.installed("mlx5_core", "")
    (host.root / "sys/module/mlx5_core/srcversion").unlink()
    file = host.root / f"installed/mlx5_core.ko{suffix}"
    elf = b"\x7fELF" + NOTE + on_disk * 20 + b"rest"
    packed = {"": elf, ".gz": gzip.compress(elf), ".xz": lzma.compress(elf)}
    file.write_bytes(packed[suffix])
    host.described("mlx5_core", filename=str(file))
    notes = host.root / "sys/module/mlx5_core/notes"
    notes.mkdir()
    (notes / ".note.gnu.build-id").write_bytes(NOTE + loaded * 20)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_build_ids_are_compared_where_there_is_no_srcversion(host: Host, suffix: str) -> None:
    without_srcversion(host, b"\xaa", b"\xbb", suffix)
    (found,) = host.driver.srcversions()
    assert found.installed == f"build-id {'aa' * 20}"
    assert found.loaded == f"build-id {'bb' * 20}"
    assert not host.driver.loaded_is_installed()


def test_the_same_build_id_is_the_same_build(host: Host) -> None:
    without_srcversion(host, b"\xaa", b"\xaa")
    assert host.driver.loaded_is_installed()


def test_then_versions(host: Host) -> None:
    host.installed("mlx5_core", "")
    (host.root / "sys/module/mlx5_core/srcversion").unlink()
    host.described("mlx5_core", version="25.10")
    host.file("sys/module/mlx5_core/version", "25.07\n")
    (found,) = host.driver.srcversions()
    assert (found.installed, found.loaded) == ("version 25.10", "version 25.07")
    assert not host.driver.loaded_is_installed()
