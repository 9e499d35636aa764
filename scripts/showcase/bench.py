"""scripts/bench: what a restore takes beside the floor and the sleeps of today, and what waiting
and being ready cost. A benchmark, not a test: it measures, compares with the targets of the
project, and its exit status only says whether it could measure.

  1. In the emulated node, taking turns in the same guest: floor.sh (the shortest shell script that
     restores the same), nodeagent's restore step (from its journal), and reference.sh (the fixed
     sleeps of the driver container's entrypoints; 2 PFs only).
  2. There too: one look at the node (observe), an agent that is ready, and how long a whole reload
     leaves the node without VFs. All of it once more on a ConnectX with the genuine mlx5_core, in
     virtual time, and there the number of commands that a restore gives its firmware.
  3. On this machine: from the toolkit's done flag to the next step, an agent that waits for it, and
     the start of the commands.

Times of the emulated node are those of an emulated processor: only ratios mean something. In
virtual time it has one processor, not two, whose clock doesn't know how busy this machine is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from showcase import bench_host

SCRIPTS = Path(__file__).resolve().parent.parent
GUEST = "/opt/nodeagent"
GUEST_SECONDS = 900
ASLEEP_SECONDS = 60
SAFETY_NET_SECONDS = 30
"""While waiting for the toolkit nodeagent looks again this often, events or not."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    small_runs: int = 3
    small_reference_runs: int = 1
    large_runs: int = 2
    hand_overs: int = 100
    asleep_seconds: float = ASLEEP_SECONDS


WAYS = ("floor", "nodeagent")
NODES = {"igb": ("--nic", "igb"), "connectx": ("--nic", "connectx", "--virtual-time")}
QUICK = Plan(1, 1, 1, 10, 20)
Result = dict[str, Any]


def main() -> int:
    arguments = parse()
    plan = QUICK if arguments.quick else Plan()
    with tempfile.TemporaryDirectory(prefix="nodeagent-bench.") as name:
        found = measure(plan, Path(name))
    show(found, report(found), arguments.output)
    return 0


def show(found: Any, lines: Sequence[str], output: str) -> None:
    """Print figures as JSON, or as the lines of their report."""
    print(json.dumps(found, indent=2) if output == "json" else "\n".join(lines))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one of each, 10 hand-overs")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    return parser.parse_args()


def measure(plan: Plan, directory: Path) -> Result:
    """Everything. The process that waits sleeps beside the guests: they don't wake it."""
    for node in NODES.values():
        subprocess.run([SCRIPTS / "lab", "build", *node], check=True)
    found: Result = {"processors": os.cpu_count(), "load": os.getloadavg()[0]}
    say("this machine: start of the commands, hand-over")
    found["calls"] = bench_host.calls(directory / "calls")
    found["hand_over_ms"] = bench_host.hand_over(directory / "hand-over", plan.hand_overs)
    with bench_host.asleep(directory / "asleep") as result:
        found["small"] = in_node("igb", 2, plan.small_runs, plan.small_reference_runs, directory)
        found["large"] = in_node("igb", 8, plan.large_runs, 0, directory)
        found["connectx"] = in_node("connectx", 2, plan.small_runs, 0, directory)
        found["scale"] = scale(directory)
        found["waiting"] = result(plan.asleep_seconds)
    return found


def in_node(nic: str, pfs: int, runs: int, reference_runs: int, directory: Path) -> Result:
    """What bench_node finds in a fresh node."""
    say(f"emulated node with {pfs} PFs ({nic})")
    arguments = (f"{runs}", f"{reference_runs}", "/host/out/bench.json")
    out = directory / f"out-{nic}-{pfs}"
    node = node_of(nic, pfs)
    found: Result = run_in_node(node, out, "showcase.bench_node", *arguments)
    return found | {"nic": nic}


def node_of(nic: str, pfs: int) -> tuple[str, ...]:
    """scripts/lab's options for a node."""
    return (*NODES[nic], "--pfs", f"{pfs}", "--timeout", f"{GUEST_SECONDS}")


def run_in_node(node: Sequence[str], out: Path, module: str, *arguments: str) -> Any:
    """Run a module of ours in a fresh node; what it leaves in bench.json."""
    lab = [f"{SCRIPTS}/lab", "run", *node]
    command = ["env", f"PYTHONPATH={GUEST}:{GUEST}/scripts", "python3", "-m", module, *arguments]
    done = subprocess.run([*lab, "--out", f"{out}", "--", *command], check=False)
    if done.returncode:
        sys.exit(f"bench: the emulated node's part ended with status {done.returncode}, see above")
    return json.loads((out / "bench.json").read_text())


