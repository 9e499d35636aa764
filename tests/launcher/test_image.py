"""scripts/image: it builds, a second call builds nothing, and what it made is an image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def image(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts/image", *arguments], capture_output=True, text=True, check=False
    )


def test_both_targets_are_built_and_tried() -> None:
    """The build itself refuses an image that is too large, too slow, or lacks something."""
    done = image()
    assert done.returncode == 0, done.stderr
    sys.stdout.write(done.stdout)
    for target in ("sidecar", "driver"):
        assert f"nodeagent:{target}  " in done.stdout
    began = time.monotonic()
    again = image()
    assert again.stdout == done.stdout
    assert again.stderr == ""
    assert time.monotonic() - began < 10


def test_the_archive_is_an_oci_image() -> None:
    archive = image("--target", "driver", "--quiet").stdout.strip()
    with tarfile.open(archive) as tar:
        index = json.load(tar.extractfile("index.json") or pytest.fail("no index"))
        digest = index["manifests"][0]["digest"].replace(":", "/")
        manifest = json.load(tar.extractfile(f"blobs/{digest}") or pytest.fail("no manifest"))
    assert manifest["schemaVersion"] == 2
    assert len(manifest["layers"]) >= 1


ENGINE = """#!/bin/sh
# podman, as far as scripts/image calls it
echo "$*" >>{calls}
case "$1 $*" in
info*) exit {works} ;;
run*--help) echo "exactly as it was" ;;
run*" sources") echo "NVIDIA_NIC_DRIVER_VER is not set"; exit 1 ;;
run*" no-such-mode") echo "no-such-mode"; exit 64 ;;
run*" probe ready") echo "not ready: "; exit {ready} ;;
image*) echo 190000000 ;;
esac
"""


def on_a_public_base(
    tmp_path: Path, *, works: int = 0, ready: int = 1
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """scripts/image --base with an engine that answers so; and what it was asked."""
    calls = tmp_path / "calls"
    for name in ("podman", "docker", "buildah"):
        engine = tmp_path / name
        engine.write_text(ENGINE.format(calls=calls, works=works, ready=ready))
        engine.chmod(0o755)
    done = subprocess.run(
        [ROOT / "scripts/image", "--base", "debian:12-slim", "--target", "driver"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, calls.read_text().splitlines()


def test_a_public_base_is_given_to_the_engine_there_is(tmp_path: Path) -> None:
    done, (info, built, *tried, sized) = on_a_public_base(tmp_path)
    assert done.returncode == 0, done.stderr
    assert info == "info"
    assert built.startswith(
        "build --target driver --build-arg BASE=debian:12-slim --build-arg VERSION="
    )
    assert f"--tag nodeagent:driver --file {ROOT}/Containerfile {ROOT}" in built
    assert [words.partition("nodeagent:driver ")[2] for words in tried] == [
        *("--help", "sources", "no-such-mode", "probe ready")
    ]
    assert sized.startswith("image inspect ")
    assert done.stdout == "nodeagent:driver  190 MB unpacked\n"


def test_an_image_that_does_not_what_it_must_is_refused(tmp_path: Path) -> None:
    done, _ = on_a_public_base(tmp_path, ready=0)
    assert done.returncode == 125
    assert "probe ready exited 0, not 1" in done.stderr


def test_a_client_without_its_daemon_is_no_engine(tmp_path: Path) -> None:
    done, calls = on_a_public_base(tmp_path, works=1)
    assert done.returncode == 125
    assert calls == ["info"] * 3
    assert "none of podman, docker, buildah works here" in done.stderr
