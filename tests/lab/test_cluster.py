"""The agent's short processes on a real node, with an API server that is dead, gone, or there."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.support import api, lab
from tests.support.lab import Nodeagent, State


def _started(word: str) -> list[str]:
    """The agent's processes of that kind that are alive: their command lines."""
    listed = subprocess.run(
        ["pgrep", "-a", "-f", f"nodeagent {word}"], capture_output=True, text=True, check=False
    )
    return [line for line in listed.stdout.splitlines() if "pgrep" not in line]


def test_an_api_server_that_is_away_delays_nothing(
    nodeagent: Nodeagent, three_vfs: State, tmp_path: Path
) -> None:
    """Dead, then a hole that swallows every packet, then there: all is said, in order and once."""
    plain = _seconds_to_ready(nodeagent, STATE_DIR=tmp_path / "other", CLUSTER_INTEGRATION="off")
    nodeagent.environment |= {
        "CLUSTER_INTEGRATION": "on",
        "NODE_NAME": api.NODE,
        "API_TIMEOUT": "900",
        "KUBECONFIG": str(api.kubeconfig(tmp_path / "config", "127.0.0.1")),
    }
    refused = _seconds_to_ready(nodeagent)
    assert len(_started("node after-reload")) == 1

    api.dig_hole()
    gone = api.kubeconfig(tmp_path / "gone", api.FAR)
    hanging = _seconds_to_ready(nodeagent, KUBECONFIG=gone)
    sys.stdout.write(
        f"reload to ready: {plain:.1f} s without a cluster, {refused:.1f} s with an API server "
        f"that refuses, {hanging:.1f} s with one that swallows\n"
    )
    # both processes that were started around the reload still try: nobody waited for them
    assert _started("device-plugin record")
    assert len(_started("node after-reload")) == 2
    assert max(refused, hanging) < 2 * plain
    assert lab.read() == three_vfs

    with api.listening() as told:
        api.close_hole()
        lab.eventually(lambda: not _started("node after-reload"), "the cluster was told")
        lab.eventually(lambda: not _started("device-plugin record"), "allocatable was recorded")
        assert told.reasons == ["DriverReloadStarted", "DriverReady"] * 2
        assert sorted(event["count"] for event in told.events.values()) == [2, 2]
        requests = len(told.requests)
        again = nodeagent.call("node", "after-reload")
        assert again.output() == ""
        assert len(told.requests) == requests, "all of it had been said"
        _look_at_the_report(nodeagent, three_vfs)


def _seconds_to_ready(nodeagent: Nodeagent, **settings: object) -> float:
    lab.put_other_build_on_disk()
    began = time.monotonic()
    run = nodeagent.start("run", "precompiled", **settings)
    run.wait_for("ready: ")
    took = time.monotonic() - began
    assert nodeagent.ready.exists()
    run.process.terminate()
    assert run.process.wait(lab.PATIENCE) == 0  # others have its stderr still
    return took


def _look_at_the_report(nodeagent: Nodeagent, vfs: State) -> None:
    """One page about real devices; then with one VF that is not as it was."""
    count = sum(len(pf["vfs"]) for pf in vfs.values())
    page = nodeagent.call("node", "report").output()
    assert f"{len(vfs)} PFs, {count} VFs as of " in page
    assert "nothing differs" in page
    assert str(lab.loaded()) in page
    assert "  openshift.io/vfs: 8" in page
    lab.ip(f"link set {lab.name(lab.PF1)} vf 1 vlan 77")
    plain = json.loads(nodeagent.call("node", "report", "--output", "json").output())
    assert plain["node"] == api.NODE
    sections = plain["sections"]
    assert any("vf 1 vlan: want" in line for line in sections["VFs against the last snapshot"])
    assert sections["allocatable"] == ["openshift.io/vfs: 8"]
    assert sections["timeline"][0].startswith("run ")
