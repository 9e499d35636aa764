"""nodeagent with its imports done: a start is a fork of it, not a start of Python.

That start takes 3 s in the guest, nearly all of it imports. Run as a program, on a socket that is
its stdin, it takes one message for each start: arguments and environment as JSON, and three
descriptors: what becomes stdout and stderr, and a pipe for waitpid(2)'s status. It answers with the
child's pid. The child is a process like any other: it can be killed, and what it started outlives
it; in `ps` it has the zygote's command line.
"""

from __future__ import annotations

import gc
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

WHOLE_MESSAGE = 1 << 18
MOST_DESCRIPTORS = 1 << 10
"""More than a zygote has open: what of them is not the child's is closed in it."""


class Fork:
    """A start that is under way, as subprocess.Popen would show it."""

    def __init__(self, pid: int, status: int, output: tuple[IO[str], IO[str]] | None) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        if output is not None:
            self.stdout, self.stderr = output
        self._status = status

    def poll(self) -> int | None:
        """The exit status, or minus a signal's number; None: it has not ended."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status. TimeoutExpired."""
        if self.returncode is None:
            readable, _, _ = select.select([self._status], [], [], timeout)
            if not readable:
                raise subprocess.TimeoutExpired(f"nodeagent, pid {self.pid}", timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(int(os.read(self._status, 16)))
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Nothing when it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


@dataclass(frozen=True)
class Ended:
    """How a call ended: its exit status, or minus the signal's number; what it logged."""

    status: int
    log: str


class Zygote:
    """The program, running. A context manager."""

    def __init__(self, environment: Mapping[str, str], directory: Path) -> None:
        self._log = directory / "zygote.log"
        self._environment = dict(environment)
        self._socket, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.zygote"],
            env=self._environment,
            stdin=theirs.fileno(),
        )
        theirs.close()
        assert self._socket.recv(16) == b"ready"

    def popen(self, arguments: Sequence[str], environment: Mapping[str, str]) -> Fork:
        """Start it, its stdout and stderr as pipes of text."""
        ours, theirs = zip(os.pipe(), os.pipe(), strict=True)
        fork = self._fork(arguments, environment, theirs, (os.fdopen(ours[0]), os.fdopen(ours[1])))
        for fd in theirs:
            os.close(fd)
        return fork

    def start(self, *arguments: str, **settings: object) -> Fork:
        """Begin a call with more environment variables. Its output goes to the log."""
        environment = self._environment | {key: str(value) for key, value in settings.items()}
        with self._log.open("w") as log:
            self._call = self._fork(arguments, environment, (log.fileno(), log.fileno()), None)
        return self._call

    def wait(self) -> Ended:
        """The end of the call that was begun."""
        return Ended(self._call.wait(), self.log())

    def call(self, *arguments: str, **settings: object) -> Ended:
        """A call from its begin to its end."""
        self.start(*arguments, **settings)
        return self.wait()

    def log(self) -> str:
        """What the call that runs has logged so far."""
        return self._log.read_text(errors="replace")

    def _fork(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        output: tuple[int, int],
        pipes: tuple[IO[str], IO[str]] | None,
    ) -> Fork:
        ours, theirs = os.pipe()
        message = json.dumps([list(arguments), dict(environment)]).encode()
        socket.send_fds(self._socket, [message], [*output, theirs])
        os.close(theirs)
        return Fork(int(self._socket.recv(16)), ours, pipes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.wait()


def main() -> None:
    """Import everything, also what a child would import once it needs it; then fork on request."""
    import psutil  # noqa: F401,PLC0415  a reload asks it who uses devices: 5 % of its work

    import nodeagent.agent.by_hand  # noqa: PLC0415
    import nodeagent.agent.life  # noqa: PLC0415
    import nodeagent.agent.lifecycle  # noqa: PLC0415
    import nodeagent.agent.status  # noqa: PLC0415
    import nodeagent.agent.termination  # noqa: PLC0415
    import nodeagent.cli.input  # noqa: PLC0415
    import nodeagent.cli.main  # noqa: PLC0415
    import nodeagent.driver.preflight  # noqa: PLC0415
    import nodeagent.plan.lines_pods  # noqa: F401,PLC0415

    with suppress(ImportError):
        import pyudev  # noqa: F401,PLC0415
    gc.freeze()  # what is here already is not looked through, and not copied, in each child
    with socket.socket(fileno=0) as requests, selectors.DefaultSelector() as selector:
        requests.send(b"ready")
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    selector.unregister(key.fileobj)
                    _tell_end(key.fd, *key.data)
                elif not _serve(requests, selector):
                    return


def _serve(requests: socket.socket, selector: selectors.BaseSelector) -> bool:
    """Fork for one message; False when there will be no more."""
    message, descriptors, _, _ = socket.recv_fds(requests, WHOLE_MESSAGE, 3)
    if not message:
        return False
    output, errors, status = descriptors
    arguments, environment = json.loads(message)
    pid = os.fork()
    if pid == 0:
        _be(arguments, environment, output, errors)
    os.close(output)
    os.close(errors)
    requests.send(str(pid).encode())
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
    return True


def _tell_end(pidfd: int, pid: int, status: int) -> None:
    """Whoever has asked for it may be gone."""
    os.close(pidfd)
    ended = os.waitpid(pid, 0)[1]
    with suppress(BrokenPipeError):
        os.write(status, str(ended).encode())
    os.close(status)


def _be(arguments: Sequence[str], environment: Mapping[str, str], output: int, errors: int) -> None:
    """Become a process of its own that does what `nodeagent` does with those arguments."""
    from nodeagent.cli.main import status_of  # noqa: PLC0415

    result = 70
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.environ.clear()
        os.environ.update(environment)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (errors, 2)):
            os.dup2(source, target)
        os.closerange(3, MOST_DESCRIPTORS)
        result = status_of(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(result)


if __name__ == "__main__":
    main()
