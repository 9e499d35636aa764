"""Wait for the kernel: one function, and the watches that it sleeps on.

An event is only a reason to look again: the caller's `outstanding` reads from the node whether the
wait is over, so that lost, merged or duplicate events do no harm. The order must be: subscribe
(create the watches), act, look, and then sleep.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import logging
import math
import os
import select
import selectors
import signal
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final, Protocol, Self

from nodeagent import hostpath
from nodeagent.errors import KernelError, NoInputError, Stopped, UnavailableError, WaitTimeout
from nodeagent.logs import Live

log = logging.getLogger(__name__)

NOTICE_SECONDS: Final = 10.0
"""Seconds until a wait logs what it waits for, and then each six times as long."""
_MAX_NAMED: Final = 3


class Watch(Protocol):
    """An event source with a descriptor, which is readable after an event."""

    def fileno(self) -> int:
        """The descriptor."""

    def drain(self) -> None:
        """Read everything that is queued, without blocking. Nothing may be queued."""


def wait_until_clear(
    outstanding: Callable[[], Iterable[object]],
    *watches: Watch,
    what: str,
    timeout: float,
    resync: float = 5.0,
    notice: float = NOTICE_SECONDS,
    progress: bool = False,
) -> None:
    """Return as soon as `outstanding()` yields nothing; look again at each event.

    `timeout` and `resync` are seconds. A look reads the first item only, so that an `outstanding`
    written as a generator costs one check per look, however many things are awaited. Some changes
    make no event (a mount over a watched directory): after `resync` seconds without an event every
    watch is drained, and the node is looked at again. After `notice` seconds the log says what is
    waited for (math.inf: never).

    With `progress` the time limit begins again whenever fewer items are outstanding than before.
    They are counted at an event, once in `resync` seconds or in a tenth of `timeout`, and at the
    deadline. Firmware takes half a second for a VF, and there may be 127.

    On a terminal a line says each second how much is done, and for how long that is waited for.

    Raises WaitTimeout, which lists everything that is outstanding at the deadline, and what a
    watch's drain() raises (StopSignal: Stopped).
    """
    began = time.monotonic()
    deadline = began + timeout
    next_notice = began + notice
    period = min(resync, timeout / 10)
    next_count = began + period
    fewest: int | None = None
    most = 0

    def counted() -> str:
        nonlocal most
        count = sum(1 for _ in outstanding())
        most = max(most, count)
        done = f": {most - count} of {most}" if most > 1 else ""
        return f"waiting for {what}{done}, {time.monotonic() - began:.0f} s"

    live = Live(is_wanted=math.isfinite(timeout))
    if math.isfinite(live.period):
        counted()
    with selectors.DefaultSelector() as selector, live:
        for watch in watches:
            selector.register(watch, selectors.EVENT_READ, watch)
        while not _is_clear(outstanding):
            now = time.monotonic()
            if progress and now >= min(next_count, deadline):
                count = sum(1 for _ in outstanding())
                next_count = now + period
                if fewest is not None and count < fewest:
                    deadline = now + timeout
                fewest = count if fewest is None else min(count, fewest)
            left = deadline - now
            if left <= 0:
                missing = [str(item) for item in outstanding()]
                if not missing:
                    return
                raise WaitTimeout(what, missing, timeout, progress=progress)
            ready: list[Watch] = [
                key.data for key, _ in selector.select(min(left, resync, live.period))
            ]
            for watch in ready or watches:
                watch.drain()
            live.show(counted)
            if next_notice <= (now := time.monotonic()) < deadline:
                next_notice = now + 6 * notice
                _say(what, outstanding, now - began, deadline - began)


def _say(
    what: str, outstanding: Callable[[], Iterable[object]], seconds: float, timeout: float
) -> None:
    named = [str(item) for item in itertools.islice(outstanding(), _MAX_NAMED)]
    if named:
        log.info(
            "waiting for %s, %.0f s so far, %.0f at most: %s",
            what,
            seconds,
            timeout,
            "; ".join(named),
        )


_NOTHING = object()


def _is_clear(outstanding: Callable[[], Iterable[object]]) -> bool:
    return next(iter(outstanding()), _NOTHING) is _NOTHING


# The most events of one drain(), so that a flood of events does not delay the deadline of a wait.
# The rest stays queued, and the descriptor readable.
_MAX_EVENTS = 1024


class _Held(ABC):
    """A watch has a descriptor open: a `with` block closes it."""

    @abstractmethod
    def close(self) -> None:
        """Unsubscribe."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_LENGTH_AND_TYPE = struct.Struct("=IH")
