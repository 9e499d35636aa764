"""The watches when the kernel, libudev or the limits say no: what is harmless, and what is told."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nodeagent.errors import KernelError, NoInputError, Stopped, UnavailableError
from nodeagent.kernel.events import (
    AddressWatch,
    EndWatch,
    FileWatch,
    LinkWatch,
    StopSignal,
    UdevWatch,
)
from tests.support.descriptors import open_descriptors


class Answers:
    """A socket that answers with bytes and errors, in order, then with nothing more."""

    def __init__(self, *answers: bytes | OSError) -> None:
        self.answers = list(answers)
        self.sizes: list[int] = []
        self.pending = 0

    def recv(self, size: int) -> bytes:
        self.sizes.append(size)
        if not self.answers:
            raise BlockingIOError
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        return self.pending

    def close(self) -> None:
        """Nothing."""


@pytest.fixture
def watch() -> LinkWatch:
    made = LinkWatch()
    made._socket.close()
    return made


def test_an_overflow_is_one_more_reason_to_look(watch: LinkWatch) -> None:
    answers = Answers(_message(16), OSError(errno.ENOBUFS, "lost"), _message(16))
    watch._socket = answers  # type: ignore[assignment] # one that answers
    watch.drain()
    assert answers.answers == []
    assert answers.sizes == [6, 6, 6, 6]
    assert watch.left == 1, "an interface may have left in what was lost"


def test_interfaces_that_leave_are_counted(watch: LinkWatch) -> None:
    answers = Answers(_message(16), _message(17), _message(20), _message(17))
    watch._socket = answers  # type: ignore[assignment] # likewise
    watch.drain()
    assert watch.left == 2


def _message(kind: int) -> bytes:
    """How a netlink message of that type (RTM_*) begins."""
    return struct.pack("=IH", 16, kind)


def test_any_other_error_of_the_socket_is_raised(watch: LinkWatch) -> None:
    watch._socket = Answers(OSError(errno.EIO, "broken"))  # type: ignore[assignment] # likewise
    with pytest.raises(OSError, match="broken"):
        watch.drain()


def test_a_flood_does_not_keep_the_wait_for_ever(watch: LinkWatch) -> None:
    answers = Answers(*[_message(16)] * 5000)
    watch._socket = answers  # type: ignore[assignment] # likewise
    watch.drain()
    assert len(answers.sizes) == 1024


@pytest.mark.parametrize(("kind", "group"), [(LinkWatch, 0x1), (AddressWatch, 0x101)])
def test_the_kernel_chooses_the_port_and_the_group_is_ours(
    kind: type[LinkWatch], group: int
) -> None:
    """The port is the kernel's choice: two watches of one process must not collide."""
    with kind() as one, kind() as other:
        assert one._socket.getsockname()[1] == group
        assert one._socket.getsockname()[0] != other._socket.getsockname()[0]
        assert not one._socket.get_inheritable()
        assert not one._socket.getblocking()


class Monitor:
    """pyudev's, with the events and errors of the test."""

    def __init__(self, source: str) -> None:
        assert source == "udev"
        self.filtered: list[str] = []
        self.started = False
        self.size = 0
        self.answers: list[Any] = []
        self.ends = socket.socketpair()
        self.polled: list[float] = []

    def filter_by(self, subsystem: str) -> None:
        self.filtered.append(subsystem)

    def set_receive_buffer_size(self, size: int) -> None:
        self.size = size
        raise PermissionError

    def start(self) -> None:
        self.started = True

    def fileno(self) -> int:
        return self.ends[0].fileno()

    def poll(self, timeout: float) -> Any:
        self.polled.append(timeout)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, OSError):
            raise answer
        return answer


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch) -> Monitor:
    made: list[Monitor] = []

    def from_netlink(context: object, source: str = "kernel") -> Monitor:
        assert context == "context"
        made.append(Monitor(source))
        return made[-1]

    pyudev = SimpleNamespace(
        Context=lambda: "context", Monitor=SimpleNamespace(from_netlink=from_netlink)
    )
    monkeypatch.setitem(sys.modules, "pyudev", pyudev)
    watch = UdevWatch()
    made[0].watch = watch  # type: ignore[attr-defined] # kept together
    return made[0]


def device(action: str, ifindex: str | None) -> SimpleNamespace:
    return SimpleNamespace(
        action=action, properties={} if ifindex is None else {"IFINDEX": ifindex}
    )


def test_udev_is_asked_for_interfaces_rdma_devices_and_much_room(monitor: Monitor) -> None:
    """More than rmem_max needs CAP_NET_ADMIN: without, it works with less."""
    assert monitor.filtered == ["net", "infiniband"]
    assert monitor.started
    assert monitor.size == 8 << 20
    watch: UdevWatch = monitor.watch  # type: ignore[attr-defined] # see the fixture
    assert watch.fileno() != monitor.fileno()
    watch.close()


def test_udevs_events_are_taken_in_until_there_are_none(monitor: Monitor) -> None:
    watch: UdevWatch = monitor.watch  # type: ignore[attr-defined] # see the fixture
    monitor.answers = [
        device("add", "3"),
        device("move", "4"),
        device("add", None),
        device("add", "x"),
        device("remove", "3"),
        device("add", "5"),
    ]
    watch.drain()
    assert watch.finished == {4, 5}
    assert {4, 5} <= watch.finished_at.keys()
    assert set(monitor.polled) == {0}


