"""scripts/bench inside the emulated node: the same restore by three ways, and what observe() costs.

Usage: python3 -m showcase.bench_node RUNS REFERENCE_RUNS RESULT. The ways take turns, so that a
busy host slows all of them. Before each the driver is unloaded and loaded (which is what a reload
does to VFs), and afterwards, outside of the timing, iproute2 and sysfs must show the same state.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nodeagent import settings
from nodeagent.agent import by_hand
from nodeagent.node.node import Node
from nodeagent.node.observe import observe
from nodeagent.record.journal import Journal
from showcase import procfs, vfs
from showcase.vfs import State

HERE = Path(__file__).parent
WORK = Path("/run/lab/bench")
OBSERVATIONS = 5
FIRMWARE_LOG = Path("/host/firmware.log")
"""On a ConnectX: a line of six words for each command, and remarks that begin with #."""
FIRMWARE_MS = 500
"""What a ConnectX's firmware takes for the probe of a VF, and for its removal."""
FIRMWARE_PARALLEL = 16
FIRMWARE_FILE = Path("/etc/modprobe.d/bench-firmware.conf")
Trial = dict[str, Any]
"""`seconds`, for nodeagent also those of the whole `process`, `stages` with seconds of each, and
the number of `commands` that firmware was given, none where it has no log."""


@dataclass(frozen=True)
class Bench:
    """A node whose VFs are all set, what that looks like, and a snapshot of it for nodeagent."""

    pfs: tuple[vfs.Pf, ...]
    want: State
    snapshot: Path

    def floor(self) -> Trial:
        seconds, done = timed([str(HERE / "floor.sh"), str(WORK / "recipe")])
        ends = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
        stages = {
            name: round(float(end) - float(before), 3)
            for (before, _), (end, name) in itertools.pairwise(ends)
        }
        return {"seconds": seconds, "stages": stages}

    def reference(self) -> Trial:
        seconds, _ = timed([str(HERE / "reference.sh"), str(WORK / "recipe")])
        return {"seconds": seconds}

    def nodeagent(self) -> Trial:
        """`nodeagent reload` with a snapshot open and the driver as installed: it restores.

        The step is what the journal has on record; the process is all of it, interpreter included.
        """
        shutil.copy(self.snapshot, WORK / "state" / "open-snapshot.json")
        process, done = timed(["nodeagent", "--log-format", "json", "reload"])
        stages = {
            line["message"].partition(":")[0]: line["elapsed"]
            for line in map(json.loads, done.stderr.splitlines())
            if "elapsed" in line and line["message"].endswith(" actions")
        }
        run = json.loads(vfs.run("nodeagent", "timeline", "--output", "json"))[-1]
        step = next(phase["seconds"] for phase in run["phases"] if phase["name"] == "restore")
        return {"seconds": step, "process": process, "stages": stages}

    def trial(self, way: Callable[[], Trial]) -> Trial:
        vfs.wipe()
        before = commands()
        found = way()
        found["commands"] = commands() - before
        self.check(way.__name__)
        say(f"{way.__name__}: {found['seconds']:.2f} s")
        return found

    def check(self, who: str) -> None:
        """Exit if a VF is not as it was: the next one would save and restore that."""
        if wrong := vfs.differences(self.want, vfs.state(self.pfs)):
            sys.exit(f"bench: {who} did not restore everything:\n" + "\n".join(wrong))

    def windows(self) -> dict[str, dict[str, float]]:
        """`window` as the node is, and on igb with a firmware that takes its time for each VF."""
        found = {"none": self.window()}
        if not FIRMWARE_LOG.exists():
            with firmware(FIRMWARE_MS):
                found["firmware"] = self.window()
        return found

    def window(self) -> dict[str, float]:
        """Seconds without VFs in a reload: by nodeagent, by it with QUIESCE=off, by a script."""
        found = {"nodeagent": self.reload("auto"), "off": self.reload("off")}
        began = time.monotonic()
        timed([str(HERE / "quiesce.sh"), str(WORK / "recipe")])
        timed(["/etc/init.d/openibd", "restart"])
        timed(["udevadm", "settle"])
        timed([str(HERE / "floor.sh"), str(WORK / "recipe"), "at-once"])
        found["floor"] = round(time.monotonic() - began, 3)
        self.check("the script with VFs side by side")
        say(", ".join(f"{way}: {seconds:.2f} s" for way, seconds in found.items()))
        return found

    def reload(self, quiesce: str) -> float:
        """Seconds without VFs, from nodeagent's own record; what it restores is checked."""
        other_build()
        os.environ["QUIESCE"] = quiesce
        timed(["nodeagent", "reload"])
        self.check(f"the reload with QUIESCE={quiesce}")
        run = json.loads(vfs.run("nodeagent", "timeline", "--output", "json"))[-1]
        return float(run["windows"][-1]["seconds"])


