"""scripts/bench inside the emulated node: what each VF costs when there are many, on netdevsim.

Usage: python3 -m showcase.scale RESULT. For 10, 100 and 300 VFs on one PF, and for 2, 4 and 8 PFs
with 10 VFs each: seconds of a snapshot (a look and its JSON), a plan, a restore after a reload of
the device, and a verify. netdevsim's VFs are no devices: what is measured is nodeagent's own work
and netlink's, without the binding of VFs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from nodeagent.node.node import Node
from nodeagent.node.observe import observe
from nodeagent.plan.plan import after_reload, plan
from nodeagent.restore import restore, verify
from nodeagent.settings import Settings
from nodeagent.state.codec import to_plain

BUS = Path("/sys/bus/netdevsim")
SIZES = ((1, 10), (1, 100), (1, 300), (2, 10), (4, 10), (8, 10))
"""PFs, and VFs on each."""
Seconds = dict[str, float]
T = TypeVar("T")


def main(result: Path) -> None:
    """Measure every size, and write what was found to `result` as JSON."""
    subprocess.run(["modprobe", "netdevsim"], check=True)
    found = []
    for pfs, vfs in SIZES:
        with devices(pfs, vfs):
            found.append({"pfs": pfs, "vfs": vfs, "seconds": measured(pfs)})
    subprocess.run(["modprobe", "-r", "netdevsim"], check=True)
    result.write_text(json.dumps(found))


def measured(pfs: int) -> Seconds:
    """The best of three, but for the restore, which is done once."""
    with Node(Settings.from_environment({"DRIVER_MODULE": "netdevsim"})) as node:
        snapshot, state = best(lambda: json.dumps(to_plain(observe(node))), lambda: observe(node))
        planned, _ = best(lambda: plan(state, after_reload(state)), lambda: None)
        for number in range(1, pfs + 1):
            run("devlink", "dev", "reload", f"netdevsim/netdevsim{number}")
        run("udevadm", "settle")
        began = time.monotonic()
        restore(node, state)
        restored = time.monotonic() - began
        verified, _ = best(lambda: verify(node, state), lambda: None)
    return {"snapshot": snapshot, "plan": planned, "restore": restored, "verify": verified}


def best(do: Callable[[], object], then: Callable[[], T]) -> tuple[float, T]:
    """The least of what three times took, and what comes of `then`."""
    seconds = []
    for _ in range(3):
        began = time.monotonic()
        do()
        seconds.append(time.monotonic() - began)
    return min(seconds), then()


@contextmanager
def devices(pfs: int, vfs: int) -> Iterator[None]:
    """So many PFs with so many VFs each, every VF with attributes of its own."""
    for number in range(1, pfs + 1):
        (BUS / "new_device").write_text(f"{number} 1")
        debug = Path(f"/sys/kernel/debug/netdevsim/netdevsim{number}")
        (debug / "max_vfs").write_text("512")
    run("udevadm", "settle")
    for number in range(1, pfs + 1):
        device = BUS / "devices" / f"netdevsim{number}"
        (device / "sriov_numvfs").write_text(str(vfs))
        (interface,) = (path.name for path in (device / "net").iterdir())
        lines = [
            f"link set {interface} vf {vf} mac 02:00:00:{number:02x}:{vf // 256:02x}:{vf % 256:02x}"
            f" vlan {vf + 1} qos {vf % 8} trust on spoofchk on state enable"
            for vf in range(vfs)
        ]
        batch = "\n".join([*lines, f"link set {interface} up"])
        subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
    yield
    for number in range(1, pfs + 1):
        (BUS / "del_device").write_text(str(number))


def run(*argv: str) -> None:
    """A command that must succeed."""
    subprocess.run(argv, check=True, capture_output=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
