"""scripts/bench windows inside the emulated node: reloads by different ways, in turn.

What is without VFs in a way of nodeagent is what its timeline says; a script's is all that it
takes, with openibd's restart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from showcase import bench_node, vfs
from showcase.bench_node import HERE, WORK, Bench, files_below, other_build, prepared, say, timed
from tests.support.connectx import card

OURS = Path("/opt/nodeagent")
AGAINST = WORK / "against"
"""nodeagent as it was at another commit."""
Trial = dict[str, Any]
"""`seconds`; of nodeagent also the median `gap` of its VFs and the `parts`, in seconds."""


@dataclass(frozen=True)
class Ways:
    """The ways of a node whose VFs are all set."""

    bench: Bench

    def nodeagent(self, quiesce: str, tree: Path) -> Trial:
        """A driver upgrade by the nodeagent of a tree, which has files of its own."""
        other_build()
        its = os.environ | files_below(WORK / tree.name) | {"QUIESCE": quiesce}
        done = run_in(tree, its, "--log-format", "json", "reload")
        told = run_in(tree, its, "timeline", "--output", "json").stdout
        run = json.loads(told)[-1]
        (window,) = run["windows"]
        stages = {
            line["message"].partition(":")[0]: line["elapsed"]
            for line in map(json.loads, done.stderr.splitlines())
            if "elapsed" in line and line["message"].endswith(" actions")
        }
        phases = {phase["name"]: phase["seconds"] for phase in run["phases"]}
        gaps = window.get("gaps")
        return {
            "seconds": window["seconds"],
            "gap": None if gaps is None else gaps["median"],
            "parts": parts(phases, stages),
            "vfs": window.get("vfs"),
        }

    def floor(self) -> Trial:
        """The shortest script that removes and binds VFs side by side."""
        other_build()
        began = time.monotonic()
        timed([str(HERE / "quiesce.sh"), str(WORK / "recipe")])
        timed(["/etc/init.d/openibd", "restart"])
        timed(["udevadm", "settle"])
        timed([str(HERE / "floor.sh"), str(WORK / "recipe"), "at-once"])
        return {"seconds": round(time.monotonic() - began, 3)}

    def reference(self) -> Trial:
        """What the entrypoints do: openibd removes the VFs, and each step is slept for."""
        other_build()
        began = time.monotonic()
        timed(["/etc/init.d/openibd", "restart"])
        timed(["udevadm", "settle"])
        timed([str(HERE / "reference.sh"), str(WORK / "recipe")])
        return {"seconds": round(time.monotonic() - began, 3)}

    def trial(self, name: str, way: Callable[[], Trial]) -> Trial:
        found = way()
        if wrong := vfs.differences(self.bench.want, vfs.state(self.bench.pfs)):
            sys.exit(f"bench: {name} did not restore everything:\n" + "\n".join(wrong))
        say(f"{name}: {found['seconds']:.2f} s")
        return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int)
    parser.add_argument("--ways", nargs="+")
    parser.add_argument("--firmware-ms", type=int)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("result", type=Path)
    arguments = parser.parse_args()
    os.environ |= files_below(WORK)
    ways = Ways(prepared())
    trees = {"": OURS}
    if arguments.against is not None:
        trees[", --against"] = unpacked(arguments.against)
    named: dict[str, Callable[[], Trial]] = {
        f"{quiesce}{whose}": partial(ways.nodeagent, quiesce, tree)
        for whose, tree in trees.items()
        for quiesce in arguments.ways
        if quiesce != "script"
    }
    if "script" in arguments.ways:
        named["script"] = ways.floor
    # the first reload of a guest reads the programs from the host's disk: it is not counted
    ways.trial("script, first", ways.floor)
    with firmware(arguments.firmware_ms):
        found: dict[str, list[Trial]] = {name: [] for name in named}
        for _ in range(arguments.runs):
            for name, way in named.items():
                found[name].append(ways.trial(name, way))
        if arguments.reference:
            found["reference"] = [ways.trial("reference", ways.reference)]
    arguments.result.write_text(json.dumps(found))


def unpacked(archive: Path) -> Path:
    """The tree in an archive, with byte code, as ours has it."""
    AGAINST.mkdir()
    vfs.run("tar", "-C", AGAINST, "-xf", archive)
    vfs.run("python3", "-m", "compileall", "-q", AGAINST)
    return AGAINST


def run_in(
    tree: Path, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run the nodeagent of a tree, which must succeed; -m looks in the present directory first."""
    argv = ("python3", "-m", "nodeagent", *arguments)
    done = subprocess.run(
        argv, cwd=tree, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"bench: {argv} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def parts(phases: dict[str, float], stages: dict[str, float]) -> dict[str, float]:
    """The parts of a window, in their order: the unload is what is left of the restart."""
    before = {name: phases[name] for name in ("quiesce", "unbind") if name in phases}
    unload = round(phases["restart"] - sum(before.values()), 3)
    rest = round(phases["restore"] - sum(stages.values()), 3)
    return before | {"unload, load, wait for PFs": unload} | stages | {"rest of restore": rest}


@contextmanager
def firmware(milliseconds: int) -> Iterator[None]:
    """Have the NIC's firmware take its time for each VF, FIRMWARE_PARALLEL at once."""
    if not milliseconds:
        yield
    elif bench_node.FIRMWARE_LOG.exists():
        with card() as held:
            for pf in range(len(vfs.present())):
                held.set(pf, "fw-vf-ms", milliseconds)
                held.set(pf, "fw-parallel", bench_node.FIRMWARE_PARALLEL)
            yield
    else:
        with bench_node.firmware(milliseconds):
            yield


if __name__ == "__main__":
    main()
