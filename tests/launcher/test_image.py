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


def test_a_public_base_is_given_to_the_engine_there_is(tmp_path: Path) -> None:
    engine = tmp_path / "podman"
    engine.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/calls\n')
    engine.chmod(0o755)
    done = subprocess.run(
        [ROOT / "scripts/image", "--base", "debian:12-slim", "--target", "driver"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=False,
    )
    assert done.returncode == 0
    built, tried = (tmp_path / "calls").read_text().splitlines()
    assert "--target driver --build-arg BASE=debian:12-slim --tag nodeagent:driver" in built
    assert tried.endswith("nodeagent:driver --help")
