"""The wait: real inotify, real pipes, real signals, real netlink sockets."""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent import logs
from nodeagent.errors import KernelError, Stopped, UnavailableError, WaitTimeout
from nodeagent.kernel import events, process
from nodeagent.kernel.events import FileWatch, LinkWatch, StopSignal, UdevWatch, wait_until_clear
from tests.support.descriptors import open_descriptors


class PipeWatch:
    """A watch that a test rings."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.drained = 0

    def ring(self) -> None:
        os.write(self.write_end, b"!")

    def fileno(self) -> int:
        return self.read_end

    def drain(self) -> None:
        self.drained += 1
        try:
            os.read(self.read_end, 4096)
        except BlockingIOError:
            return

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self.write_end)


class AlwaysReadable(PipeWatch):
    def drain(self) -> None:
        self.drained += 1


@pytest.fixture
def bell() -> Iterator[PipeWatch]:
    watch = PipeWatch()
    yield watch
    watch.close()


def later(seconds: float, action: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def context_switches() -> int:
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("voluntary_ctxt_switches"):
            return int(line.split()[1])
    raise AssertionError


# --- the primitive ---


def test_returns_without_sleeping_when_nothing_is_outstanding(bell: PipeWatch) -> None:
    wait_until_clear(list, bell, what="nothing", timeout=0)
    assert bell.drained == 0


def test_timeout_zero_means_look_and_do_not_sleep(bell: PipeWatch) -> None:
    with pytest.raises(WaitTimeout):
        wait_until_clear(lambda: ["vf 3"], bell, what="VFs", timeout=0)
    assert bell.drained == 0


@pytest.fixture
def terminal() -> Iterator[io.StringIO]:
    """What a person sees of the log."""
    root, ours = logging.getLogger(), logging.getLogger("nodeagent")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    logs.configure(log_format="text", verbose=False, stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)


def test_a_person_sees_how_many_are_done(bell: PipeWatch, terminal: io.StringIO) -> None:
    left = [*range(50)]
    timers = [later(0.2, lambda: left.__delitem__(slice(37))), later(1.5, left.clear)]
    timers.append(later(1.6, bell.ring))
    wait_until_clear(lambda: [*left], bell, what="VFs", timeout=30)
    for each in timers:
        each.join()
    assert terminal.getvalue() == "waiting for VFs: 37 of 50, 1 s\r\x1b[K"


def test_a_person_sees_how_long_a_command_runs(terminal: io.StringIO) -> None:
    process.run(
        ["sh", "-c", "sleep 1.3; echo done"],
        timeout=30,
        on_line=logging.getLogger("nodeagent").info,
    )
    first, rest = terminal.getvalue().split("\r\x1b[K")
    assert first == "sh -c 'sleep 1.3; echo done': 1 s"
    assert rest.endswith(" INFO  done\n")


def test_timeout_lists_everything_that_is_missing() -> None:
    started = time.monotonic()
    with pytest.raises(WaitTimeout) as caught:
        wait_until_clear(lambda: (f"vf {i}" for i in range(3)), what="VFs", timeout=0.2)
    assert 0.2 <= time.monotonic() - started < 2
    assert caught.value.missing == ("vf 0", "vf 1", "vf 2")
    assert "0.2 s waiting for VFs; still missing: vf 0, vf 1, vf 2" in str(caught.value)


@pytest.mark.parametrize(("progress", "ends"), [(True, 55), (False, 15)])
def test_the_time_limit_begins_again_as_long_as_they_keep_coming(
    monkeypatch: pytest.MonkeyPatch, progress: bool, ends: float
) -> None:
    """One comes each 10 s, the last at 40 s, and one never: 15 s later it is named."""
    now = 0.0

    def monotonic() -> float:
        nonlocal now
        now += 0.25
        return now

    monkeypatch.setattr("nodeagent.kernel.events.time.monotonic", monotonic)
    comes = {"vf 0": 10, "vf 1": 20, "vf 2": 30, "vf 3": 40, "vf 4": 1e9}
    with pytest.raises(WaitTimeout) as caught:
        wait_until_clear(
            lambda: (vf for vf, at in comes.items() if now < at),
            what="VFs",
            timeout=15,
            resync=0.001,
            progress=progress,
        )
    assert ends <= now < ends + 3
    assert "vf 4" in caught.value.missing
    assert (caught.value.missing == ("vf 4",)) is progress
    assert ("15 s without progress waiting for VFs" in str(caught.value)) is progress


def test_a_wait_says_what_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    missing = ["a", "b", "c", "d"]
    with pytest.raises(WaitTimeout):
        wait_until_clear(lambda: missing, what="VFs", timeout=0.3, resync=0.02, notice=0.05)
    assert caplog.messages == ["waiting for VFs, 0 s so far, 0 at most: a; b; c"]


def test_the_node_is_looked_at_once_more_at_the_deadline() -> None:
    cleared = time.monotonic() + 0.1
    wait_until_clear(
        lambda: [] if time.monotonic() > cleared else ["x"], what="x", timeout=0.15, resync=60
    )


def test_a_look_asks_for_the_first_item_only(bell: PipeWatch) -> None:
    checked: list[int] = []
    done: set[int] = set()

    def outstanding() -> Iterator[int]:
        for vf in range(300):
            if vf not in done:
                checked.append(vf)
                yield vf

    def serve() -> None:
        for vf in range(300):
            done.add(vf)
            bell.ring()

    timer = later(0.02, serve)
    wait_until_clear(outstanding, bell, what="VFs", timeout=5)
    timer.join()
    assert len(checked) <= 302


def test_ends_at_the_event_and_not_at_the_safety_net(bell: PipeWatch) -> None:
    came: list[float] = []

    def come() -> None:
        came.append(time.monotonic())
        bell.ring()

    timer = later(0.1, come)
    wait_until_clear(lambda: [] if came else ["x"], bell, what="x", timeout=10, resync=60)
    assert time.monotonic() - came[0] < 2
    timer.join()


def test_an_event_between_subscription_and_look_is_not_lost(bell: PipeWatch) -> None:
    looks = 0

    def outstanding() -> list[str]:
        nonlocal looks
        looks += 1
        if looks == 1:
            bell.ring()  # it comes in the middle of the first look, which then says "missing"
            return ["x"]
        return []

    started = time.monotonic()
    wait_until_clear(outstanding, bell, what="x", timeout=10, resync=60)
    assert time.monotonic() - started < 2


def test_all_ready_watches_are_drained_before_the_next_look() -> None:
    one, two = PipeWatch(), PipeWatch()
    looks = 0

    def outstanding() -> list[str]:
        nonlocal looks
        looks += 1
        if looks == 1:
            one.ring()
            two.ring()
        return ["x"] if looks == 1 else []

    wait_until_clear(outstanding, one, two, what="x", timeout=10)
    assert (one.drained, two.drained, looks) == (1, 1, 2)
    one.close()
    two.close()


def test_the_safety_net_looks_without_any_event(bell: PipeWatch) -> None:
    """However slow the machine: it is over when it has looked often enough."""
    started = time.monotonic()
    wait_until_clear(
        lambda: [] if bell.drained >= 3 else ["x"], bell, what="x", timeout=10, resync=0.03
    )
    assert time.monotonic() - started >= 0.06


def test_a_watch_that_is_always_readable_does_not_starve_the_deadline() -> None:
    watch = AlwaysReadable()
    watch.ring()
    started = time.monotonic()
    with pytest.raises(WaitTimeout):
        wait_until_clear(lambda: ["x"], watch, what="x", timeout=0.2)
    assert time.monotonic() - started < 2
    watch.close()


def test_other_signals_are_harmless(bell: PipeWatch) -> None:
    seen: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, _frame: seen.append(number))
    timer = later(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    started = time.monotonic()
    with pytest.raises(WaitTimeout):
        wait_until_clear(lambda: ["x"], bell, what="x", timeout=0.3)
    assert 0.3 <= time.monotonic() - started < 2
    assert seen == [signal.SIGUSR1]
    timer.join()
    signal.signal(signal.SIGUSR1, old)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(min_value=0, max_value=0.01), min_size=1, max_size=8))
def test_never_sleeps_past_the_last_event(pauses: list[float]) -> None:
    """Whatever the rhythm of the events, the wait ends when the last thing has come."""
    watch = PipeWatch()
    missing = list(range(len(pauses)))
    ended: list[float] = []

    def serve() -> None:
        for pause in pauses:
            time.sleep(pause)
            missing.pop()
            watch.ring()
        ended.append(time.monotonic())

    thread = threading.Thread(target=serve)
    thread.start()
    wait_until_clear(lambda: list(missing), watch, what="events", timeout=5, resync=60)
    thread.join()
    assert time.monotonic() - ended[0] < 2
    watch.close()


# --- files ---


def wait_for(path: Path, *, timeout: float = 5) -> float:
    """Wait for a file; the monotonic time at which the wait returned."""
    with FileWatch(path) as watch:
        wait_until_clear(
            lambda: [] if path.exists() else [path],
            watch,
            what="file",
            timeout=timeout,
            resync=60,
        )
    return time.monotonic()


def test_file_that_was_there_all_along(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    wait_for(flag, timeout=0)


@pytest.mark.parametrize("way", ["created", "moved in", "linked", "renamed in place"])
def test_file_comes(tmp_path: Path, way: str) -> None:
    flag = tmp_path / "shared" / "flag"
    flag.parent.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    (flag.parent / "other").touch()
    actions: dict[str, Callable[[], object]] = {
        "created": flag.touch,
        "moved in": lambda: elsewhere.rename(flag),
        "linked": lambda: flag.hardlink_to(elsewhere),
        "renamed in place": lambda: (flag.parent / "other").rename(flag),
    }
    came: list[float] = []

    def come() -> None:
        actions[way]()
        came.append(time.monotonic())

    timer = later(0.05, come)
    ended = wait_for(flag)
    timer.join()
    assert ended - came[0] < 2


def test_directories_come_later_several_levels(tmp_path: Path) -> None:
    flag = tmp_path / "a" / "b" / "c" / "flag"

    def come() -> None:
        for directory in reversed(flag.parents[:3]):
            directory.mkdir()
            time.sleep(0.03)
        flag.touch()

    timer = later(0.02, come)
    wait_for(flag)
    timer.join()


def test_directories_and_file_come_at_once(tmp_path: Path) -> None:
    for round_ in range(30):
        flag = tmp_path / str(round_) / "b" / "c" / "flag"
        timer = later(0.001, lambda f=flag: (f.parent.mkdir(parents=True), f.touch()))  # type: ignore[misc] # bound now
        wait_for(flag)
        timer.join()


def test_tree_is_moved_in(tmp_path: Path) -> None:
    flag = tmp_path / "a" / "b" / "flag"
    ready = tmp_path / "ready" / "b" / "flag"
    ready.parent.mkdir(parents=True)
    ready.touch()
    timer = later(0.05, lambda: (tmp_path / "ready").rename(tmp_path / "a"))
    wait_for(flag)
    timer.join()


def test_directory_is_deleted_and_made_again(tmp_path: Path) -> None:
    flag = tmp_path / "shared" / "flag"
    flag.parent.mkdir()

    def come() -> None:
        flag.parent.rmdir()
        time.sleep(0.03)
        flag.parent.mkdir()
        time.sleep(0.03)
        flag.touch()

    timer = later(0.02, come)
    wait_for(flag)
    timer.join()


@pytest.mark.parametrize("level", [0, 1, 2])
def test_directory_on_the_way_is_replaced_by_rename(tmp_path: Path, level: int) -> None:
    """Only the moved directory itself is told of it, not what is below."""
    flag = tmp_path / "a" / "b" / "c" / "flag"
    flag.parent.mkdir(parents=True)
    replaced = flag.parents[level]

    def come() -> None:
        replaced.rename(tmp_path / "old")
        flag.parent.mkdir(parents=True)
        time.sleep(0.03)
        flag.touch()

    timer = later(0.02, come)
    wait_for(flag)
    timer.join()


def test_file_goes_away(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    timer = later(0.05, flag.unlink)
    with FileWatch(flag) as watch:
        wait_until_clear(
            lambda: [flag] if flag.exists() else [], watch, what="x", timeout=5, resync=60
        )
    timer.join()


def test_content_comes(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    timer = later(0.05, lambda: flag.write_text("done"))
    with FileWatch(flag) as watch:
        wait_until_clear(
            lambda: [] if flag.read_text() else [flag], watch, what="x", timeout=5, resync=60
        )
    timer.join()


def test_a_file_stands_where_a_directory_should(tmp_path: Path) -> None:
    flag = tmp_path / "a" / "flag"
    flag.parent.touch()

    def come() -> None:
        flag.parent.unlink()
        flag.parent.mkdir()
        flag.touch()

    timer = later(0.05, come)
    wait_for(flag)
    timer.join()


def test_file_watch_leaks_no_descriptor_and_no_watch(tmp_path: Path) -> None:
    flag = tmp_path / "a" / "flag"
    before = open_descriptors()
    for _ in range(50):
        with FileWatch(flag):
            pass
    with FileWatch(flag) as watch:
        for _ in range(50):
            flag.parent.mkdir()
            watch.drain()
            flag.parent.rmdir()
            watch.drain()
        info = Path(f"/proc/self/fdinfo/{watch.fileno()}").read_text()
        assert info.count("inotify wd:") == len(tmp_path.parents) + 1
    assert open_descriptors() == before


def test_inotify_limit_is_an_error_with_a_hint() -> None:
    error = events._inotify_error("watch /x", errno.ENOSPC, "watches")
    assert isinstance(error, KernelError)
    assert error.hint == "raise the sysctl fs.inotify.max_user_watches"


def test_blocked_wait_does_not_wake_up(tmp_path: Path) -> None:
    flag = tmp_path / "a" / "flag"
    (tmp_path / "unrelated").mkdir()
    with FileWatch(flag) as watch:
        before = context_switches()
        with pytest.raises(WaitTimeout):
            wait_until_clear(lambda: [flag], watch, what="x", timeout=1, resync=60)
        assert context_switches() - before <= 1


# --- links and udev ---


IN_A_NETNS = """
import fcntl, socket, struct, threading, time
from nodeagent.kernel.events import LinkWatch, wait_until_clear

