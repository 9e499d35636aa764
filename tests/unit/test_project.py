"""What surrounds the code: hooks, forms and settings name what is there."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FORMS = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yaml"))


def loaded(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def test_the_hooks_are_the_linters() -> None:
    """And nothing of a hook is fetched from elsewhere."""
    (repository,) = loaded(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks = [shlex.split(hook["entry"]) for hook in repository["hooks"]]
    assert {program for program, *_ in hooks} == {"scripts/lint"}
    code = "from suite.checks import linters; from pathlib import Path as P\n"
    code += "print(*(check.name for check in linters(P(), P())), sep='\\n')"
    argv = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    there = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert [name for _, name in hooks] == there.stdout.splitlines()


def test_a_second_signal_while_the_suite_ends() -> None:
    """timeout(1) sends SIGTERM twice: what runs is ended once."""
    code = (
        "import os, signal\n"
        "from suite.__main__ import stop_by_signals\n"
        "class Lanes:\n"
        "    def end(self):\n"
        "        print('ends', flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "stop_by_signals(Lanes())\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "scripts")}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.stdout, ended.returncode) == ("ends\n", 128 + signal.SIGTERM)


def test_a_linter_that_there_is_not() -> None:
    argv = [str(ROOT / "scripts/lint"), "spelling"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no linter spelling: there are ruff format, " in done.stderr


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_is_one(path: Path) -> None:
    """GitHub shows a form only if each field has an id of its own, a known type and a label."""
    form = loaded(path)
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) > 0
    for field in form["body"]:
        assert field["type"] in {"input", "textarea", "dropdown", "checkboxes"}
        assert field["attributes"]["label"]
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_dependabot_looks_where_something_is() -> None:
    for update in loaded(ROOT / ".github/dependabot.yml")["updates"]:
        named = {"github-actions": ".github/workflows", "pip": "pyproject.toml"}
        assert (ROOT / named[update["package-ecosystem"]]).exists()
        assert update["directory"] == "/"


def test_the_package_is_typed_and_licensed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (ROOT / "nodeagent/py.typed").read_bytes() == b""
    assert project["license"] == "Apache-2.0"
    assert "version" in project["dynamic"]
    assert (ROOT / project["license-files"][0]).read_text().count("Apache License") > 0
    assert not any(each.startswith("License ::") for each in project["classifiers"])  # PEP 639


def test_editors_are_told_what_the_linters_ask_for() -> None:
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    assert f"max_line_length = {ruff['line-length']}\n" in (ROOT / ".editorconfig").read_text()
