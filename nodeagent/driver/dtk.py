"""The Driver Toolkit's hand-over: a sidecar compiles the driver and says so with a flag file.

Names and places are the driver container's, so that either side may be the other's today. One file
is ours: where our builder fails, it says so, and why, in dtk_failed_compile_<version>.
"""

from __future__ import annotations

import logging
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent import durable, hostpath
from nodeagent.driver import copies, packages, sources
from nodeagent.errors import ConfigError, DataError, UnavailableError, WaitTimeout
from nodeagent.kernel.events import FileWatch, StopSignal, Watch, wait_until_clear
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

# The safety net of an hour-long wait: no slower than the toolkit's poll of today, 30 s, should a
# file system ever keep the flag's creation from inotify.
_RESYNC_SECONDS = 30.0

_TOOLKIT: Final = Path(__file__).parent / "toolkit"
SCRIPTS: Final = ("dtk_nic_driver_build.sh", "entrypoint")
"""What the sidecar executes; for an image that has a shell and no nodeagent."""

WARNING_SECONDS: Final = 900.0
"""Seconds without a new package after which the toolkit may be dead: three times what the longest
whole build took that is on record (about 5 minutes)."""


def sanitised_kernel(release: str) -> str:
    """`uname -r` as the name of a directory: what is not in [-A-Za-z0-9_.] becomes "_".

    Leading and trailing "-", "_" and "." go. The toolkit's side does the same, so this must not
    be improved upon.
    """
    return re.sub(r"[^-A-Za-z0-9_.]", "_", release).strip("-_.")


@dataclass(frozen=True)
class HandOver:
    """One version's files in the directory that is shared with the toolkit.

    `directory` is <shared>/<sanitised `uname -r`>, `version` the driver's (25.07-0.9.7.0).
    """

    directory: Path
    version: str

    @property
    def sources(self) -> Path:
        """What the toolkit compiles, and below it what it has built."""
        return self.directory / f"MLNX_OFED_SRC-{self.version}"

    @property
    def environment(self) -> Path:
        """The builder's settings, lines of `export NAME="value"`."""
        return self.directory / "dtk.env"

    @property
    def start(self) -> Path:
        """The toolkit may begin; it removes this when it has ended."""
        return self.directory / "dtk_start_compile"

    @property
    def done(self) -> Path:
        """The packages of this version are complete."""
        return self.directory / f"dtk_done_compile_{self._name}"

    @property
    def failed(self) -> Path:
        """The build of this version has failed; it holds the last lines of its log."""
        return self.directory / f"dtk_failed_compile_{self._name}"

    @property
    def _name(self) -> str:
        return self.version.replace(".", "_").replace("-", "_")


def hand_over(settings: Settings, release: str) -> HandOver:
    """Where this node's driver and kernel are handed over. ConfigError without a version."""
    if settings.nic_driver_ver is None:
        raise ConfigError(
            "NVIDIA_NIC_DRIVER_VER is not set; the toolkit's done flag carries its name",
            hint="set it in the pod's environment, for example 25.07-0.9.7.0",
        )
    return HandOver(settings.dtk_shared_dir / sanitised_kernel(release), settings.nic_driver_ver)


def ensure_built(settings: Settings, release: str, stop: StopSignal | None) -> Path:
    """Have the toolkit build the driver; the directory with what it has built.

    Sources and settings are handed over unless the toolkit is at it already, or has done it with
    the same settings. Raises what wait_for_build() and copies.tree() raise, and NoInputError when
    there are no sources to hand over.
    """
    shared = hand_over(settings, release)
    wanted = environment(settings, shared)
    if not _is_done(settings, shared, wanted) and not _is_begun(shared, wanted):
        give(settings, shared, wanted, stop)
    wait_for_build(settings, release, stop)
    return shared.sources


def give(settings: Settings, shared: HandOver, wanted: str, stop: StopSignal | None) -> None:
    """Put sources, settings and scripts there, and the start flag last of all.

    What a killed hand-over left is done again: without the start flag nobody has begun.
    """
    origin = sources.directory(settings)
    log.info("handing the sources in %s over to the driver toolkit", origin)
    durable.make_directory(shared.directory, 0o755)
    for stale in (shared.start, shared.failed, shared.done):
        durable.remove(stale)
    scripts = {shared.directory / name: _TOOLKIT / name for name in SCRIPTS}
    for file in (*scripts, shared.environment, shared.start):
        durable.remove_unfinished(file)
    copies.tree(origin, shared.sources, stop)
    for script, ours in scripts.items():
        durable.replace(script, ours.read_bytes(), 0o755)
    durable.replace(shared.environment, wanted.encode(), 0o644)
    durable.replace(shared.start, b"", 0o644)


