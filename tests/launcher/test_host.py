"""The tools that scripts/lab runs on the host."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "scripts"))

from emulator.host import LabError, Runner


def test_make_ends_with_its_children_when_it_is_terminated(tmp_path: Path) -> None:
    """It is the first process of its namespace, which no signal of its own ends."""
    started = tmp_path / "started"
    (tmp_path / "Makefile").write_text(f"all:\n\t@echo >{started}; sleep 600\n")
    runner = Runner(tmp_path / "logs")
    failures: list[LabError] = []

    def make() -> None:
        try:
            runner.run("make", "-C", tmp_path, what="making")
        except LabError as error:
            failures.append(error)

    running = threading.Thread(target=make, daemon=True)
    running.start()
    while not started.exists():
        assert running.is_alive()
    runner.terminate()
    running.join(30)
    assert not running.is_alive()
    with pytest.raises(LabError, match="stopped"):
        runner.run("true", what="anything")
    assert ["making failed" in str(error) for error in failures] == [True]
