"""Seatbelts: no unit test writes to the real /sys, /proc/sys or loads a module, by accident or not.

The check is an audit hook (sys.addaudithook), which sees every open() of the interpreter whatever
library makes it, and every program started. It cannot be removed, so it is armed by a flag.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# a property that is slow is not false: the machine has other things to do
settings.register_profile("nodeagent", deadline=None)
settings.load_profile("nodeagent")

FORBIDDEN_PREFIXES = ("/sys/", "/proc/sys/", "/host/", "/etc/", "/lib/modules/")
FORBIDDEN_PROGRAMS = {"modprobe", "rmmod", "insmod", "depmod", "openibd", "ip", "devlink"}
WRITING = os.O_WRONLY | os.O_RDWR
_armed = [False]


def _belt(event: str, args: tuple[object, ...]) -> None:
    if not _armed[0]:
        return
    if event == "open":
        path, _, flags = args
        writes = isinstance(flags, int) and flags & WRITING
        if writes and isinstance(path, str) and path.startswith(FORBIDDEN_PREFIXES):
            raise PermissionError(f"a unit test tried to write {path}")
    elif event in {"subprocess.Popen", "os.exec", "os.posix_spawn"}:
        program = Path(os.fsdecode(args[0]))  # type: ignore[arg-type] # its first is a path
        if program.name in FORBIDDEN_PROGRAMS and not program.is_relative_to(tempfile.gettempdir()):
            raise PermissionError(f"a unit test tried to run {program}")


sys.addaudithook(_belt)


@pytest.fixture(autouse=True)
def _seatbelts() -> Iterator[None]:
    _armed[0] = True
    yield
    _armed[0] = False


@pytest.fixture(autouse=True)
def _log_handlers() -> Iterator[None]:
    """Take away the handler that a command installed: its stream is closed after the test.

    A later test that fails would print a traceback of logging for each of its lines.
    """
    root = logging.getLogger()
    before = set(root.handlers)
    yield
    for handler in set(root.handlers) - before:
        root.removeHandler(handler)
