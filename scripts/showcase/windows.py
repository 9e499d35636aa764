"""scripts/bench windows: how long a reload leaves the node without VFs, by different ways.

All ways take turns in one emulated node, in virtual time: nodeagent as it is here, with
QUIESCE=auto and off; with --against as it was at a commit, too; floor.sh after quiesce.sh, which
remove and bind VFs side by side; and with --reference the fixed sleeps of reference.sh. After
each, iproute2 and sysfs must show the same state. Times are those of an emulated processor: only
ratios mean something.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from showcase.bench import SCRIPTS, run_in_node, show, table

TREE = SCRIPTS.parent
STALLED_SECONDS = 6000
"""A node with 8 PFs takes an hour of a busy machine for three of each."""
Trial = dict[str, Any]


def main() -> int:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="nodeagent-bench.") as name:
        found = measure(arguments, Path(name))
    show(found, report(found), arguments.output)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench windows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nic", choices=["igb", "connectx"], default="igb")
    parser.add_argument("--pfs", type=int, choices=range(1, 9), default=2, metavar="N")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="of each way (default 3)")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=["auto", "off", "script"],
        default=["auto", "off", "script"],
        help="which of them (default: all)",
    )
    parser.add_argument(
        "--firmware-ms",
        type=int,
        default=0,
        metavar="MS",
        help="a firmware that takes this long for each probe and removal of a VF, 16 at once",
    )
    parser.add_argument("--against", metavar="COMMIT", help="nodeagent at that commit, too")
    parser.add_argument("--reference", action="store_true", help="the fixed sleeps, too, once")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    return parser.parse_args()


def measure(arguments: argparse.Namespace, directory: Path) -> dict[str, list[Trial]]:
    """The trials of each way in a fresh node."""
    bring, options = [], []
    if arguments.against is not None:
        archive = directory / "against.tar"
        git = ["git", "-C", f"{TREE}", "archive", "-o", f"{archive}"]
        subprocess.run([*git, arguments.against, "nodeagent"], check=True)
        bring, options = ["--bring", f"{archive}"], ["--against", f"/host/{archive.name}"]
    if arguments.reference:
        options.append("--reference")
    options += ["--ways", *arguments.ways]
    sizes = ["--runs", f"{arguments.runs}", "--firmware-ms", f"{arguments.firmware_ms}"]
    node = ["--nic", arguments.nic, "--pfs", f"{arguments.pfs}", "--virtual-time"]
    node += ["--timeout", f"{STALLED_SECONDS}", *bring]
    given = [*sizes, "/host/out/bench.json", *options]
    found: dict[str, list[Trial]] = run_in_node(
        node, directory / "out", "showcase.windows_node", *given
    )
    return found


def report(found: dict[str, list[Trial]]) -> list[str]:
    """A table of the ways, and one of the parts of nodeagent's windows."""
    medians = {way: statistics.median(seconds(trials)) for way, trials in found.items()}
    first, ours = next(iter(medians.items()))
    rows = []
    for way, trials in found.items():
        median, spread = medians[way], f"{min(seconds(trials)):.2f}-{max(seconds(trials)):.2f}"
        gaps = [trial["gap"] for trial in trials if trial.get("gap") is not None]
        gap = f"{statistics.median(gaps) / median:.2f}" if gaps else ""
        ratio = f"{ours / median:.2f}" if median > ours else f"1/{median / ours:.2f}"
        rows.append((way, f"{median:.2f} s", spread, f"{len(trials)}", ratio, gap))
    head = ("without VFs", "median", "range", "n", f"{first} beside it", "median gap of a VF")
    parts = {way: trials for way, trials in found.items() if "parts" in trials[0]}
    names = list(dict.fromkeys(name for each in parts.values() for name in each[0]["parts"]))
    cells = [(name, *(_median_part(trials, name) for trials in parts.values())) for name in names]
    return [*table(head, rows), "", *table(("parts", *parts), cells)]


def seconds(trials: list[Trial]) -> list[float]:
    return [trial["seconds"] for trial in trials]


def _median_part(trials: list[Trial], name: str) -> str:
    found = [trial["parts"][name] for trial in trials if name in trial["parts"]]
    return f"{statistics.median(found):.2f}" if found else ""


if __name__ == "__main__":
    sys.exit(main())
