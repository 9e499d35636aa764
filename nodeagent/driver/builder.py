"""Mode `dtk-build`: build the driver in the toolkit's container, if its image has nodeagent.

toolkit/dtk_nic_driver_build.sh does the same in shell for an image without nodeagent. The settings
come from dtk.env.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nodeagent import durable, hostpath
from nodeagent.driver import dtk, packages, sources
from nodeagent.errors import AgentError, ConfigError, NoInputError, Stopped
from nodeagent.kernel import process
from nodeagent.kernel.events import FileWatch, StopSignal, wait_until_clear
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

_TOOLS = ("perl", "ethtool", "autoconf", "pciutils", "automake", "libtool", "python3-devel")
_QUERY = ("rpm", "-q", "--whatprovides")
_DNF_TIMEOUT = 900.0  # seconds


@dataclass(frozen=True)
class Job:
    """A build: the source tree, the flag files, and the arguments of install.pl."""

    tree: Path
    start: Path
    done: Path
    failed: Path
    arguments: tuple[str, ...]


def job(settings: Settings) -> Job:
    """The job by the variables of dtk.env. ConfigError names the missing ones."""
    given = {
        "DTK_OCP_COMPILED_DRIVER_VER": settings.dtk_compiled_ver,
        "DTK_OCP_START_COMPILE_FLAG": settings.dtk_start_flag,
        "DTK_OCP_DONE_COMPILE_FLAG": settings.dtk_done_flag,
    }
    missing = [name for name, value in given.items() if value is None]
    if missing or settings.dtk_start_flag is None or settings.dtk_done_flag is None:
        raise ConfigError(
            f"cannot build for the driver container: {', '.join(missing)} not set",
            hint="run `. dtk.env` in the shared directory first, which sets them",
        )
    shared = dtk.HandOver(settings.dtk_shared_dir, settings.dtk_compiled_ver or "")
    return Job(
        shared.sources,
        settings.dtk_start_flag,
        settings.dtk_done_flag,
        dtk.failed_instead_of(settings.dtk_done_flag),
        (*sources.TOOLKIT_ARGUMENTS, *shlex.split(settings.append_build_flags or "")),
    )


def run(settings: Settings, stop: StopSignal) -> None:
    """Wait for the start flag, build, then stay until SIGTERM, and return.

    Also returns if another build is requested: dtk.env may have changed, and the container reads it
    when it starts again. A failed build leaves its marker, with the last lines of its log, and
    raises. Stopped if the signal arrives before the end of the build.
    """
    wanted = job(settings)
    _wait_for_start(wanted, stop)
    build_once(wanted, settings, stop)
    with suppress(Stopped):
        _wait_for_start(wanted, stop)
        log.info("another build is requested: exiting, so that a restart reads its settings")


def build_once(wanted: Job, settings: Settings, stop: StopSignal) -> None:
    """Run install.pl; create the done flag if all packages are good, else the failure marker."""
    for stale in (wanted.failed, wanted.done):
        durable.remove(stale)
    try:
        _install_tools(stop)
        script = wanted.tree / sources.INSTALL_SCRIPT
        if not hostpath.is_file(script):
            raise NoInputError(f"cannot build the driver: there is no {script}")
        sources.build([str(script), *wanted.arguments], settings.build_timeout, stop)
        found = packages.built(wanted.tree)
        if not found:
            raise NoInputError(f"the build produced no packages below {wanted.tree}")
        packages.check(found, Path("/"))
        packages.brings(settings.driver_module, os.uname().release, found, Path("/"))
    except Stopped:
        raise  # the start flag stays, so that the next container builds
    except AgentError as error:
        durable.replace(wanted.failed, f"{error.message}\n".encode(), 0o644)
        durable.remove(wanted.start)
        raise
    durable.replace(wanted.done, b"", 0o644)
    durable.remove(wanted.start)
    log.info("%d packages are built: %s", len(found), wanted.done)


def _wait_for_start(wanted: Job, stop: StopSignal) -> None:
    """Wait for the start flag without a time limit."""

    def missing() -> Iterator[Path]:
        if not durable.is_flag(wanted.start):
            yield wanted.start

    with FileWatch(wanted.start) as watch:
        log.info("waiting for the driver container's start flag %s", wanted.start)
        wait_until_clear(
            missing,
            watch,
            stop,
            what="the driver container's start flag",
            timeout=math.inf,
            resync=dtk.RESYNC_SECONDS,
            notice=math.inf,
        )


def _install_tools(stop: StopSignal) -> None:
    """Install what install.pl needs and the toolkit's image lacks, if it has dnf(8)."""
    missing = [
        name
        for name in _TOOLS
        if process.run([*_QUERY, name], timeout=60.0, only_looks=True).returncode
    ]
    dnf = [path for path in ("/usr/bin/dnf", "/bin/dnf") if Path(path).exists()]
    if missing and dnf:
        sources.build([dnf[0], "install", "-y", *missing], _DNF_TIMEOUT, stop)
    elif missing:
        log.warning("not installed, and there is no dnf: %s", ", ".join(missing))
