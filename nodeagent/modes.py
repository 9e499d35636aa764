"""The modes of the driver container. --help needs them, and starts without the settings."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Mode(StrEnum):
    """The modes of the driver container."""

    SOURCES = "sources"
    """The driver is built from sources, and then installed."""
    PRECOMPILED = "precompiled"
    """The driver is installed already."""
    DTK_BUILD = "dtk-build"
    """Builds the driver in the Driver Toolkit's container; loads none."""


RELOAD_MODES: Final = (Mode.SOURCES, Mode.PRECOMPILED)
"""The modes that reload the driver."""
