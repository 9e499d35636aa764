"""What a machine that went wrong leaves behind: its serial log and where its processors are."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from emulator.host import LabError
from emulator.machine import Machine
from emulator.qmp import QmpError
from emulator.session import Stalled

KEPT = 10
"""How many reports are kept."""
LINES = 60
TROUBLE = re.compile(r"Kernel panic|BUG:|Oops|WARNING:|unknown reason")
"""Where the kernel's trouble begins, when the back traces after it fill the last lines."""
HARMLESS = re.compile(r".*warning: hub \d+ is not connected to host network\n")
"""A hub with nothing but a PF on it is what we want."""
MONITOR = (
    "info status",
    "info cpus",
    "info registers -a",
    "info registers -a",
    "info lapic 0",
    "info lapic 1",
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
    for old in sorted(root.iterdir())[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    state = directory / "cpu-state.txt"
    state.write_text(_processors(machine))
    serial = directory / "serial.log"
    serial.write_bytes(machine.serial.read_bytes() if machine.serial.exists() else b"")
    _show(f"the last {LINES} lines on the guest's serial port", serial.read_text(errors="replace"))
    _show("what QEMU said", HARMLESS.sub("", machine.log.read_text(errors="replace")))
    return LabError(
        f"the emulated node failed: {reason}",
        hint=f"serial log: {serial}, CPU state: {state}. Nothing was retried",
    )


def _processors(machine: Machine) -> str:
    """The monitor's view and QEMU's threads; the guest kernel puts its own on the serial port.

    It is asked for all tasks' stacks by sysrq keys, and for the processors' by an NMI.
    """
    parts = []
    try:
        for command in MONITOR:
            parts.append(f"### {command}")
            arguments = {"command-line": command}
            parts.append(machine.qmp.command("human-monitor-command", arguments, timeout=10))
        if machine.qmp.command("query-status", timeout=10)["running"]:
            _ask_kernel(machine)
    except QmpError as error:
        parts.append(str(error))
    for task in sorted(Path(f"/proc/{machine.process.pid}/task").glob("*")):
        parts.append(f"### QEMU thread {task.name}")
        with contextlib.suppress(OSError):  # it ended just now
            parts += [(task / name).read_text()[:100].strip() for name in ("wchan", "stat")]
    return "\n".join(parts) + "\n"


def _ask_kernel(machine: Machine) -> None:
    for key in ("9", "q", "t"):  # all messages to the console, then the timers, then the tasks
        keys = [{"type": "qcode", "data": name} for name in ("alt", "sysrq", key)]
        machine.qmp.command("send-key", {"keys": keys}, timeout=10)
        _wait_quiet(machine.serial)
    machine.qmp.command("inject-nmi", timeout=10)
    _wait_quiet(machine.serial)


def _wait_quiet(serial: Path, seconds: float = 5) -> None:
    """Until the kernel has said what it has to say to the NMI: a second without a new byte."""
    end = time.monotonic() + seconds
    size = -1
    while time.monotonic() < end and serial.stat().st_size != size:
        size = serial.stat().st_size
        time.sleep(1)


def _show(title: str, text: str) -> None:
    lines = text.splitlines()
    if not lines:
        return
    last = max(0, len(lines) - LINES)
    trouble = next((at for at, line in enumerate(lines[:last]) if TROUBLE.search(line)), last)
    first = lines[trouble : min(trouble + 20, last)]
    print(f"--- {title}", file=sys.stderr)
    print(*first, *(["..."] if first else []), *lines[last:], "---", sep="\n", file=sys.stderr)
