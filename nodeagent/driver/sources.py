"""install.pl of the driver's sources: its arguments, and running it where no toolkit does.

The arguments are the driver container's (its Go entrypoint and dtk_nic_driver_build.sh, 2026).
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
"""In the toolkit's container, before the appended ones; dtk_nic_driver_build.sh has the same."""

LAST_LINES: Final = 20
"""How much of a build's log an error quotes."""


def directory(settings: Settings) -> Path:
    """NVIDIA_NIC_DRIVER_PATH below DRIVER_ROOT; NoInputError unless install.pl is there."""
    given = settings.nic_driver_path or Path("/")
    place = hostpath.resolve_in_root(settings.driver_root, given)
    if not hostpath.is_file(place / INSTALL_SCRIPT):
        raise NoInputError(
            f"there are no sources of the driver: no {INSTALL_SCRIPT} in {place}",
            hint="NVIDIA_NIC_DRIVER_PATH names the directory of the sources in the driver's image",
        )
    return place


def appended(settings: Settings, family: str) -> tuple[str, ...]:
    """What NFS over RDMA is left out by, unless it is wanted, and APPEND_DRIVER_BUILD_FLAGS."""
    suffix = _suffix(family)
    nfs = (f"--without-mlnx-nfsrdma{suffix}", f"--without-mlnx-nvme{suffix}")
    own = shlex.split(settings.append_build_flags or "")
    return (*(() if settings.enable_nfsrdma else nfs), *own)


def arguments(settings: Settings, release: str) -> tuple[str, ...]:
    """All that install.pl is called with on this node, in the toolkit or without it."""
    if settings.dtk_build:
        return (*TOOLKIT_ARGUMENTS, *appended(settings, "redhat"))
    family = distribution.of_root(settings.driver_root).family
    suffix = _suffix(family)
    without = ("knem", "iser", "isert", "srp", "kernel-mft", "mlnx-rdma-rxe")
    return (
        *("--without-depcheck", "--kernel", release, "--kernel-only", "--build-only"),
        "--with-mlnx-tools",
        *(f"--without-{name}{suffix}" for name in without),
        *("--disable-kmp", "--without-dkms"),
        *(("--kernel-sources", f"/lib/modules/{release}/build") if family == "sles" else ()),
        *("--without-xpmem", "--without-xpmem-modules"),
        *appended(settings, family),
    )


def compile_here(settings: Settings, release: str, stop: StopSignal | None) -> Path:
    """Run install.pl to its end, its output in the log; the directory with what it has built.

    BUILD_TIMEOUT is its deadline, and a stop ends it at once. Raises UnavailableError with its
    last lines when it fails, or when what it needs is missing, WaitTimeout and Stopped.
    """
    place = directory(settings)
    headers.ensure(settings, release, stop)
    script = f"/{(place / INSTALL_SCRIPT).relative_to(settings.driver_root)}"
    argv = process.in_root(settings.driver_root, [script, *arguments(settings, release)])
    log.info("building the driver %s for %s", settings.nic_driver_ver, release)
    build(argv, settings.build_timeout, stop)
    return place


def build(argv: Sequence[str], timeout: float, stop: StopSignal | None) -> None:
    """Run a build command and stream what it says; UnavailableError with its last lines."""
    started = time.monotonic()
    log.info("running %s", shlex.join(argv))
    done = process.run(argv, timeout=timeout, stop=stop, on_line=_log_line)
    if done.returncode:
        said = [line for line in f"{done.output}\n{done.errors}".splitlines() if line.strip()]
        quoted = "\n".join(f"  {line}" for line in said[-LAST_LINES:])
        program = argv[-1] if len(argv) == 1 else INSTALL_SCRIPT
        raise UnavailableError(
            f"cannot build the driver: {program} exited with status {done.returncode}; the end of "
            f"its output:\n{quoted}",
            hint="the log above has the whole output; it names further logs of the build",
        )
    log.info("the build has ended", extra={"elapsed": round(time.monotonic() - started, 3)})


def _suffix(family: str) -> str:
    """Ubuntu's packages of one component are split: its modules have a name of their own."""
    return "-modules" if family == "ubuntu" else ""


def _log_line(line: str) -> None:
    if text := line.strip():
        log.info("build: %s", text)
