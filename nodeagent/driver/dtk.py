"""The exchange with the OpenShift Driver Toolkit: a sidecar builds the driver and sets a flag file.

The names and paths are those of the driver container, so that either side can be replaced alone.
One file is nodeagent's own: dtk_failed_compile_<version>, with the reason of a failed build.
"""

from __future__ import annotations

import logging
import math
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent import durable, hostpath
from nodeagent.driver import copies, packages, sources
from nodeagent.driver.distribution import Family
from nodeagent.errors import ConfigError, DataError, UnavailableError, WaitTimeout
from nodeagent.kernel.events import FileWatch, StopSignal, Watch, wait_until_clear
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

RESYNC_SECONDS: Final = 30.0
"""Between two looks, for file systems without inotify: the driver container's own interval."""

_TOOLKIT: Final = Path(__file__).parent / "toolkit"
SCRIPTS: Final = ("dtk_nic_driver_build.sh", "entrypoint")
"""The programs for the sidecar; its image needs a shell, but not nodeagent."""

WARNING_SECONDS: Final = 900.0
"""Time without a new package until a warning: three times the longest recorded build (about
5 minutes)."""


def sanitised_kernel(release: str) -> str:
    """`uname -r` as a directory name: characters outside [-A-Za-z0-9_.] become "_".

    Leading and trailing "-", "_" and "." are removed. The toolkit's side must do the same.
    """
    return re.sub(r"[^-A-Za-z0-9_.]", "_", release).strip("-_.")


@dataclass(frozen=True)
class HandOver:
    """The files of one driver version in the directory that is shared with the toolkit.

    `directory` is <shared>/<sanitised `uname -r`>, `version` the driver's (25.07-0.9.7.0).
    """

    directory: Path
    version: str

    @property
    def sources(self) -> Path:
        """The sources, and below them the built packages."""
        return self.directory / f"MLNX_OFED_SRC-{self.version}"

    @property
    def environment(self) -> Path:
        """The builder's settings, lines of `export NAME="value"`."""
        return self.directory / "dtk.env"

    @property
    def start(self) -> Path:
        """The start flag; the toolkit removes it at the end of the build."""
        return self.directory / "dtk_start_compile"

    @property
    def done(self) -> Path:
        """The done flag: the packages of this version are complete."""
        name = self.version.replace(".", "_").replace("-", "_")
        return self.directory / f"dtk_done_compile_{name}"

    @property
    def failed(self) -> Path:
        """The failure marker, with the last lines of the build's log."""
        return failed_instead_of(self.done)


def failed_instead_of(done: Path) -> Path:
    """The failure marker of a build that would create the done flag `done`."""
    return done.with_name(f"dtk_failed_compile_{done.name.removeprefix('dtk_done_compile_')}")


def hand_over(settings: Settings, release: str) -> HandOver:
    """The files for this node's kernel and driver version. ConfigError without a version."""
    if settings.nic_driver_ver is None:
        raise ConfigError(
            "NVIDIA_NIC_DRIVER_VER is not set; it is part of the name of the toolkit's done flag",
            hint="set it in the pod's environment, for example 25.07-0.9.7.0",
        )
    return HandOver(settings.dtk_shared_dir / sanitised_kernel(release), settings.nic_driver_ver)


def ensure_built(settings: Settings, release: str, stop: StopSignal | None) -> Path:
    """Let the toolkit build the driver; return the directory with the packages.

    Sources and settings are copied unless the toolkit is building with the same settings, or has
    done so. Raises what wait_for_build() and copies.tree() raise, and NoInputError if there are no
    sources.
    """
    shared = hand_over(settings, release)
    wanted = environment(settings, shared)
    if not _is_done(settings, shared, wanted) and not _is_begun(shared, wanted):
        give(settings, shared, wanted, stop)
    wait_for_build(settings, release, stop)
    return shared.sources


