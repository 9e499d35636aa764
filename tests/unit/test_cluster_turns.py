"""Of many processes that want to tell the cluster one works, one waits, the others leave."""

from __future__ import annotations

import fcntl
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nodeagent.cluster.turns import turn
from nodeagent.errors import StorageError

SECOND = """
import sys
from pathlib import Path
from nodeagent.cluster.turns import turn
with turn(Path(sys.argv[1])) as ours:
    print(ours, flush=True)
"""


def test_one_works_one_waits_others_leave(tmp_path: Path) -> None:
    with turn(tmp_path) as first:
        assert first
        argv = [sys.executable, "-c", SECOND, str(tmp_path)]
        second = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert second.stdout is not None
        _until_locked(tmp_path / "cluster.next.lock")
        assert not select.select([second.stdout], [], [], 0.1)[0], "it waits"
        with turn(tmp_path) as third:
            assert not third
    assert second.communicate(timeout=20)[0] == "True\n"
    with turn(tmp_path) as again:
        assert again


def _until_locked(path: Path) -> None:
    deadline = time.monotonic() + 20
    with path.open() as file:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            fcntl.flock(file, fcntl.LOCK_UN)
            time.sleep(0.02)
    pytest.fail("nobody waits")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "cluster.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"cluster\.lock"), turn(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()
