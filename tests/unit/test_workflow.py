"""The public runner's workflow: what a linter would say of it, and that what it runs is there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yaml"))
JOB = {"runs-on", "timeout-minutes", "container", "env", "strategy", "steps"}
STEP = {"name", "run", "uses", "with", "env", "if"}
Object = dict[str, Any]


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> Object:
    path: Path = request.param
    told: Object = yaml.safe_load(path.read_text())
    told["on"] = told.pop(True)  # type: ignore[call-overload]  # YAML 1.1: `on` is a boolean
    return told


def steps(workflow: Object) -> Iterator[tuple[Object, Object]]:
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            yield job, step


def test_its_form(workflow: Object) -> None:
    assert workflow.keys() == {"name", "on", "permissions", "jobs"}
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job.keys() <= JOB
        assert job["timeout-minutes"] <= 120
    for _, step in steps(workflow):
        assert step.keys() <= STEP
        assert ("run" in step) != ("uses" in step), step
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))


def test_each_line_is_one_for_a_shell(workflow: Object) -> None:
    for job, step in steps(workflow):
        line = step.get("run", "")
        for name in re.findall(r"\$\{\{ *(.*?) *\}\}", line):
            word = re.fullmatch(r"matrix\.(\w+)", name)
            assert word, name
            assert job["strategy"]["matrix"][word[1]]
        done = subprocess.run(
            ["bash", "-n"],
            input=re.sub(r"\$\{\{.*?\}\}", "word", line),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_what_it_runs_is_there(workflow: Object) -> None:
    ran = {
        name
        for _, step in steps(workflow)
        for name in re.findall(r"(?<![\w/])((?:scripts|tests)/[\w./-]+)", step.get("run", ""))
    }
    assert {"scripts/test", "scripts/image", "tests/lab/test_netdevsim.py"} <= ran
    for name in ran:
        assert (ROOT / name).exists(), name


def test_it_has_what_the_machine_here_may_lack(workflow: Object) -> None:
    """An API server, the public bases, and a kernel's own netdevsim, as root."""
    everything, public, netdevsim = workflow["jobs"].values()
    assert everything["env"]["CI"] == "true"  # what is absent is then a failure
    assert "KUBEBUILDER_ASSETS" in everything["env"]
    text = (ROOT / "Containerfile").read_text()
    default = re.search(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert default
    assert default[1] in public["strategy"]["matrix"]["base"]
    lines = [step.get("run", "") for step in netdevsim["steps"]]
    assert any("modprobe netdevsim" in line for line in lines)
    assert any(line.startswith("sudo ") and "test_netdevsim.py" in line for line in lines)
