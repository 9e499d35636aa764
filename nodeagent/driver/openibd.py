"""/etc/init.d/openibd: the script that unloads and loads the whole driver stack.

What its exit status is worth: 0 also when it did nothing at all (no openib.conf, ONBOOT=no in
automatic mode), 1 both when it refused before touching anything and when it left the node without
a driver. So nobody here believes it: the caller reads the kernel. It traps SIGTERM and goes on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from nodeagent import hostpath
from nodeagent.errors import UnavailableError
from nodeagent.kernel import process
from nodeagent.kernel.events import EndWatch, StopSignal, Watch, wait_until_clear
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

_SCRIPT = "/etc/init.d/openibd"
_SCRIPTS = ("openibd", "mlnxofedctl")
_CONTROL = "/usr/sbin/mlnxofedctl"

RESERVED_SECONDS: Final = 20.0
"""Seconds of the grace period that are kept back: to kill openibd, and to load a driver by hand."""


def script(settings: Settings) -> Path:
    """Where it is: /etc/init.d/openibd under DRIVER_ROOT, which is its root when it runs.

    RHEL's /etc/init.d is a link (chkconfig(8)); it is followed as the kernel does then, inside.
    """
    return _below(settings, _SCRIPT)


def check(settings: Settings) -> None:
    """Raise UnavailableError when there is no openibd, or it cannot be executed."""
    path = script(settings)
    if not hostpath.is_file(path):
        raise UnavailableError(
            f"cannot restart the driver: there is no {path}",
            hint="install the driver's packages (mlnx-ofa_kernel brings it)",
        )
    if not os.access(path, os.X_OK):
        raise UnavailableError(
            f"cannot restart the driver: {path} is not executable", hint=f"chmod 755 {path}"
        )


def await_running(settings: Settings, stop: StopSignal | None, proc: Path = Path("/proc")) -> None:
    """Return when no openibd runs: one that was left by a killed agent, or that somebody started.

    Two of them would unload each other's modules, and what a half-done one shows of the node is
    neither before nor after. In a pod the container's end has ended it, too; on a bare host, and
    with hostPID, it goes on alone. WaitTimeout after RESTART_TIMEOUT names it.
    """
    with ExitStack() as held:
        ends: dict[int, EndWatch] = {}
        for pid in _running(proc):
            try:
                ends[pid] = held.enter_context(EndWatch(pid))
            except ProcessLookupError:
                continue
        if not ends:
            return
        log.warning("openibd runs already (process %s): waiting for its end", _listed(ends))
        watches: list[Watch] = [*ends.values(), *([] if stop is None else [stop])]

        def left() -> Iterator[str]:
            return (f"the end of process {pid}" for pid in _running(proc) if pid in ends)

        wait_until_clear(
            left, *watches, what="the openibd that runs", timeout=settings.restart_timeout
        )


def _listed(pids: Iterable[int]) -> str:
    return ", ".join(map(str, pids))


def _running(proc: Path) -> Iterator[int]:
    """Processes of which a script is an argument, as in `/bin/bash /etc/init.d/openibd stop`.

    mlnxofedctl runs openibd, and loads modules after it.
    """
    for path in proc.glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(Path(os.fsdecode(each)).name in _SCRIPTS for each in arguments[:2]):
            yield int(path.parent.name)


def restart(settings: Settings, stop: StopSignal | None) -> process.Finished:
    """Run `openibd restart` to its end, its output going to the log line by line.

    Minutes on a large machine. On a stop it is left to finish first, because between its unload
    and its load the node has no driver; Stopped is raised afterwards. It is killed after
    RESTART_TIMEOUT (WaitTimeout), or when the grace period is nearly over: so that whoever killed
    it can still load a driver before the container is.
    """
    return process.run(
        process.in_root(settings.driver_root, [_SCRIPT, "restart"]),
        timeout=settings.restart_timeout,
        stop=stop,
        patience=time_left(settings, stop),
        on_line=_log_line,
    )


def time_left(settings: Settings, stop: StopSignal | None) -> float:
    """Seconds of the grace period that a restart may use, counted from the first signal."""
    elapsed = 0.0 if stop is None else stop.elapsed
    return max(0.0, settings.grace_period - elapsed - RESERVED_SECONDS)


def inbox(settings: Settings, stop: StopSignal) -> process.Finished:
    """Run `mlnxofedctl --alt-mods force-restart`: openibd, with the host's own modules.

    A stop that has come already is what this is done for; `stop` is the next one, and does not
    cut it short either. WaitTimeout when the grace period is nearly over.
    """
    seconds = time_left(settings, stop)
    return process.run(
        process.in_root(settings.driver_root, [_CONTROL, "--alt-mods", "force-restart"]),
        timeout=seconds,
        stop=stop,
        patience=seconds,
        on_line=_log_line,
    )


def check_inbox(settings: Settings) -> None:
    """UnavailableError when there is no mlnxofedctl, as on a host without the driver's packages."""
    path = _below(settings, _CONTROL)
    if not hostpath.is_file(path) or not os.access(path, os.X_OK):
        raise UnavailableError(
            f"cannot put the host's own driver back: there is no {path}, or it cannot be executed",
            hint="the driver's packages bring it (ofed-scripts)",
        )


def _below(settings: Settings, path: str) -> Path:
    return hostpath.resolve_in_root(settings.driver_root, Path(path))


def _log_line(line: str) -> None:
    if text := line.strip():
        log.info("openibd: %s", text)
