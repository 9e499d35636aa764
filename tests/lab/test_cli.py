"""The command line on the emulated node: what it refuses it does not touch, and a whole life.

In the ways it meets on a real node: not root, no device of the driver, no udevd, snapshots that are
cut short or another machine's, PID 1 of a container. Where the start is tested, the program is
started as a program.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.zygote import Zygote

PF = Path("/sys/bus/pci/devices/0000:01:00.0")
RUN = Path("/run/mellanox")
READY = RUN / "drivers/.driver-ready"
NOBODY = 65534
ENVIRONMENT = {
    "NVIDIA_NIC_DRIVER_VER": "25.07-0.9.7.0",
    "OFED_BLACKLIST_MODULES_FILE": "/etc/modprobe.d/blacklist-ofed-modules.conf",
}


def sh(command: str) -> str:
    done = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def nodeagent(*arguments: str, user: int | None = None, **environment: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of one command."""
    done = subprocess.run(
        ["nodeagent", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        user=user,
        env=os.environ | ENVIRONMENT | environment,
    )
    return done.returncode, done.stdout, done.stderr


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def forked(zygote: Zygote) -> Command:
    """The same without the start, 4 s of Python's imports: where that is not what is tested."""

    def call(*arguments: str, **environment: str) -> tuple[int, str, str]:
        fork = zygote.popen(arguments, os.environ | ENVIRONMENT | environment)
        assert fork.stdout is not None
        assert fork.stderr is not None
        with fork.stdout, fork.stderr:
            out, errors = fork.stdout.read(), fork.stderr.read()
        return fork.wait(120), out, errors

    return call


def touched() -> tuple[str, ...]:
    """Everything that a command which refuses must leave as it is."""
    links = json.loads(sh("ip -d -j link"))
    files = [str(path) for top in (RUN, Path("/etc/modprobe.d")) for path in top.rglob("*")]
    sysfs = [(PF / name).read_text() for name in ("sriov_numvfs", "sriov_drivers_autoprobe")]
    return (json.dumps(links, sort_keys=True), *sorted(files), *sysfs)


@pytest.fixture(autouse=True, scope="module")
def _vfs() -> Iterator[None]:
    """Build A loaded and installed; two VFs on the first PF, one of them with settings."""
    sh("lab-driver A; udevadm settle")
    (PF / "sriov_numvfs").write_text("2")
    sh("udevadm settle; ip link set enp1s0 up")
    sh("until ip link show enp1s0 | grep -q LOWER_UP; do sleep 0.1; done")
    sh("ip link set enp1s0 vf 1 mac 02:11:22:33:44:50 vlan 100 qos 3")
    yield
    (PF / "sriov_numvfs").write_text("0")
    sh("udevadm settle; rm -rf /run/mellanox")


@pytest.fixture(scope="module")
def taken(_vfs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of the node as it is, that anybody may read."""
    directory = tmp_path_factory.mktemp("taken")
    for path in (directory, *directory.parents[:2]):
        path.chmod(0o755)
    status, _, errors = nodeagent("snapshot", "--file", str(directory / "s.json"))
    assert status == 0, errors
    # of MACs that a driver made up, it says so, and no more
    assert all(" INFO " in line for line in errors.splitlines()), errors
    (directory / "s.json").chmod(0o644)
    return directory / "s.json"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["snapshot"], 77),
        (["restore"], 77),
        (["run", "precompiled"], 1),
    ],
)
def test_not_root(taken: Path, command: list[str], status: int) -> None:
    before = touched()
    given = ["--snapshot", str(taken)] if command == ["restore"] else []
    got, out, errors = nodeagent(*command, *given, user=NOBODY)
    assert (got, out) == (status, "")
    assert "this needs root: it " in errors
    assert "Traceback" not in errors
    assert touched() == before


def test_no_device_of_the_driver(forked: Command) -> None:
    before = touched()
    for command in (["snapshot"], ["plan", "--after-reload"]):
        status, out, errors = forked(*command, DRIVER_MODULE="ixgbe")
        assert (status, out) == (69, "")
        assert errors.startswith("error: no device on this node is bound to the driver ixgbe\nhint")
    assert touched() == before


def test_a_dry_run_of_a_reload(forked: Command) -> None:
    """With the driver that is installed, and with another one on disk."""
    before = touched()
    status, out, _ = forked("reload", "--dry-run")
    assert (status, out) == (0, "# nothing to do: the loaded driver is the installed one\n")
    assert touched() == before
    lab.put_on_disk("B")
    try:
        before = touched()
        status, out, errors = forked("reload", "--dry-run")
        assert touched() == before
    finally:
        lab.put_on_disk("A")
    assert status == 0, errors
    assert out.startswith("# reload: mlx5_core is loaded as ")
    lines = out.partition("# afterwards:\n")[2].splitlines()
    assert f"echo 2 > {PF}/sriov_numvfs" in lines
    of_vf = " ".join(line for line in lines if line.startswith("ip link set dev enp1s0 vf 1 "))
    assert "mac 02:11:22:33:44:50" in of_vf
    assert "vlan 100 qos 3" in of_vf


def test_an_archive_for_a_ticket(forked: Command, tmp_path: Path) -> None:
    before = touched()
    path = tmp_path / "ticket.tar.gz"
    status, out, errors = forked("support-bundle", "--file", str(path), UBUNTU_PRO_TOKEN="C12345")
    assert status == 0, errors
    assert "look through them before you send it" in out
    with tarfile.open(path) as tar:
        files = {each.name.partition("/")[2]: tar.extractfile(each) for each in tar}
        found = {name: file.read().decode() for name, file in files.items() if file is not None}
    assert "vf 1 " in found["ip-link.txt"]
    assert "pci/0000:01:00.0" in found["devlink-dev.txt"] + found["snapshot.json"]
    assert "mlx5_core" in found["lsmod.txt"]
    assert found["dmesg.txt"]
    assert json.loads(found["snapshot.json"])["machine_id"].startswith("sha256:")
    text = "".join(found.values())
    assert "C12345" not in text
    assert Path("/etc/machine-id").read_text().strip() not in text
    assert touched() == before


def test_terminate_without_a_terminal_needs_a_word(forked: Command) -> None:
    before = touched()
    status, out, errors = forked("terminate")
    assert (status, out) == (1, "")
    assert "--yes is missing" in errors
    assert touched() == before


def test_no_udevd(taken: Path, forked: Command) -> None:
    sh("systemctl stop systemd-udevd 2>/dev/null || udevadm control --exit")
    try:
        status, out, _ = forked("verify", "--snapshot", str(taken))
        assert (status, out.endswith("2 VFs: nothing differs\n")) == (0, True)
    finally:
        sh("systemctl start systemd-udevd 2>/dev/null || /lib/systemd/systemd-udevd --daemon")


def test_snapshots_that_are_refused(taken: Path, tmp_path: Path, forked: Command) -> None:
    text = taken.read_text()
    foreign = json.loads(text) | {"machine_id": "f" * 32}
    wrong = {
        "cut": text[: len(text) // 2],
        "empty": "",
        "rubbish": "\x7fELF\x02",
        "schema": json.dumps(json.loads(text) | {"schema": 99}),
        "foreign": json.dumps(foreign),
    }
    before = touched()
    for name, content in wrong.items():
        path = tmp_path / name
        path.write_text(content)
        status, out, errors = forked("restore", "--snapshot", str(path))
        assert (name, status, out) == (name, 65, "")
        said = [line for line in errors.splitlines() if " INFO " not in line]
        assert said[0].startswith("error: ")
        assert errors.count("error: ") == 1
    status, _, errors = forked("restore", "--snapshot", str(tmp_path / "none"))
    assert (status, errors.count("\n")) == (66, 1)
    assert touched() == before


def test_plan_verify_restore(taken: Path, forked: Command) -> None:
    given = ["--snapshot", str(taken)]
    assert forked("plan", *given)[1] == "# nothing to do: nothing differs\n"
    sh("ip link set enp1s0 vf 1 vlan 200")
    status, table, _ = forked("verify", *given)
    assert status == 1
    assert table.splitlines()[1].split()[-3:] == ["vlan", "100", "200"]
    _, lines, _ = forked("plan", *given)
    assert "ip link set dev enp1s0 vf 1 vlan 100 qos 3" in lines
    assert forked("restore", *given)[0] == 0
    assert nodeagent("verify", *given)[0] == 0
    assert not READY.exists()


class Life:
    """`nodeagent run` as a process, as it is or as PID 1 of its own namespace."""

    def __init__(self, *before: str) -> None:
        self.process = subprocess.Popen(
            [*before, "nodeagent", "run", "precompiled"],
            env=os.environ | ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )

    def agent(self) -> int:
        """Its process id, seen from here."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int((children.read_text().split() or [str(self.process.pid)])[0])

    def holds(self) -> bool:
        return b"hold.py" in Path(f"/proc/{self.agent()}/cmdline").read_bytes()

    def ready(self) -> None:
        deadline = time.monotonic() + 60
        while not (READY.exists() and self.holds()):
            assert self.process.poll() is None, self.ended()
            assert time.monotonic() < deadline, "it is not ready after a minute"
            time.sleep(0.1)

    def status(self, name: str) -> int:
        lines = Path(f"/proc/{self.agent()}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])

    def blocks_sigterm(self) -> bool:
        """Whether nodeagent does: unshare(1) blocks it in itself, too, and lets go of it."""
        if Path(f"/proc/{self.agent()}/comm").read_text() == "unshare\n":
            return False
        text = Path(f"/proc/{self.agent()}/status").read_text().partition("SigBlk:")[2]
        return bool(int(text.split()[0], 16) & 1 << (signal.SIGTERM - 1))

    def ended(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.fixture
def lives() -> Iterator[list[Life]]:
    started: list[Life] = []
    yield started
    for life in started:
        if life.process.poll() is None:
            os.kill(life.agent(), signal.SIGKILL)
            life.process.communicate()


def test_a_whole_life(lives: list[Life], taken: Path) -> None:
    before = touched()[0]
    lives.append(life := Life())
    life.ready()
    assert life.status("VmRSS") <= 25 * 1024
    assert nodeagent("status")[0] == 0
    status, _, errors = nodeagent("run", "precompiled")
    assert (status, f"locked by process {life.process.pid}" in errors) == (1, True)
    assert nodeagent("reload")[0] == 75
    assert READY.exists()
    sh("ip link set enp1s0 vf 1 vlan 200")
    assert nodeagent("restore", "--snapshot", str(taken))[0] == 0
    switches = life.status("voluntary_ctxt_switches")
    time.sleep(3)
    assert life.status("voluntary_ctxt_switches") == switches
    life.process.send_signal(signal.SIGTERM)
    status, errors = life.ended()
    assert (status, READY.exists()) == (0, False)
    assert "SIGTERM: the ready flag is removed" in errors
    assert touched()[0] == before
    assert nodeagent("status")[0] == 1


def test_pid_1_of_a_container_hears_sigterm(lives: list[Life]) -> None:
    """The kernel drops signals for the init of a namespace that has no handler for them."""
    lives.append(life := Life("unshare", "--pid", "--fork"))
    life.ready()
    os.kill(life.agent(), signal.SIGTERM)
    status, _ = life.ended()
    assert (status, READY.exists()) == (0, False)


def test_pid_1_hears_sigterm_however_early(lives: list[Life]) -> None:
    """From the moment `run` is parsed: refused there, or ended well if it was ready by then."""
    lives.append(life := Life("unshare", "--pid", "--fork"))
    deadline = time.monotonic() + 60
    while not life.blocks_sigterm() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(life.agent(), signal.SIGTERM)
    status, errors = life.ended()
    assert status in {0, 1}, errors
    assert not READY.exists()