def environment(settings: Settings, shared: HandOver) -> str:
    """The content of dtk.env. Every value is quoted for sh(1); APPEND_DRIVER_BUILD_FLAGS holds
    words that are quoted once more, so that each of them stays one word.
    """
    flags = sources.appended(settings, "redhat")
    return exports(
        {
            "DTK_OCP_NIC_SHARED_DIR": str(shared.directory),
            "DTK_OCP_COMPILED_DRIVER_VER": shared.version,
            "DTK_OCP_START_COMPILE_FLAG": str(shared.start),
            "DTK_OCP_DONE_COMPILE_FLAG": str(shared.done),
            "APPEND_DRIVER_BUILD_FLAGS": shlex.join(flags),
            "USE_NEW_ENTRYPOINT": "true",
            "NVIDIA_NIC_DRIVER_VER": shared.version,
            "DRIVER_MODULE": settings.driver_module,
        }
    )


def exports(variables: Mapping[str, str]) -> str:
    """Lines that a shell reads back as these values, whatever is in them."""
    lines = [
        f'export {name}="{re.sub(_SPECIAL, _ESCAPED, value)}"' for name, value in variables.items()
    ]
    return "\n".join(lines) + "\n"


# Inside double quotes these keep their meaning (POSIX, Shell Command Language, 2.2.3).
_SPECIAL = r'([$`"\\])'
_ESCAPED = r"\\\1"


def _is_done(settings: Settings, shared: HandOver, wanted: str) -> bool:
    """The toolkit's build is there, whole, and of these settings as far as nodeagent can see."""
    if not hostpath.is_file(shared.done):
        return False
    given = _given(shared)
    if given not in {None, wanted}:
        log.info("the toolkit's build is of other settings: a build is asked for again")
        return False
    found = packages.built(shared.sources)
    if not found:
        log.warning("%s is there, and no packages: a build is asked for again", shared.done)
        return False
    try:
        packages.check_copies(found, settings.driver_root)
    except DataError as error:
        log.warning("%s; a build is asked for again", error.message)
        return False
    return True


def _is_begun(shared: HandOver, wanted: str) -> bool:
    """An earlier run of ours handed the same over, and the toolkit has not ended."""
    return (
        hostpath.is_file(shared.start)
        and not durable.exists(shared.failed)
        and hostpath.is_directory(shared.sources)
        and _given(shared) == wanted
    )


def _given(shared: HandOver) -> str | None:
    try:
        return hostpath.read_text(shared.environment)
    except OSError:
        return None


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
        """Log new packages, and a warning after each WARNING_SECONDS without one."""
        now = time.monotonic()
        found = sorted(path.name for path in self._directory.glob(self._pattern))
        if found != self._seen:
            for name in sorted({*found} - {*self._seen}):
                log.info("the driver toolkit has built %s", name, extra={"packages": len(found)})
            self._seen, self._changed, self._warned = found, now, now
        elif now - self._warned >= WARNING_SECONDS:
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

    Raises UnavailableError as soon as the builder says that it failed, with the last lines of its
    log; WaitTimeout after BUILD_TIMEOUT, Stopped on a stop, ConfigError without a version.
    """
    shared = hand_over(settings, release)
    flag = shared.done
    progress = Progress(shared.directory, shared.version)

    def missing() -> Iterator[Path]:
        if not durable.is_flag(flag):
            _require_no_failure(shared)
            progress.look()
            yield flag

    with FileWatch(flag) as watch:
        watches: tuple[Watch, ...] = (watch,) if stop is None else (watch, stop)
        if durable.is_flag(flag):
            log.info("the driver toolkit's build is there: %s", flag)
            return
        log.info("waiting for the driver toolkit's done flag %s", flag)
        try:
            wait_until_clear(
                missing,
                *watches,
                what="the driver toolkit's build",
                timeout=settings.build_timeout,
                resync=_RESYNC_SECONDS,
            )
        except WaitTimeout as error:
            error.hint = (
                f"{progress.last_seen()}; no failure was reported: read the log of the toolkit's "
                "container (openshift-driver-toolkit-ctr); BUILD_TIMEOUT sets how long to wait"
            )
            raise
    log.info("the driver toolkit's build is done: %s", flag)


def _require_no_failure(shared: HandOver) -> None:
    try:
        said = hostpath.read_text(shared.failed)
    except FileNotFoundError:
        return
    except OSError as error:
        said = f"(its log cannot be read: {error})"
    lines = [f"  {line}" for line in said.splitlines()[-sources.LAST_LINES :] if line.strip()]
    raise UnavailableError(
        "\n".join(["the driver toolkit could not build the driver, its log ends in:", *lines]),
        hint="its container (openshift-driver-toolkit-ctr) has the whole log; the next start asks "
        "for another build",
    )
