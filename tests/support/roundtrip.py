"""A random node, a reload by nodeagent, and everything that tools print before and after.

Run in the emulated node by `scripts/lab roundtrip`, a fresh one for each seed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Final

from tests.support import lab, printed
from tests.support.lab import Nodeagent
from tests.support.pods import Pod
from tests.support.random_node import CONNECTX, IGB, Line, node, pods_of

CALM: Final = 40.0
"""Seconds in which all ends that began with a change: DAD, carriers, a bond's choice of a port, a
bridge's topology change, in which it has another ageing_time (max_age and forward_delay, 35 s)."""


def build(lines: Sequence[Line], pods: Sequence[Pod]) -> None:
    """Run the lines, those for ip(8) and one namespace in one batch; dcb(8) as `lab.dcb` does."""
    ends = {f"$pod{number}": str(pod.process.pid) for number, pod in enumerate(pods, 1)}
    for (pod, is_ip, is_dcb), group in groupby(lines, _way):
        texts = [line.text for line in group]
        for name, pid in ends.items():
            texts = [text.replace(name, pid) for text in texts]
        if is_ip:
            do = pods[pod - 1].ip if pod else lab.ip
            do(*(text.removeprefix("ip ") for text in texts))
        elif is_dcb:
            for text in texts:
                lab.dcb(text.removeprefix("dcb "))
        else:
            do_sh = pods[pod - 1].sh if pod else lab.sh
            do_sh("\n".join(texts))


def _way(line: Line) -> tuple[int, bool, bool]:
    return line.pod, _is_plain_ip(line.text), line.text.startswith("dcb ")


def _is_plain_ip(text: str) -> bool:
    """Whether ip(8) takes it in a batch: that knows no options, and nothing of the shell."""
    return re.match("ip [a-z]", text) is not None and not {*text} & {*"|;>&"}


def look(pods: Sequence[Pod]) -> dict[str, list[str]]:
    """After all has come to rest. The clock of a node in virtual time skips the sleep."""
    lab.settle()
    time.sleep(CALM)
    places = {"host": "/proc/self/ns/net"}
    return printed.look(places | {f"pod{n}": pod.path for n, pod in enumerate(pods, 1)})


def main() -> int:
    """0 when the node is after a reload what it was before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    seed = parser.parse_args().seed
    nic = CONNECTX if lab.CONNECTX else IGB
    lines = node(nic, seed)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pods = [stack.enter_context(Pod()) for _ in range(pods_of(lines))]
        agent = Nodeagent(directory)
        build(lines, pods)
        before = look(pods)
        lab.put_other_build_on_disk()
        reload = agent.start("reload", ALLOW_UPLINK_RELOAD="true")
        status = reload.wait(600)
        after = look(pods)
    found = printed.difference(before, after)
    said = (
        f"seed {seed} on {nic.name}: {len(lines)} lines, {sum(map(len, before.values()))} compared"
    )
    if not found and not status:
        sys.stdout.write(f"{said}, the same\n")
        return 0
    sys.stdout.write(f"{reload.log}\n{said}\n")
    sys.stdout.writelines(f"{line}\n" for line in found)
    sys.stdout.write(f"nodeagent reload exited {status}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
