"""nodeagent with its imports done: a call is a fork of it, not a start of Python.

That start takes 3 s in the guest.

Run as a program it reads a line of JSON for each call, forks a child that does what `nodeagent`
does with those arguments, and answers with the child's pid at once and waitpid(2)'s status at its
end. One call at a time. The child is a process like any other: it can be killed, and what it
started outlives it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self, cast


@dataclass(frozen=True)
class Ended:
    """How a call ended: its exit status, or minus the signal's number; what it logged."""

    status: int
    log: str


class Zygote:
    """A server of forks. A context manager."""

    def __init__(self, environment: Mapping[str, str], directory: Path) -> None:
        self._log = directory / "zygote.log"
        self._environment = dict(environment)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.zygote"],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._to = cast("IO[str]", self._process.stdin)
        self._from = cast("IO[str]", self._process.stdout)
        assert self._from.readline() == "ready\n"

    def start(self, *arguments: str, **settings: object) -> int:
        """Begin a call with more environment variables; its pid."""
        request = {
            "arguments": arguments,
            "environment": self._environment | {k: str(v) for k, v in settings.items()},
            "log": str(self._log),
        }
        self._to.write(json.dumps(request) + "\n")
        self._to.flush()
        return int(self._from.readline())

    def wait(self) -> Ended:
        """The end of the call that was begun."""
        status = os.waitstatus_to_exitcode(int(self._from.readline()))
        return Ended(status, self._log.read_text(errors="replace"))

    def call(self, *arguments: str, **settings: object) -> Ended:
        """A call from its begin to its end."""
        self.start(*arguments, **settings)
        return self.wait()

    def log(self) -> str:
        """What the call that runs has logged so far."""
        return self._log.read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._to.close()
        self._from.close()
        self._process.wait()


def main() -> None:
    """Import everything, then fork on request."""
    import nodeagent.agent  # noqa: PLC0415
    import nodeagent.driver.preflight  # noqa: F401,PLC0415
    from nodeagent.cli.main import status_of  # noqa: PLC0415

    with suppress(ImportError):
        import pyudev  # noqa: F401,PLC0415
    _say("ready")
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_a_process_of_its_own(request["log"], request["environment"])
            status = 70
            try:
                status = status_of(request["arguments"])
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _say(str(pid))
        _say(str(os.waitpid(pid, 0)[1]))


def _become_a_process_of_its_own(log: str, environment: Mapping[str, str]) -> None:
    os.setsid()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.environ.clear()
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_RDONLY)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (written, 1), (written, 2)):
        os.dup2(source, target)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  its buffer held the parent's words
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
