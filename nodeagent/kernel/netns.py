"""Network namespaces: find them, identify them again, and open sockets in them.

A namespace is found through its processes (/proc/PID/ns/net) and through its mounts (nsfs in
/proc/PID/mountinfo, as `ip netns` and container runtimes make them). The host's are visible with
hostPID; without it, those of our own container.

setns(2) moves the calling thread only, and a socket stays in the namespace in which it was opened.
The main thread therefore enters a namespace, opens netlink sockets, and returns before it does
anything else (`entered`). A helper process that passes sockets (SCM_RIGHTS) would cost a fork per
namespace. Nothing is executed there, and no mount or PID namespace is entered: our own
/proc/sys/net is that of the calling thread's network namespace (net/sysctl_net.c).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from nodeagent import hostpath
from nodeagent.errors import ExitCode, KernelError
from nodeagent.kernel.cgroup import pod_and_container
from nodeagent.kernel.mounts import unescaped
from nodeagent.machine import boot_id
from nodeagent.state.namespaces import Holder, Namespace

CLONE_NEWNET: Final = 0x40000000
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
"""System calls, which have these numbers on every architecture (Linux 5.2)."""
_CLOEXEC, _CREATE = 1, 6
SO_NETNS_COOKIE: Final = 71

_NET = re.compile(r"net:\[(\d+)\]")
_DESCRIPTOR = re.compile(r"/proc/\d+/fd/\d+")
_PROCESS = re.compile(r"/proc/\d+/ns/net")


class NamespaceGone(KernelError):
    """The namespace does not exist any more; another one may have its number."""


@dataclass(frozen=True)
class Namespaces:
    """The network namespaces that are visible in `proc`."""

    proc: Path = Path("/proc")

    def own(self) -> int | None:
        """The inode of this process's namespace; None if it is not known."""
        try:
            match = _NET.fullmatch(str((self.proc / "self/ns/net").readlink()))
        except OSError:
            return None
        return int(match[1]) if match else None

    def scan(self) -> dict[int, tuple[Holder, ...]]:
        """By inode, the processes and then the mounts of every other visible namespace.

        One readlink(2) per process and one read of the mounts; nothing is opened.
        """
        found: dict[int, list[Holder]] = {}
        for pid, inode in self._processes():
            started = self.started(pid)
            if started is not None:
                found.setdefault(inode, []).append(Holder(pid, started))
        for path, inode in self._mounts():
            found.setdefault(inode, []).append(Holder(mount=path))
        return self._others(found)

    def scan_files(self, wanted: int | None = None) -> dict[int, tuple[Holder, ...]]:
        """The same for namespaces that processes only have open (proc_pid_fd(5)). It is slow.

        `wanted`: only that one.
        """
        found: dict[int, list[Holder]] = {}
        for path in self._open_files():
            with suppress(OSError):  # it was closed
                match = _NET.fullmatch(str(path.readlink()))
                if match and wanted in {None, int(match[1])}:
                    found.setdefault(int(match[1]), []).append(Holder(mount=str(path)))
        return self._others(found)

    def _open_files(self) -> Iterator[Path]:
        """The descriptors of all processes but this one."""
        for entry in os.scandir(self.proc):
            if entry.name.isdecimal() and entry.name != str(os.getpid()):
                with suppress(OSError):  # the process has ended: before the first one, or after
                    yield from list((self.proc / entry.name / "fd").iterdir())

    def at(self, path: str) -> int | None:
        """The inode of the namespace at a path of the host: of a process, or a mount.

        None if there is none, or if it is not known without hostPID.
        """
        if _PROCESS.fullmatch(path):
            with suppress(OSError):
                match = _NET.fullmatch(str((self.proc / path.removeprefix("/proc/")).readlink()))
                return int(match[1]) if match else None
            return None
        usual = re.sub(r"^/var/run/", "/run/", path)  # a link on every host (file-hierarchy(7))
        places = {usual, f"{self.proc}/1/root{usual}"}
        return next((inode for place, inode in self._mounts() if place in places), None)

    def _others(self, found: Mapping[int, Sequence[Holder]]) -> dict[int, tuple[Holder, ...]]:
        own = self.own()
        return {inode: tuple(holders) for inode, holders in found.items() if inode != own}

    def described(self, fd: int, holders: tuple[Holder, ...]) -> Namespace:
        """The open namespace as a value, with its process, pod and container if they are known."""
        facts = os.fstat(fd)
        with entered(fd):
            number = cookie()
        bare = Namespace(facts.st_dev, facts.st_ino, self.boot(), holders, number)
        pid = next((holder.pid for holder in holders if holder.pid is not None), None)
        if pid is None:
            return bare
        pod, container = pod_and_container(self.proc / str(pid))
        name = _text(f"{self.proc}/{pid}/comm")
        return replace(bare, process=name, pod=pod, container=container)

    def boot(self) -> str:
        """The present boot's ID."""
        return boot_id(self.proc)

    @contextmanager
    def opened(self, namespace: Namespace) -> Iterator[int]:
        """A descriptor of `namespace`; NamespaceGone, before anything is done in it, if it is gone.

        It is the same one if it has one of its holders: a process with the same PID and start time,
        or a mount at the same path. Otherwise a process may have it open, and the cookie decides.
        """
        if namespace.boot != self.boot():
            raise NamespaceGone("the node was rebooted since")
        with ExitStack() as held:
            try:
                fd = held.enter_context(self.seen(namespace.inode, namespace.holders))
            except NamespaceGone:
                others = self.scan_files(namespace.inode).get(namespace.inode, ())
                if namespace.cookie is None or not others:
                    raise
                fd = held.enter_context(self.seen(namespace.inode, others))
            if os.fstat(fd).st_dev != namespace.device:
                raise NamespaceGone("another namespace is in its place")
            if namespace.cookie is not None:
                with entered(fd):
                    now = cookie()
                if now != namespace.cookie:
                    raise NamespaceGone("another namespace is in its place")
            yield fd

    @contextmanager
    def seen(self, inode: int, holders: Iterable[Holder]) -> Iterator[int]:
        """A descriptor of the namespace with that inode by one of its holders, or NamespaceGone."""
        why = "no process and no mount holds it any more"
        for holder in holders:
            fd = self._open(holder)
            if fd is None:
                continue
            try:
                if os.fstat(fd).st_ino != inode:
                    why = "another namespace is in its place"
                # checked after open(2), so that it is the process that was opened
                elif holder.pid is None or self.started(holder.pid) == holder.started:
                    yield fd
                    return
            finally:
                os.close(fd)
        raise NamespaceGone(why)

    def _open(self, holder: Holder) -> int | None:
        """A descriptor of a holder's namespace. A mount is opened only if it is one of nsfs."""
        own = self.proc / f"{holder.pid}/ns/net"
        path = own if holder.mount is None else Path(holder.mount)
        try:
            if path == own or _DESCRIPTOR.fullmatch(str(path)):
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            return hostpath.open_if(path, self._require_namespace)
        except OSError:
            return None

    def _require_namespace(self, facts: os.stat_result) -> None:
        """OSError unless it is a regular file of the only nsfs (fs/nsfs.c), as our own is."""
        own = (self.proc / "self/ns/net").stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_dev != own.st_dev:
            raise OSError(errno.EINVAL, "it is not a namespace")

    def started(self, pid: int) -> int | None:
        """The start time of a process, in clock ticks since boot; None if there is none."""
        text = _text(f"{self.proc}/{pid}/stat")
        # the name is in parentheses and may contain parentheses and spaces
        fields = text.rpartition(")")[2].split()
        return int(fields[19]) if len(fields) > 19 else None

    def _processes(self) -> Iterator[tuple[int, int]]:
        for entry in os.scandir(self.proc):
            if entry.name.isdecimal():
                with suppress(OSError):  # it has ended, or is a kernel thread
                    link = os.readlink(f"{self.proc}/{entry.name}/ns/net")  # noqa: PTH115 # thousands
                    match = _NET.fullmatch(link)
                    if match:
                        yield int(entry.name), int(match[1])

    def _mounts(self) -> Iterator[tuple[str, int]]:
        """Path and inode of each mount of a network namespace, ours first, then the host's."""
        seen: set[int] = set()
        for process, prefix in (("self", ""), ("1", f"{self.proc}/1/root")):
            for line in _text(f"{self.proc}/{process}/mountinfo").splitlines():
                fields = line.split()
                match = _NET.fullmatch(fields[3])
                if match and int(match[1]) not in seen:
                    seen.add(int(match[1]))
                    yield prefix + unescaped(fields[4]), int(match[1])


