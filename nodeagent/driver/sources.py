"""install.pl of the driver's sources: its arguments, and a build without the toolkit.

The arguments are those of the driver container (Go entrypoint, dtk_nic_driver_build.sh, 2026).
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nodeagent import hostpath
from nodeagent.driver import distribution, headers
from nodeagent.driver.distribution import Family
from nodeagent.errors import NoInputError, UnavailableError
from nodeagent.kernel import process
from nodeagent.kernel.events import StopSignal
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

INSTALL_SCRIPT: Final = "install.pl"

TOOLKIT_ARGUMENTS: Final = (
    *("--build-only", "--kernel-only"),
    *("--without-knem", "--without-iser", "--without-isert", "--without-srp"),
    *("--with-mlnx-tools", "--with-ofed-scripts", "--copy-ifnames-udev"),
    *("--disable-kmp", "--without-dkms"),
)
"""The arguments in the toolkit's container; dtk_nic_driver_build.sh has the same."""

LAST_LINES: Final = 20
"""Lines of a build's log in an error message."""


def directory(settings: Settings) -> Path:
    """NVIDIA_NIC_DRIVER_PATH below DRIVER_ROOT; NoInputError unless install.pl is there."""
    given = settings.nic_driver_path or Path("/")
    place = hostpath.resolve_in_root(settings.driver_root, given)
    if not hostpath.is_file(place / INSTALL_SCRIPT):
        raise NoInputError(
            f"cannot build the driver: there is no {INSTALL_SCRIPT} in {place}",
            hint="set NVIDIA_NIC_DRIVER_PATH to the directory of the sources in the driver's image",
        )
    return place


def appended(settings: Settings, family: Family) -> tuple[str, ...]:
    """APPEND_DRIVER_BUILD_FLAGS, and before them the flags that leave out NFS over RDMA."""
    suffix = _suffix(family)
    nfs = (f"--without-mlnx-nfsrdma{suffix}", f"--without-mlnx-nvme{suffix}")
    own = shlex.split(settings.append_build_flags or "")
    return (*(() if settings.enable_nfsrdma else nfs), *own)


def arguments(settings: Settings, release: str) -> tuple[str, ...]:
    """The arguments of install.pl on this node, with or without the toolkit."""
    if settings.dtk_build:
        return (*TOOLKIT_ARGUMENTS, *appended(settings, Family.REDHAT))
    family = distribution.of_root(settings.driver_root).family
    suffix = _suffix(family)
    without = ("knem", "iser", "isert", "srp", "kernel-mft", "mlnx-rdma-rxe")
    return (
        *("--without-depcheck", "--kernel", release, "--kernel-only", "--build-only"),
        "--with-mlnx-tools",
        *(f"--without-{name}{suffix}" for name in without),
        *("--disable-kmp", "--without-dkms"),
        *(("--kernel-sources", f"/lib/modules/{release}/build") if family == Family.SLES else ()),
        *("--without-xpmem", "--without-xpmem-modules"),
        *appended(settings, family),
    )


def compile_here(settings: Settings, release: str, stop: StopSignal | None) -> Path:
    """Run install.pl and log its output; return the directory with the packages.

    Raises UnavailableError, with the last lines, if it fails or the headers are missing;
    WaitTimeout after BUILD_TIMEOUT; and Stopped as soon as a stop signal arrives.
    """
    place = directory(settings)
    headers.ensure(settings, release, stop)
    script = f"/{(place / INSTALL_SCRIPT).relative_to(settings.driver_root)}"
    argv = process.in_root(settings.driver_root, [script, *arguments(settings, release)])
    log.info("building the driver %s for %s", settings.nic_driver_ver, release)
    build(argv, settings.build_timeout, stop)
    return place


def build(argv: Sequence[str], timeout: float, stop: StopSignal | None) -> None:
    """Run a build command and log its output; UnavailableError with its last lines."""
    started = time.monotonic()
    log.info("running %s", shlex.join(argv))
    done = process.run(argv, timeout=timeout, stop=stop, on_line=process.to_log(log, "build"))
    if done.returncode:
        quoted = "\n".join(f"  {line}" for line in done.last_lines(LAST_LINES))
        program = argv[-1] if len(argv) == 1 else INSTALL_SCRIPT
        raise UnavailableError(
            f"cannot build the driver: {program} exited with status {done.returncode}; the end of "
            f"its output:\n{quoted}",
            hint="the log above has the whole output; it names further logs of the build",
        )
    log.info("the build has ended", extra={"elapsed": round(time.monotonic() - started, 3)})


def _suffix(family: Family) -> str:
    """The suffix of components on Ubuntu, where modules have packages of their own."""
    return "-modules" if family == Family.UBUNTU else ""
