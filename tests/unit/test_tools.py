"""What an image lacks is said at the start, all of it, with the package that has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.driver import tools
from nodeagent.errors import UnavailableError
from nodeagent.modes import Mode
from nodeagent.settings import Settings


def having(directory: Path, *names: str) -> Settings:
    """A root with these programs."""
    for name in names:
        path = directory / "usr/sbin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return replace(Settings(), driver_root=directory)


@pytest.mark.parametrize("installer", ["rpm", "dpkg"])
def test_all_there(tmp_path: Path, installer: str) -> None:
    tools.check(having(tmp_path, "modinfo", "modprobe", "rmmod", "depmod", installer), Mode.SOURCES)


def test_precompiled_installs_nothing(tmp_path: Path) -> None:
    tools.check(having(tmp_path, "modinfo", "modprobe", "rmmod"), Mode.PRECOMPILED)


def test_all_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as raised:
        tools.check(having(tmp_path, "modinfo"), Mode.SOURCES)
    for words in ("modprobe (package kmod)", "depmod (package kmod)", "neither rpm nor dpkg"):
        assert words in raised.value.message
    assert "modinfo" not in raised.value.message
    assert str(tmp_path) in raised.value.message


def test_on_path_without_another_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    having(tmp_path, "modinfo", "modprobe", "rmmod")
    monkeypatch.setenv("PATH", str(tmp_path / "usr/sbin"))
    tools.check(Settings(), Mode.PRECOMPILED)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="missing: modinfo"):
        tools.check(Settings(), Mode.PRECOMPILED)
