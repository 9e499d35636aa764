"""A node that loses its power in the middle of a reload, told in three boots with one disk.

    python3 -m tests.support.power cut     saves what the node is like, reloads, and is cut off
    python3 -m tests.support.power back    the next boot: as it was; then the same, set aside
    python3 -m tests.support.power less    another boot, with a PF less than before

Run in the emulated node by tests/launcher/test_power.py. All that is kept is on the disk, in what
had reached it: a reset writes nothing back.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Final

from tests.support import lab
from tests.support.lab import PF1, PF2, Nodeagent
from tests.support.sweep import everything

DISK: Final = Path("/kept")
BEFORE: Final = DISK / "before.json"
CUT_OFF: Final = DISK / "cut-off"
"""The state directory as the reset has left it."""
RELOAD: Final = ("reload", "precompiled")


def cut(agent: Nodeagent) -> None:
    """Five VFs, another build on disk; reset when the old driver is gone and none is loaded."""
    lab.make_vfs(PF1, 3, mtu=1600)
    lab.make_vfs(PF2, 2)
    lab.put_on_disk("B")
    BEFORE.write_text(json.dumps(everything()))
    os.sync()
    lab.hook("post-stop", "echo b >/proc/sysrq-trigger")
    agent.call(*RELOAD)


def back(agent: Nodeagent) -> None:
    """The VFs are gone for another reason by now; they come back. Or they do not, by a setting."""
    assert everything()["devices"][PF1]["numvfs"] == 0
    assert agent.open_snapshot.exists()
    shutil.copytree(agent.state_dir, CUT_OFF)
    said = agent.call(*RELOAD).log
    assert "the node has rebooted since the snapshot" in said
    assert _text(everything()) == json.loads(BEFORE.read_text())
    assert agent.ready.exists()
    assert not agent.open_snapshot.exists()

    lab.clean()
    without = everything()
    _as_it_was_cut_off(agent)
    said = agent.call(*RELOAD, OPEN_SNAPSHOT_AFTER_REBOOT="set-aside").log
    assert "it is set aside as" in said
    assert everything() == without
    assert agent.ready.exists()
    assert not agent.open_snapshot.exists()
    assert (agent.state_dir / "set-aside-snapshot.json").exists()
    _as_it_was_cut_off(agent)
    os.sync()


def less(agent: Nodeagent) -> None:
    """What is still here comes back; what is not is named, and the node is not ready."""
    assert lab.pfs() == [PF1]
    ended = agent.start(*RELOAD, PF_TIMEOUT=5)
    assert ended.wait() != 0
    assert PF2 in ended.log, ended.log
    before = json.loads(BEFORE.read_text())
    assert _text(everything())["devices"] == {PF1: before["devices"][PF1]}
    assert not agent.ready.exists()
    assert agent.open_snapshot.exists()


def _as_it_was_cut_off(agent: Nodeagent) -> None:
    shutil.rmtree(agent.state_dir)
    shutil.copytree(CUT_OFF, agent.state_dir)
    agent.ready.unlink(missing_ok=True)


def _text(told: dict[str, Any]) -> Any:
    """As it is when it comes from a file: the keys are text."""
    return json.loads(json.dumps(told))


def main() -> None:
    """The boot that was asked for."""
    DISK.mkdir()
    lab.sh(f"mount /dev/vdb {DISK}")
    agent = Nodeagent(DISK)
    try:
        {"cut": cut, "back": back, "less": less}[sys.argv[1]](agent)
    finally:
        agent.end()
    sys.stdout.write(f"{sys.argv[1]}: as it must be\n")


if __name__ == "__main__":
    main()