def main(runs: int, reference_runs: int, result: Path) -> None:
    """Measure everything, and write what was found to `result` as JSON."""
    os.environ |= files_below(WORK)
    bench = prepared()
    with holder() as held:
        found = {"observe": looked_at(), **restores(bench, runs, reference_runs), "ready": held()}
    found["windows"] = bench.windows()
    size = {"pfs": len(bench.pfs), "vfs": len(bench.pfs) * vfs.VFS}
    result.write_text(json.dumps(size | found))


def files_below(directory: Path) -> dict[str, str]:
    """The settings that keep every file of an agent below `directory`."""
    return {
        "STATE_DIR": str(directory / "state"),
        "DRIVER_READY_PATH": str(directory / "ready"),
        "LOCK_FILE_PATH": str(directory / "lock"),
        "OFED_BLACKLIST_MODULES_FILE": str(directory / "blacklist.conf"),
    }


def restores(bench: Bench, runs: int, reference_runs: int) -> dict[str, list[Trial]]:
    """What each trial of each way took."""
    found: dict[str, list[Trial]] = {"floor": [], "nodeagent": [], "reference": []}
    for _ in range(runs):
        found["floor"].append(bench.trial(bench.floor))
        found["nodeagent"].append(bench.trial(bench.nodeagent))
    for _ in range(reference_runs):
        found["reference"].append(bench.trial(bench.reference))
    return found


def prepared() -> Bench:
    """Set every VF, and save what nodeagent is to restore."""
    pfs = vfs.present()
    say(f"setting {len(pfs)} x {vfs.VFS} VFs")
    vfs.write_recipe(WORK / "recipe", pfs)
    timed([str(HERE / "floor.sh"), str(WORK / "recipe")])
    loaded = settings.load()
    journal = Journal(loaded)
    journal.save(by_hand.snapshot_now(loaded, to_keep=True))
    snapshot = WORK / "snapshot.json"
    shutil.copy(journal.open_path, snapshot)
    return Bench(pfs, vfs.state(pfs), snapshot)


def other_build() -> None:
    """Put a build of the driver on disk that is not the loaded one."""
    loaded = Path("/sys/module/mlx5_core/srcversion").read_text()
    for build in ("A", "B"):
        vfs.run("lab-driver", build)
        if vfs.run("modinfo", "-F", "srcversion", "mlx5_core").strip() != loaded.strip():
            break


@contextmanager
def firmware(milliseconds: int) -> Iterator[None]:
    """Have igb's stand-in wait for a firmware at each VF, in this and later loads."""
    values = {"fw_parallel": FIRMWARE_PARALLEL}
    values |= dict.fromkeys(("vf_probe_ms", "vf_remove_ms"), milliseconds)
    options = " ".join(f"{parameter}={value}" for parameter, value in values.items())
    FIRMWARE_FILE.write_text(f"options mlx5_core {options}\n")
    for parameter, value in values.items():
        Path("/sys/module/mlx5_core/parameters", parameter).write_text(f"{value}")
    yield
    FIRMWARE_FILE.unlink()


def commands() -> int:
    """How many commands the firmware has been given so far."""
    if not FIRMWARE_LOG.exists():
        return 0
    lines = FIRMWARE_LOG.read_text(errors="replace").splitlines()
    return sum(len(words) == 6 and words[2] != "#" for words in map(str.split, lines))


def looked_at() -> dict[str, object]:
    """What one look at the whole node takes: seconds of each try, and rtnetlink requests."""
    seconds = []
    with Node(settings.load()) as node:
        for _ in range(OBSERVATIONS):
            before = node.rtnl.requests
            began = time.monotonic()
            observe(node)
            seconds.append(round(time.monotonic() - began, 4))
        requests = node.rtnl.requests - before
    say(f"observe: {min(seconds):.3f} s")
    return {"seconds": seconds, "requests": requests}


@contextmanager
def holder() -> Iterator[Callable[[], dict[str, float]]]:
    """A `nodeagent run` that is ready, with files of its own, while others work.

    Yields a function that gives its context switches since it was asleep, over how many seconds,
    and its memory in MiB.
    """
    directory = WORK / "holder"
    directory.mkdir()
    process = subprocess.Popen(
        ["nodeagent", "run", "precompiled"],
        env=os.environ | files_below(directory) | {"NVIDIA_NIC_DRIVER_VER": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if not any(" ready: " in line for line in process.stderr or ()):
            sys.exit(f"bench: `nodeagent run` did not become ready, status {process.wait()}")
        time.sleep(5)  # it has become the holder, and has gone to sleep
        before, began = procfs.switches(process.pid), time.monotonic()

        def result() -> dict[str, float]:
            switches, seconds = procfs.switches(process.pid) - before, time.monotonic() - began
            resident = procfs.resident_mib(process.pid)
            return {"switches": switches, "seconds": round(seconds, 1), "resident_mib": resident}

        yield result
    finally:
        process.terminate()
        process.wait()


def timed(argv: list[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds that a command took, which must succeed, and what it said."""
    began = time.monotonic()
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode:
        sys.exit(f"bench: {argv[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return round(seconds, 3), done


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
