"""The guest's Debian and its Python packages, before anything of the lab is in them."""

from __future__ import annotations

import shutil
from pathlib import Path

from emulator.host import Runner, say
from emulator.packages import Apt, Chosen

PYTHON = "/usr/bin/python3"
REQUIREMENTS = Path(__file__).parent.parent / "requirements.lock"
CNI_PLUGINS = ("host-device", "static", "tuning")
UNUSED = ("kubernetes/aio", "kubernetes/client/api", "kubernetes/client/models")
"""Generated, 124 of 126 MB: only typed clients load them, and nodeagent uses the dynamic one."""


def make_debian(chosen: Chosen, apt: Apt, runner: Runner, directory: Path) -> None:
    """rootfs.tar: the packages that were chosen, and what they need."""
    scratch = directory / "scratch"
    scratch.mkdir()
    say(f"root file system: {len(chosen.guest)} packages of {chosen.suite} and what they need")
    runner.run(
        *("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root"),
        '--aptopt=APT::Install-Recommends "false"',
        f"--aptopt={apt.transport()}",
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")),
        # 3 MB each, and tests run three of them
        "--dpkgopt=path-exclude=/usr/lib/cni/*",
        *(f"--dpkgopt=path-include=/usr/lib/cni/{name}" for name in CNI_PLUGINS),
        # it starts a process for each interface that comes (systemd-sysctl)
        "--dpkgopt=path-exclude=/lib/udev/rules.d/99-systemd.rules",
        f"--include={','.join(chosen.guest)}",
        chosen.suite,
        directory / "rootfs.tar",
        apt.sources,
        env={"TMPDIR": str(scratch)},
        what="making the guest's root file system",
    )
    shutil.rmtree(scratch)


def make_python(runner: Runner, directory: Path) -> None:
    """site/: the packages of requirements.lock, compiled.

    The guest's Debian is the host's, so the host's python3 picks the right files and compiles them.
    Byte code without a source check: stat and read of the source cost more under emulation.
    """
    say(f"python packages of {REQUIREMENTS.name}")
    environment = directory / "venv"
    site = directory / "site"
    runner.run(PYTHON, "-m", "venv", environment, what="making a venv to run pip")
    runner.run(
        *(environment / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--require-hashes", "--only-binary", ":all:", "--no-deps", "--no-compile"),
        *("--target", site, "-r", REQUIREMENTS),
        what="installing the python packages",
    )
    for name in UNUSED:
        for path in (site / name).rglob("[!_]*.py"):
            path.unlink()
    runner.run(
        *(PYTHON, "-m", "compileall", "-q", "-j0", "--invalidation-mode", "unchecked-hash"),
        *("-s", site, "-p", "/usr/local/lib/site-packages", site),
        what="compiling the python packages",
    )
    shutil.rmtree(environment)