def give(settings: Settings, shared: HandOver, wanted: str, stop: StopSignal | None) -> None:
    """Write sources, settings and scripts to the shared directory, and the start flag last.

    After a kill all of them are written again: the toolkit waits for the start flag.
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
    """The content of dtk.env. Every value is quoted for sh(1); each word in
    APPEND_DRIVER_BUILD_FLAGS is quoted once more.
    """
    flags = sources.appended(settings, Family.REDHAT)
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
    """`export` lines for sh(1), with any characters in the values."""
    lines = [
        f'export {name}="{re.sub(_SPECIAL, _ESCAPED, value)}"' for name, value in variables.items()
    ]
    return "\n".join(lines) + "\n"


# Inside double quotes these keep their meaning (POSIX, Shell Command Language, 2.2.3).
_SPECIAL = r'([$`"\\])'
_ESCAPED = r"\\\1"


def _is_done(settings: Settings, shared: HandOver, wanted: str) -> bool:
    """Whether the toolkit has built complete packages, with these settings if dtk.env exists."""
    if not hostpath.is_file(shared.done):
        return False
    given = _given(shared)
    if given not in {None, wanted}:
        log.info("the toolkit built with other settings: requesting another build")
        return False
    found = packages.built(shared.sources)
    if not found:
        log.warning("%s exists, but no packages: requesting another build", shared.done)
        return False
    try:
        packages.check_copies(found, settings.driver_root)
    except DataError as error:
        log.warning("%s; requesting another build", error.message)
        return False
    return True


def _is_begun(shared: HandOver, wanted: str) -> bool:
    """Whether an earlier run handed over the same, and the toolkit is still building."""
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
    """The packages that the toolkit has built so far, the only sign of its progress."""

    def __init__(self, shared: HandOver) -> None:
        self._shared = shared
        self._seen: list[str] = []
        self._changed = self._warned = time.monotonic()

    def look(self) -> None:
        """Log new packages, and a warning each WARNING_SECONDS without one."""
        now = time.monotonic()
        found = sorted(path.name for path in self._shared.sources.glob("RPMS/*/*/*.rpm"))
        if found != self._seen:
            for name in sorted({*found} - {*self._seen}):
                log.info("the driver toolkit has built %s", name, extra={"packages": len(found)})
            self._seen, self._changed, self._warned = found, now, now
        elif now - self._warned >= WARNING_SECONDS:
            self._warned = now
            log.warning("the driver toolkit makes no progress: %s", self.last_seen())

    def last_seen(self) -> str:
        """The progress as text, for a warning and for the time-out."""
        ago = time.monotonic() - self._changed
        if not self._seen:
            return f"no package in {self._shared.directory} for {ago:.0f} s"
        return f"{len(self._seen)} packages, the last new one {ago:.0f} s ago"


def wait_for_build(settings: Settings, release: str, stop: StopSignal | None) -> None:
    """Return as soon as the toolkit's done flag exists.

    Raises UnavailableError as soon as the failure marker exists, with the last lines of the log;
    WaitTimeout after BUILD_TIMEOUT; Stopped; ConfigError without a version.
    """
    shared = hand_over(settings, release)
    flag = shared.done
    progress = Progress(shared)

    def missing() -> Iterator[Path]:
        if not durable.is_flag(flag):
            _require_no_failure(shared)
            progress.look()
            yield flag

    with FileWatch(flag) as watch:
        watches: tuple[Watch, ...] = (watch,) if stop is None else (watch, stop)
        if durable.is_flag(flag):
            log.info("the driver toolkit has built the driver already: %s", flag)
            return
        log.info("waiting for the driver toolkit's done flag %s", flag)
        try:
            wait_until_clear(
                missing,
                *watches,
                what="the driver toolkit's build",
                timeout=settings.build_timeout,
                resync=RESYNC_SECONDS,
                notice=math.inf,
            )
        except WaitTimeout as error:
            error.hint = (
                f"{progress.last_seen()}; no failure was reported. See the log of the toolkit's "
                "container (openshift-driver-toolkit-ctr); BUILD_TIMEOUT sets the time limit"
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
        "\n".join(["the driver toolkit could not build the driver; the end of its log:", *lines]),
        hint="see the whole log of its container (openshift-driver-toolkit-ctr); the next start "
        "requests another build",
    )