"""How a struct nlmsghdr begins."""
_RTM_DELLINK = 17


class LinkWatch(_Held):
    """Changes of the network links of this process's network namespace.

    A NETLINK_ROUTE socket in the multicast group RTMGRP_LINK (rtnetlink(7)). Only the type of each
    message is read. If they arrive faster than they are drained, the kernel returns ENOBUFS, which
    counts as an event.

    `left` counts the interfaces that were removed, or moved to another namespace.
    """

    PROTOCOL = socket.NETLINK_ROUTE
    GROUPS = 0x1  # RTMGRP_LINK
    left = 0

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            self.PROTOCOL,
        )
        try:
            self._socket.bind((0, self.GROUPS))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The netlink socket."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Drop every queued message; the rest of a datagram is dropped with its beginning."""
        for _ in range(_MAX_EVENTS):
            try:
                begin = self._socket.recv(_LENGTH_AND_TYPE.size)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.left += 1  # the lost messages may have contained one
                continue
            self.left += _LENGTH_AND_TYPE.unpack(begin)[1] == _RTM_DELLINK

    def close(self) -> None:
        """Leave the group."""
        self._socket.close()


class AddressWatch(LinkWatch):
    """Changes of links and IPv6 addresses of this namespace, also the end of their DAD."""

    GROUPS = 0x101  # RTMGRP_LINK, RTMGRP_IPV6_IFADDR


class DeviceWatch(LinkWatch):
    """The kernel's events of devices: one is added, removed, or bound to its driver (uevents)."""

    PROTOCOL = 15  # NETLINK_KOBJECT_UEVENT


class UdevWatch(_Held):
    """Network and RDMA devices that udev has finished with, by its broadcasts (libudev).

    udev broadcasts an event after its rules have run and the device is renamed, to processes in
    udevd's own network namespace. `finished` has the ifindexes that were broadcast since the
    subscription, without removed ones; `finished_at` the time of the last event of each
    (CLOCK_BOOTTIME). Some may be missing after an overflow: udev's database
    (nodeagent.kernel.udev.is_initialized) is then consulted.

    Raises UnavailableError if libudev is not installed.
    """

    # 300 VFs with a handful of events each, at about 4 KiB of kernel memory a message.
    RECEIVE_BUFFER = 8 << 20

    def __init__(self) -> None:
        try:
            # Loading libudev costs tens of milliseconds, and most commands never watch udev.
            import pyudev  # noqa: PLC0415
        except ImportError as error:
            raise UnavailableError(
                f"cannot watch udev: {error}", hint="install libudev1 (RHEL: systemd-libs)"
            ) from error
        self.finished: set[int] = set()
        self.finished_at: dict[int, float] = {}
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="udev")
        self._monitor.filter_by("net")
        self._monitor.filter_by("infiniband")
        with suppress(PermissionError):  # beyond rmem_max needs CAP_NET_ADMIN
            self._monitor.set_receive_buffer_size(self.RECEIVE_BUFFER)
        self._monitor.start()
        # libudev closes its own descriptor when it is collected; this one clears SO_ERROR.
        self._socket = socket.socket(fileno=os.dup(self._monitor.fileno()))

    def fileno(self) -> int:
        """The monitor's netlink socket."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Read every queued event."""
        for _ in range(_MAX_EVENTS):
            try:
                device = self._monitor.poll(timeout=0)
            except OSError as error:
                # pyudev reports a pending socket error without fetching it, so it would stay.
                pending = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if errno.ENOBUFS not in (error.errno, pending):
                    raise
                continue
            if device is None:
                return
            self._take_in(device.action, device.properties.get("IFINDEX", ""))

    def _take_in(self, action: str, ifindex: str) -> None:
        if not ifindex.isdecimal():
            return
        if action == "remove":
            self.finished.discard(int(ifindex))
        else:
            self.finished.add(int(ifindex))
            self.finished_at[int(ifindex)] = time.clock_gettime(time.CLOCK_BOOTTIME)

    def close(self) -> None:
        """Unsubscribe."""
        self._socket.close()
        del self._monitor