def scale(directory: Path) -> Result:
    """What showcase.scale finds in a fresh node: many VFs, on netdevsim."""
    say("emulated node with 10, 100 and 300 simulated VFs, and 2, 4 and 8 simulated PFs")
    out = directory / "out-scale"
    found: Result = run_in_node(node_of("igb", 2), out, "showcase.scale", "/host/out/bench.json")
    return found


def report(found: Result) -> list[str]:
    """The tables, a part after the other."""
    lines = [f"{found['processors']} processors, load average {found['load']:.1f} at the start"]
    for node in nodes(found):
        lines += ["", *restore_table(node), "", *stage_table(node)]
    for each in (window_table(found), firmware_table(found["connectx"]), observe_table(found)):
        lines += ["", *each]
    return [*lines, "", *scale_table(found["scale"]), "", *host_table(found)]


def nodes(found: Result) -> tuple[Result, ...]:
    """What was found in each emulated node."""
    return found["small"], found["large"], found["connectx"]


def restore_table(node: Result) -> list[str]:
    """The ways side by side, each as median and range of its runs."""
    steps = seconds_of(node, "nodeagent")
    runs = len(steps)
    title = f"{node['nic']}: restore of {size(node)}, n = {runs}"
    step, floor = statistics.median(steps), statistics.median(seconds_of(node, "floor"))
    ratio = step / floor
    rows = [
        ("floor: shell, probe once, batches", *spread(node, "floor"), "", ""),
        ("nodeagent: restore step", *spread(node, "nodeagent"), *judged(ratio, 1.2, "x floor")),
        ("nodeagent: whole process", *spread(node, "nodeagent", "process"), "", ""),
    ]
    if node["reference"]:
        faster = statistics.median(seconds_of(node, "reference")) / step
        count = f", n = {len(node['reference'])}" if len(node["reference"]) != runs else ""
        verdict = "met" if faster >= 10 else "MISSED"
        cells = (f"{faster:.1f} x nodeagent", f"at least 10: {verdict}")
        rows.append((f"reference: fixed sleeps{count}", *spread(node, "reference"), *cells))
    return table((title, "median", "min", "max", "ratio", "target"), rows)


def stage_table(node: Result) -> list[str]:
    """Where the time goes: the median of each stage, and what is left of the whole."""
    ways = {way: [trial["stages"] for trial in node[way]] for way in WAYS}
    rows = []
    for stage in ways["nodeagent"][0]:
        medians = [
            statistics.median(stages[stage] for stages in trials) if stage in trials[0] else 0.0
            for trials in ways.values()
        ]
        rows.append((stage, *(f"{median:.2f} s" for median in medians)))
    left = [
        statistics.median(trial["seconds"] - sum(trial["stages"].values()) for trial in node[way])
        for way in ways
    ]
    rows.append(("the rest: start; look, plan, look", *(f"{seconds:.2f} s" for seconds in left)))
    return table((f"{node['nic']}: stage, {node['pfs']} PFs", "floor", "nodeagent"), rows)


def window_table(found: Result) -> list[str]:
    """How long there are no VFs: quiesce, openibd's restart and the restore. One reload each."""
    rows = []
    for node in nodes(found):
        for kind, window in node["windows"].items():
            floor, ours, off = (window[way] for way in ("floor", "nodeagent", "off"))
            slow = ", 500 ms a VF in firmware" if kind == "firmware" else ""
            cells = (f"{floor:.1f} s", f"{off:.1f} s", f"{ours:.1f} s")
            ratios = f"{ours / floor:.2f} x floor", f"{ours / off:.2f}"
            rows.append((f"{node['nic']}, {size(node)}{slow}", *cells, *ratios))
    head = ("without VFs in a reload", "floor", "QUIESCE=off", "nodeagent", "ratio", "x off")
    return table(head, rows)


def firmware_table(node: Result) -> list[str]:
    """Commands that the firmware is given from the first look to the last, beside the floor's."""
    floor, ours = (statistics.median(seconds_of(node, way, "commands")) for way in WAYS)
    rows = [
        (name, f"{count:.0f}", f"{count / node['vfs']:.1f}")
        for name, count in (("floor", floor), ("nodeagent", ours))
    ]
    rows.append(("nodeagent's own", f"{ours - floor:.0f}", f"{(ours - floor) / node['vfs']:.1f}"))
    return table((f"firmware's commands, restore of {size(node)}", "all", "for each VF"), rows)


