"""scripts/lab roundtrip: a node for each seed, and how to run one again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from emulator import roundtrip  # noqa: E402 - scripts/ is no installed package
from emulator.build import Builder  # noqa: E402 - likewise
from emulator.host import LabError  # noqa: E402 - likewise
from emulator.machine import Nic  # noqa: E402 - likewise
from emulator.session import Command  # noqa: E402 - likewise

pytestmark = pytest.mark.short


def test_every_seed_is_tried_and_one_that_fails_says_how_to_run_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = []

    def run(builder: Builder, options: Any, command: Command) -> int:
        commands.append(command.argv[-1])
        if command.argv[-1] == "7":
            raise LabError("no sign of life")
        return int(command.argv[-1] == "8")

    monkeypatch.setattr(roundtrip, "run", run)
    monkeypatch.setattr(Builder, "ready", lambda builder, options: None)
    assert roundtrip.round_trips(Builder(tmp_path), Nic.CONNECTX, range(7, 10)) == 1
    assert commands == ["7", "8", "9"]
    told = "".join(capsys.readouterr())
    assert "lab: no sign of life" in told
    assert "run it again: scripts/lab roundtrip --nic connectx --seed 8\n" in told
    assert "1 of 3 seeds on connectx the same; not the same: 7, 8" in told
    assert roundtrip.round_trips(Builder(tmp_path), Nic.IGB, [9]) == 0
