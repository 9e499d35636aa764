"""`nodeagent run`, the agent's whole life: flags, signals, a second one, kills in bad moments."""

from __future__ import annotations

import re
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.lab import PCI, PF1, Gate, Nodeagent, State


@pytest.mark.real_start
def test_life_without_anything_to_do(nodeagent: Nodeagent, no_vfs: None) -> None:
    """The stale flag goes first of all; a second one leaves; the toolkit's flag ends the wait."""
    nodeagent.ready.parent.mkdir()
    nodeagent.ready.touch()
    run = nodeagent.start("run", "sources")
    run.wait_for("waiting for the driver toolkit's done flag")
    assert not nodeagent.ready.exists()

    second = nodeagent.call("run", "sources", status=1)
    assert f"is locked by process {run.process.pid}" in second.log
    assert not nodeagent.ready.exists()

    nodeagent.finish_build()
    line = run.wait_for("the driver toolkit's build is done")
    delay = seconds_of_day(line) - seconds_of_day(nodeagent.done_flag)
    sys.stdout.write(f"from the toolkit's flag to the next step: {delay * 1000:.0f} ms\n")
    assert delay < 5
    run.wait_for("ready: ")
    assert nodeagent.ready.exists()
    assert run.stop() == 0
    assert not nodeagent.ready.exists()
    assert lab.restarts() == []


def test_sigterm_while_waiting_for_the_toolkit(nodeagent: Nodeagent, three_vfs: State) -> None:
    lab.put_other_build_on_disk()
    run = nodeagent.start("run", "sources")
    run.wait_for("waiting for the driver toolkit's done flag")
    asked = time.monotonic()
    assert run.stop() == 1
    assert time.monotonic() - asked < 10
    assert not nodeagent.ready.exists()
    assert not nodeagent.open_snapshot.exists()
    assert lab.restarts() == []
    assert lab.read() == three_vfs


def test_killed_between_unload_and_load(nodeagent: Nodeagent, three_vfs: State) -> None:
    """The container dies with openibd in the middle: no driver, and a blacklist that stays."""
    wanted = lab.put_other_build_on_disk()
    with Gate("unloaded") as gate:
        lab.hook("pre-start", gate.script)
        killed = nodeagent.start("run", "precompiled")
        gate.wait()
        killed.kill_all()
    (lab.HOOKS / "pre-start-hook.sh").unlink()
    assert lab.loaded() is None
    assert lab.BLACKLIST.exists()
    assert nodeagent.open_snapshot.exists()
    assert lab.restarts() == ["begin"]

    run = nodeagent.start("run", "precompiled")
    run.wait_for("ready: ")
    assert lab.loaded() == wanted
    assert not lab.BLACKLIST.exists()
    assert lab.read() == three_vfs
    assert lab.restarts() == ["begin", "begin", "end"]
    assert run.stop() == 0


@pytest.mark.short
def test_killed_during_the_restore(nodeagent: Nodeagent, three_vfs: State) -> None:
    """The VFs are half made: what the snapshot says is finished, without another reload."""
    lab.put_other_build_on_disk()
    with Gate("rename") as gate, lab.program_for(lab.vf(PF1, 2), gate.script):
        killed = nodeagent.start("run", "precompiled")
        gate.wait()
        killed.kill_all()
    lab.settle()
    assert lab.read() != three_vfs
    assert not nodeagent.ready.exists()

    run = nodeagent.start("run", "precompiled")
    run.wait_for("ready: ")
    assert lab.read() == three_vfs
    assert lab.restarts() == ["begin", "end"]
    assert run.stop() == 0


# Nothing to do, nothing written


TRACED = "openat,open,creat,socket,sendto,sendmsg,sendmmsg,write,writev,ioctl"
OPENED_TO_WRITE = re.compile(r'open(?:at)?\((?:AT_FDCWD, )?"(/sys/[^"]+)", [^)]*O_(?:WRONLY|RDWR)')
SOCKET = re.compile(r"socket\(AF_NETLINK, .*, (NETLINK_\w+)\) = (\d+)")
SENT = re.compile(r"(?:sendto|sendmsg|sendmmsg|write|writev)\((\d+), .*nlmsg_type")
MESSAGE = re.compile(r'nlmsg_type=(\w+)[^"]*"(?:\\x(\w\w))?')
GETLINK = {"0x12", "RTM_GETLINK"}
GENL_CTRL = {"0x10", "nlctrl"}
DEVLINK_READS = {"01", "05", "1d", "26", "34"}
"""Commands that get: devices, ports, eswitch, parameters, health reporters (linux/devlink.h)."""


def device_writes(trace: Path) -> list[str]:
    """What strace(1) saw of writes to devices: files of sysfs opened for it, netlink, ioctl."""
    found: list[str] = []
    protocols: dict[str, str] = {}
    for line in trace.read_text().splitlines():
        if opened := OPENED_TO_WRITE.search(line):
            found.append(opened[1])
        elif socket := SOCKET.search(line):
            protocols[socket[2]] = socket[1]
        elif sent := SENT.search(line):
            protocol = protocols[sent[1]]
            found += [protocol for message in MESSAGE.findall(line) if not asks(protocol, *message)]
        elif "SIOCS" in line:
            found.append(line)
    return found


def asks(protocol: str, kind: str, command: str) -> bool:
    """Whether a netlink message only asks; `command` is the first byte after its header."""
    if protocol == "NETLINK_ROUTE":
        return kind in GETLINK
    return kind in GENL_CTRL or command in DEVLINK_READS


def strace(trace: Path) -> tuple[str, ...]:
    """-D: the process we start is nodeagent, not strace."""
    return ("strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", str(trace), "-e", f"trace={TRACED}")


def test_second_start_writes_to_no_device(
    nodeagent: Nodeagent, three_vfs: State, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    run = nodeagent.start_command(*strace(trace), "nodeagent", "run", "precompiled")
    run.wait_for("ready: ")
    assert nodeagent.ready.exists()
    assert run.stop() == 0
    assert "openat" in trace.read_text()
    assert device_writes(trace) == []
    assert lab.read() == three_vfs


def test_strace_sees_device_writes(nodeagent: Nodeagent, three_vfs: State, tmp_path: Path) -> None:
    """What the test above relies on, and that restoring writes nothing beyond what differs."""
    snapshot, trace = tmp_path / "snapshot", tmp_path / "trace"
    nodeagent.call("snapshot", "--file", str(snapshot))
    lab.ip(f"link set {lab.name(PF1)} mtu 1400")
    autoprobe = PCI / PF1 / "sriov_drivers_autoprobe"
    autoprobe.write_text("0")
    argv = ("nodeagent", "restore", "--snapshot", str(snapshot))
    restore = nodeagent.start_command(*strace(trace), *argv)
    assert restore.wait() == 0
    # looks at devlink, ethtool and the stack are messages of the kinds that could write, too
    writes = device_writes(trace)
    assert [each for each in writes if each.startswith("/")] == [str(autoprobe)]
    assert "NETLINK_ROUTE" in writes
    assert lab.read() == three_vfs


def seconds_of_day(when: str | Path) -> float:
    """Of a line of the log, or of the moment a file was made; both in UTC, as the node's clock."""
    if isinstance(when, Path):
        return when.stat().st_mtime % 86400
    moment = datetime.strptime(when.split()[0] + "Z", "%H:%M:%S.%f%z")
    return (moment - moment.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()
