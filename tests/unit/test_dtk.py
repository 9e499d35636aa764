"""The toolkit's hand-over: names, and the wait for its flag."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st

from nodeagent.driver import dtk
from nodeagent.errors import (
    ConfigError,
    NoInputError,
    Stopped,
    UnavailableError,
    WaitTimeout,
)
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
    assert 0 <= time.monotonic() - came[0] < 2


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
    progress = dtk.Progress(dtk.HandOver(flag.parent, VERSION))
    progress.look()
    clock[0] += dtk.WARNING_SECONDS - 1
    package(flag, "mlnx-ofa_kernel.rpm")
    progress.look()
    clock[0] += dtk.WARNING_SECONDS - 1
    progress.look()
    assert caplog.messages == ["the driver toolkit has built mlnx-ofa_kernel.rpm"]
    clock[0] += 1
    progress.look()
    progress.look()
    assert caplog.messages[1:] == [
        "the driver toolkit makes no progress: 1 packages, the last new one 900 s ago"
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


def test_a_directory_that_is_deleted_and_made_again(settings: Settings, flag: Path) -> None:
    flag.parent.mkdir(parents=True)

    def toolkit() -> None:
        flag.parent.rmdir()
        flag.parent.parent.rmdir()
        time.sleep(0.05)
        flag.parent.mkdir(parents=True)
        flag.touch()

    timer = threading.Timer(0.05, toolkit)
    timer.start()
    asked = time.monotonic()
    dtk.wait_for_build(settings, RELEASE, None)
    timer.join()
    assert time.monotonic() - asked < 5


def test_a_failure_ends_the_wait_at_once(settings: Settings, flag: Path) -> None:
    failed = dtk.hand_over(settings, RELEASE).failed
    assert failed == flag.with_name("dtk_failed_compile_25_07_0_9_7_0")
    flag.parent.mkdir(parents=True)
    log = "".join(f"line {number}\n" for number in range(100)) + "make: *** Error 2\n\n"
    whole = failed.with_name("marker.tmp")  # as both builders write it: it appears complete
    whole.write_text(log)
    timer = threading.Timer(0.05, lambda: whole.rename(failed))
    timer.start()
    with pytest.raises(UnavailableError) as caught:
        dtk.wait_for_build(settings, RELEASE, None)
    timer.join()
    lines = caught.value.message.splitlines()
    assert lines[0] == "the driver toolkit could not build the driver; the end of its log:"
    assert lines[-1] == "  make: *** Error 2"
    assert len(lines) <= 21


# --- the hand-over ---


RPM = """#!/bin/sh
for last; do :; done
test ! -s "$last" || { echo "$last: DIGESTS NOT OK"; exit 1; }
"""


@pytest.fixture
def giving(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Sources to hand over, and an rpm(8) that takes empty packages for whole ones."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/rpm").write_text(RPM)
    (tmp_path / "bin/rpm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/install.pl").write_text("#!/bin/sh\n")
    return replace(settings, nic_driver_path=tmp_path / "src", build_timeout=0.1)


def hand_over(settings: Settings) -> dtk.HandOver:
    """As far as the wait for a toolkit that is not there."""
    with pytest.raises(WaitTimeout):
        dtk.ensure_built(settings, RELEASE, None)
    return dtk.hand_over(settings, RELEASE)


def built(files: dtk.HandOver) -> None:
    """Play the toolkit: it has built and says so."""
    package(files.done, "a.rpm")
    machine = os.uname().machine
    (arch,) = files.sources.glob("RPMS/*/*")
    if arch.name != machine:
        arch.rename(arch.with_name(machine))
    files.start.unlink()
    files.done.touch()


def test_what_is_handed_over(giving: Settings) -> None:
    files = hand_over(giving)
    assert sorted(path.name for path in files.directory.iterdir()) == [
        f"MLNX_OFED_SRC-{VERSION}",
        "dtk.env",
        "dtk_nic_driver_build.sh",
        "dtk_start_compile",
        "entrypoint",
    ]
    assert (files.sources / "install.pl").read_text() == "#!/bin/sh\n"
    for script in dtk.SCRIPTS:
        assert (files.directory / script).stat().st_mode & 0o777 == 0o755
    assert files.environment.read_text().splitlines() == [
        f'export DTK_OCP_NIC_SHARED_DIR="{files.directory}"',
        f'export DTK_OCP_COMPILED_DRIVER_VER="{VERSION}"',
        f'export DTK_OCP_START_COMPILE_FLAG="{files.start}"',
        f'export DTK_OCP_DONE_COMPILE_FLAG="{files.done}"',
        'export APPEND_DRIVER_BUILD_FLAGS="--without-mlnx-nfsrdma --without-mlnx-nvme"',
        'export USE_NEW_ENTRYPOINT="true"',
        f'export NVIDIA_NIC_DRIVER_VER="{VERSION}"',
        'export DRIVER_MODULE="mlx5_core"',
    ]


def test_a_toolkit_that_is_at_it_is_not_disturbed(giving: Settings) -> None:
    """Our container was started again in the middle of the build."""
    files = hand_over(giving)
    package(files.done, "half.rpm")
    before = files.start.stat().st_mtime_ns
    hand_over(giving)
    assert files.start.stat().st_mtime_ns == before
    assert list(files.sources.glob("RPMS/*/*/half.rpm"))


def test_a_build_that_is_there_is_not_asked_for_again(giving: Settings) -> None:
    files = hand_over(giving)
    built(files)
    assert dtk.ensure_built(giving, RELEASE, None) == files.sources
    assert not files.start.exists()


def other_flags(settings: Settings, files: dtk.HandOver) -> Settings:
    built(files)
    return replace(settings, append_build_flags="--with-more")


def done_without_packages(settings: Settings, files: dtk.HandOver) -> Settings:
    files.start.unlink()
    files.done.touch()
    return settings


def done_with_half_a_package(settings: Settings, files: dtk.HandOver) -> Settings:
    built(files)
    (found,) = files.sources.glob("RPMS/*/*/*.rpm")
    found.write_text("half")
    return settings


def failed_before(settings: Settings, files: dtk.HandOver) -> Settings:
    files.start.unlink()
    files.failed.write_text("no such header\n")
    return settings


def killed_before_the_start_flag(settings: Settings, files: dtk.HandOver) -> Settings:
    files.start.unlink()
    (files.sources / "install.pl").unlink()
    return settings


@pytest.mark.parametrize(
    "change",
    [
        other_flags,
        done_without_packages,
        done_with_half_a_package,
        failed_before,
        killed_before_the_start_flag,
    ],
)
def test_a_build_is_asked_for_again(
    giving: Settings, change: Callable[[Settings, dtk.HandOver], Settings]
) -> None:
    files = hand_over(giving)
    files = hand_over(change(giving, files))
    assert files.start.exists()
    assert not files.done.exists()
    assert not files.failed.exists()
    assert [path.name for path in files.sources.iterdir()] == ["install.pl"]


def test_no_sources_to_hand_over(giving: Settings, tmp_path: Path) -> None:
    (tmp_path / "src/install.pl").unlink()
    with pytest.raises(NoInputError, match=r"no install\.pl"):
        dtk.ensure_built(giving, RELEASE, None)
    assert not dtk.hand_over(giving, RELEASE).directory.exists()


@given(st.lists(st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), max_size=30)))
@settings_of(max_examples=50, deadline=None)
def test_a_shell_reads_back_what_is_exported(values: list[str]) -> None:
    """Also words that were quoted before: nothing in them is expanded or run."""
    text = dtk.exports({"WORDS": shlex.join(values), "FIRST": (values or [""])[0]})
    script = text + 'eval "set -- $WORDS"; printf "%s\\0" "$FIRST" "$#" "$@"'
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True)
    assert done.stderr == b""
    assert done.stdout.decode().split("\0")[:-1] == [
        *((values or [""])[0], str(len(values))),
        *values,
    ]
