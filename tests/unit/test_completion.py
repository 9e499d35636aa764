"""What a shell completes: asked as its script asks, and in a real bash."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nodeagent import cli
from nodeagent.cli.main import status_of

ROOT = Path(cli.__file__).resolve().parents[2]
SHELLS = ("bash", "zsh", "fish")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """`nodeagent` as a shell finds it."""
    path = tmp_path / "bin/nodeagent"
    path.parent.mkdir()
    run = f"PYTHONPATH={shlex.quote(str(ROOT))} exec {shlex.quote(sys.executable)} -m nodeagent"
    path.write_text(f'#!/bin/sh\n{run} "$@"\n')
    path.chmod(0o755)
    return path


def completed(program: Path, *words: str) -> list[str]:
    """The words that bash would offer, or the kinds of them: file."""
    given = {
        "COMP_WORDS": " ".join(("nodeagent", *words)),
        "COMP_CWORD": str(len(words)),
        "_NODEAGENT_COMPLETE": "bash_complete",
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("KUBE")}
    done = subprocess.run(
        [program], env=environment | given, capture_output=True, text=True, check=True, timeout=60
    )
    pairs = [line.split(",", 1) for line in done.stdout.split()]
    return [word if kind == "plain" else kind for kind, word in pairs]


def test_commands_options_and_formats(program: Path) -> None:
    assert completed(program, "re") == ["reload", "restore"]
    assert completed(program, "network", "c") == ["check"]
    assert completed(program, "verify", "--sn") == ["--snapshot"]
    assert completed(program, "timeline", "-o", "") == ["text", "json", "markdown", "svg"]
    assert completed(program, "completion", "") == [*SHELLS]
    assert "--lock-fd" not in completed(program, "terminate", "--")


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "--snapshot"),
        ("plan", "--snapshot"),
        ("restore", "--snapshot"),
        ("snapshot", "--file"),
        ("snapshot", "--diff"),
        ("snapshot", "--diff", "one"),
        ("operator", "capture", "--file"),
        ("operator", "restore"),
    ],
)
def test_files(program: Path, words: tuple[str, ...]) -> None:
    assert completed(program, *words, "/etc/ma") == ["file"]


def test_names_of_nodes_without_an_api_server(program: Path) -> None:
    """It says nothing, and nothing goes wrong."""
    assert completed(program, "network", "check", "--node", "") == []


def test_a_real_bash(program: Path) -> None:
    script = "; ".join(
        (
            "source <(nodeagent completion bash)",
            "COMP_WORDS=(nodeagent device-plugin r) COMP_CWORD=2",
            "_nodeagent_completion nodeagent",
            'echo "${COMPREPLY[@]}"; complete -p nodeagent',
        )
    )
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    words, how = done.stdout.splitlines()
    assert words.split() == ["record", "restart"]
    assert how.endswith("-F _nodeagent_completion nodeagent")
    assert done.stderr == ""


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_of_that_shell(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert f"_NODEAGENT_COMPLETE={shell}_complete" in text
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine to read it")
    path = tmp_path / "script"
    path.write_text(text)
    done = subprocess.run([shell, "-n", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["completion", "csh"]) == 64
    assert "'csh' is not one of" in capsys.readouterr().err