class EndWatch(_Held):
    """The end of any process, by a pidfd (pidfd_open(2)).

    The pidfd stays readable, and a wait for other things as well would spin: EPOLLONESHOT reports
    the event once (epoll_ctl(2)). Raises ProcessLookupError if the process does not exist any more.
    """

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)
        self._once = select.epoll()
        self._once.register(self._fd, select.EPOLLIN | select.EPOLLONESHOT)

    def fileno(self) -> int:
        """The epoll instance around the pidfd."""
        return self._once.fileno()

    def drain(self) -> None:
        """Read the event, if there is one."""
        self._once.poll(0)

    def close(self) -> None:
        """Close the descriptors."""
        self._once.close()
        os.close(self._fd)


# linux/inotify.h
_IN_CLOSE_WRITE = 0x0000_0008
_IN_MOVED_FROM = 0x0000_0040
_IN_MOVED_TO = 0x0000_0080
_IN_CREATE = 0x0000_0100
_IN_DELETE = 0x0000_0200
_IN_DELETE_SELF = 0x0000_0400
_IN_MOVE_SELF = 0x0000_0800
_IN_ONLYDIR = 0x0100_0000

_SELF = _IN_DELETE_SELF | _IN_MOVE_SELF | _IN_ONLYDIR
_ENTRIES = _IN_CREATE | _IN_MOVED_TO | _IN_CLOSE_WRITE | _IN_DELETE | _IN_MOVED_FROM

_EVENTS_BUFFER = 64 * 1024


class FileWatch(_Held):
    """A file that may be created, changed or removed, as may its directories (inotify(7)).

    The entries of the file's directory are watched, or, while it does not exist, those of the
    nearest existing directory above it. Each directory further up is watched for its own removal
    and renaming, because watches below get no event then. A mount over one of them makes no event;
    the next drain() notices it.

    No link is followed (nodeagent/hostpath.py): in place of a directory it counts as missing.

    Raises KernelError if inotify's limits are reached, NoInputError if a directory of the path
    cannot be read.
    """

    def __init__(self, path: Path) -> None:
        directory = path.absolute().parent
        self._chain = [*reversed(directory.parents), directory]
        self._watched: set[int] = set()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd < 0:
            raise _inotify_error("start watching files", ctypes.get_errno(), "instances")
        try:
            self._arm()
        except BaseException:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        """The inotify descriptor."""
        return self._fd

    def drain(self) -> None:
        """Drop every queued event, and watch the present directories."""
        with suppress(BlockingIOError):
            for _ in range(_MAX_EVENTS):
                os.read(self._fd, _EVENTS_BUFFER)
        self._arm()

    def close(self) -> None:
        """End all watches."""
        os.close(self._fd)

    def _arm(self) -> None:
        """Watch the present directories, from "/" down to the last one that exists.

        An event may be lost while a mask is replaced. That does no harm: the caller looks after it
        has created or drained the watch, and a new directory is found here.
        """
        while True:
            present: list[tuple[Path, int]] = list(self._present())
            nearest, _ = present[-1]
            is_armed = self._add(nearest, _SELF | _ENTRIES) is not None
            # The next directory may have been created before the entries of this one were watched.
            if is_armed and (len(present) == len(self._chain) or not self._is_next(present)):
                break
        current = {watch for _, watch in present}
        for watch in self._watched - current:
            self._libc.inotify_rm_watch(self._fd, watch)  # EINVAL: its directory is deleted
        self._watched = current

    def _present(self) -> Iterator[tuple[Path, int]]:
        for directory in self._chain:
            watch = self._add(directory, _SELF)
            if watch is None:
                return
            yield directory, watch

    def _is_next(self, present: list[tuple[Path, int]]) -> bool:
        return hostpath.is_directory(self._chain[len(present)])

    def _add(self, directory: Path, mask: int) -> int | None:
        """Watch a directory, or replace the mask of its watch. None if it is missing."""
        try:
            with hostpath.directory_path(directory) as place:
                watch = int(self._libc.inotify_add_watch(self._fd, os.fsencode(place), mask))
                number = ctypes.get_errno()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            watch, number = -1, error.errno or 0
        if watch >= 0:
            return watch
        if number == errno.EACCES:
            raise NoInputError(
                f"cannot watch {directory}: {os.strerror(number)}", hint="run as root"
            )
        raise _inotify_error(f"watch {directory}", number, "watches")


