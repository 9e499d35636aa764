"""Round trips: a random node, a reload by nodeagent, the same node. A fresh machine for each seed.

In the guest runs `tests/support/roundtrip.py`; `tests/support/random_node.py` draws the node.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from emulator.build import Builder
from emulator.host import FAILED, LabError
from emulator.machine import Nic, Options
from emulator.run import run
from emulator.session import Command

TREE = Path(__file__).resolve().parents[2]
VFS = 64
"""As in scripts/test, so that there is one saved state of the ConnectX."""
SECONDS = 900


def show(nic: Nic, seeds: Sequence[int]) -> int:
    """Print the node of each seed as a script."""
    for seed in seeds:
        argv = [sys.executable, "-m", "tests.support.random_node", nic.value, str(seed)]
        subprocess.run(argv, cwd=TREE, check=True)
    return 0


def round_trips(builder: Builder, nic: Nic, seeds: Sequence[int]) -> int:
    """1 if a node was not what it had been; how to run that again is printed."""
    options = Options(nic, 2, VFS if nic is Nic.CONNECTX else 8, 1024, virtual_time=True)
    builder.ready(options)  # without a lab there is nothing to go on with
    failed = []
    for seed in seeds:
        argv = ["python3", "-m", "tests.support.roundtrip", "--seed", str(seed)]
        if _status(builder, options, Command(argv, SECONDS)):
            failed.append(seed)
            again = f"scripts/lab roundtrip --nic {nic.value} --seed {seed}"
            print(f"run it again: {again}\nits node as a script: {again} --show", flush=True)
    if len(seeds) > 1:
        named = f"; not the same: {', '.join(map(str, failed))}" if failed else ""
        print(f"{len(seeds) - len(failed)} of {len(seeds)} seeds on {nic.value} the same{named}")
    return int(bool(failed))


def _status(builder: Builder, options: Options, command: Command) -> int:
    """The command's; FAILED where the node stalled, which is no reason to leave other seeds out."""
    try:
        return run(builder, options, command)
    except LabError as error:
        print(f"lab: {error}\nhint: {error.hint}", file=sys.stderr)
        return FAILED
