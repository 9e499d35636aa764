"""The only module that runs commands: with a time limit, a stop signal, and output line by line."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import selectors
import shlex
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self, cast

from nodeagent.errors import KernelError, Stopped, UnavailableError, WaitTimeout
from nodeagent.kernel.events import StopSignal
from nodeagent.logs import Live
from nodeagent.trace import point

log = logging.getLogger(__name__)

KILL_DELAY = 5.0  # seconds from SIGTERM to SIGKILL, and from SIGKILL to giving up
MAX_OUTPUT = 1 << 20  # characters of each stream that are kept: the last ones
_MAX_LINE = 64 * 1024  # bytes; a longer line is split here

# Which package has a command that a minimal image may lack.
_PACKAGES = {
    **dict.fromkeys(("modinfo", "modprobe", "depmod", "rmmod", "insmod"), "kmod"),
    **dict.fromkeys(("dpkg", "dpkg-deb"), "dpkg"),
    "chroot": "coreutils",
    "rpm": "rpm",
}

# ECMA-48: CSI sequences (colours, cursor), OSC strings, and two-byte escapes.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


@dataclass(frozen=True)
class Finished:
    """A command that has ended.

    `returncode` is its exit status, or minus the signal's number. `output` and `errors` are what
    it wrote on stdout and stderr (of each the last MiB), as lines joined by newlines, without
    colour codes and carriage returns. `seconds` is how long it took.
    """

    argv: tuple[str, ...]
    returncode: int
    output: str
    errors: str
    seconds: float

    def last_lines(self, count: int) -> list[str]:
        """The last lines of stdout and then stderr that are not blank."""
        lines = map(str.strip, f"{self.output}\n{self.errors}".splitlines())
        return [line for line in lines if line][-count:]


def to_log(logger: logging.Logger, program: str) -> Callable[[str], None]:
    """An `on_line` that logs each line that is not blank as `PROGRAM: LINE`."""

    def log_line(line: str) -> None:
        if text := line.strip():
            logger.info("%s: %s", program, text)

    return log_line


def in_root(root: Path, argv: Sequence[str]) -> list[str]:
    """The argument list that runs a command with `root` as its root directory (chroot(1))."""
    return [*argv] if root == Path("/") else ["chroot", str(root), *argv]


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    stop: StopSignal | None = None,
    stop_grace: float = 0.0,
    on_line: Callable[[str], None] | None = None,
    env: Mapping[str, str] | None = None,
    only_looks: bool = False,
) -> Finished:
    """Run a command to its end, in a session of its own, with nothing on stdin.

    After `timeout` seconds the command's process group gets SIGTERM, 5 s later SIGKILL, and
    WaitTimeout is raised. On a stop signal the group is ended in the same way, and Stopped is
    raised; with `stop_grace` the command may first run for that many seconds more, within its
    timeout (a driver restart must not be killed between unload and load). Nothing is started after
    a stop signal.
    `on_line` gets each line of either stream, cleaned, as it comes; `env` replaces the environment.
    Processes that the command leaves in the background are not waited for. A command that
    `only_looks` changes nothing and is no trace point.

    An exit status other than 0 is returned, not raised. Raises UnavailableError if the command
    cannot be started.
    """
    if stop is not None:
        stop.drain()
    deadline = time.monotonic() + timeout
    log.debug("running %s", shlex.join(argv))
    if not only_looks:
        point("run", argv)
    with _Child(argv, on_line, env) as child:
        if stop_grace:
            point("runs", argv)
        try:
            has_ended = child.follow(deadline, stop)
        except Stopped:
            if stop_grace > 0:
                log.info(
                    "stopping after %s ends, in at most %.0f s",
                    *(shlex.join(argv), stop_grace),
                )
            if not (stop_grace > 0 and child.follow(min(deadline, time.monotonic() + stop_grace))):
                log.warning("%s was ended by nodeagent: %s", shlex.join(argv), child.end())
            raise
        if not has_ended:
            raise WaitTimeout(f"{shlex.join(argv)} to end", [child.end()], timeout)
        finished = child.finished()
    log.debug("%s exited %d after %.3f s", argv[0], finished.returncode, finished.seconds)
    return finished


class _Child:
    """A running command: its exit and its two pipes in one selector."""

    def __init__(
        self,
        argv: Sequence[str],
        on_line: Callable[[str], None] | None,
        env: Mapping[str, str] | None,
    ) -> None:
        self._argv = tuple(argv)
        self._started = time.monotonic()
        self._process = _start(argv, env)
        # The child stays a zombie until it is waited for, so that neither its PID nor its process
        # group's ID is used again before.
        self._exit = _pidfd(self._process)
        self._output = _Stream(cast("IO[bytes]", self._process.stdout), on_line)
        self._errors = _Stream(cast("IO[bytes]", self._process.stderr), on_line)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._exit, selectors.EVENT_READ)
        for stream in (self._output, self._errors):
            self._selector.register(stream, selectors.EVENT_READ, stream)

    def follow(self, until: float, stop: StopSignal | None = None) -> bool:
        """Read output until the command has ended (True), or until a monotonic time (False).

        Raises Stopped if a stop signal arrives first.
        """
        with ExitStack() as held:
            if stop is not None:
                self._selector.register(stop, selectors.EVENT_READ)
                held.callback(self._selector.unregister, stop)
            live = held.enter_context(Live())
            while True:
                left = until - time.monotonic()
                pause = min(max(left, 0), live.period)
                ready = {key.fd: key.data for key, _ in self._selector.select(pause)}
                if self._exit in ready:
                    self._output.read_rest()
                    self._errors.read_rest()
                    return True
                for stream in filter(None, ready.values()):
                    if not stream.read():
                        self._selector.unregister(stream)
                if stop is not None and stop.fileno() in ready:
                    stop.drain()
                live.show(self._running)
                if left <= 0:
                    return False

    def _running(self) -> str:
        return f"{shlex.join(self._argv)}: {time.monotonic() - self._started:.0f} s"

    def end(self) -> str:
        """End the command and its process group; return a description of how that went."""
        self._signal(signal.SIGTERM)
        if self.follow(time.monotonic() + KILL_DELAY):
            self._signal(signal.SIGKILL)  # processes of its group that ignored SIGTERM
            return "its end (SIGTERM ended it)"
        self._signal(signal.SIGKILL)
        if self.follow(time.monotonic() + KILL_DELAY):
            return "its end (it ignored SIGTERM; SIGKILL ended it)"
        return f"its end (process {self._process.pid} ignores SIGKILL: it is stuck in the kernel)"

    def finished(self) -> Finished:
        """The result; the command must have ended."""
        return Finished(
            self._argv,
            self._process.wait(),
            self._output.text(),
            self._errors.text(),
            time.monotonic() - self._started,
        )

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
            with selectors.SelectSelector() as selector:
                selector.register(self._exit, selectors.EVENT_READ)
                selector.select(KILL_DELAY)
            self._process.poll()
        self._selector.close()
        os.close(self._exit)
        self._output.close()
        self._errors.close()


def _start(argv: Sequence[str], env: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        package = _PACKAGES.get(argv[0])
        raise UnavailableError(
            f"cannot run {argv[0]}: it, or the interpreter it names, is not there",
            hint=f"install the package {package}" if package else None,
        ) from error
    except OSError as error:
        raise UnavailableError(f"cannot run {argv[0]}: {error.strerror}") from error


def _pidfd(child: subprocess.Popen[bytes]) -> int:
    try:
        return os.pidfd_open(child.pid)
    except OSError as error:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise KernelError(
            f"cannot watch a child process: {error.strerror}",
            hint="pidfd_open(2) needs Linux 5.3" if error.errno == errno.ENOSYS else None,
            errno=error.errno,
        ) from error


class _Stream:
    """One pipe of a command, cut into cleaned lines; the last MiB is kept."""

    def __init__(self, pipe: IO[bytes], on_line: Callable[[str], None] | None) -> None:
        os.set_blocking(pipe.fileno(), False)
        self._pipe = pipe
        self._on_line = on_line
        self._partial = b""
        self._lines: deque[str] = deque()
        self._size = 0

    def fileno(self) -> int:
        return self._pipe.fileno()

    def read(self) -> int:
        """Read once; the number of bytes, 0 at the end of the stream. BlockingIOError if none."""
        chunk = os.read(self._pipe.fileno(), _MAX_LINE)
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        for line in lines:
            self._keep(line)
        if self._partial and (not chunk or len(self._partial) >= _MAX_LINE):
            self._keep(self._partial)
            self._partial = b""
        return len(chunk)

    def read_rest(self) -> None:
        """Read what a command that has ended left in the pipe: at most the pipe's size.

        A process that it left in the background may still write.
        """
        left = fcntl.fcntl(self._pipe.fileno(), fcntl.F_GETPIPE_SZ)
        with suppress(BlockingIOError):
            while left > 0 and (count := self.read()) > 0:
                left -= count
        if self._partial:
            self._keep(self._partial)
            self._partial = b""

    def text(self) -> str:
        return "\n".join(self._lines)

    def close(self) -> None:
        self._pipe.close()

    def _keep(self, raw: bytes) -> None:
        line = _ESCAPES.sub("", raw.decode(errors="replace")).replace("\r", "")
        self._lines.append(line)
        self._size += len(line) + 1
        while self._size > MAX_OUTPUT:
            self._size -= len(self._lines.popleft()) + 1
        if self._on_line is not None:
            self._on_line(line)
