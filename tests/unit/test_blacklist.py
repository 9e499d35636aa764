"""The blacklist: atomically there, gone on every way out, never somebody else's."""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.driver import blacklist
from nodeagent.driver.blacklist import blacklisted, sweep
from nodeagent.errors import KernelError, Stopped, StorageError
from nodeagent.settings import Settings

OURS = "# written by nodeagent; removed after the reload\n# pid 1, boot-id x\nblacklist mlx5_core\n"
CONTAINERS = """\
# blacklist ofed-related modules on host to prevent inbox or host OFED driver loading

blacklist mlx5_core
blacklist mlx5_ib
"""
ADMINS = "# our own\nblacklist nouveau\n"
FOREIGN = {
    "an admin's": ADMINS,
    "ours, then edited": OURS + "options mlx5_core prof_sel=3\n",
    "the container's, then edited": CONTAINERS + "install nouveau /bin/false\n",
    "a header in the middle": "blacklist nouveau\n" + OURS,
    "binary": "\0\ufffd\n",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "modprobe.d").mkdir()
    return tmp_path / "modprobe.d" / "blacklist-ofed-modules.conf"


@pytest.fixture
def settings(path: Path) -> Settings:
    return replace(Settings(), blacklist_file=path, blacklist_modules=("mlx5_core", "mlx5_ib"))


def entries(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def test_content_and_mode(settings: Settings, path: Path) -> None:
    old = os.umask(0o077)
    with blacklisted(settings):
        header, facts, *lines = path.read_text().splitlines()
        assert stat.S_IMODE(path.stat().st_mode) == 0o644
        assert entries(path) == [path.name]
    os.umask(old)
    assert header == "# written by nodeagent; removed after the reload"
    assert f"pid {os.getpid()}, boot-id " in facts
    assert lines == ["blacklist mlx5_core", "blacklist mlx5_ib"]
    assert entries(path) == []


@pytest.mark.parametrize("error", [KernelError("x"), Stopped(), KeyboardInterrupt(), SystemExit()])
def test_removed_on_every_way_out(settings: Settings, path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, blacklisted(settings):
        raise error
    assert caught.value is error
    assert entries(path) == []


@pytest.mark.parametrize("old", [OURS, CONTAINERS, "", "\n"])
def test_what_a_killed_run_left_is_replaced(settings: Settings, path: Path, old: str) -> None:
    path.write_text(old)
    with blacklisted(settings):
        assert f"pid {os.getpid()}," in path.read_text()
    assert entries(path) == []


@pytest.mark.parametrize("kind", FOREIGN)
def test_somebody_elses_file_is_refused(settings: Settings, path: Path, kind: str) -> None:
    path.write_text(FOREIGN[kind])
    with (
        pytest.raises(StorageError, match="not written by nodeagent") as caught,
        blacklisted(settings),
    ):
        raise AssertionError
    assert "OFED_BLACKLIST_MODULES_FILE" in (caught.value.hint or "")
    assert path.read_text() == FOREIGN[kind]


@pytest.mark.parametrize("target", ["present", "absent"])
def test_a_planted_link_is_refused(
    settings: Settings, path: Path, tmp_path: Path, target: str
) -> None:
    (tmp_path / "present").write_text(OURS)
    path.symlink_to(tmp_path / target)
    with pytest.raises(StorageError, match="a link"), blacklisted(settings):
        raise AssertionError
    sweep(settings)
    assert path.is_symlink()
    assert (tmp_path / "present").read_text() == OURS
    assert not (tmp_path / "absent").exists()


def test_a_planted_directory_is_refused(settings: Settings, path: Path) -> None:
    path.mkdir()
    with pytest.raises(StorageError), blacklisted(settings):
        raise AssertionError
    sweep(settings)
    assert path.is_dir()


def test_the_directory_must_be_there(settings: Settings, tmp_path: Path) -> None:
    lost = replace(settings, blacklist_file=tmp_path / "host/etc/modprobe.d/x.conf")
    with pytest.raises(StorageError, match="there is no directory") as caught:
        blacklist.check(lost)
    assert "mount the host's /etc" in (caught.value.hint or "")
    sweep(lost)
    assert not (tmp_path / "host").exists()


def test_replaced_during_the_reload_is_left_alone(
    settings: Settings, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with blacklisted(settings):
        path.write_text(ADMINS)
    assert path.read_text() == ADMINS
    assert "replaced by another program" in caplog.text


def test_removed_during_the_reload_is_no_error(
    settings: Settings, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with blacklisted(settings):
        path.unlink()
    assert "removed by another program" in caplog.text


def cannot_remove(path: Path) -> bool:
    raise StorageError(f"cannot remove {path}: Read-only file system", hint="remount")


def test_failed_removal_is_an_error(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeagent.durable.remove", cannot_remove)
    with pytest.raises(StorageError, match="Read-only"), blacklisted(settings):
        pass


def test_failed_removal_does_not_hide_what_failed_first(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("nodeagent.durable.remove", cannot_remove)
    with pytest.raises(KernelError, match="no driver"), blacklisted(settings):
        raise KernelError("no driver")
    assert "Read-only file system; hint: remount" in caplog.text


@pytest.mark.parametrize(
    ("old", "writer"),
    [(OURS, "nodeagent (pid 1, boot-id x)"), (CONTAINERS, "the driver container")],
)
def test_sweep_removes_what_a_killed_run_left(
    settings: Settings, path: Path, old: str, writer: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(old)
    sweep(settings)
    assert entries(path) == []
    assert f"removed the stale {path}: {writer} was killed during a reload" in caplog.text


@pytest.mark.parametrize("kind", FOREIGN)
def test_sweep_leaves_the_rest_alone(
    settings: Settings, path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(FOREIGN[kind])
    sweep(settings)
    assert path.read_text() == FOREIGN[kind]
    assert "left" in caplog.text


def test_sweep_of_nothing_says_nothing(
    settings: Settings, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sweep(settings)
    assert caplog.text == ""


def test_sweep_removes_a_half_written_one(settings: Settings, path: Path) -> None:
    path.with_name(f".{path.name}.0123456789abcdef.tmp").write_text("blackl")
    sweep(settings)
    assert entries(path) == []
