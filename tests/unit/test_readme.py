"""The table of scenarios names tests that exist; README.md has the settings as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nodeagent import settings

TESTS = Path(__file__).resolve().parents[1]
NAMED = re.findall(r"`(\w+/\w+\.py)::(\w+)`", (TESTS / "README.md").read_text())


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_test_of_the_table_exists(path: str, name: str) -> None:
    assert f"\ndef {name}(" in (TESTS / path).read_text()


def test_the_table_is_read() -> None:
    assert len(NAMED) > 40


def test_the_readme_has_the_settings() -> None:
    """`scripts/readme-settings` writes the table."""
    readme = (TESTS.parent / "README.md").read_text()
    table = readme.partition("written by scripts/readme-settings -->\n")[2]
    assert table.partition("<!-- end of settings -->")[0].splitlines() == settings.page()