def _inotify_error(operation: str, number: int, limit: str) -> KernelError:
    exhausted = number in (errno.EMFILE, errno.ENOSPC)
    return KernelError(
        f"cannot {operation}: {os.strerror(number)}",
        hint=f"raise the sysctl fs.inotify.max_user_{limit}" if exhausted else None,
        errno=number,
    )


class StopSignal:
    """SIGTERM and SIGINT as an event source, which stays readable after the first signal.

    Only the main thread can enter it, in which Python runs signal handlers. `requested` says
    whether a signal has arrived; drain() then raises Stopped, each time. The first signal ends the
    start, the second one the termination (after `again`), the third one exits the process at once
    with status 1. The old handlers are restored on exit.

    `since` is the time (CLOCK_MONOTONIC) of the first signal, if the holder received it before this
    process began to terminate.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, *, since: float | None = None) -> None:
        self._since = since
        self._count = 0 if since is None else 1
        self._ending = self._count
        self._companion: Watch | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived; while terminating, whether another one has."""
        return self._count > self._ending

    @property
    def elapsed(self) -> float:
        """Seconds since the first signal; 0 without one."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def again(self) -> None:
        """Begin the termination, which only another signal ends."""
        self._ending = 1
        with suppress(BlockingIOError):
            os.read(self._read_end, 4096)
        if self.requested:  # it arrived before or during the read
            os.write(self._write_end, b"!")

    def fileno(self) -> int:
        """An epoll of the pipe that the handlers write to, and of the companion."""
        return self._epoll.fileno()

    def drain(self) -> None:
        """Raise Stopped if a signal has arrived."""
        if self.requested:
            raise Stopped
        # written for another signal with a handler in Python
        with suppress(BlockingIOError):
            os.read(self._read_end, 4096)
        if self._companion is not None:
            self._companion.drain()

    @contextmanager
    def accompanied(self, companion: Watch) -> Iterator[None]:
        """During the block, drain `companion` with this signal whenever it is readable."""
        self._epoll.register(companion, select.EPOLLIN)
        self._companion = companion
        try:
            yield
        finally:
            self._companion = None
            self._epoll.unregister(companion)

    def __enter__(self) -> Self:
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._read_end, select.EPOLLIN)
        # Python runs handlers between bytecodes: a signal just before select(2) would be seen
        # only after it. The wakeup descriptor is written in the C handler, which ends the select.
        self._old_wakeup = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        self._old_handlers = {
            number: signal.signal(number, self._on_signal) for number in self.SIGNALS
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._epoll.close()
        os.close(self._read_end)
        os.close(self._write_end)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._since is None:
            self._since = time.monotonic()
        if self._count >= 3:
            os._exit(1)
        # drain() may have read the byte of the wakeup descriptor: stay readable
        with suppress(BlockingIOError):
            os.write(self._write_end, b"!")
