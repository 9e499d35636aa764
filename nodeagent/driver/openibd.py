"""/etc/init.d/openibd, the script that unloads and loads the whole driver stack.

Its exit status is not reliable: it is 0 even if the script did nothing (no openib.conf, ONBOOT=no
in automatic mode), and 1 both if it refused to begin and if it left the node without a driver. The
caller therefore reads the kernel. The script traps SIGTERM and continues.
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
"""The part of the grace period that is reserved for killing openibd and loading a driver."""


def script(settings: Settings) -> Path:
    """The path of openibd: /etc/init.d/openibd below DRIVER_ROOT, which is its root directory.

    RHEL's /etc/init.d is a link (chkconfig(8)); it is resolved within that root.
    """
    return _below(settings, _SCRIPT)


def check(settings: Settings) -> None:
    """UnavailableError if there is no openibd, or it is not executable."""
    path = script(settings)
    if not hostpath.is_file(path):
        raise UnavailableError(
            f"cannot restart the driver: there is no {path}",
            hint="install the driver's packages (mlnx-ofa_kernel contains it)",
        )
    if not os.access(path, os.X_OK):
        raise UnavailableError(
            f"cannot restart the driver: {path} is not executable", hint=f"chmod 755 {path}"
        )


def await_running(settings: Settings, stop: StopSignal | None, proc: Path = Path("/proc")) -> None:
    """Wait for the end of an openibd that a killed agent left, or that was started by hand.

    Two of them would unload each other's modules, and a snapshot that is taken meanwhile would be
    wrong. In a pod it ends with its container; on a bare host, and with hostPID, it may still be
    running. WaitTimeout after RESTART_TIMEOUT names its processes.
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
        log.warning("openibd is running already (process %s): waiting for its end", _listed(ends))
        watches: list[Watch] = [*ends.values(), *([] if stop is None else [stop])]

        def left() -> Iterator[str]:
            return (f"the end of process {pid}" for pid in _running(proc) if pid in ends)

        wait_until_clear(
            left, *watches, what="the running openibd", timeout=settings.restart_timeout
        )


def _listed(pids: Iterable[int]) -> str:
    return ", ".join(map(str, pids))


def _running(proc: Path) -> Iterator[int]:
    """The processes that run one of the scripts, as in `/bin/bash /etc/init.d/openibd stop`.

    mlnxofedctl runs openibd, and loads modules after it.
    """
    for pid in filter(str.isdecimal, os.listdir(proc)):  # noqa: PTH208  as text: of all processes
        try:
            with open(f"{proc}/{pid}/cmdline", "rb") as file:
                arguments = os.fsdecode(file.read()).split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        is_script = any(each.rpartition("/")[2] in _SCRIPTS for each in arguments[:2])
        if is_script and not _is_left_behind(proc / pid, proc):
            yield int(pid)


def _is_left_behind(process: Path, proc: Path) -> bool:
    """Whether it is a shell that openibd has left in the background (`ib_set_node_desc`).

    It waits for the host's name for up to two minutes, with the script's own command line, and
    writes to nowhere; the script, which leads its process group, has ended.
    """
    try:
        group = (process / "stat").read_text().rpartition(")")[2].split()[2]
        output = (process / "fd/1").readlink()
    except OSError:
        return False
    return str(output) == os.devnull and not (proc / group).exists()


def restart(settings: Settings, stop: StopSignal | None) -> process.Finished:
    """Run `openibd restart`, and log its output line by line.

    It takes minutes on a large machine. After a stop signal it may finish, because between unload
    and load the node has no driver; then Stopped is raised. It is killed after RESTART_TIMEOUT
    (WaitTimeout), or near the end of the grace period, so that nodeagent can still load a driver
    before the container is killed.
    """
    return process.run(
        process.in_root(settings.driver_root, [_SCRIPT, "restart"]),
        timeout=settings.restart_timeout,
        stop=stop,
        stop_grace=time_left(settings, stop),
        on_line=process.to_log(log, "openibd"),
    )


def time_left(settings: Settings, stop: StopSignal | None) -> float:
    """Seconds of the grace period that a restart may use, counted from the first signal."""
    elapsed = 0.0 if stop is None else stop.elapsed
    return max(0.0, settings.grace_period - elapsed - RESERVED_SECONDS)


def inbox(settings: Settings, stop: StopSignal) -> process.Finished:
    """Run `mlnxofedctl --alt-mods force-restart`: openibd with the host's own modules.

    This runs after a first stop signal; a second one, `stop`, does not end it either. WaitTimeout
    near the end of the grace period.
    """
    seconds = time_left(settings, stop)
    return process.run(
        process.in_root(settings.driver_root, [_CONTROL, "--alt-mods", "force-restart"]),
        timeout=seconds,
        stop=stop,
        stop_grace=seconds,
        on_line=process.to_log(log, "openibd"),
    )


def check_inbox(settings: Settings) -> None:
    """UnavailableError if there is no mlnxofedctl, as on a host without the driver's packages."""
    path = _below(settings, _CONTROL)
    if not hostpath.is_file(path) or not os.access(path, os.X_OK):
        raise UnavailableError(
            f"cannot load the host's own driver: there is no {path}, or it is not executable",
            hint="install the driver's packages (ofed-scripts contains it)",
        )


def _below(settings: Settings, path: str) -> Path:
    return hostpath.resolve_in_root(settings.driver_root, Path(path))
