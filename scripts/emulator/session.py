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
from typing import Any

from emulator.machine import Machine
from emulator.qmp import QmpError

SILENCE_SECONDS = 60
"""The agent says something every 5 s. Under emulation on a busy host it may be late, not this late."""

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "PYTHONPATH": "/opt/nodeagent",
    "PYTHONUNBUFFERED": "1",
}


class Stalled(Exception):
    """The machine did not bring the command to its end. The message says how that was noticed."""


@dataclass(frozen=True)
class Command:
    """What to run in the guest."""

    argv: list[str]
    timeout: float | None
    """Seconds."""
    terminal: bool = False
    tree: bool = True
    """Whether the run directory holds tree.tar to unpack."""


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
        "tree": command.tree,
    }
    machine.control.sendall(json.dumps(request).encode() + b"\n")
    with _raw_terminal() if command.terminal else contextlib.nullcontext():
        return _follow(machine, command)


def _follow(machine: Machine, command: Command) -> int:
    """Pass the output on until the agent tells the exit status and all output has been read."""
    deadline = time.monotonic() + command.timeout if command.timeout else None
    counts = {machine.out: 0, machine.err: 0}
    targets = {machine.out: sys.stdout.fileno(), machine.err: sys.stderr.fileno()}
    told = b""
    with selectors.DefaultSelector() as selector:
        for source in (machine.control, machine.out, machine.err, machine.qmp):
            selector.register(source, selectors.EVENT_READ)
        if command.terminal:
            selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while True:
            ready = selector.select(_patience(deadline))
            _check_time(ready, deadline, command)
            for source in (key.fileobj for key, _ in ready):
                if source is machine.qmp:
                    _check_events(machine)
                elif source is machine.control:
                    told += _receive(machine.control)
                elif isinstance(source, socket.socket):
                    data = _receive(source)
                    counts[source] += len(data)
                    _write(targets[source], data)
                elif data := os.read(sys.stdin.fileno(), 4096):
                    machine.out.sendall(data)
                else:
                    machine.out.sendall(b"\x04")
                    selector.unregister(sys.stdin.fileno())
            end = _end(told)
            if end and counts[machine.out] >= end["out"] and counts[machine.err] >= end["err"]:
                return int(end["exit"])


def _end(told: bytes) -> dict[str, Any] | None:
    last = told.rpartition(b"\n")[0].rpartition(b"\n")[2]
    message: dict[str, Any] = json.loads(last) if last else {}
    return message if "exit" in message else None


def _patience(deadline: float | None) -> float:
    if deadline is None:
        return SILENCE_SECONDS
    return min(SILENCE_SECONDS, max(0.0, deadline - time.monotonic()))


def _check_time(ready: object, deadline: float | None, command: Command) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise Stalled(f"{command.argv[0]} has not ended after {command.timeout:.0f} s")
    if not ready:
        raise Stalled(f"no sign of life for {SILENCE_SECONDS} s")


def _check_events(machine: Machine) -> None:
    try:
        events = machine.qmp.events()
    except QmpError as error:
        raise Stalled(f"{error} with status {machine.process.poll()}") from error
    for event in events:
        if event["event"] in ("SHUTDOWN", "GUEST_PANICKED"):
            reason = event.get("data", {}).get("reason", "panic")
            raise Stalled(f"the guest went down by itself ({reason})")
        if event["event"] == "STOP":
            raise Stalled("the machine was stopped")


def _receive(source: socket.socket) -> bytes:
    data = source.recv(65536)
    if not data:
        raise Stalled("QEMU has ended")
    return data


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Keys go to the guest's terminal one by one, and it does the echo."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
