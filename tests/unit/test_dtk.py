"""The toolkit's hand-over: names, and the wait for its flag."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.driver import dtk
from nodeagent.errors import ConfigError, Stopped, WaitTimeout
from nodeagent.kernel.events import StopSignal
from nodeagent.settings import Settings

RELEASE = "5.14.0-570.73.1.el9_6.aarch64+64k"
VERSION = "25.07-0.9.7.0"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return replace(
        Settings(), nic_driver_ver=VERSION, dtk_shared_dir=tmp_path / "shared", build_timeout=5.0
    )


@pytest.fixture
def flag(settings: Settings) -> Path:
    return dtk.hand_over(settings, RELEASE).done


@pytest.mark.parametrize(
    ("release", "directory"),
    [
        ("5.14.0-570.73.1.el9_6.aarch64+64k", "5.14.0-570.73.1.el9_6.aarch64_64k"),
        ("5.14.0-427.13.1.el9_4.x86_64+rt", "5.14.0-427.13.1.el9_4.x86_64_rt"),
        ("6.12.0-1-amd64", "6.12.0-1-amd64"),
        ("-_.6.1.0._-", "6.1.0"),
        ("6.1.0+", "6.1.0"),
        ("+6.1.0", "6.1.0"),
        ("6.1.0 #1 é", "6.1.0__1"),
        ("+-_.", ""),
    ],
)
def test_sanitised_kernel(release: str, directory: str) -> None:
    assert dtk.sanitised_kernel(release) == directory


@given(st.text())
def test_sanitised_kernel_is_one_harmless_path_component(release: str) -> None:
    directory = dtk.sanitised_kernel(release)
    assert "/" not in directory
    assert directory.isascii()
    assert directory == "" or (directory[0].isalnum() and directory[-1].isalnum())
    assert dtk.sanitised_kernel(directory) == directory


def test_done_flag() -> None:
    shared = replace(Settings(), nic_driver_ver=VERSION, dtk_shared_dir=Path("/mnt/shared"))
    assert dtk.hand_over(shared, RELEASE).done == Path(
        "/mnt/shared/5.14.0-570.73.1.el9_6.aarch64_64k/dtk_done_compile_25_07_0_9_7_0"
    )


def test_the_flag_was_there_all_along(settings: Settings, flag: Path) -> None:
    flag.parent.mkdir(parents=True)
    flag.touch()
    dtk.wait_for_build(settings, RELEASE, None)


def test_the_flag_comes_with_its_directories(settings: Settings, flag: Path) -> None:
    came: list[float] = []

    def toolkit() -> None:
        flag.parent.mkdir(parents=True)
        (flag.parent / "dtk_start_compile").touch()
        flag.with_name("dtk_done_compile_24_10_0_7_0_0").touch()  # another version's
        time.sleep(0.05)
        came.append(time.monotonic())
        flag.touch()

    timer = threading.Timer(0.05, toolkit)
    timer.start()
    dtk.wait_for_build(settings, RELEASE, None)
    timer.join()
    assert 0 <= time.monotonic() - came[0] < 0.1


def test_the_flag_never_comes(settings: Settings, flag: Path) -> None:
    with pytest.raises(WaitTimeout) as caught:
        dtk.wait_for_build(replace(settings, build_timeout=0.1), RELEASE, None)
    assert caught.value.missing == (str(flag),)
    assert "openshift-driver-toolkit-ctr" in (caught.value.hint or "")


def package(flag: Path, name: str) -> None:
    directory = flag.parent / f"MLNX_OFED_SRC-{VERSION}/RPMS/redhat-release-9.4-0.4.el9/aarch64"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).touch()


def test_the_time_out_says_what_was_last_seen(settings: Settings, flag: Path) -> None:
    with pytest.raises(WaitTimeout) as caught:
        dtk.wait_for_build(replace(settings, build_timeout=0.1), RELEASE, None)
    assert (caught.value.hint or "").startswith(f"no package in {flag.parent} for 0 s; ")
    package(flag, "ofed-scripts.rpm")
    package(flag, "mlnx-tools.rpm")
    with pytest.raises(WaitTimeout) as caught:
        dtk.wait_for_build(replace(settings, build_timeout=0.1), RELEASE, None)
    assert (caught.value.hint or "").startswith("2 packages, the last new one 0 s ago; ")


def test_progress_is_logged_and_a_quiet_toolkit_too(
    flag: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = dtk.Progress(flag.parent, VERSION)
    progress.look()
    clock[0] += dtk.QUIET - 1
    package(flag, "mlnx-ofa_kernel.rpm")
    progress.look()
    clock[0] += dtk.QUIET - 1
    progress.look()
    assert caplog.messages == ["the driver toolkit has built mlnx-ofa_kernel.rpm"]
    clock[0] += 1
    progress.look()
    progress.look()
    assert caplog.messages[1:] == [
        "the driver toolkit may be dead: 1 packages, the last new one 900 s ago"
    ]


def test_stop(settings: Settings) -> None:
    with StopSignal() as stop:
        timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(Stopped):
            dtk.wait_for_build(settings, RELEASE, stop)
        timer.join()


def test_the_version_must_be_known(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="NVIDIA_NIC_DRIVER_VER"):
        dtk.wait_for_build(replace(settings, nic_driver_ver=None), RELEASE, None)
