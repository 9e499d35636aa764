"""Files that people name on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodeagent.cli.input import content
from nodeagent.errors import DataError, NoInputError


def test_a_file_and_a_link_to_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff")
    (tmp_path / "b").symlink_to("a")
    assert content(str(tmp_path / "b")) == b"\xff"


def test_one_without_an_end() -> None:
    with pytest.raises(
        DataError, match=r"^/dev/zero was not written by nodeagent: it is too large"
    ):
        content("/dev/zero")


@pytest.mark.parametrize("name", ["", "x"])
def test_none_at_all(tmp_path: Path, name: str) -> None:
    with pytest.raises(NoInputError, match=f"^cannot read {tmp_path}"):
        content(f"{tmp_path}/{name}")
