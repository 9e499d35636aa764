"""The programs that a reload runs. They are checked before it begins.

Otherwise a missing one would be noticed after the build, or with the old driver unloaded.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nodeagent.errors import UnavailableError
from nodeagent.modes import Mode
from nodeagent.settings import Settings

_TOOLS: Final = {"modinfo": "kmod", "modprobe": "kmod", "rmmod": "kmod"}
_BUILD_TOOLS: Final = {"depmod": "kmod"}
_INSTALLERS: Final = ("rpm", "dpkg")


def check(settings: Settings, mode: Mode) -> None:
    """UnavailableError names every program that `mode` needs and DRIVER_ROOT does not have."""
    missing = [*_missing(settings.driver_root, mode)]
    if missing:
        where = "" if settings.driver_root == Path("/") else f" in {settings.driver_root}"
        raise UnavailableError(
            f"programs that a reload runs are missing{where}: {'; '.join(missing)}",
            hint="install them, or use the image's target driver, which has all of them",
        )


def _missing(root: Path, mode: Mode) -> Iterator[str]:
    needed = _TOOLS | (_BUILD_TOOLS if mode == Mode.SOURCES else {})
    for name, package in needed.items():
        if _find(name, root) is None:
            yield f"{name} (package {package})"
    if mode == Mode.SOURCES and not any(_find(name, root) for name in _INSTALLERS):
        yield f"neither {' nor '.join(_INSTALLERS)}, to install the driver's packages with"


def _find(name: str, root: Path) -> str | None:
    """The program on PATH, in another root as chroot(1) would find it."""
    if root == Path("/"):
        return shutil.which(name)
    places = [*os.defpath.split(os.pathsep), "/usr/sbin", "/sbin", "/usr/local/sbin"]
    return shutil.which(name, path=os.pathsep.join(f"{root}{place}" for place in places))
