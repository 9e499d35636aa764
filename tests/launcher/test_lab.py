"""scripts/lab from outside: what it passes on, what it keeps apart, and how it fails.

These start nodes of their own, on the host.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LAB = str(ROOT / "scripts" / "lab")
STALLED = 125


def lab(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LAB, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [LAB, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def qemu_of(parent: int) -> int:
    """Process id of the QEMU that a launcher started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    [qemu] = [
        int(child)
        for child in children
        if "qemu-system" in Path(f"/proc/{child}/cmdline").read_text()
    ]
    return qemu


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} was left behind"
        time.sleep(0.05)


def test_output_and_exit_status_are_the_commands() -> None:
    done = lab("run", "--", "sh", "-c", "echo one; echo two >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "one\n")
    assert done.stderr.endswith("two\n")


def test_a_killed_command_has_the_shells_status() -> None:
    assert lab("run", "--", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM


def test_a_command_that_is_not_there() -> None:
    done = lab("run", "--", "no-such-command")
    assert done.returncode == 127
    assert "cannot run no-such-command: No such file or directory" in done.stderr


def test_no_output_is_lost_and_children_left_behind_do_not_hold_it() -> None:
    done = lab("run", "--", "sh", "-c", "sleep 600 & seq 100000")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [str(n) for n in range(1, 100001)]


def test_output_comes_while_the_command_runs() -> None:
    with started("run", "--", "sh", "-c", "echo now; sleep 60") as running:
        assert running.stdout
        assert running.stdout.readline() == "now\n"
        assert running.poll() is None
        running.terminate()


def test_an_edit_of_the_working_tree_is_there_at_once(tmp_path: Path) -> None:
    marker = ROOT / "tests" / f"edit-{os.getpid()}.tmp"
    try:
        marker.write_text("fresh")
        done = lab("run", "--", "cat", f"tests/{marker.name}")
    finally:
        marker.unlink()
    assert done.stdout == "fresh"


def test_what_is_left_in_host_out_is_brought_home(tmp_path: Path) -> None:
    done = lab("run", "--out", str(tmp_path), "--", "sh", "-c", "echo kept >/host/out/file; exit 1")
    assert done.returncode == 1
    assert (tmp_path / "file").read_text() == "kept\n"


def test_the_clock_is_the_hosts() -> None:
    done = lab("run", "--", "date", "+%s")
    assert abs(int(done.stdout) - time.time()) < 30


def test_two_nodes_at_once_are_apart() -> None:
    script = "echo {0} >/tmp/mine; sleep 1; cat /tmp/mine"
    with (
        started("run", "--", "sh", "-c", script.format("left")) as left,
        started("run", "--", "sh", "-c", script.format("right")) as right,
    ):
        assert left.communicate()[0] == "left\n"
        assert right.communicate()[0] == "right\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_qemu_too(number: signal.Signals) -> None:
    with started("run", "--", "sh", "-c", "echo here; sleep 60") as running:
        assert running.stdout
        running.stdout.readline()
        qemu = qemu_of(running.pid)
        running.send_signal(number)
        wait_gone(qemu)
        expected = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
        assert running.wait(10) == expected[number]


def assert_reported(done: subprocess.CompletedProcess[str], reason: str) -> None:
    assert done.returncode == STALLED
    assert reason in done.stderr
    assert "the last 60 lines on the guest's serial port" in done.stderr
    assert "Nothing was retried" in done.stderr
    [hint] = [line for line in done.stderr.splitlines() if line.startswith("hint: ")]
    files = [Path(word.rstrip(",.")) for word in hint.split() if word.startswith("/")]
    assert [path.name for path in files] == ["serial.log", "cpu-state.txt"]
    assert "CPU#1" in files[1].read_text()


def test_a_command_that_takes_too_long_is_reported() -> None:
    done = lab("run", "--timeout", "3", "--", "sleep", "60")
    assert_reported(done, "sleep has not ended after 3 s")
    assert "NMI" in done.stderr


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("c", "the guest went down by itself (guest-reset)"),
        ("b", "the guest went down by itself (guest-reset)"),
        ("o", "the guest went down by itself (guest-shutdown)"),
    ],
)
def test_a_guest_that_goes_down_is_reported(key: str, reason: str) -> None:
    done = lab("run", "--", "sh", "-c", f"echo {key} >/proc/sysrq-trigger; sleep 60")
    assert_reported(done, reason)
    assert ("Kernel panic" in done.stderr) == (key == "c")


