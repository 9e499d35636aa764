"""scripts/demo inside the emulated node: a driver upgrade through `nodeagent run`, start to end.

What the VFs were before and are afterwards is read from iproute2 and sysfs (showcase.vfs), not from
nodeagent. Exit status 0 only if every check at the end holds. Usage: python3 -m showcase.demo WIDTH
COLOUR (1 or 0).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from showcase import vfs
from showcase.vfs import State

VERSION = "25.10-1.2.8.0"
WORK = Path("/run/lab/demo")
TOOLKIT = WORK / "toolkit"
READY = Path("/run/mellanox/drivers/.driver-ready")
SETTINGS = {
    "NVIDIA_NIC_DRIVER_VER": VERSION,
    "NVIDIA_NIC_DRIVER_PATH": "/usr/src/driver",
    "DTK_OCP_DRIVER_BUILD": "true",
    "DTK_OCP_NIC_SHARED_DIR": str(TOOLKIT),
    "OFED_BLACKLIST_MODULES_FILE": str(WORK / "blacklist.conf"),
}
COLUMNS = (
    *(("mac", 17), ("admin", 17), ("vlan", 4), ("qos", 3), ("trust", 5)),
    *(("spoof", 5), ("rate", 4), ("mtu", 4), ("state", 5)),
)


@dataclass
class Stage:
    """Where the demonstration is shown, and what it has proven so far."""

    width: int
    colour: bool
    checks: list[tuple[str, bool]] = field(default_factory=list)

    def title(self, text: str) -> None:
        self.line()
        self.line(self.styled("1", text))

    def line(self, text: str = "") -> None:
        print(text, flush=True)

    def lines(self, texts: Iterable[str]) -> None:
        """Lines of a program, cut where the terminal ends."""
        for text in texts:
            self.line(text if len(text) <= self.width else text[: self.width - 1] + "…")

    def styled(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def check(self, what: str, holds: bool) -> None:
        self.checks.append((what, holds))

    def verdict(self) -> int:
        """Every check with its result; the exit status."""
        self.title("What was checked")
        for what, holds in self.checks:
            self.line(f"  {self.styled('32', 'ok') if holds else self.styled('31', 'NO')}  {what}")
        return 0 if all(holds for _, holds in self.checks) else 1


def main(stage: Stage) -> int:
    os.environ |= SETTINGS
    pfs = vfs.present()
    before = set_up(stage, pfs)
    upgrade_on_disk(stage)
    agent = run_agent(stage)
    after = compare(stage, pfs, before)
    timeline(stage)
    stop(stage, agent)
    stage.check("the VFs are still as they were", not vfs.differences(after, vfs.state(pfs)))
    return stage.verdict()


def set_up(stage: Stage, pfs: tuple[vfs.Pf, ...]) -> State:
    """VFs on build A, no two alike; one VF a PF has another admin MAC than its own."""
    stage.title(f"A node with {len(pfs)} PFs and {vfs.VFS} VFs on each, every VF set differently")
    vfs.write_recipe(WORK / "recipe", pfs)
    vfs.run(Path(__file__).parent / "floor.sh", WORK / "recipe")
    for pf in pfs:
        admin = f"02:aa:00:00:{pf.number:02x}:03"
        vfs.run("ip", "link", "set", "dev", pf.name, "vf", "3", "mac", admin)
    before = vfs.state(pfs)
    stage.lines(table(before))
    macs = [row["mac"] for row in before.values()]
    stage.check(
        f"{len(pfs) * vfs.VFS} VFs are set up, each with its own MAC",
        len(set(macs)) == len(macs) == len(pfs) * (vfs.VFS + 1),
    )
    return before


def upgrade_on_disk(stage: Stage) -> None:
    """Build B on disk while build A runs, and what nodeagent would do after a reload."""
    stage.title("Another build of the driver is on disk; this one runs")
    vfs.run("lab-driver", "B")
    installed, loaded = srcversions()
    stage.line(f"  {vfs.DRIVER}  installed {installed}  loaded {loaded}")
    stage.check("the driver on disk is not the one that runs", installed != loaded)
    stage.title("nodeagent plan --after-reload: what is to be done once the VFs are gone")
    stage.lines(shortened(vfs.run("nodeagent", "plan", "--after-reload").splitlines()))


def run_agent(stage: Stage) -> subprocess.Popen[str]:
    """`nodeagent run sources` until it says ready, its log as it comes."""
    stage.title("nodeagent run sources")
    (WORK / "toolkit").mkdir()
    agent = subprocess.Popen(
        ["nodeagent", "run", "sources"], stderr=subprocess.PIPE, stdout=sys.stdout, text=True
    )
    toolkit, ready = None, False
    for line in agent.stderr or ():
        stage.lines([f"  {line.rstrip()}"])
        if "waiting for" in line and toolkit is None:
            stage.check("it waits for the toolkit, and is not ready", not READY.exists())
            toolkit = play_toolkit(Path(line.rpartition(" ")[2].strip()))
            stage.line("  (the toolkit's side is the script that came with the sources)")
        if ready := " ready: " in line:
            break
    stage.check("it says ready, and the ready flag is there", ready and READY.exists())
    return agent


def play_toolkit(flag: Path) -> subprocess.Popen[bytes]:
    """The sidecar: the script that nodeagent has handed over, which builds real RPMs."""
    return subprocess.Popen([flag.parent / "dtk_nic_driver_build.sh"], stdout=subprocess.DEVNULL)


def compare(stage: Stage, pfs: tuple[vfs.Pf, ...], before: State) -> State:
    """The same table again, from `ip -details -json` and sysfs."""
    stage.title("The same VFs afterwards, as iproute2 sees them")
    after = vfs.state(pfs)
    stage.lines(table(after))
    wrong = vfs.differences(before, after)
    stage.lines(wrong)
    stage.line(f"  {vfs.values(before)} values compared, {len(wrong)} differ")
    stage.check("nothing differs from before", not wrong and len(after) == len(before))
    return after


def timeline(stage: Stage) -> None:
    """The phases and both srcversions, from the journal."""
    stage.title("nodeagent timeline")
    stage.lines(f"  {line}" for line in vfs.run("nodeagent", "timeline").splitlines())
    installed, loaded = srcversions()
    looks = json.loads(vfs.run("nodeagent", "timeline", "--output", "json"))[-1]["checkpoints"]
    seen = [dict(look["srcversions"])[vfs.DRIVER] for look in looks if look["name"] == "loaded"]
    stage.check("the driver on disk is the one that runs", installed == loaded)
    stage.check(
        "the timeline has the old srcversion and the new",
        len(set(seen)) == 2 and seen[-1] == loaded,
    )
    status = subprocess.run(["nodeagent", "status"], check=False, stdout=subprocess.DEVNULL)
    stage.check("nodeagent status says ready", status.returncode == 0)


def stop(stage: Stage, agent: subprocess.Popen[str]) -> None:
    """SIGTERM, as the kubelet sends it."""
    stage.title("SIGTERM")
    began = time.monotonic()
    agent.send_signal(signal.SIGTERM)
    said = agent.communicate(timeout=60)[1]
    stage.lines(f"  {line}" for line in said.splitlines())
    stage.line(f"  exit status {agent.returncode} after {time.monotonic() - began:.1f} s")
    stage.check("SIGTERM: exit status 0", agent.returncode == 0)
    stage.check("the ready flag is gone", not READY.exists())


def srcversions() -> tuple[str, str]:
    """The driver's, on disk and in the kernel."""
    installed = vfs.run("modinfo", "-F", "srcversion", vfs.DRIVER).strip()
    return installed, Path(f"/sys/module/{vfs.DRIVER}/srcversion").read_text().strip()


def table(state: State) -> Iterator[str]:
    """A line a PF, a line a VF, in 80 columns, or 82 where names are longer."""
    longest = max(len(row["netdev"]) for row in state.values() if "admin" in row)
    columns = (("netdev", max(8, longest)), *COLUMNS)
    yield " ".join(f"{name:<{width}}" for name, width in columns)
    for target, row in state.items():
        if "admin" in row:
            yield " ".join(f"{row[name]:<{width}}" for name, width in columns).rstrip()
        else:
            facts = f"{row['mac']} mtu {row['mtu']} {row['state']}, {row['numvfs']} VFs"
            yield f"{target:<8} {facts}, autoprobe {row['autoprobe']}, driver {row['driver']}"


def shortened(lines: Iterable[str], most: int = 2) -> Iterator[str]:
    """Each stage of a plan with its first lines and the number of the others."""
    left = 0
    for line in [*lines, "#"]:
        if line.startswith("#"):
            if left > most:
                yield f"      … and {left - most} more"
            left = 0
            if line != "#":
                yield f"  {line}"
        else:
            left += 1
            if left <= most:
                yield f"    {line}"


if __name__ == "__main__":
    sys.exit(main(Stage(int(sys.argv[1]), sys.argv[2] == "1")))
