"""scripts/test: checks beside each other, counted right, and none left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from suite.checks import (  # noqa: E402 - scripts/ is no installed package
    SWEEPS,
    WHOLE_SWEEPS,
    Check,
    connectx_files,
    in_the_node,
    marked,
    on_the_connectx,
    shell_files,
)
from suite.run import Lanes, judged  # noqa: E402 - likewise

pytestmark = pytest.mark.short

REPORT = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'


def python(name: str, code: str) -> Check:
    return Check(name, (sys.executable, "-c", code))


def test_every_file_of_the_labs_tests_is_in_a_check(tmp_path: Path) -> None:
    checks = list(in_the_node(ROOT, tmp_path, wide=True))
    given = {word for check in checks for word in check.argv if word.startswith("tests/lab/")}
    there = {f"tests/lab/{path.name}" for path in (ROOT / "tests/lab").glob("test_*.py")}
    assert given == there


def test_what_is_tested_on_the_connectx(tmp_path: Path) -> None:
    """All of its own tests, and of the others those that hold on both NICs."""
    checks = list(on_the_connectx(ROOT, tmp_path, wide=True))
    for check in checks:
        assert "--nic connectx" in " ".join(check.argv)
    given = {word for check in checks for word in check.argv if word.startswith("tests/lab/")}
    assert given == {*connectx_files(ROOT), *marked(ROOT, "both_nics")}


def test_without_a_qemu_for_it_the_check_fails(tmp_path: Path) -> None:
    said = "import sys; print('lab: cannot build the QEMU', file=sys.stderr); sys.exit(125)"
    check = Check("connectx 1/3", (sys.executable, "-c", said), tmp_path / "junit.xml")
    assert judged(check, 125, 1.0).failed == 1


@pytest.mark.parametrize(("sweeps", "sampled"), [(SWEEPS, {"phase"}), (WHOLE_SWEEPS, set())])
def test_every_sweep_is_in_one_scene_and_all_of_its_places_are(
    sweeps: tuple[tuple[str, str], ...], sampled: set[str]
) -> None:
    """But for scenes of which every fourth is enough, for the time that they take."""
    scenes = {scene for scene, _ in sweeps}
    for name in marked(ROOT, "sweep"):
        text = (ROOT / name).read_text()
        marked_one_by_one = "@pytest.mark.sweep\n" if "\n@pytest.mark.sweep\n" in text else ""
        for test in re.findall(rf"{marked_one_by_one}def (test_\w+)", text):
            assert len([scene for scene in scenes if scene in f"{name}::{test}"]) == 1, test
    for scene in scenes:
        shares = sorted(points for each, points in sweeps if each == scene)
        wanted = [f"{part}/{len(shares)}" for part in range(1, len(shares) + 1)]
        assert shares == (["1/4"] if scene in sampled else wanted)


def test_every_point_where_it_is_asked_for(tmp_path: Path) -> None:
    for every_point in (False, True):
        checks = [
            *in_the_node(ROOT, tmp_path, wide=False, every_point=every_point),
            *on_the_connectx(ROOT, tmp_path, wide=False, every_point=every_point),
        ]
        for check in checks:
            is_sweep = "--points" in check.argv
            assert ("--every-point" in check.argv) == (is_sweep and every_point)


@pytest.mark.parametrize(
    ("report", "status", "good", "counts"),
    [
        ((7, 0, 0, 2), 0, True, (5, 0, 2)),
        ((7, 1, 1, 0), 1, False, (5, 2, 0)),
        ((7, 1, 0, 0), 0, False, (6, 1, 0)),  # a status that lies
        ((7, 0, 0, 0), 3, False, (6, 1, 0)),  # ended badly after the last test
        ((0, 0, 0, 0), 5, False, (0, 1, 0)),  # nothing was tested
        (None, 0, False, (0, 1, 0)),  # it never got as far as a report
    ],
)
def test_what_a_report_says(
    tmp_path: Path,
    report: tuple[int, ...] | None,
    status: int,
    good: bool,
    counts: tuple[int, int, int],
) -> None:
    junit = tmp_path / "junit.xml"
    if report is not None:
        junit.write_text(REPORT.format(*report))
    result = judged(Check("unit", (), junit), status, 1.0)
    assert (result.good, (result.passed, result.failed, result.skipped)) == (good, counts)


def test_what_failed_is_named_with_its_reason(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="1" skipped="0">'
        '<testcase classname="tests.lab.test_x" name="test_a"/>'
        '<testcase classname="tests.lab.test_x" name="test_b">'
        '<failure message="AssertionError: not ready&#10;assert False">code</failure></testcase>'
        '<testcase classname="tests.lab.test_x" name="test_c"><error message=""/></testcase>'
        "</testsuite></testsuites>"
    )
    assert judged(Check("lab", (), junit), 1, 1.0).failures == (
        "tests.lab.test_x::test_b: AssertionError: not ready",
        "tests.lab.test_x::test_c: ?",
    )


def test_a_report_that_is_cut_is_a_failure(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    junit.write_text("<testsuites><testsu")
    assert not judged(Check("unit", (), junit), 0, 1.0).good


def test_two_run_at_a_time(tmp_path: Path) -> None:
    """Each waits until it sees the other, which it never would in one lane."""
    meet = "import os,time\nopen({!r},'w')\nwhile not os.path.exists({!r}): time.sleep(0.01)"
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    checks = [python("one", meet.format(one, two)), python("two", meet.format(two, one))]
    results = Lanes(2).run(checks)
    assert [(each.check.name, each.good) for each in results] == [("one", True), ("two", True)]


def test_a_linter_is_quiet_until_it_fails(capfd: pytest.CaptureFixture[str]) -> None:
    good, bad = python("good", "print('noise')"), python("bad", "print('why'); exit(1)")
    assert [result.good for result in Lanes(1).run([good, bad])] == [True, False]
    said = capfd.readouterr().out
    assert "noise" not in said
    assert "why" in said


def test_a_tool_that_is_missing_is_a_failure() -> None:
    (result,) = Lanes(1).run([Check("lint", ("/nonexistent/tool",))])
    assert (result.good, result.failed) == (False, 1)


def test_the_end_reaches_children_too(tmp_path: Path) -> None:
    child = tmp_path / "child"
    code = (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid))\n"
        "child.wait()"
    )
    lanes = Lanes(1)
    results: list[object] = []
    waiting = [python("long", code), python("never", "open('/nonexistent/x')")]
    thread = threading.Thread(target=lambda: results.extend(lanes.run(waiting)))
    thread.start()
    until = time.monotonic() + 20
    while not (child.exists() and child.read_text()) and time.monotonic() < until:
        time.sleep(0.01)
    lanes.end()
    thread.join(20)
    assert not thread.is_alive()
    assert len(results) == 2
    assert _gone(int(child.read_text()))


def _gone(pid: int) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # nobody's child any more; whoever is PID 1 here may not reap it
            return True
        time.sleep(0.01)
    return False


def test_a_signal_ends_the_command_itself(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "CI": "true"}
    process = subprocess.Popen(
        [sys.executable, "-m", "suite", "--no-lab"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM


def test_shell_scripts_are_told_by_their_first_line(tmp_path: Path) -> None:
    """Here without git, as in an archive of the tree."""
    for name, text in {
        "a": "#!/bin/bash\n",
        "b": "#!/usr/bin/env sh\n",
        "c": "#!/usr/bin/env python3\n",
        "d": "no script\n",
        "e": "",
    }.items():
        (tmp_path / name).write_text(text)
    assert sorted(shell_files(tmp_path)) == ["a", "b"]
