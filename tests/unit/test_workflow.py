"""The public runner's workflows: what a linter would say of them, and what they run is there."""

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
ORDER = {"needs", "permissions"}
STEP = {"name", "run", "uses", "with", "env", "if", "working-directory"}
Object = dict[str, Any]


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> Object:
    return loaded(request.param)


def loaded(path: Path) -> Object:
    told: Object = yaml.safe_load(path.read_text())
    told["on"] = told.pop(True)  # type: ignore[call-overload]  # YAML 1.1: `on` is a boolean
    return told


def named(stem: str) -> Object:
    return loaded(ROOT / f".github/workflows/{stem}.yaml")


def steps(workflow: Object) -> Iterator[tuple[Object, Object]]:
    for job in workflow["jobs"].values():
        for step in job.get("steps", ()):
            yield job, step


def test_its_form(workflow: Object) -> None:
    assert workflow.keys() == {"name", "on", "permissions", "jobs"}
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        if "uses" in job:
            assert job.keys() == {"uses"}
            assert (ROOT / job["uses"]).is_file()
            continue
        assert job.keys() <= JOB | ORDER
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
    assert ran
    for name in ran:
        assert (ROOT / name).exists(), name


def test_a_release_is_tested_before_it_is_made_and_made_before_it_is_published() -> None:
    assert "workflow_call" in named("test")["on"]
    workflow = named("release")
    jobs = workflow["jobs"]
    assert jobs["test"] == {"uses": "./.github/workflows/test.yaml"}
    assert (jobs["make"]["needs"], jobs["publish"]["needs"]) == ("test", "make")
    lines = [step.get("run", "") for _, step in steps(workflow)]
    (call,) = (line for line in lines if line.startswith("scripts/release"))
    argv = [str(ROOT / "scripts/release"), "--help"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    options = [word for word in call.split() if word.startswith("--")]
    assert options == ["--tag", "--out"]
    assert all(option in said for option in options)


def test_it_has_what_the_machine_here_may_lack() -> None:
    """An API server, the public bases, and a kernel's own netdevsim, as root."""
    workflow = named("test")
    ran = " ".join(step.get("run", "") for _, step in steps(workflow))
    assert all(each in ran for each in ("scripts/test", "scripts/image", "test_netdevsim.py"))
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
