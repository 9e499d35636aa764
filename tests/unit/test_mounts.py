"""Mounts, as mountinfo tells them; mounting itself is tried in the emulated node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.driver import exports
from nodeagent.errors import KernelError
from nodeagent.kernel import mounts
from nodeagent.kernel.mounts import Mount
from nodeagent.settings import Settings

INFO = (
    "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    "40 22 0:33 / /run/a\\040b rw master:7 shared:9 - tmpfs tmpfs rw\n"
    "41 40 0:33 /x /run/a\\040b rw unbindable - tmpfs shared:no rw\n"
)


def test_mountinfo(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").write_text(INFO)
    assert mounts.on(Path("/run/a b"), tmp_path) == (
        Mount("/run/a b", is_shared=True),
        Mount("/run/a b", is_shared=False),
    )
    assert mounts.on(Path("/run"), tmp_path) == ()


def test_what_the_kernel_says_is_told(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=f"cannot unmount {tmp_path}: Invalid argument"):
        mounts.unmount(tmp_path)
    with pytest.raises(
        KernelError, match=r"cannot mount .* at .*: ENOENT: No such file or directory"
    ):
        mounts.bind(tmp_path / "from", tmp_path / "to")


def test_on_the_host_itself_nothing_is_shared(tmp_path: Path) -> None:
    """MLX_DRIVERS_MOUNT is a plain directory there: nobody would see it, and /sys stays."""
    headers = tmp_path / "src"
    headers.mkdir()
    settings = replace(Settings(), drivers_mount=tmp_path / "run", headers_dir=headers)
    exports.ensure(settings, tmp_path / "no-sys")
    exports.remove(settings)
    assert not (tmp_path / "run").exists()
