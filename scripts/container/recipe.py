"""What an image is made from, whoever builds it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from emulator.host import LabError, output_of

ROOT = Path(__file__).resolve().parent.parent.parent
TARGETS = ("sidecar", "driver")
OVER_DOCA = "over-doca"
"""The target that has NVIDIA's driver image as its base."""
LOCK = ROOT / "scripts" / "requirements-image.lock"
SOURCES = ("Containerfile", "LICENSE", "nodeagent", "scripts/container", LOCK.relative_to(ROOT))


def copy_context(directory: Path) -> None:
    """The build's context: what .containerignore lets through, without byte code."""
    for name in SOURCES:
        source, target = ROOT / name, directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def version() -> str:
    """The one that nodeagent says of itself; LabError if it says none."""
    text = (ROOT / "nodeagent" / "__init__.py").read_text()
    if (found := re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)) is None:
        raise LabError("nodeagent/__init__.py has no __version__", hint="it is a string there")
    return found[1]


def revision() -> str:
    """The commit, where there is a checkout."""
    try:
        described = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        return output_of("git", "-C", ROOT, *described, what="asking git").strip()
    except LabError:
        return "unknown"
