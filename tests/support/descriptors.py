"""Whether this process has left a descriptor open."""

from __future__ import annotations

import gc
from pathlib import Path


def open_descriptors() -> list[str]:
    """What each descriptor of this process is, sorted.

    Collects first: else one that an earlier test dropped is closed between two looks, and the
    second has fewer.
    """
    gc.collect()
    paths = list(Path("/proc/self/fd").iterdir())
    return sorted(f"{path.name} {path.readlink()}" for path in paths if path.is_symlink())