@contextmanager
def entered(fd: int) -> Iterator[None]:
    """During the block this thread is in the network namespace `fd`. Only open sockets in it.

    KernelError if the kernel refuses (it needs CAP_SYS_ADMIN).
    """
    with here() as own:
        _setns(fd)
        try:
            yield
        finally:
            _return_to(own)


@contextmanager
def here() -> Iterator[int]:
    """A descriptor of this thread's network namespace."""
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def cookie() -> int | None:
    """The cookie of this thread's network namespace; None before Linux 5.14."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asked:
        try:
            raw = asked.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError:
            return None
    value: int = struct.unpack("=Q", raw)[0]
    return value


def mount_sysfs() -> int:
    """A descriptor of a sysfs with the interfaces of this thread's network namespace.

    It is mounted nowhere, and goes with the descriptor. OSError if the kernel refuses.
    """
    context = _called(_FSOPEN, b"sysfs", _CLOEXEC)
    try:
        _called(_FSCONFIG, context, _CREATE, None, None, 0)
        return _called(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)


def _called(number: int, *arguments: object) -> int:
    result: int = ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _setns(fd: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise KernelError(
            f"cannot enter a network namespace: {os.strerror(number)}",
            hint="it needs CAP_SYS_ADMIN: run it in a privileged pod",
            errno=number,
        )


def _return_to(own: int) -> None:
    """Return to our own namespace. If that fails, exit: nothing may be done in the other one."""
    try:
        _setns(own)
    except KernelError:
        os._exit(ExitCode.SOFTWARE)


def _text(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
