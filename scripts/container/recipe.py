"""What an image is made from, whoever builds it."""

from __future__ import annotations

import shutil
from pathlib import Path

from emulator.host import LabError, output_of

ROOT = Path(__file__).resolve().parent.parent.parent
TARGETS = ("sidecar", "driver")
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


def revision() -> str:
    """The commit, where there is a checkout."""
    try:
        described = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        return output_of("git", "-C", ROOT, *described, what="asking git").strip()
    except LabError:
        return "unknown"
