"""The Driver Toolkit's hand-over: a sidecar compiles the driver and says so with a flag file.

Names and places are the driver container's, so that either side may be the other's today.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nodeagent.errors import ConfigError, WaitTimeout
from nodeagent.kernel.events import FileWatch, StopSignal, Watch, wait_until_clear
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

# The safety net of an hour-long wait: no slower than the toolkit's poll of today, 30 s, should a
# file system ever keep the flag's creation from inotify.
_RESYNC = 30.0

QUIET: Final = 900.0
"""Seconds without a new package after which the toolkit may be dead: three times what the longest
whole build took that is on record (about 5 minutes)."""


def sanitised_kernel(release: str) -> str:
    """`uname -r` as the name of a directory: what is not in [-A-Za-z0-9_.] becomes "_".

    Leading and trailing "-", "_" and "." go. The toolkit's side does the same, so this must not
    be improved upon.
    """
    return re.sub(r"[^-A-Za-z0-9_.]", "_", release).strip("-_.")


def done_flag(shared: Path, release: str, version: str) -> Path:
    """The file that the toolkit makes when the packages of `version` are complete.

    `release` is `uname -r`, `version` the driver's (25.07-0.9.7.0).
    """
    name = "dtk_done_compile_" + version.replace(".", "_").replace("-", "_")
    return shared / sanitised_kernel(release) / name


class Progress:
    """The packages that the toolkit has put there so far; its only sign of life.

    They are <shared>/<kernel>/MLNX_OFED_SRC-<version>/RPMS/<distribution>/<architecture>/*.rpm.
    """

    def __init__(self, directory: Path, version: str) -> None:
        self._directory = directory
        self._pattern = f"MLNX_OFED_SRC-{version}/RPMS/*/*/*.rpm"
        self._seen: list[str] = []
        self._changed = self._warned = time.monotonic()

    def look(self) -> None:
        """Log what is new, and a warning after each QUIET seconds without anything new."""
        now = time.monotonic()
        found = sorted(path.name for path in self._directory.glob(self._pattern))
        if found != self._seen:
            for name in sorted({*found} - {*self._seen}):
                log.info("the driver toolkit has built %s", name, extra={"packages": len(found)})
            self._seen, self._changed, self._warned = found, now, now
        elif now - self._warned >= QUIET:
            self._warned = now
            log.warning("the driver toolkit may be dead: %s", self.last_seen())

    def last_seen(self) -> str:
        """In words, for a warning and for the time-out."""
        ago = time.monotonic() - self._changed
        if not self._seen:
            return f"no package in {self._directory} for {ago:.0f} s"
        return f"{len(self._seen)} packages, the last new one {ago:.0f} s ago"


def wait_for_build(settings: Settings, release: str, stop: StopSignal | None) -> None:
    """Return as soon as the toolkit's done flag exists, at once when it is there already.

    Raises WaitTimeout after BUILD_TIMEOUT, Stopped on a stop, ConfigError without a version.
    """
    if settings.nic_driver_ver is None:
        raise ConfigError(
            "NVIDIA_NIC_DRIVER_VER is not set; the toolkit's done flag carries its name",
            hint="set it in the pod's environment, for example 25.07-0.9.7.0",
        )
    flag = done_flag(settings.dtk_shared_dir, release, settings.nic_driver_ver)
    progress = Progress(flag.parent, settings.nic_driver_ver)

    def missing() -> Iterator[Path]:
        if not flag.exists():
            progress.look()
            yield flag

    with FileWatch(flag) as watch:
        watches: tuple[Watch, ...] = (watch,) if stop is None else (watch, stop)
        if flag.exists():
            log.info("the driver toolkit's build is there: %s", flag)
            return
        log.info("waiting for the driver toolkit's done flag %s", flag)
        try:
            wait_until_clear(
                missing,
                *watches,
                what="the driver toolkit's build",
                timeout=settings.build_timeout,
                resync=_RESYNC,
            )
        except WaitTimeout as error:
            error.hint = (
                f"{progress.last_seen()}; the toolkit has no way to report a failure: read the log "
                "of its container (openshift-driver-toolkit-ctr); BUILD_TIMEOUT sets how long to "
                "wait"
            )
            raise
    log.info("the driver toolkit's build is done: %s", flag)