@pytest.fixture
def empty_cache(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


@pytest.fixture
def commands(tmp_path: Path) -> Callable[..., str]:
    """A PATH with nothing but these commands of the host."""

    def make(*names: str) -> str:
        directory = tmp_path / "bin"
        directory.mkdir()
        for name in names:
            (directory / name).symlink_to(f"/usr/bin/{name}")
        return str(directory)

    return make


BASICS = ("bash", "dirname", "readlink", "id", "setpriv")


def test_without_apt_it_says_so(commands: Callable[..., str], empty_cache: dict[str, str]) -> None:
    done = lab("build", PATH=commands(*BASICS), **empty_cache)
    assert done.returncode == STALLED
    assert "missing: apt-get" in done.stderr
    assert "scripts/test --no-lab" in done.stderr


def as_nobody(*arguments: str, cache: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", LAB, *arguments],
        env={**os.environ, "XDG_CACHE_HOME": cache},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_without_root_it_says_so() -> None:
    with tempfile.TemporaryDirectory() as cache:
        Path(cache).chmod(0o777)
        done = as_nobody("build", cache=cache)
    assert done.returncode == STALLED
    assert "missing: root" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_without_a_place_for_its_cache_it_says_so(tmp_path: Path) -> None:
    done = as_nobody("build", cache=str(tmp_path))
    assert done.returncode == STALLED
    assert f"cannot keep what the lab is made of in {tmp_path}" in done.stderr
    assert "XDG_CACHE_HOME" in done.stderr


def typed(script: bytes) -> tuple[int, bytes]:
    """What scripts/lab shell shows on a terminal when somebody types that, and its exit status."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(LAB, [LAB, "shell"])  # noqa: S606 - after pty.fork there is nothing else
    shown = b""
    typing = False
    try:
        while data := os.read(terminal, 4096):
            shown += data
            if not typing and shown.endswith(b"# "):
                os.write(terminal, script)
                typing = True
    except OSError:  # EIO: the other side has closed
        pass
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def test_a_shell_on_a_terminal() -> None:
    status, shown = typed(b"tty; exit 9\n")
    assert status == 9
    assert b"/dev/pts/0" in shown


def test_no_shell_without_a_terminal() -> None:
    done = lab("shell")
    assert done.returncode == STALLED
    assert "needs a terminal" in done.stderr


def test_wrong_use() -> None:
    assert lab("run").returncode == 2
    assert lab("run", "--pfs", "9", "--", "true").returncode == 2
    assert lab("clean", "everything").returncode == 2


def test_a_node_with_a_connectx_has_eight_vfs_a_pf() -> None:
    number = "/sys/class/net/enp1s0f1np1/device/sriov_totalvfs"
    done = lab("run", "--nic", "connectx", "--virtual-time", "--", "cat", number)
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr


@pytest.mark.parametrize("vfs", ["0", "128"])
def test_a_pf_of_a_connectx_has_1_to_127_vfs(vfs: str) -> None:
    done = lab("build", "--nic", "connectx", "--vfs", vfs)
    assert done.returncode == 2
    assert "a PF of the ConnectX can make 1 to 127 VFs" in done.stderr


def test_another_nic() -> None:
    done = lab("build", "--nic", "e1000")
    assert done.returncode == 2
    assert "invalid choice: 'e1000'" in done.stderr


def test_round_trips_of_seeds_are_shown_without_a_node() -> None:
    shown = lab("roundtrip", "--nic", "connectx", "--seeds", "3-4", "--show")
    assert shown.stdout.count("# the node of seed") == 2
    assert shown.stdout == lab("roundtrip", "--nic", "connectx", "--seeds", "3-4", "--show").stdout
    assert "names no seed" in lab("roundtrip", "--seeds", "4-3").stderr