def test_udevs_overflow_is_fetched_and_forgotten(monitor: Monitor) -> None:
    """pyudev reports it without its number; the number is the socket's pending error."""
    watch: UdevWatch = monitor.watch  # type: ignore[attr-defined] # see the fixture
    for error, pending in ((errno.ENOBUFS, 0), (0, errno.ENOBUFS)):
        answers = Answers()
        answers.pending = pending
        watch._socket = answers  # type: ignore[assignment] # one that answers
        monitor.answers = [OSError(error, "?"), device("add", "7")]
        watch.finished.clear()
        watch.drain()
        assert watch.finished == {7}


def test_another_error_of_udevs_socket_is_raised(monitor: Monitor) -> None:
    watch: UdevWatch = monitor.watch  # type: ignore[attr-defined] # see the fixture
    watch._socket = Answers()  # type: ignore[assignment] # likewise
    monitor.answers = [OSError(errno.EIO, "broken")]
    with pytest.raises(OSError, match="broken"):
        watch.drain()


def test_without_libudev(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyudev", None)
    with pytest.raises(UnavailableError) as caught:
        UdevWatch()
    assert caught.value.message.startswith("cannot watch udev: ")
    assert caught.value.hint == "install libudev1 (RHEL: systemd-libs)"


class Libc:
    """inotify_add_watch that fails with a number."""

    def __init__(self, real: Any, number: int, *, begins: bool = True) -> None:
        self.real, self.number, self.begins = real, number, begins

    def inotify_init1(self, flags: int) -> int:
        if self.begins:
            return int(self.real.inotify_init1(flags))
        ctypes.set_errno(self.number)
        return -1

    def inotify_add_watch(self, *_: object) -> int:
        ctypes.set_errno(self.number)
        return -1

    def inotify_rm_watch(self, *_: object) -> int:
        return 0


def no_inotify(monkeypatch: pytest.MonkeyPatch, number: int, *, begins: bool = True) -> None:
    real = ctypes.CDLL(None, use_errno=True)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc(real, number, begins=begins))


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EMFILE, "raise the sysctl fs.inotify.max_user_instances"),
        (errno.ENOMEM, None),
    ],
)
def test_inotify_cannot_begin(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, hint: str | None
) -> None:
    no_inotify(monkeypatch, number, begins=False)
    with pytest.raises(KernelError) as caught:
        FileWatch(tmp_path / "file")
    assert caught.value.message == f"cannot start watching files: {os.strerror(number)}"
    assert caught.value.hint == hint
    assert caught.value.errno == number


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "raise the sysctl fs.inotify.max_user_watches"),
        (errno.ENOMEM, None),
    ],
)
def test_inotify_cannot_watch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, hint: str | None
) -> None:
    no_inotify(monkeypatch, number)
    before = open_descriptors()
    with pytest.raises(KernelError) as caught:
        FileWatch(tmp_path / "file")
    assert caught.value.message == f"cannot watch /: {os.strerror(number)}"
    assert caught.value.hint == hint
    assert caught.value.errno == number
    assert open_descriptors() == before


def test_a_directory_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_inotify(monkeypatch, errno.EACCES)
    with pytest.raises(NoInputError) as caught:
        FileWatch(tmp_path / "file")
    assert caught.value.message == "cannot watch /: Permission denied"
    assert caught.value.hint == "run as root"


def test_the_end_of_a_process_is_told_once() -> None:
    """Else a wait for a second process would look again as fast as it can."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    with EndWatch(pid) as watch:
        assert select.select([watch], [], [], 5)[0]
        watch.drain()
        watch.drain()
        assert not select.select([watch], [], [], 0)[0]
        os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        EndWatch(pid)


# Signals, called as the interpreter would


def test_two_signals_are_two_and_again_leaves_the_second_to_be_seen() -> None:
    """A second one that came before the termination began ends that: it must be readable."""
    with StopSignal() as stop:
        stop._on_signal(signal.SIGTERM, None)
        stop.again()
        assert not stop.requested
        assert not select.select([stop], [], [], 0)[0]
        stop._on_signal(signal.SIGTERM, None)
        stop.again()
        assert stop.requested
        assert select.select([stop], [], [], 0)[0]
        with pytest.raises(Stopped):
            stop.drain()
        assert select.select([stop], [], [], 0)[0]


def test_the_third_signal_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    monkeypatch.setattr(os, "_exit", exits.append)
    with StopSignal() as stop:
        for _ in range(2):
            stop._on_signal(signal.SIGINT, None)
        assert exits == []
        stop._on_signal(signal.SIGINT, None)
    assert exits == [1]
    with StopSignal(since=time.monotonic()) as stop:  # the first was another process's
        stop._on_signal(signal.SIGINT, None)
        assert exits == [1]
        stop._on_signal(signal.SIGINT, None)
    assert exits == [1, 1]


def test_a_pipe_that_is_full_loses_no_signal() -> None:
    with StopSignal() as stop:
        with suppress(BlockingIOError):
            while True:
                os.write(stop._write_end, b"x" * 4096)
        stop._on_signal(signal.SIGTERM, None)
        assert stop.requested
        assert select.select([stop], [], [], 0)[0]


def test_seconds_are_counted_from_the_first_signal_or_from_that_of_before() -> None:
    with StopSignal() as stop:
        assert stop.elapsed == 0
        stop._on_signal(signal.SIGTERM, None)
        first = stop.elapsed
        assert 0 < first < 60
        stop._on_signal(signal.SIGTERM, None)
        assert stop.elapsed >= first
    with StopSignal(since=time.monotonic() - 100) as stop:
        assert 100 <= stop.elapsed < 160
        assert not stop.requested
        stop._on_signal(signal.SIGTERM, None)
        assert stop.requested
        assert stop.elapsed >= 100