def size(node: Result) -> str:
    return f"{node['pfs']} x {node['vfs'] // node['pfs']} VFs"


def observe_table(found: Result) -> list[str]:
    """What looking at the node costs."""
    rows = []
    for node in nodes(found):
        look = statistics.median(node["observe"]["seconds"])
        part = 100 * look / statistics.median(seconds_of(node, "nodeagent"))
        target = judged(part, 5, "% of the restore") if node["vfs"] == 56 else (f"{part:.1f} %", "")
        requests = str(node["observe"]["requests"])
        name = f"{node['nic']}: {node['pfs']} PFs, {node['vfs']} VFs"
        rows.append((name, f"{look:.3f} s", requests, *target))
    return table(("observe()", "median", "rtnetlink requests", "part", "target"), rows)


def scale_table(sizes: list[Result]) -> list[str]:
    """Milliseconds a VF, beside what one costs when there are few."""
    rows = []
    for size in sizes:
        few = next(each for each in sizes if (each["pfs"] > 1) == (size["pfs"] > 1))
        cells = []
        for step, seconds in size["seconds"].items():
            cost = seconds / (size["pfs"] * size["vfs"])
            first = few["seconds"][step] / (few["pfs"] * few["vfs"])
            cells.append(f"{1000 * cost:.2f} ({cost / first:.2f} x)")
        rows.append((f"{size['pfs']} PFs x {size['vfs']} VFs", *cells))
    head = ("ms a VF (at most 1.5 x the first's)", *sizes[0]["seconds"])
    return table(head, rows)


def host_table(found: Result) -> list[str]:
    """Waiting, being ready, starting."""
    delays = sorted(found["hand_over_ms"])
    nearly_all = delays[max(0, -(-len(delays) * 99 // 100) - 1)]
    ready = max((found["small"]["ready"], found["large"]["ready"]), key=lambda r: r["seconds"])
    waiting = found["waiting"]
    net = int(waiting["seconds"] / SAFETY_NET_SECONDS) + 1
    memory = max(found["small"]["ready"]["resident_mib"], found["large"]["ready"]["resident_mib"])
    calls = found["calls"]
    trials = f"99 % of {len(delays)} trials"
    rows = [
        (f"done flag to the end of the build step, {trials}", *judged(nearly_all, 100, "ms")),
        ("  the same, median", f"{statistics.median(delays):.1f} ms", ""),
        (f"context switches waiting, {waiting['seconds']:.0f} s", *counted(waiting, net)),
        (f"context switches ready, {ready['seconds']:.0f} s (in the node)", *counted(ready, 0)),
        ("resident memory when ready (in the node)", *judged(memory, 25, "MiB")),
        ("nodeagent --help, median of 20", *judged(calls["--help"], 150, "ms")),
        ("nodeagent status, median of 20", *judged(calls["status"], 300, "ms")),
    ]
    return table(("this machine", "measured", "target"), rows)


def seconds_of(node: Result, way: str, key: str = "seconds") -> list[float]:
    """The trials of one way."""
    return [trial[key] for trial in node[way]]


def spread(node: Result, way: str, key: str = "seconds") -> tuple[str, str, str]:
    """Median, least and most."""
    found = seconds_of(node, way, key)
    return f"{statistics.median(found):.2f} s", f"{min(found):.2f}", f"{max(found):.2f}"


def judged(value: float, most: float, unit: str) -> tuple[str, str]:
    """A value beside the most that it may be."""
    shown = f"{value:.2f}" if most < 2 else f"{value:.1f}"
    return f"{shown} {unit}", f"at most {most:g}: {'met' if value <= most else 'MISSED'}"


def counted(asleep: Result, most: int) -> tuple[str, str]:
    """Context switches beside what the safety net may cost."""
    verdict = "met" if asleep["switches"] <= most else "MISSED"
    return f"{asleep['switches']}", f"at most {most} (safety net): {verdict}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, two spaces apart, under a line."""
    every = [head, *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in every]
    return [lines[0].rstrip(), "-" * sum(widths, 2 * len(widths) - 2), *map(str.rstrip, lines[1:])]


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
