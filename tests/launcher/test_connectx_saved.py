"""A ConnectX at work is saved and resumed: queues, flow tables, and a command not yet answered."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from emulator import cache, machine, session, tree  # noqa: E402 - scripts/ is no installed package
from emulator.build import Builder  # noqa: E402 - likewise
from emulator.machine import Machine, Nic, Options  # noqa: E402 - likewise
from emulator.session import Command  # noqa: E402 - likewise

PATIENCE = 240.0
"""Seconds."""


def await_word(node: Machine, word: str) -> None:
    """Return when the console has it."""
    deadline = time.monotonic() + PATIENCE
    while word not in (told := node.serial.read_text(errors="replace")):
        assert "Traceback" not in told, told[-3000:]
        assert time.monotonic() < deadline, told[-3000:]
        time.sleep(0.05)


@pytest.mark.connectx
def test_saved_and_resumed_with_a_command_pending(tmp_path: Path) -> None:
    options = Options(nic=Nic.CONNECTX, vfs=64, virtual_time=True)
    made = Builder(cache.default_root()).ready(options)
    first, second, state = (tmp_path / name for name in ("first", "second", "state"))
    state.mkdir()
    (first / "host").mkdir(parents=True)
    tree.pack(first / "host" / "tree.tar")
    script = "setsid python3 -m tests.support.saved >/dev/ttyS0 2>&1 </dev/null &"
    with machine.started(options, made, first) as node:
        session.run(node, Command(["bash", "-c", script]))
        await_word(node, "saved: now")
        machine.save(node, state)
    with machine.started(options, replace(made, state=state), second) as node:
        await_word(node, "saved: as before")
    lines = (second / "host" / "firmware.log").read_text().splitlines()
    answered = [line.split() for line in lines if "#" not in line]
    # Of the first machine's: the delay is no part of the state. The driver's periodic queries of
    # counters may be answered before it.
    assert [each for each in answered if int(each[5]) >= 1_900_000], answered[:9]
