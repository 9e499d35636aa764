"""The field report's upgrade as one test: inbox driver, 25.07, 25.10, uninstall; one start each.

There each version took a start that failed, 90 s of sleep, and another start. The toolkit's sidecar
is our script, which builds RPMs with rpmbuild; rpm installs them. On the ConnectX the inbox driver
is the kernel's own, A and B are 25.07 and 25.10, and there are the report's 50 VFs by the same
names. On igb A, B and C stand for the three, and there are the 7 VFs that a PF has.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.lab import PATIENCE, PF1, Nodeagent, Started

pytestmark = pytest.mark.both_nics

INBOX, *NEWER = ("inbox", "A", "B") if lab.CONNECTX else ("A", "B", "C")
BUILDS = dict(zip(("25.07-0.9.7.0", "25.10-1.2.8.0"), NEWER, strict=True))
VFS = 50 if lab.CONNECTX else 7
POLICY = {
    "ENTRYPOINT_DEBUG": "true",
    "DEBUG_SLEEP_SEC_ON_EXIT": "90",
    "RESTORE_DRIVER_ON_POD_TERMINATION": "false",
    "TERMINATION_GRACE_PERIOD": "90",
}


def start(nodeagent: Nodeagent, version: str, directory: Path) -> Started:
    """A pod of that version: its driver container and, once there are sources, its sidecar."""
    sources = directory / f"sources-{version}"
    shutil.copytree("/usr/src/driver", sources)
    (sources / "build").write_text(f"{BUILDS[version]}\n")
    (sources / "version").write_text(f"{version.replace('-', '_')}\n")
    (directory / "inventory").mkdir(exist_ok=True)
    run = nodeagent.start(
        "run",
        "sources",
        NVIDIA_NIC_DRIVER_VER=version,
        NVIDIA_NIC_DRIVER_PATH=sources,
        NVIDIA_NIC_DRIVERS_INVENTORY_PATH=directory / "inventory",
        DEBUG_LOG_FILE=directory / "debug.log",
        **POLICY,
    )
    flag = f"dtk_done_compile_{version.replace('.', '_').replace('-', '_')}"
    line = run.wait_for("waiting for the driver toolkit's done flag")
    assert line.split()[-1].endswith(flag)
    script = nodeagent.done_flag.parent / "dtk_nic_driver_build.sh"
    with (directory / "toolkit.log").open("a") as log:
        sidecar = subprocess.Popen([script], stdout=log, stderr=log)
        try:
            run.wait_for("ready: ")
        finally:
            sidecar.terminate()
            sidecar.wait(PATIENCE)
    return run


def test_install_upgrade_uninstall(nodeagent: Nodeagent, tmp_path: Path) -> None:
    lab.clean(INBOX)
    lab.make_vfs(PF1, VFS)
    before = lab.read()
    inbox, v2507, v2510 = (lab.srcversion_of(build) for build in (INBOX, *NEWER))
    assert len({inbox, v2507, v2510}) == 3
    if lab.CONNECTX:
        names = [lab.name(each) for each in (PF1, lab.vf(PF1, 0), lab.vf(PF1, 49))]
        assert names == ["enp1s0f0np0", "enp1s0f0v0", "enp1s0f0v49"]

    assert lab.loaded() == inbox  # before install
    run = start(nodeagent, "25.07-0.9.7.0", tmp_path)
    assert (lab.loaded(), lab.read()) == (v2507, before)  # after install, before upgrade
    assert nodeagent.ready.exists()

    assert run.stop() == 0
    assert not nodeagent.ready.exists()
    assert (lab.loaded(), lab.read()) == (v2507, before)
    run = start(nodeagent, "25.10-1.2.8.0", tmp_path)
    assert (lab.loaded(), lab.read()) == (v2510, before)  # after upgrade, before uninstall
    assert nodeagent.ready.exists()

    assert run.stop() == 0
    assert not nodeagent.ready.exists()
    assert (lab.loaded(), lab.read()) == (v2510, before)  # after the policy's deletion
    assert lab.restarts() == ["begin", "end"] * 2
    assert "rpm -Uvh" in (tmp_path / "debug.log").read_text()

    told = nodeagent.call("timeline", "--last", "9", "--output", "markdown").output()
    sys.stdout.write(told)
    tracked = [line.split("|") for line in told.splitlines() if line.startswith("| run ")][:6]
    assert [(cells[1].strip(), cells[3].strip(" `")) for cells in tracked] == [
        ("run 1: loaded before", inbox or "none"),
        ("run 1: installed", v2507),
        ("run 1: loaded after", v2507),
        ("run 3: loaded before", v2507),
        ("run 3: installed", v2510),
        ("run 3: loaded after", v2510),
    ]
    titles = [line for line in told.splitlines() if line.startswith("## Run ")]
    assert [title.split(", ")[0] for title in titles] == [
        "## Run 1: sources 25.07-0.9.7.0",
        "## Run 2: terminate",
        "## Run 3: sources 25.10-1.2.8.0",
        "## Run 4: terminate",
    ]
    lab.clean("A")
