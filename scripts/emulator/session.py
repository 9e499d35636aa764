"""One command in a guest: the request, its output as it comes, its end or the machine's."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import socket
import sys
import termios
import time
import tty
from collections.abc import Iterator
from dataclasses import dataclass

from emulator.machine import Machine
from emulator.qmp import QmpError

RESET = 121
"""The status of a command in which the node was reset, where that was allowed."""

SILENCE_SECONDS = 60
"""The agent says something every 5 s; one that says nothing for this long has stalled.

The time in which QEMU was kept waiting for a processor does not count: on a host that has eight
other things to do for each processor, 5 s of the node's virtual time can take a minute.
"""

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "PYTHONPATH": "/opt/nodeagent",
    "PYTHONUNBUFFERED": "1",
}


_BY_GUEST = "guest-reset"


class Stalled(Exception):
    """The machine did not bring the command to its end. The message says how that was noticed."""


@dataclass(frozen=True)
class Command:
    """What to run in the guest."""

    argv: list[str]
    timeout: float | None = None
    """Seconds until the machine counts as stalled."""
    terminal: bool = False
    """Run it on a terminal, with ours as its keyboard; else its stdin is empty."""
    may_reset: bool = False
    """The node may be reset meanwhile: an end like any other, with the status RESET."""


def wait_ready(machine: Machine, timeout: float) -> None:
    """Return when the guest has booted and its agent waits for a request."""
    machine.control.settimeout(timeout)
    try:
        line = machine.control.recv(4096)
    except TimeoutError as error:
        raise Stalled(f"it did not boot within {timeout:.0f} s") from error
    if b"ready" not in line:
        raise Stalled("it ended while booting")


def run(machine: Machine, command: Command) -> int:
    """Run a command in a guest whose agent waits. Returns the command's exit status."""
    size = shutil.get_terminal_size()
    request = {
        "command": command.argv,
        "clock_ns": time.time_ns(),
        "directory": "/opt/nodeagent",
        "environment": ENVIRONMENT | ({"TERM": "xterm"} if command.terminal else {}),
        "terminal": [size.lines, size.columns] if command.terminal else None,
    }
    machine.control.sendall(json.dumps(request).encode() + b"\n")
    with _raw_terminal() if command.terminal else contextlib.nullcontext():
        return _Conversation(machine).until_end(command)


class _Conversation:
    """What came from the guest so far, and what to do with what comes next."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.missing = {"out": 0, "err": 0}
        """Bytes that the agent wrote and we have not read; only known at the end."""
        self.status: int | None = None
        self.control = b""
        self.selector = selectors.DefaultSelector()

    def until_end(self, command: Command) -> int:
        """Pass output on until the agent tells the exit status and all output was read."""
        machine = self.machine
        deadline = time.monotonic() + command.timeout if command.timeout else float("inf")
        with self.selector as selector:
            selector.register(machine.control, selectors.EVENT_READ, self.hear_agent)
            selector.register(
                machine.qmp, selectors.EVENT_READ, lambda: self.hear_qemu(command.may_reset)
            )
            selector.register(machine.out, selectors.EVENT_READ, self.pass_stdout)
            selector.register(machine.err, selectors.EVENT_READ, self.pass_stderr)
            if command.terminal:
                selector.register(sys.stdin, selectors.EVENT_READ, self.pass_keys)
            heard = machine.seconds_at_work()
            while self.status is None or any(self.missing.values()):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Stalled(f"{command.argv[0]} has not ended after {command.timeout:.0f} s")
                patience = SILENCE_SECONDS - (machine.seconds_at_work() - heard)
                if patience <= 0:
                    raise Stalled(f"no sign of life for {SILENCE_SECONDS} s")
                for key, _ in selector.select(min(left, patience)):
                    key.data()
                    heard = machine.seconds_at_work()
        return self.status

    def hear_agent(self) -> None:
        *lines, self.control = (self.control + _receive(self.machine.control)).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "exit" in message:
                self.status = message["exit"]
                self.missing = {name: self.missing[name] + message[name] for name in self.missing}

    def hear_qemu(self, may_reset: bool) -> None:
        try:
            events = self.machine.qmp.events()
        except QmpError as error:
            raise Stalled(f"{error}, status {self.machine.process.poll()}") from error
        for event in events:
            if event["event"] == "SHUTDOWN" and may_reset and event["data"]["reason"] == _BY_GUEST:
                self.status = RESET
            elif event["event"] == "SHUTDOWN":
                raise Stalled(f"the guest went down by itself ({event['data']['reason']})")

    def pass_stdout(self) -> None:
        self.pass_output("out", self.machine.out, sys.stdout.fileno())

    def pass_stderr(self) -> None:
        self.pass_output("err", self.machine.err, sys.stderr.fileno())

    def pass_output(self, name: str, source: socket.socket, target: int) -> None:
        data = _receive(source)
        self.missing[name] -= len(data)
        while data:
            data = data[os.write(target, data) :]

    def pass_keys(self) -> None:
        self.machine.out.sendall(os.read(sys.stdin.fileno(), 4096))


def _receive(source: socket.socket) -> bytes:
    data = source.recv(65536)
    if not data:
        raise Stalled("QEMU has ended")
    return data


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Keys go to the guest's terminal one by one, and it does the echo."""
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
