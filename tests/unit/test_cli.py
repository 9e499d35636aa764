"""The command line: what is printed where, which status it ends with, and what it never imports."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from nodeagent import __version__, cli, errors, machine
from nodeagent.agent import by_hand, life, lifecycle
from nodeagent.cli.main import nodeagent as group
from nodeagent.cli.main import status_of
from nodeagent.cli.page import EXIT, SECTIONS
from nodeagent.modes import RELOAD_MODES
from nodeagent.record.journal import Journal, Note, Step, seal
from nodeagent.record.lock import lock
from nodeagent.settings import Settings, rows
from nodeagent.state.addresses import Mac
from nodeagent.state.codec import snapshot_from_json, snapshot_to_json
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Pf, Snapshot, Vf
from nodeagent.state.vf import VlanProtocol

ROOT = Path(cli.__file__).resolve().parents[2]

PF = DeviceHandle("pci", "0000:01:00.0")
STATE = NodeState(
    "mlx5_core",
    (
        Pf(
            PF,
            numvfs=2,
            autoprobe=True,
            netdev=Netdev("ens1f0np0", mac=Mac("02:00:00:00:00:01"), mtu=9000, up=True),
            vfs=(
                Vf(
                    0,
                    address="0000:01:00.2",
                    driver="mlx5_core",
                    admin_mac=Mac("02:00:00:00:00:10"),
                    vlan=100,
                    qos=3,
                    vlan_proto=VlanProtocol.AD,
                    trust=True,
                    min_tx_rate=0,
                    max_tx_rate=1000,
                    netdev=Netdev("ens1f0v0", mac=Mac("02:00:00:00:00:10"), mtu=1500, up=True),
                ),
                Vf(1, address="0000:01:00.3", driver="none"),
            ),
        ),
    ),
)
SNAPSHOT = Snapshot("2026-11-21T12:03:04Z", "a" * 32, "b", "6.12", (("mlx5_core", "8EB2"),), STATE)
EMPTY = dataclasses.replace(SNAPSHOT, state=NodeState("mlx5_core"))


def changed(**vf_fields: Any) -> Snapshot:
    """The snapshot with other values at VF 0."""
    (pf,) = STATE.pfs
    vf = dataclasses.replace(pf.vfs[0], **vf_fields)
    other = dataclasses.replace(pf, vfs=(vf, pf.vfs[1]))
    return dataclasses.replace(SNAPSHOT, state=NodeState("mlx5_core", (other,)))


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Every command works below tmp_path, as root, on a machine without the driver."""
    run = tmp_path / "run"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in [name for name in os.environ if name.startswith(("NVIDIA_", "DTK_", "OFED_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DRIVER_READY_PATH", str(run / ".ready"))
    monkeypatch.setenv("LOCK_FILE_PATH", str(run / ".lock"))
    monkeypatch.setenv("STATE_DIR", str(run / "state"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(life, "sees_the_host", lambda: True)
    return Settings.from_environment(os.environ)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Callable[[Snapshot], None]:
    """Say what the node looks like."""
    return lambda now: monkeypatch.setattr(by_hand, "snapshot_now", lambda settings, **_: now)


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """`run` blocks its two signals until there is a handler; here it never gets that far."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


Captured = pytest.CaptureFixture[str]


# The help page


def test_help_names_every_command_by_task(capsys: Captured) -> None:
    assert status_of(["--help"]) == 0
    page = capsys.readouterr().out
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(group.commands)
    for name in group.commands:
        assert re.search(rf"^  {name} +\S", page, re.MULTILINE)
    for word in ("NVIDIA_NIC_DRIVER_VER", ".driver-ready", "Exit status"):
        assert word in page
    assert max(map(len, page.splitlines())) <= 80


@pytest.mark.parametrize("name", [name for names in SECTIONS.values() for name in names])
def test_every_command_has_help(name: str, capsys: Captured) -> None:
    assert status_of([name, "-h"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: nodeagent {name}")


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["nonsense"], 64),
        (["--nonsense"], 64),
        (["status", "--output", "xml"], 64),
        (["timeline", "--last", "0"], 64),
        (["verify", "--nonsense"], 64),
        (["reload", "dtk-build"], 64),
        (["run"], 1),
        (["run", "nonsense"], 1),
        (["run", "sources", "precompiled"], 1),
    ],
)
def test_wrong_arguments(arguments: list[str], status: int, capsys: Captured) -> None:
    assert status_of(arguments) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"error: [^\n]+\nhint: nodeagent.* --help\n", said.err)


@pytest.mark.parametrize("arguments", [[], ["device-plugin"], ["node"], ["network"], ["operator"]])
def test_a_group_without_a_command_shows_its_help(arguments: list[str], capsys: Captured) -> None:
    assert status_of(arguments) == 64
    said = capsys.readouterr()
    assert said.out == ""
    assert status_of([*arguments, "--help"]) == 0
    assert said.err == capsys.readouterr().out
    assert said.err.startswith("Usage: nodeagent ")


def test_a_file_after_o_is_refused(tmp_path: Path, capsys: Captured) -> None:
    """Where -o was a file before, an old call must not do something else."""
    for command in (["snapshot"], ["operator", "capture", "--file", str(tmp_path / "c")]):
        assert status_of([*command, "-o", str(tmp_path / "node.json")]) == 64
        assert "To write to a file, use > FILE, or --file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def leaves(command: click.Command, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Each command below a group, with its path."""
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from leaves(each, *path, name)
    else:
        yield path, command


PRINT_NOTHING = {
    *(("run",), ("completion",), ("terminate",), ("sidecar",), ("probe",), ("metrics",)),
    *(("node", name) for name in ("announce", "after-reload", "cordon")),
    ("device-plugin", "hold-off"),
    *(("node", name) for name in ("wait-safe-load", "wait-mofed")),
}


@pytest.mark.parametrize(("path", "command"), [*leaves(group)])
def test_o_is_the_format_of_every_command_that_prints_data(
    path: tuple[str, ...], command: click.Command
) -> None:
    found = [each for each in command.params if "-o" in each.opts]
    if path in PRINT_NOTHING:
        assert found == []
        return
    (option,) = found
    if path == ("support-bundle",):
        assert option.opts == ["-o", "--file"], "its data is the archive"
        return
    assert option.opts == ["-o", "--output"]
    assert isinstance(option.type, click.Choice)
    assert [*option.type.choices][:2] == ["text", "json"]


def test_version(capsys: Captured) -> None:
    assert status_of(["--version"]) == 0
    assert capsys.readouterr().out == f"nodeagent {__version__}\n"


def test_dtk_build_needs_the_variables_of_dtk_env(capsys: Captured) -> None:
    assert status_of(["run", "dtk-build"]) == 1
    said = capsys.readouterr().err
    for name in ("COMPILED_DRIVER_VER", "START_COMPILE_FLAG", "DONE_COMPILE_FLAG"):
        assert f"DTK_OCP_{name}" in said
    assert "dtk.env" in said


# Exit statuses, in nodeagent/README.md, on the page and in each command's help


PACKAGE_PAGE = (ROOT / "nodeagent/README.md").read_text()
README_EXIT = dict(
    re.findall(
        r"^\| ([^|]+) \| ([^|]+) \|$",
        PACKAGE_PAGE.partition("| exit status |")[2].partition("\n\n")[0],
        re.MULTILINE,
    )
)


def test_the_page_has_the_statuses_of_the_readme() -> None:
    assert dict(EXIT) == README_EXIT
    listed = {int(each) for key in README_EXIT for each in key.split(", ")}
    assert {*errors.ExitCode} - {errors.ExitCode.TROUBLE} == listed


@pytest.mark.parametrize(("path", "command"), [*leaves(group)])
def test_the_statuses_of_a_commands_help_are_those_of_the_readme(
    path: tuple[str, ...], command: click.Command
) -> None:
    text = " ".join((command.help or "").split())
    sentences = re.findall(r"Ends (?:then )?with status [^.]*\.", text)
    said = {int(each) for sentence in sentences for each in re.findall(r"\b\d+\b", sentence)}
    assert said <= {int(each) for key in README_EXIT for each in key.split(", ")}
    parts = README_EXIT["1"].split("; ")
    names = {name for part in parts for name in part.partition(":")[0].split(", ")}
    mine = {name for name in names if name.split(" --")[0] == " ".join(path)}
    assert (1 in said) == bool(mine), (path, said, mine)


# Errors: one message, one hint, the right status


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr(lifecycle, "run", fail)
    for name in ("reload_once", "snapshot_now"):
        monkeypatch.setattr(by_hand, name, fail)


def test_an_error_is_two_lines(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    failing(monkeypatch, errors.KernelError("cannot set it: Device or resource busy", hint="wait"))
    assert status_of(["snapshot"]) == 71
    assert capsys.readouterr() == (
        "",
        "error: cannot set it: Device or resource busy\nhint: wait\n",
    )


@pytest.mark.parametrize(
    "error",
    [errors.KernelError("no"), errors.RestoreFailed("no", []), errors.Stopped(), KeyError("a bug")],
)
def test_run_knows_0_and_1(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, error: BaseException
) -> None:
    failing(monkeypatch, error)
    assert status_of(["run", "precompiled"]) == 1
    assert re.search(r"ERROR (no|stopped by a signal)|KeyError: 'a bug'", capsys.readouterr().err)


@pytest.mark.parametrize("mode", [each.value for each in RELOAD_MODES])
def test_a_mode_alone_is_the_driver_containers_argument_list(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(lifecycle, "run", lambda given, *_: 7 if given == mode else 1)
    assert status_of([mode]) == 7


def test_so_is_the_toolkits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "build", lambda _settings: 7)
    assert status_of(["dtk-build"]) == 7


def test_an_error_of_run_is_a_line_of_its_log(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    failing(monkeypatch, errors.KernelError("no driver", hint="run modprobe"))
    status_of(["run", "precompiled"])
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} ERROR no driver\n    hint: run modprobe\n", capsys.readouterr().err
    )


@pytest.mark.parametrize("command", [["run", "precompiled"], ["reload"], ["verify"]])
def test_an_error_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, settings: Settings, command: list[str]
) -> None:
    Journal(settings).save(SNAPSHOT)
    failing(monkeypatch, errors.KernelError("no driver", hint="run modprobe"))
    assert status_of(["--log-format", "json", *command]) in {1, 71}
    said = json.loads(capsys.readouterr().err)
    assert (said["level"], said["message"], said["hint"]) == ("error", "no driver", "run modprobe")


def test_a_bug_shows_its_traceback_and_has_a_status_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    failing(monkeypatch, KeyError("a bug"))
    assert status_of(["reload"]) == 70
    assert "Traceback" in capsys.readouterr().err
    assert status_of(["--log-format", "json", "reload"]) == 70
    assert "KeyError" in json.loads(capsys.readouterr().err)["message"]


def test_no_memory_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    failing(monkeypatch, MemoryError())
    assert status_of(["reload"]) == 71
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory")
    assert "limits.memory" in said


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert status_of(["snapshot"]) == 130


@pytest.mark.parametrize(("command", "status"), [(["run", "precompiled"], 1), (["status"], 78)])
def test_a_bad_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, command: list[str], status: int
) -> None:
    monkeypatch.setenv("VF_TIMEOUT", "soon")
    assert status_of(command) == status
    assert "VF_TIMEOUT is 'soon'; allowed: seconds" in capsys.readouterr().err


def test_without_root(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, settings: Settings, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    wanted = tmp_path / "wanted.json"
    wanted.write_text(snapshot_to_json(SNAPSHOT))
    monkeypatch.setenv("NVIDIA_NIC_DRIVER_VER", "25.07-0.9.7.0")
    given = ["--snapshot", str(wanted)]
    calls = [["snapshot"], ["plan", *given], ["restore", *given], ["verify", *given], ["reload"]]
    for call in calls:
        assert status_of(call) == 77, call
        assert capsys.readouterr().err.startswith("error: this needs root: it ")
    assert status_of(["run", "precompiled"]) == 1
    assert list(tmp_path.iterdir()) == [wanted]


# snapshot


def test_snapshot_prints_json(node: Callable[[Snapshot], None], capsys: Captured) -> None:
    node(SNAPSHOT)
    assert status_of(["snapshot"]) == 0
    assert snapshot_from_json(capsys.readouterr().out, "stdout") == SNAPSHOT


def test_snapshot_prints_text_to_a_terminal(
    node: Callable[[Snapshot], None], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    node(SNAPSHOT)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert status_of(["snapshot"]) == 0
    assert capsys.readouterr().out.startswith("device ")
    assert status_of(["snapshot", "-o", "json"]) == 0
    assert snapshot_from_json(capsys.readouterr().out, "stdout") == SNAPSHOT


def test_snapshot_writes_a_file_whole(
    node: Callable[[Snapshot], None], capsys: Captured, tmp_path: Path
) -> None:
    node(SNAPSHOT)
    assert status_of(["snapshot", "--file", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "out.json").read_text() == snapshot_to_json(SNAPSHOT)
    assert status_of(["snapshot", "--file", str(tmp_path / "no/out.json")]) == 74
    assert "create its directory first" in capsys.readouterr().err


def test_snapshot_as_a_table(node: Callable[[Snapshot], None], capsys: Captured) -> None:
    node(SNAPSHOT)
    assert status_of(["snapshot", "--output", "text"]) == 0
    header, pf, vf, unbound = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["device", "driver", "netdev"]
    assert pf.split()[:6] == [
        "pci/0000:01:00.0", "mlx5_core", "ens1f0np0", "02:00:00:00:00:01", "9000", "on",
    ]  # fmt: skip
    assert vf.endswith("02:00:00:00:00:10  100 qos 3 802.1ad  on     -         -      0-1000")
    assert unbound.split() == ["vf", "1", "none", *"-" * 10]


def test_snapshot_without_a_device(node: Callable[[Snapshot], None], capsys: Captured) -> None:
    node(EMPTY)
    assert status_of(["snapshot"]) == 69
    said = capsys.readouterr()
    assert said.out == ""
    assert "no device on this node is bound to the driver mlx5_core" in said.err


# plan, restore, verify


def test_plan_prints_lines_to_paste(
    node: Callable[[Snapshot], None], capsys: Captured, settings: Settings
) -> None:
    Journal(settings).save(SNAPSHOT)
    node(changed(trust=False))
    assert status_of(["plan"]) == 0
    assert capsys.readouterr().out == "# set VFs\nip link set dev ens1f0np0 vf 0 trust on\n"
    assert status_of(["plan", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "done": False,
        "actions": 1,
        "stages": [{"name": "set VFs", "lines": ["ip link set dev ens1f0np0 vf 0 trust on"]}],
    }


def test_plan_with_nothing_to_do(
    node: Callable[[Snapshot], None], capsys: Captured, settings: Settings
) -> None:
    Journal(settings).save(SNAPSHOT)
    node(SNAPSHOT)
    assert status_of(["plan"]) == 0
    assert capsys.readouterr().out == "# nothing to do: nothing differs\n"


def test_plan_after_reload_is_about_the_node_as_it_is(
    node: Callable[[Snapshot], None], capsys: Captured, settings: Settings
) -> None:
    Journal(settings).save(changed(trust=False))
    Journal(settings).close_snapshot()
    node(SNAPSHOT)
    assert status_of(["plan", "--after-reload"]) == 0
    lines = capsys.readouterr().out
    assert "echo 2 > /sys/bus/pci/devices/0000:01:00.0/sriov_numvfs" in lines
    assert "trust on" in lines
    node(EMPTY)
    assert status_of(["plan", "--after-reload"]) == 69


def test_plan_after_reload_of_a_file_needs_no_node(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing(monkeypatch, errors.PermissionDenied("it looked"))
    (tmp_path / "s.json").write_text(snapshot_to_json(SNAPSHOT))
    assert status_of(["plan", "--after-reload", "--snapshot", str(tmp_path / "s.json")]) == 0
    assert "sriov_numvfs" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["plan", "restore", "verify"])
def test_without_any_snapshot(
    command: str, node: Callable[[Snapshot], None], capsys: Captured
) -> None:
    node(SNAPSHOT)
    assert status_of([command]) == 66
    said = capsys.readouterr()
    assert said.out == ""
    assert "there is no snapshot in" in said.err
    assert "hint: `nodeagent snapshot --file FILE`" in said.err


@pytest.mark.parametrize("command", ["plan", "restore", "verify"])
@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 65),
        (b"{", 65),
        (b"\xff\xfe\0", 65),
        (b'{"schema": 99}', 65),
        (seal(SNAPSHOT).replace("9000", "9001").encode(), 65),
        (None, 66),
    ],
)
def test_an_unreadable_snapshot(
    command: str, content: bytes | None, status: int, capsys: Captured, tmp_path: Path
) -> None:
    path = tmp_path / "s.json"
    if content is not None:
        path.write_bytes(content)
    assert status_of([command, "--snapshot", str(path)]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert str(path) in said.err


@pytest.mark.parametrize("command", ["plan", "restore", "verify"])
def test_what_is_no_snapshot(command: str, capsys: Captured) -> None:
    assert status_of([command, "--snapshot", "/etc/passwd"]) == 65
    said = capsys.readouterr().err
    assert said.startswith("error: /etc/passwd is not a snapshot: ")
    assert "damaged" not in said


def test_a_directory_is_no_snapshot(capsys: Captured, tmp_path: Path) -> None:
    assert status_of(["verify", "--snapshot", str(tmp_path)]) == 66
    assert "Is a directory" in capsys.readouterr().err


def test_a_damaged_open_snapshot_is_not_passed_over_for_the_last(
    node: Callable[[Snapshot], None], capsys: Captured, settings: Settings
) -> None:
    journal = Journal(settings)
    journal.save(SNAPSHOT)
    journal.close_snapshot()
    journal.open_path.write_text("{")
    journal.open_path.chmod(0o600)
    node(SNAPSHOT)
    assert status_of(["verify"]) == 65
    assert str(journal.open_path) in capsys.readouterr().err


def test_verify_when_nothing_differs(
    node: Callable[[Snapshot], None], capsys: Captured, settings: Settings
) -> None:
    Journal(settings).save(SNAPSHOT)
    node(SNAPSHOT)
    assert status_of(["verify"]) == 0
    assert capsys.readouterr().out == "1 PFs, 2 VFs: nothing differs\n"


def test_verify_when_something_differs(
    node: Callable[[Snapshot], None], capsys: Captured, settings: Settings
) -> None:
    Journal(settings).save(SNAPSHOT)
    node(changed(trust=False, vlan=200))
    assert status_of(["verify"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "target                 attribute  want  have",
        "pci/0000:01:00.0 vf 0  vlan       100   200",
        "pci/0000:01:00.0 vf 0  trust      True  False",
    ]
    assert status_of(["verify", "--output", "json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["same"] is False
    assert said["differences"][0] == {
        "target": "pci/0000:01:00.0 vf 0",
        "attribute": "vlan",
        "want": 100,
        "have": 200,
    }


@pytest.mark.parametrize(
    "error", [errors.AgentError("bare"), errors.RestoreFailed("no", []), KeyError("a bug")]
)
def test_verify_never_says_1_in_trouble(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, error: Exception
) -> None:
    Journal(settings).save(SNAPSHOT)
    failing(monkeypatch, error)
    assert status_of(["verify"]) >= 2


def test_verify_reads_stdin(
    node: Callable[[Snapshot], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.json"
    path.write_text(snapshot_to_json(SNAPSHOT))
    node(SNAPSHOT)
    with path.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert status_of(["verify", "--snapshot", "-"]) == 0


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> list[Snapshot]:
    """What restore was called with."""
    calls: list[Snapshot] = []
    monkeypatch.setattr(by_hand, "restore_now", lambda snapshot, settings: calls.append(snapshot))
    return calls


def test_restore(
    node: Callable[[Snapshot], None],
    capsys: Captured,
    settings: Settings,
    restored: list[Snapshot],
) -> None:
    Journal(settings).save(SNAPSHOT)
    node(changed(trust=False))
    assert status_of(["restore"]) == 0
    assert capsys.readouterr().out == "restored with 1 actions: nothing differs\n"
    assert restored == [SNAPSHOT]
    assert Journal(settings).has_open_snapshot()


def test_a_dry_run_touches_nothing(
    node: Callable[[Snapshot], None],
    capsys: Captured,
    settings: Settings,
    restored: list[Snapshot],
) -> None:
    Journal(settings).save(SNAPSHOT)
    node(changed(trust=False))
    assert status_of(["restore", "--dry-run"]) == 0
    assert "trust on" in capsys.readouterr().out
    assert restored == []


def test_a_snapshot_of_another_machine(
    node: Callable[[Snapshot], None],
    capsys: Captured,
    settings: Settings,
    restored: list[Snapshot],
) -> None:
    foreign = dataclasses.replace(SNAPSHOT, machine_id="f" * 32)
    Journal(settings).save(foreign)
    node(SNAPSHOT)
    for command in (["restore"], ["restore", "--dry-run"]):
        assert status_of(command) == 65
        said = capsys.readouterr()
        assert said.out == ""
        assert "hint: --foreign accepts it" in said.err
    assert restored == []
    dry = ["restore", "--dry-run", "--foreign"]
    for command in (["verify"], ["plan"], dry, ["restore", "--foreign"]):
        assert status_of(command) == 0
        assert capsys.readouterr().err.startswith("warning: the snapshot of 2026-11-21T12:03:04Z")
    assert restored == [foreign]


def test_restore_says_what_is_left(
    node: Callable[[Snapshot], None],
    capsys: Captured,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **_named: object) -> None:
        raise errors.RestoreFailed("1 attributes could not be restored", ["vf 0 trust"])

    Journal(settings).save(SNAPSHOT)
    node(changed(trust=False))
    monkeypatch.setattr(by_hand, "restore_now", fail)
    assert status_of(["restore"]) == 1
    assert capsys.readouterr().err == "error: 1 attributes could not be restored\n  vf 0 trust\n"


# reload --dry-run, terminate


@pytest.fixture
def preflight(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what preflight finds and why a reload is needed."""
    from nodeagent.driver.findings import Check, Finding  # noqa: PLC0415
    from nodeagent.driver.nic import NicDriver  # noqa: PLC0415
    from nodeagent.driver.preflight import Preflight  # noqa: PLC0415

    def say(*why: str, blocks: bool = False) -> None:
        found = (Finding(Check.MODULES, "mlx5_vdpa uses it", "it fails", "end it", blocks=blocks),)
        monkeypatch.setattr(Preflight, "findings", lambda _self: found)
        monkeypatch.setattr(NicDriver, "outdated", lambda _self: why)

    monkeypatch.setattr(machine, "machine_id", lambda: SNAPSHOT.machine_id)
    return say


def test_reload_dry_run(
    node: Callable[[Snapshot], None],
    preflight: Callable[..., None],
    capsys: Captured,
    tmp_path: Path,
) -> None:
    node(SNAPSHOT)
    preflight("mlx5_core is loaded as OLD, installed is NEW")
    assert status_of(["reload", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        "# reload: mlx5_core is loaded as OLD, installed is NEW",
        "# warns: modules: mlx5_vdpa uses it",
        "#   why: it fails",
        "#   do: end it",
        "# afterwards:",
    ]
    assert "echo 2 > /sys/bus/pci/devices/0000:01:00.0/sriov_numvfs" in lines
    preflight("mlx5_core is loaded as OLD, installed is NEW", blocks=True)
    assert status_of(["reload", "--dry-run", "-o", "json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["reload"], said["blocks"], said["unfinished"]) == (True, True, None)
    assert said["findings"][0]["remedy"] == "end it"
    assert said["actions"] > 3
    assert list(tmp_path.iterdir()) == []


def test_reload_dry_run_with_nothing_to_do(
    node: Callable[[Snapshot], None], preflight: Callable[..., None], capsys: Captured
) -> None:
    node(SNAPSHOT)
    preflight()
    assert status_of(["reload", "--dry-run"]) == 0
    assert capsys.readouterr().out == "# nothing to do: the loaded driver is the installed one\n"
    assert status_of(["reload", "--dry-run", "--probe", "10.0.0.1"]) == 64


def test_reload_dry_run_of_an_unfinished_reload(
    node: Callable[[Snapshot], None],
    preflight: Callable[..., None],
    capsys: Captured,
    settings: Settings,
) -> None:
    preflight()
    node(changed(trust=False))
    Journal(settings).save(SNAPSHOT)
    assert status_of(["reload", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"# an earlier reload is unfinished: its snapshot is of {SNAPSHOT.taken_at}",
        "# afterwards:",
        "# set VFs",
        "ip link set dev ens1f0np0 vf 0 trust on",
    ]
    Journal(settings).set_aside()
    Journal(settings).save(dataclasses.replace(SNAPSHOT, machine_id="f" * 32))
    assert status_of(["reload", "--dry-run"]) == 65
    assert "taken on another machine" in capsys.readouterr().err


@pytest.fixture
def terminated(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The descriptors that lifecycle.terminate was called with."""
    calls: list[object] = []
    monkeypatch.setattr(lifecycle, "terminate", lambda _settings, fd, _since: calls.append(fd))
    return calls


def test_terminate_by_hand_without_a_terminal(
    terminated: list[object], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert status_of(["terminate"]) == 1
    assert "--yes is missing: the ready flag" in capsys.readouterr().err
    assert terminated == []
    assert status_of(["terminate", "--yes"]) == 0
    assert status_of(["terminate", "--lock-fd", "7"]) == 0
    assert terminated == [None, 7]


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("n", 1), ("", 1)])
def test_terminate_by_hand_asks(
    terminated: list[object], monkeypatch: pytest.MonkeyPatch, answer: str, status: int
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _text: sys.stdin.readline())
    assert status_of(["terminate"]) == status
    assert len(terminated) == (status == 0)


def test_a_termination_that_did_nothing_is_not_the_nodes_phase(
    settings: Settings, capsys: Captured, modules: Callable[[str, str], None]
) -> None:
    modules("8EB2", "8EB2")

    def phase() -> str:
        status_of(["status", "-o", "json"])
        return str(json.loads(capsys.readouterr().out)["phase"])

    def terminate(*, driver: bool = False) -> None:
        journal = Journal(settings)
        journal.note(Note.RUN, mode="terminate")
        if driver:
            with journal.step(Step.RESTORE):
                pass
        journal.note(Note.TERMINATED)

    terminate()
    assert phase() == "no run on record"
    with pytest.raises(errors.KernelError), Journal(settings).step(Step.RESTART):
        raise errors.KernelError("no driver")
    terminate()
    assert phase() == "failed in restart"
    terminate(driver=True)
    assert phase() == "stopped"


# status, timeline, settings


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None, str | None], None]:
    """Say what srcversions mlx5_core has, installed and loaded."""
    from nodeagent.driver.nic import NicDriver, SrcVersions  # noqa: PLC0415

    def say(installed: str | None, loaded: str | None) -> None:
        found = (SrcVersions("mlx5_core", installed, loaded),)
        monkeypatch.setattr(NicDriver, "srcversions", lambda self: found)

    return say


def test_status_when_ready(
    settings: Settings, capsys: Captured, modules: Callable[[str, str], None]
) -> None:
    modules("8EB2", "8EB2")
    Journal(settings).set_ready()
    with lock(settings.lock_path):
        assert status_of(["status"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "phase     ready",
        "ready     yes",
        f"agent     process {os.getpid()}",
        "",
        "srcversion  installed  loaded",
        "mlx5_core   8EB2       8EB2",
    ]


def test_status_says_what_is_missing(
    settings: Settings, capsys: Captured, modules: Callable[[str, str], None]
) -> None:
    modules("1069", "8EB2")
    journal = Journal(settings)
    journal.save(SNAPSHOT)
    with pytest.raises(errors.KernelError), journal.step(Step.RESTART):
        raise errors.KernelError("no driver\nnone at all")
    assert status_of(["status"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "phase     failed in restart",
        "ready     no",
        "agent     none: no process holds the lock",
        "snapshot  open, taken 2026-11-21T12:03:04Z: 1 PFs, 2 VFs",
        "",
        "srcversion  installed  loaded",
        "mlx5_core   1069       8EB2",
        "",
        "not ready:",
        f"  {settings.ready_path} is not there",
        "  mlx5_core is loaded as 8EB2, installed is 1069",
        "  a reload is in progress: the VFs are not verified to be as they were",
        "  the last run failed: no driver",
        "  none at all",
    ]


def test_status_of_an_agent_at_work(
    settings: Settings, capsys: Captured, modules: Callable[[str, str], None]
) -> None:
    modules("1069", "8EB2")
    with lock(settings.lock_path), Journal(settings).step(Step.BUILD):
        assert status_of(["status", "--output", "json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["phase"], said["agent"]) == ("running in build", os.getpid())
    assert said["srcversions"] == [{"module": "mlx5_core", "installed": "1069", "loaded": "8EB2"}]


def test_status_of_a_node_where_nothing_ever_ran(
    capsys: Captured, tmp_path: Path, modules: Callable[[str, str], None]
) -> None:
    modules("8EB2", "8EB2")
    assert status_of(["status"]) == 1
    assert capsys.readouterr().out.startswith("phase     no run on record\n")
    assert list(tmp_path.iterdir()) == []


def test_status_of_what_cannot_be_read_is_a_line_and_not_an_end(
    settings: Settings, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nodeagent.driver.nic import NicDriver  # noqa: PLC0415

    def fail(self: object) -> None:
        raise errors.UnavailableError("there is no modinfo")

    monkeypatch.setattr(NicDriver, "srcversions", fail)
    journal = Journal(settings)
    journal.set_ready()
    journal.save(SNAPSHOT)
    journal.open_path.write_text("{")
    assert status_of(["status"]) == 0
    said = capsys.readouterr().out
    assert "could not be read:\n  there is no modinfo\n" in said
    assert "open-snapshot.json is damaged" in said


def test_status_watch(settings: Settings, tmp_path: Path) -> None:
    """As a program, whose events are files of another process: this one."""
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    journal = Journal(settings)
    watching = subprocess.Popen(
        [sys.executable, "-m", "nodeagent", "status", "--watch", "-o", "json"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None

    def said() -> tuple[str, bool]:
        assert watching.stdout is not None
        plain = json.loads(watching.stdout.readline())
        return plain["phase"], plain["ready"]

    with watching.stdout:
        assert said() == ("no run on record", False)
        with lock(settings.lock_path), journal.step(Step.BUILD):
            while (now := said()) != ("running in build", False):
                assert now == ("working, nothing on record yet", False)  # locked, not yet noted
        journal.set_ready()
        while (now := said()) != ("ready", True):
            assert now[0] in {"cut short", "running", "running in build", "cut short in build"}
        journal.clear_ready()
        assert said()[1] is False
        watching.send_signal(signal.SIGINT)
        assert watching.stdout.read() == ""
    assert watching.wait(timeout=30) == 1


def test_timeline(settings: Settings, capsys: Captured) -> None:
    assert status_of(["timeline"]) == 0
    assert capsys.readouterr().out.startswith("no run on record")
    for mode in ("sources", "precompiled"):
        journal = Journal(settings)
        journal.note(Note.RUN, mode=mode)
        with journal.step(Step.BUILD):
            pass
        journal.note(Note.READY)
    assert status_of(["timeline"]) == 0
    last = capsys.readouterr().out
    assert "precompiled" in last
    assert "sources" not in last
    assert status_of(["timeline", "--last", "5", "--output", "json"]) == 0
    runs = json.loads(capsys.readouterr().out)
    assert [run["mode"] for run in runs] == ["sources", "precompiled"]
    assert runs[0]["phases"][0]["name"] == "build"


def test_settings_shows_what_is_set(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVER_MODULE", "netdevsim")
    monkeypatch.setenv("MLX5_AUXILIARY_MODULES", "")
    assert status_of(["settings"]) == 0
    text = capsys.readouterr().out
    said = "DRIVER_MODULE  netdevsim\n    default: mlx5_core\n    the driver to reload; "
    assert f"\n{said}" in text
    assert "MLX5_AUXILIARY_MODULES  (none)\n    default: mlx5_vdpa mlx5_fwctl " in text
    assert "VF_TIMEOUT" not in text
    assert status_of(["settings", "--all"]) == 0
    text = capsys.readouterr().out
    assert "\nVF_TIMEOUT  150\n    time limit for every VF" in text
    assert "\nNVIDIA_NIC_DRIVER_PATH  -\n" in text
    names = re.findall(r"^(\w+)  ", text, re.MULTILINE)
    assert names == [row.name for _, row in rows()]


def test_settings_in_json(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIVER_MODULE", "netdevsim")
    monkeypatch.setenv("MLX5_AUXILIARY_MODULES", "")
    assert status_of(["settings", "-o", "json", "--all"]) == 0
    found = {row["variable"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["OFED_BLACKLIST_MODULES"]["value"].startswith("mlx5_core:mlx5_ib:")
    assert found["DRIVER_MODULE"]["default"] == "mlx5_core"
    assert found["DRIVER_MODULE"]["origin"] == "environment"
    assert found["PF_TIMEOUT"]["origin"] == "default"
    assert found["MLX5_AUXILIARY_MODULES"]["value"] == ""
    absent = found["NVIDIA_NIC_DRIVER_PATH"]
    assert (absent["value"], absent["default"], absent["unit"]) == (None, None, None)
    assert status_of(["settings", "-o", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) < len(found)


def test_settings_on_a_terminal_are_never_cut(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("OFED_BLACKLIST_MODULES", ":".join(["mlx5_core"] * 20))
    assert status_of(["settings", "--all"]) == 0
    text = capsys.readouterr().out
    assert "…" not in text
    assert ":".join(["mlx5_core"] * 20) in text
    longest = [line for line in text.splitlines() if len(line) > 80]
    assert all(not line.startswith(" ") or " " not in line.strip() for line in longest[1:])


def test_preflight_is_wrapped_and_what_blocks_is_in_colour(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nodeagent.driver.findings import Check, Finding  # noqa: PLC0415
    from nodeagent.driver.preflight import Preflight  # noqa: PLC0415

    found = (
        Finding(Check.MODULES, "mlx5_vdpa uses it", "it fails " * 12, "unload it", blocks=True),
        Finding(Check.DISK, "little room", "it may fill up", "", blocks=False),
    )
    monkeypatch.setattr(Preflight, "findings", lambda _self: found)
    assert status_of(["preflight"]) == 1
    plain = capsys.readouterr().out
    assert plain.splitlines() == [
        "BLOCKS  modules: mlx5_vdpa uses it",
        f"        why: {'it fails ' * 12}",
        "        do:  unload it",
        "warns   disk: little room",
        "        why: it may fill up",
        "2 findings, 1 of them block a reload",
    ]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR")
    assert status_of(["preflight"]) == 1
    text = capsys.readouterr().out
    assert text.startswith("\x1b[1;31mBLOCKS\x1b[0m  modules: ")
    assert max(map(len, text.splitlines()[1:])) <= 60
    assert re.search(r"^ {8}why: it fails .*\n {13}\S", text, re.MULTILINE)
    assert text.replace("\x1b[1;31m", "").replace("\x1b[0m", "").split() == plain.split()


# The program as a program


def program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "nodeagent", *arguments],
        cwd=ROOT,
        capture_output=options.pop("capture_output", True),
        timeout=30,
        check=False,
        **options,
    )


HEAVY = {"pyudev", "psutil"}


@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["timeline"], ["settings"]])
def test_what_is_heavy_is_not_imported_to_look(arguments: list[str]) -> None:
    code = (
        f"import sys; from nodeagent.cli.main import status_of; status_of({arguments!r}); "
        "print('imported:', *sys.modules)"
    )
    out = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    imported = set(out.partition("imported:")[2].split())
    assert not HEAVY & imported
    if arguments == ["--help"]:
        assert not {"nodeagent.record.journal", "nodeagent.state.model", "subprocess"} & imported


NOT_BEFORE_A_LOOK = HEAVY | {
    "asyncio",
    "hashlib",
    "kubernetes",
    "nodeagent.agent.lifecycle",
    "nodeagent.driver.delivery",
    "nodeagent.node.perform",
    "nodeagent.plan.actions",
    "nodeagent.plan.plan",
    "subprocess",
}

FIRST_LOOK = """
import os, sys

def look(event, args):
    if event == "socket.__new__" and args[1] == 16:  # AF_NETLINK
        status = open("/proc/self/status").read()
        print(status.partition("VmRSS:")[2].split()[0], *sys.modules, flush=True)
        os._exit(0)

sys.addaudithook(look)
os.geteuid = lambda: 0
sys.argv[0] = "nodeagent"
from nodeagent.cli.main import main
main()
"""


@pytest.mark.parametrize("command", ["snapshot", "plan", "verify", "restore"])
def test_a_look_at_the_node_starts_with_what_it_needs(command: str, tmp_path: Path) -> None:
    """At its first netlink socket: 50 modules of ours, 20 MiB."""
    pf = Pf(DeviceHandle("pci", "0000:01:00.0"), numvfs=0)
    state = NodeState("mlx5_core", (pf,))
    at = "2026-11-29T06:00:00.000+00:00"
    kept = Snapshot(at, machine.machine_id(), machine.boot_id(), "6.12", (), state)
    file = tmp_path / "snapshot.json"
    file.write_text(snapshot_to_json(kept))
    source = () if command == "snapshot" else ("--snapshot", str(file))
    out = subprocess.check_output(
        [sys.executable, "-c", FIRST_LOOK, command, *source],
        cwd=ROOT,
        text=True,
        env={**os.environ, "STATE_DIR": str(tmp_path)},
    )
    resident, *imported = out.split()
    assert not NOT_BEFORE_A_LOOK & {*imported}
    assert int(resident) <= 25 * 1024


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as out:
        done = program("settings", capture_output=False, stdout=out, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_behind_stdout_is_said() -> None:
    with Path("/dev/full").open("wb") as full:
        done = program("settings", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 74
    assert b"cannot write to stdout: No space left on device" in done.stderr


def test_a_terminal_of_another_alphabet() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    assert program("--help", env=environment).returncode == 0


def test_main_exits_with_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["nodeagent", "nonsense"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 64


def test_two_snapshots_compared(capsys: Captured, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text(snapshot_to_json(SNAPSHOT))
    two.write_text(snapshot_to_json(changed(vlan=200, trust=None, query_rss=True)))
    assert status_of(["snapshot", "--diff", str(one), str(two)]) == 1
    said = capsys.readouterr().out
    for attribute, a, b in (("vlan", "100", "200"), ("trust", "True", "unknown")):
        assert re.search(rf"vf 0 +{attribute} +{a} +{b}$", said, re.MULTILINE)
    assert re.search(r"vf 0 +query_rss +unknown +True$", said, re.MULTILINE)
    assert status_of(["snapshot", "--diff", str(one), str(one)]) == 0
    assert capsys.readouterr().out == "nothing differs\n"


def test_two_snapshots_compared_in_json(capsys: Captured, tmp_path: Path) -> None:
    one, two, out = (tmp_path / name for name in ("one", "two", "out"))
    one.write_text(snapshot_to_json(SNAPSHOT))
    two.write_text(snapshot_to_json(changed(vlan=200, trust=None)))
    arguments = ["snapshot", "--diff", str(one), str(two), "--output", "json"]
    assert status_of(arguments) == 1
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "same": False,
        "differences": [
            {"target": "pci/0000:01:00.0 vf 0", "attribute": "trust", "first": True}
            | {"second": "unknown"},
            {"target": "pci/0000:01:00.0 vf 0", "attribute": "vlan", "first": 100, "second": 200},
        ],
    }
    assert status_of([*arguments, "--file", str(out)]) == 1
    assert json.loads(out.read_text()) == said
    assert status_of(["snapshot", "--diff", str(one), str(one), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"same": True, "differences": []}


def test_a_snapshot_compared_with_what_is_none(capsys: Captured, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.write_text(snapshot_to_json(SNAPSHOT))
    missing = str(tmp_path / "none")
    assert status_of(["snapshot", "--diff", str(one), missing]) == errors.ExitCode.NO_INPUT
    assert "none" in capsys.readouterr().err


def test_the_timeline_as_a_chart(capsys: Captured) -> None:
    assert status_of(["timeline", "--output", "svg"]) == 0
    assert "<svg xmlns=" in capsys.readouterr().out