def set_mtu(mtu):
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, 0x8922, struct.pack("16si", b"lo", mtu))  # SIOCSIFMTU

with LinkWatch() as watch:
    came = []
    def come():
        came.append(time.monotonic())
        set_mtu(1234)
    timer = threading.Timer(0.05, come)
    timer.start()
    wait_until_clear(lambda: [] if came else ["link"], watch, what="x", timeout=5, resync=60)
    assert time.monotonic() - came[0] < 2
    timer.join()

with LinkWatch() as watch:
    watch._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for mtu in range(2000, 2100):
        set_mtu(mtu)
    wait_until_clear(lambda looks=iter([1]): looks, watch, what="x", timeout=5, resync=60)
    watch.drain()
    try:
        watch._socket.recv(1)
    except BlockingIOError:
        print("drained")
"""


def test_link_watch_hears_of_links_and_survives_an_overflow() -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare(1): changes a link in a network namespace of its own")
    argv = ["unshare", "--net", sys.executable, "-c", IN_A_NETNS]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert (done.stdout, done.stderr) == ("drained\n", "")


def test_link_watch_closes() -> None:
    before = open_descriptors()
    with LinkWatch() as watch:
        assert watch.fileno() >= 0
        watch.drain()
    assert open_descriptors() == before


def test_udev_watch_takes_in_events() -> None:
    pytest.importorskip("pyudev")
    try:
        watch = UdevWatch()
    except UnavailableError:
        pytest.skip("no libudev on this host")
    with watch:
        watch.drain()
        assert watch.finished == set()
        watch._take_in("add", "7")
        watch._take_in("move", "8")
        watch._take_in("add", "")
        assert watch.finished == {7, 8}
        watch._take_in("remove", "7")
        watch._take_in("remove", "9")
        assert watch.finished == {8}


# --- stop ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_ends_a_wait_at_once(number: signal.Signals) -> None:
    sent: list[float] = []

    def send() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), number)

    with StopSignal() as stop:
        timer = later(0.1, send)
        with pytest.raises(Stopped):
            wait_until_clear(lambda: ["x"], stop, what="x", timeout=10, resync=60)
        assert time.monotonic() - sent[0] < 2
        assert stop.requested
        timer.join()


def test_stop_is_a_level() -> None:
    with StopSignal() as stop:
        assert not stop.requested
        stop.drain()
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(3):
            with pytest.raises(Stopped):
                wait_until_clear(lambda: ["x"], stop, what="x", timeout=10)


def test_the_termination_ends_with_another_signal() -> None:
    with StopSignal() as stop:
        assert stop.elapsed == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        stop.again()
        stop.drain()
        assert not stop.requested
        with pytest.raises(WaitTimeout):
            wait_until_clear(lambda: ["x"], stop, what="x", timeout=0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            wait_until_clear(lambda: ["x"], stop, what="x", timeout=10)


def test_a_signal_that_another_process_took() -> None:
    with StopSignal(since=time.monotonic() - 7) as stop:
        assert 7 <= stop.elapsed < 17
        stop.drain()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert stop.elapsed >= 7


def test_stop_that_came_before_the_wait_ends_it() -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        started = time.monotonic()
        with pytest.raises(Stopped):
            wait_until_clear(lambda: ["x"], stop, what="x", timeout=10, resync=60)
        assert time.monotonic() - started < 2


def test_a_signal_of_others_wakes_but_does_not_stop() -> None:
    old = signal.signal(signal.SIGUSR1, lambda *_: None)
    with StopSignal() as stop:
        timer = later(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        with pytest.raises(WaitTimeout):
            wait_until_clear(lambda: ["x"], stop, what="x", timeout=0.2, resync=60)
        timer.join()
    signal.signal(signal.SIGUSR1, old)


def test_stop_puts_everything_back() -> None:
    handlers = [signal.getsignal(number) for number in StopSignal.SIGNALS]
    before = open_descriptors()
    with StopSignal():
        assert [signal.getsignal(number) for number in StopSignal.SIGNALS] != handlers
    assert [signal.getsignal(number) for number in StopSignal.SIGNALS] == handlers
    assert signal.set_wakeup_fd(-1) == -1
    assert open_descriptors() == before


STUBBORN = """
import sys, time
from nodeagent.kernel.events import StopSignal
with StopSignal():
    print("ready", flush=True)
    while True:
        time.sleep(0.05)
"""


def test_the_third_signal_exits_at_once() -> None:
    child = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    for _ in range(2):
        child.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
    child.send_signal(signal.SIGTERM)
    assert child.wait(2) == 1
    child.stdout.close()


RACER = """
import os, signal, sys
from nodeagent.errors import Stopped
from nodeagent.kernel.events import StopSignal, wait_until_clear
with StopSignal() as stop:
    print("ready", flush=True)
    try:
        wait_until_clear(lambda: ["x"], stop, what="x", timeout=30, resync=60)
    except Stopped:
        sys.exit(7)
"""


def test_no_moment_loses_a_signal() -> None:
    """The signal comes at many different moments around the start of the sleep."""
    for delay in range(0, 20, 4):
        child = subprocess.Popen([sys.executable, "-c", RACER], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay / 10_000)
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == 7
        child.stdout.close()
