"""What a reload costs the API server. `python -m tests.cluster.load` does it with 1000 nodes."""

from __future__ import annotations

from pathlib import Path

from tests.cluster import load
from tests.cluster.server import Server

MOST = 12


def test_requests_a_reload(server: Server, tmp_path: Path) -> None:
    costs = load.measure(server, tmp_path, 40)
    assert max(each.requests for each in costs) <= MOST
    assert max(each.received for each in costs) < 64 * 1024
