"""What a reload costs the API server. `python -m tests.cluster.load` prints it."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.cluster import load
from tests.cluster.server import Server

NODES = 1000
MOST = 12


def test_a_thousand_nodes_at_the_same_instant(server: Server, tmp_path: Path) -> None:
    costs = load.measure(server, tmp_path, NODES)
    sys.stdout.write("\n".join(load.lines(costs)) + "\n")
    assert len(costs) == NODES
    assert max(each.requests for each in costs) <= MOST
    assert max(each.received for each in costs) < 64 * 1024
