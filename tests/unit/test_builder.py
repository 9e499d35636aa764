"""Mode dtk-build: the toolkit's side. install.pl and rpm are small real executables."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.driver import builder, dtk, sources
from nodeagent.errors import AgentError, ConfigError, Stopped
from nodeagent.kernel.events import StopSignal
from nodeagent.settings import Settings

VERSION = "25.07-0.9.7.0"
RPM = """#!/bin/sh
for last; do :; done
case "$*" in
-K*) test -s "$last" ;;
*-l*) cat "$last" ;;
*) exit 0 ;;
esac
"""
BUILDS = """#!/bin/sh
cd "$(dirname "$0")"
printf '%s\\n' "$@" > arguments
mkdir -p RPMS/redhat-release-9/$(uname -m)
echo /lib/modules/$(uname -r)/extra/mlx5_core.ko > RPMS/redhat-release-9/$(uname -m)/a.rpm
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dtk.HandOver:
    """What was handed over, and a toolkit that has rpm."""
    files = dtk.HandOver(tmp_path / "shared", VERSION)
    files.sources.mkdir(parents=True)
    executable(files.sources / "install.pl", BUILDS)
    executable(tmp_path / "bin/rpm", RPM)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    files.start.touch()
    return files


@pytest.fixture
def settings(files: dtk.HandOver) -> Settings:
    """As dtk.env sets them."""
    return replace(
        Settings(),
        dtk_shared_dir=files.directory,
        dtk_compiled_ver=VERSION,
        dtk_start_flag=files.start,
        dtk_done_flag=files.done,
        append_build_flags="--without-mlnx-nvme --extra '--a --b'",
        build_timeout=10.0,
    )


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def failure(settings: Settings) -> str:
    with StopSignal() as stop, pytest.raises(AgentError) as caught:
        builder.build_once(builder.job(settings), settings, stop)
    return caught.value.message


def test_the_files_are_those_of_the_other_side(settings: Settings, files: dtk.HandOver) -> None:
    wanted = builder.job(settings)
    assert (wanted.tree, wanted.start) == (files.sources, files.start)
    assert (wanted.done, wanted.failed) == (files.done, files.failed)


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("dtk_compiled_ver", "DTK_OCP_COMPILED_DRIVER_VER"),
        ("dtk_start_flag", "DTK_OCP_START_COMPILE_FLAG"),
        ("dtk_done_flag", "DTK_OCP_DONE_COMPILE_FLAG"),
    ],
)
def test_what_is_not_set_is_named(settings: Settings, field: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} not set"):
        builder.job(replace(settings, **{field: None}))  # type: ignore[arg-type] # by name


def test_a_build(settings: Settings, files: dtk.HandOver) -> None:
    files.failed.touch()
    with StopSignal() as stop:
        builder.build_once(builder.job(settings), settings, stop)
    assert files.done.exists()
    assert not files.start.exists()
    assert not files.failed.exists()
    arguments = (files.sources / "arguments").read_text().splitlines()
    assert arguments == [*sources.TOOLKIT_ARGUMENTS, "--without-mlnx-nvme", "--extra", "--a --b"]


def fails(files: dtk.HandOver) -> None:
    executable(files.sources / "install.pl", "#!/bin/sh\necho 'error: no such header'; exit 3\n")


def leaves_nothing(files: dtk.HandOver) -> None:
    executable(files.sources / "install.pl", "#!/bin/sh\n")


def leaves_half(files: dtk.HandOver) -> None:
    executable(
        files.sources / "install.pl", BUILDS + ": > RPMS/redhat-release-9/$(uname -m)/a.rpm\n"
    )


def leaves_another_module(files: dtk.HandOver) -> None:
    executable(files.sources / "install.pl", BUILDS.replace("mlx5_core.ko", "mlx5_ib.ko"))


def is_gone(files: dtk.HandOver) -> None:
    (files.sources / "install.pl").unlink()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (fails, "install.pl exited with status 3; the end of its output:\n  error: no such header"),
        (leaves_nothing, "the build produced no packages below"),
        (leaves_half, "damaged or incomplete packages"),
        (leaves_another_module, "has the module mlx5_core"),
        (is_gone, "there is no"),
    ],
)
def test_a_build_that_fails_leaves_its_marker_and_no_flag(
    settings: Settings, files: dtk.HandOver, fault: Callable[[dtk.HandOver], None], said: str
) -> None:
    fault(files)
    message = failure(settings)
    assert said in message
    assert files.failed.read_text() == f"{message}\n"
    assert not files.done.exists()
    assert not files.start.exists()


def test_it_waits_for_the_start_flag_builds_and_stays(
    settings: Settings, files: dtk.HandOver
) -> None:
    files.start.unlink()

    def container() -> None:
        time.sleep(0.05)
        files.start.touch()
        while not files.done.exists() or files.start.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=container)
    thread.start()
    with StopSignal() as stop:
        builder.run(settings, stop)
    thread.join()
    assert files.done.exists()


def test_another_request_ends_it_so_that_it_starts_with_its_settings(
    settings: Settings, files: dtk.HandOver
) -> None:
    def container() -> None:
        while not files.done.exists() or files.start.exists():
            time.sleep(0.01)
        files.start.touch()

    thread = threading.Thread(target=container)
    thread.start()
    with StopSignal() as stop:
        builder.run(settings, stop)
    thread.join()
    assert files.start.exists()


def test_a_stop_ends_the_build_and_leaves_the_start_flag(
    settings: Settings, files: dtk.HandOver
) -> None:
    begun = files.sources / "begun"
    executable(files.sources / "install.pl", f"#!/bin/sh\n: > {begun}\nexec sleep 60\n")

    def container() -> None:
        while not begun.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=container)
    thread.start()
    asked = time.monotonic()
    with StopSignal() as stop, pytest.raises(Stopped):
        builder.run(settings, stop)
    thread.join()
    assert time.monotonic() - asked < 5
    assert files.start.exists()
    assert not files.failed.exists()
