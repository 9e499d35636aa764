"""Programs of Debian packages that only tests need: unpacked into the cache, not installed.

(Prometheus' package would start a server.) The cache is that of scripts/bootstrap.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest


def program(package: str, name: str) -> Path:
    """The path of a program: of this machine, of the cache, or of the package, which is fetched.

    Where that cannot be done the test is skipped; in CI it fails.
    """
    if found := shutil.which(name):
        return Path(found)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = home / "nodeagent" / f"debian.{package}"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "root/usr/bin" / name
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _unpack(package, directory)
    return path


def _unpack(package: str, directory: Path) -> None:
    """`root` appears with all that is in the package, or not at all."""
    part = directory / "part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        try:
            _apt("download", package, cwd=part)
        except subprocess.CalledProcessError:  # a fresh machine has no package lists
            _apt("update", cwd=part)
            _apt("download", package, cwd=part)
        (file,) = part.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", file, part / "root"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or error
        reason = f"the package {package} cannot be fetched: {said}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    (part / "root").rename(directory / "root")
    shutil.rmtree(part)


def _apt(*arguments: str, cwd: Path) -> None:
    """As root: apt's own user need not be able to write there."""
    argv = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", *arguments]
    subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=True)
