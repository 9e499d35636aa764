"""The node loses its power in the middle of a reload, and boots again with the same disk."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.launcher.test_lab import lab

RESET = 121


def test_a_node_that_was_reset_in_the_middle_of_a_reload(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", disk, "64M"], check=True)
    boots = (("cut", 2, RESET), ("back", 2, 0), ("less", 1, 0))
    for act, pfs, status in boots:
        node = ("run", "--disk", str(disk), "--pfs", str(pfs))
        done = lab(*node, "--", "python3", "-m", "tests.support.power", act)
        assert done.returncode == status, f"{act}: {done.stdout}{done.stderr}"
