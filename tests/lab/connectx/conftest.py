"""What is here runs on the ConnectX alone, and is marked so."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before -m chooses."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("connectx")
