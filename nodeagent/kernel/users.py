"""The processes that use the devices: open files below /dev, packet sockets on interfaces.

psutil is imported when processes are searched, which most commands do not do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nodeagent.kernel.cgroup import pod_and_container

# include/linux/proc_ns.h: PROC_PID_INIT_INO, the inode of the host's own PID namespace.
_HOST_PIDS = "pid:[4026531836]"


@dataclass(frozen=True)
class User:
    """A process, the files or sockets that it has open, and its pod (UID) and container, or ""."""

    pid: int
    name: str
    holds: tuple[str, ...]
    pod: str = ""
    container: str = ""

    def __str__(self) -> str:
        parts = [f"pod {self.pod}"] if self.pod else []
        parts += [f"container {self.container}"] if self.container else []
        place = f" in {', '.join(parts)}" if parts else ""
        return f"{self.name} (pid {self.pid}{place}) holds {', '.join(self.holds)}"


def sees_the_host(proc: Path = Path("/proc")) -> bool:
    """Whether /proc shows the host's processes; in a pod only with hostPID."""
    try:
        return str((proc / "self/ns/pid").readlink()) == _HOST_PIDS
    except OSError:
        return False


def of_files(directory: Path, proc: Path = Path("/proc")) -> tuple[User, ...]:
    """The processes that have files below `directory` open. Needs root."""
    return of_files_like((f"{directory}/",), proc)


def of_files_like(beginnings: tuple[str, ...], proc: Path = Path("/proc")) -> tuple[User, ...]:
    """The processes that have files open whose paths have one of these beginnings."""
    return tuple(_users(lambda target: target.startswith(beginnings) and target, proc))


def of_these_files(paths: Collection[str], proc: Path = Path("/proc")) -> tuple[User, ...]:
    """The processes that have one of these files open."""
    return tuple(_users(lambda target: target in paths and target, proc)) if paths else ()


def files_of_function(own: Path, dev: Path = Path("/dev")) -> set[str]:
    """The files by which programs use a function: of VFIO, UIO and vhost-vDPA.

    `own`: its directory in sysfs. A VFIO group (drivers/vfio/group.c) may hold several functions.
    """
    files = {f"{dev}/vfio/{(own / 'iommu_group').resolve().name}"}
    files |= {f"{dev}/vfio/devices/{each.name}" for each in own.glob("vfio-dev/*")}
    files |= {f"{dev}/{each.name}" for each in own.glob("uio/*")}
    return files | {f"{dev}/{each.name}" for each in own.glob("*/vhost-vdpa-*")}


def of_passed_through(dev: Path = Path("/dev"), proc: Path = Path("/proc")) -> tuple[User, ...]:
    """The processes that have any such file open."""
    return of_files_like((f"{dev}/vfio/", f"{dev}/uio", f"{dev}/vhost-vdpa-"), proc)


def open_removed_files(directory: Path, proc: Path = Path("/proc")) -> dict[str, int]:
    """Descriptors of removed files below `directory` that other processes have open.

    By the file's path below /proc (proc(5), /proc/PID/fd). The caller closes them.
    """
    import psutil  # noqa: PLC0415  see above

    opened: dict[str, int] = {}
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with suppress(OSError):  # it has exited
            for entry in (proc / str(process.pid) / "fd").iterdir():
                with suppress(OSError):
                    target = str(entry.readlink())
                    if target.startswith(f"{directory}/") and target.endswith(" (deleted)"):
                        opened[str(entry)] = os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
    return opened


def pods_of(found: Iterable[User]) -> tuple[str, ...]:
    """The UIDs of the pods of these processes."""
    return tuple(sorted({user.pod for user in found if user.pod}))


def of_interfaces(names: Mapping[int, str], proc: Path = Path("/proc")) -> tuple[User, ...]:
    """The processes with a packet socket (packet(7)) on one of these interfaces (by ifindex).

    /proc/net/packet (net/packet/af_packet.c) is that of this network namespace.
    """
    sockets: dict[str, str] = {}
    try:
        lines = (proc / "net/packet").read_text().splitlines()[1:]
    except FileNotFoundError:
        return ()
    for line in lines:
        _sk, _count, _type, _protocol, index, _running, _memory, _user, inode = line.split()[:9]
        if int(index) in names:
            sockets[f"socket:[{inode}]"] = f"a packet socket on {names[int(index)]}"
    return tuple(_users(sockets.get, proc)) if sockets else ()


def _users(ours: Callable[[str], str | bool | None], proc: Path) -> Iterator[User]:
    """`ours` returns the description of an open file; nothing if it does not count."""
    import psutil  # noqa: PLC0415  see above

    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        held = sorted(
            {str(name) for f in _open_files(f"{proc}/{process.pid}/fd") if (name := ours(f))}
        )
        if held:
            try:
                name = process.name()
            except psutil.NoSuchProcess:
                continue
            place = pod_and_container(proc / str(process.pid))
            yield User(process.pid, name, tuple(held), *place)


def _open_files(directory: str) -> Iterator[str]:
    """The targets of the descriptors in /proc/PID/fd.

    psutil lists regular files only, not devices. A path of each would cost more than its target.
    """
    try:
        descriptors = os.listdir(directory)  # noqa: PTH208
    except OSError:  # it has exited, or belongs to another user
        return
    for each in descriptors:
        try:
            yield os.readlink(f"{directory}/{each}").removesuffix(" (deleted)")  # noqa: PTH115
        except OSError:
            continue
