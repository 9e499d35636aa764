"""probe.sh: what a pod's probes answer, by each shell that an image may have as /bin/sh."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

import nodeagent
from nodeagent.settings import Settings

SCRIPT = Path(nodeagent.__file__).with_name("probe.sh")
SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)]


class Pod:
    """The files that the probes look at."""

    def __init__(self, directory: Path, shell: str) -> None:
        self.shell = shell
        self.ready = directory / "ready"
        self.beat = directory / "lock.beat"
        self.environment = {
            "DRIVER_READY_PATH": str(self.ready),
            "LOCK_FILE_PATH": str(directory / "lock"),
        }

    def last_beat(self, ago: float) -> None:
        self.beat.write_text(f"{int(time.clock_gettime(time.CLOCK_BOOTTIME) - ago):010d}\n")

    def probe(self, *which: str) -> tuple[int, str]:
        done = subprocess.run(
            [self.shell, str(SCRIPT), *which],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(params=SHELLS)
def pod(request: pytest.FixtureRequest, tmp_path: Path) -> Pod:
    return Pod(tmp_path, request.param)


def test_before_the_agent_has_begun(pod: Pod) -> None:
    for which in ("startup", "live", "ready"):
        status, said = pod.probe(which)
        assert status == 1
        assert said.startswith("not ready")
        assert len(said.splitlines()) == 1


def test_at_work(pod: Pod) -> None:
    pod.last_beat(ago=100)
    assert pod.probe("startup") == (0, "")
    assert pod.probe("live") == (0, "")
    assert pod.probe("ready") == (1, f"not ready: {pod.ready} is not there\n")


def test_a_hang(pod: Pod) -> None:
    pod.last_beat(ago=302)
    status, said = pod.probe("live")
    assert status == 1
    assert "no sign of life for 30" in said
    pod.environment["BEAT_LIMIT"] = "400.5"
    assert pod.probe("live") == (0, "")


def test_ready_needs_no_beat(pod: Pod) -> None:
    pod.ready.touch()
    for which in ("startup", "live", "ready"):
        assert pod.probe(which) == (0, "")
    pod.last_beat(ago=100_000)
    assert pod.probe("live") == (0, "")


@pytest.mark.parametrize("content", ["", "\n", "soon\n", "-1\n", "1;id\n"])
def test_a_beat_that_is_none(pod: Pod, content: str) -> None:
    pod.beat.write_text(content)
    status, said = pod.probe("live")
    assert status == 1
    assert "sign of life" in said


def test_a_beat_of_before_a_reboot(pod: Pod) -> None:
    """A hostPath may outlive the boot whose seconds it has."""
    pod.last_beat(ago=-1000)
    status, said = pod.probe("live")
    assert status == 1
    assert "hangs" in said


@pytest.mark.parametrize("words", [(), ("dead",), ("live", "ready"), ("",)])
def test_a_wrong_argument(pod: Pod, words: tuple[str, ...]) -> None:
    assert pod.probe(*words)[0] == 64


def test_its_defaults_are_those_of_the_settings() -> None:
    text = SCRIPT.read_text()
    settings = Settings()
    assert f"{{DRIVER_READY_PATH:-{settings.ready_path}}}" in text
    assert f"{{LOCK_FILE_PATH:-{settings.lock_path}}}.beat" in text
    assert settings.beat_path == Path(f"{settings.lock_path}.beat")
    assert f"{{BEAT_LIMIT:-{settings.beat_limit:g}}}" in text


@pytest.mark.parametrize("shell", SHELLS)
def test_it_starts_no_other_process(shell: str, tmp_path: Path) -> None:
    """Without a PATH there is nothing but the shell's own words."""
    pod = Pod(tmp_path, shutil.which(shell) or shell)
    pod.environment["PATH"] = "/nonexistent"
    pod.last_beat(ago=1)
    assert pod.probe("live") == (0, "")
    assert pod.probe("ready")[0] == 1
