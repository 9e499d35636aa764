"""The host's own driver back: mlnxofedctl as a small executable, and a tree like the host's."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.agent import termination
from nodeagent.driver import inbox
from nodeagent.errors import KernelError, Stopped, UnavailableError
from nodeagent.kernel import process
from nodeagent.kernel.events import StopSignal
from nodeagent.record.journal import Journal
from tests.support.host import MODINFO, OPENIBD, Host, make

OWN = "kernel/drivers/net/ethernet/mellanox/mlx5/core/mlx5_core.ko.xz"
BACK = "unload mlx5_core; load mlx5_core; echo CCCC >{root}/sys/module/mlx5_core/srcversion"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The installed driver (BBBB) runs, the host's own is CCCC."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    made = make(tmp_path)
    of_files = '#!/bin/sh\ncase "$3" in /*.ko*) cat "$3"; exit ;; esac\n'
    made.script("bin/modinfo", of_files + MODINFO.format(root=tmp_path).partition("\n")[2])
    made.file("sys/module/mlx5_core/srcversion", "BBBB\n")
    made.file(f"host/lib/modules/{os.uname().release}/{OWN}", "CCCC\n")
    made.hosts_own("mlx5_core", "CCCC")
    made.openibd("true")
    return made


def control(host: Host, body: str) -> None:
    text = OPENIBD.format(root=host.root, body=body.format(root=host.root))
    host.script("usr/sbin/mlnxofedctl", text)


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    """A signal has come; this is about the next one."""
    with StopSignal() as made:
        os.kill(os.getpid(), signal.SIGTERM)
        made.again()
        yield made


def loaded(host: Host) -> str:
    path = host.root / "sys/module/mlx5_core/srcversion"
    return path.read_text().strip() if path.exists() else "none"


def test_it_is_what_lies_in_the_hosts_kernel_directory(host: Host) -> None:
    assert not inbox.runs(host.driver)
    host.file("sys/module/mlx5_core/srcversion", "CCCC\n")
    assert inbox.runs(host.driver)


def test_without_its_tree_it_is_what_is_not_installed(host: Host) -> None:
    (host.root / f"host/lib/modules/{os.uname().release}/{OWN}").unlink()
    assert not inbox.runs(host.driver)
    host.file("sys/module/mlx5_core/srcversion", "AAAA\n")
    assert inbox.runs(host.driver)


def test_mlnxofedctl_does_it(host: Host, stop: StopSignal) -> None:
    control(host, BACK)
    inbox.ensure(host.driver, ["mlx5_core"], stop)
    assert loaded(host) == "CCCC"
    assert host.calls() == ["--alt-mods"]
    assert host.kmod() == []


@pytest.mark.parametrize("end", ["exit 1", "exit 0"])
def test_a_host_that_never_had_the_packages(host: Host, stop: StopSignal, end: str) -> None:
    """The tool unloads, finds nothing of its own to load, and whatever it exits with is no word."""
    control(host, f"unload mlx5_core; {end}")
    inbox.ensure(host.driver, ["mlx5_core", "mlx5_ib"], stop)
    assert loaded(host) == "CCCC"
    assert host.kmod() == ["modprobe -d /host mlx5_core", "modprobe -d /host mlx5_ib"]


def test_one_that_stays_is_an_error(host: Host, stop: StopSignal) -> None:
    control(host, "exit 0")
    with pytest.raises(KernelError, match="own mlx5_core is not loaded: BBBB is loaded"):
        inbox.ensure(host.driver, [], stop)


def test_no_driver_at_all_is_said(host: Host, stop: StopSignal) -> None:
    control(host, "unload mlx5_core")
    host.broken("mlx5_core")
    with pytest.raises(KernelError, match="this node has NO NIC driver"):
        inbox.ensure(host.driver, [], stop)


def test_a_second_signal_waits_for_the_restart(host: Host, stop: StopSignal) -> None:
    control(host, "kill -TERM $PPID; unload mlx5_core; sleep 0.5; load mlx5_core")
    with pytest.raises(Stopped):
        inbox.ensure(host.driver, [], stop)
    assert loaded(host) == "BBBB"


def test_the_grace_period_ends_it_and_a_driver_is_loaded(
    host: Host, stop: StopSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its unload is played before it begins: on a busy machine a second is too short for that."""
    monkeypatch.setattr(process, "KILL_DELAY", 0.2)
    control(host, "sleep 60")
    hurried = replace(host.driver, settings=replace(host.driver.settings, grace_period=21.0))
    inbox.ensure(hurried, [], stop, lambda: shutil.rmtree(host.root / "sys/module/mlx5_core"))
    assert loaded(host) == "CCCC"


def journal_of(host: Host) -> Journal:
    return Journal(host.driver.settings)


def test_nothing_is_begun_that_cannot_be_finished(host: Host, stop: StopSignal) -> None:
    control(host, BACK)
    settings = replace(host.driver.settings, grace_period=15.0)
    with pytest.raises(UnavailableError, match="the grace period is nearly over"):
        termination.restore_driver(
            settings, journal_of(host), stop, sysfs=host.root / "sys", proc=host.root / "proc"
        )
    assert loaded(host) == "BBBB"


def test_without_the_tool_nothing_is_touched(host: Host, stop: StopSignal) -> None:
    with pytest.raises(UnavailableError, match=r"no .*/usr/sbin/mlnxofedctl"):
        termination.restore_driver(
            host.driver.settings,
            journal_of(host),
            stop,
            sysfs=host.root / "sys",
            proc=host.root / "proc",
        )
    assert loaded(host) == "BBBB"


def test_where_it_runs_already_nothing_is_done(host: Host, stop: StopSignal) -> None:
    host.file("sys/module/mlx5_core/srcversion", "CCCC\n")
    journal = journal_of(host)
    termination.restore_driver(
        host.driver.settings, journal, stop, sysfs=host.root / "sys", proc=host.root / "proc"
    )
    assert journal.records() == ()
