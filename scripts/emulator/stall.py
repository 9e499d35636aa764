"""What a machine that went wrong leaves behind: its serial log and where its processors are."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from emulator.host import LabError
from emulator.machine import Machine
from emulator.qmp import QmpError
from emulator.session import Stalled

LINES = 60
MONITOR = (
    "info status",
    "info cpus",
    "info registers -a",
    "info registers -a",
    "info lapic",
    "info irq",
    "info virtio",
)


@contextlib.contextmanager
def reported(machine: Machine, root: Path) -> Iterator[None]:
    """Turn a stall within the context into a LabError, with the evidence kept under `root`."""
    try:
        yield
    except (Stalled, QmpError) as error:
        raise _report(machine, str(error), root) from error


def _report(machine: Machine, reason: str, root: Path) -> LabError:
    directory = root / f"{time.strftime('%Y-%m-%dT%H%M%S')}-{machine.process.pid}"
    directory.mkdir(parents=True)
    state = directory / "cpu-state.txt"
    state.write_text(_processors(machine))
    for log in (machine.serial, machine.log):
        if log.exists():
            (directory / log.name).write_bytes(log.read_bytes())
    serial = directory / machine.serial.name
    _show(f"the last {LINES} lines on the guest's serial port", serial)
    _show("what QEMU said", directory / machine.log.name)
    return LabError(
        f"the emulated node failed: {reason}",
        hint=f"serial log: {serial}, CPU state: {state}. Nothing was retried",
    )


def _processors(machine: Machine) -> str:
    """The monitor's view, QEMU's threads, and, after an NMI, the guest kernel's own view."""
    parts = []
    try:
        for command in MONITOR:
            parts.append(f"### {command}")
            arguments = {"command-line": command}
            parts.append(machine.qmp.command("human-monitor-command", arguments, timeout=10))
        machine.qmp.command("inject-nmi", timeout=10)
        _wait_quiet(machine.serial)
    except QmpError as error:
        parts.append(str(error))
    for task in sorted(Path(f"/proc/{machine.process.pid}/task").glob("*")):
        parts.append(f"### QEMU thread {task.name}")
        for name in ("comm", "wchan", "stat"):
            try:
                parts.append(f"{name}: {(task / name).read_text().strip()}")
            except OSError as error:
                parts.append(f"{name}: {error.strerror}")
    return "\n".join(parts) + "\n"


def _wait_quiet(serial: Path, seconds: float = 5) -> None:
    """Until the kernel has said what it has to say to the NMI: a second without a new byte."""
    end = time.monotonic() + seconds
    size = -1
    while time.monotonic() < end and serial.stat().st_size != size:
        size = serial.stat().st_size
        time.sleep(1)


def _show(title: str, path: Path) -> None:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    if lines:
        print(f"--- {title}", *lines[-LINES:], "---", sep="\n", file=sys.stderr)
