"""The archive for a ticket: what is in it, and what is not."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from nodeagent import machine
from nodeagent.agent import by_hand
from nodeagent.agent.support import COMMANDS, archive
from nodeagent.cli.main import status_of
from nodeagent.driver.nic import NicDriver, SrcVersions
from nodeagent.driver.preflight import Preflight
from nodeagent.errors import KernelError, UnavailableError
from nodeagent.kernel import process
from nodeagent.kernel.process import Finished
from nodeagent.record.journal import Journal, Note
from nodeagent.settings import Settings
from tests.unit.test_cli import SNAPSHOT

MINE = "0123456789abcdef" * 2
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlIn0.c2lnbmF0dXJl"
SECRETS = ("C1234-pro-token", "hunter2", JWT, MINE, "a" * 32, "swordfish", "open-sesame")


def said(argv: Sequence[str], **_: object) -> Finished:
    """What a command of the node prints; unit tests run none."""
    text = "mlx5_core 0000:01:00.0: ok\nusb 1-1: a disk" if argv[0] == "dmesg" else argv[0]
    return Finished(tuple(argv), int(argv[0] == "rdma"), text, "", 0.1)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A node whose journal, settings and snapshot have secrets in them."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(machine, "machine_id", lambda: MINE)
    monkeypatch.setattr(by_hand, "snapshot_now", lambda _settings: SNAPSHOT)
    monkeypatch.setattr(Preflight, "findings", lambda _self: ())
    versions = (SrcVersions("mlx5_core", "8EB2", "8EB2"),)
    monkeypatch.setattr(NicDriver, "srcversions", lambda _self: versions)
    monkeypatch.setattr(process, "run", said)
    for name in ("NODE_NAME", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    given = {
        "STATE_DIR": str(tmp_path / "state"),
        "LOCK_FILE_PATH": str(tmp_path / "lock"),
        "DRIVER_READY_PATH": str(tmp_path / "ready"),
        "UBUNTU_PRO_TOKEN": "C1234-pro-token",
        "APPEND_DRIVER_BUILD_FLAGS": "--repo https://me:hunter2@example.org/x --token=open-sesame",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    loaded = Settings.from_environment(os.environ)
    journal = Journal(loaded)
    journal.note(Note.RUN, mode="precompiled")
    journal.note(Note.FAILED, message=f"C1234-pro-token {JWT} on {MINE} with password: swordfish")
    journal.save(SNAPSHOT)
    return loaded


def entries(data: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        found = {}
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            assert (member.mode, member.name.startswith("nodeagent-support/")) == (0o600, True)
            found[member.name.removeprefix("nodeagent-support/")] = file.read().decode()
    return found


def test_what_is_in_it(settings: Settings) -> None:
    data, names = archive(settings, {"report.txt": lambda: "node a\n"})
    found = entries(data)
    assert [*found] == [*names]
    assert found["versions.txt"].startswith("nodeagent ")
    assert found["status.txt"].startswith("phase     failed")
    assert "precompiled" in found["timeline.txt"]
    assert json.loads(found["timeline.json"])[0]["result"] == "failed"
    assert json.loads(found["settings.json"])["STATE_DIR"] == str(settings.state_dir)
    assert json.loads(found["preflight.json"]) == []
    assert json.loads(found["snapshot.json"])["state"]["driver"] == "mlx5_core"
    assert json.loads(found["open-snapshot.json"])["snapshot"]["kernel"] == SNAPSHOT.kernel
    assert found["last-snapshot.json"] == "there is none\n"
    assert len(found["journal.jsonl"].splitlines()) == 2
    assert found["report.txt"] == "node a\n"
    assert set(COMMANDS) < set(found)
    assert found["ip-link.txt"].startswith("ip\n")
    assert "exit status 1" in found["rdma.txt"]
    assert found["dmesg.txt"] == "mlx5_core 0000:01:00.0: ok\n"


def test_nothing_secret(settings: Settings) -> None:
    """The machine-id, too: machine-id(5) says that it is confidential."""
    data, _ = archive(settings, {"report.txt": lambda: f"Authorization: Bearer {JWT}\n"})
    text = "\n".join(entries(data).values())
    assert [secret for secret in SECRETS if secret in text] == []
    assert "https://(withheld)@example.org/x" in text
    assert text.count("sha256:") >= 3


def test_what_cannot_be_had_is_said(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_settings: object) -> None:
        raise KernelError("the kernel says no")

    monkeypatch.setattr(by_hand, "snapshot_now", fail)

    def missing(argv: Sequence[str], **_: object) -> None:
        raise UnavailableError(f"cannot run {argv[0]}")

    monkeypatch.setattr(process, "run", missing)
    found = entries(archive(settings, {})[0])
    assert found["snapshot.json"] == "not available: the kernel says no\n"
    assert found["ip-link.txt"].startswith("not available: ")
    assert found["dmesg.txt"].startswith("not available: ")


def test_the_command(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ticket.tar.gz"
    assert status_of(["support-bundle", "-o", str(path), "--output", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == str(path)
    found = entries(path.read_bytes())
    assert told["entries"] == [*found]
    assert found["report.txt"].startswith("not available: NODE_NAME is not set")
    assert path.stat().st_mode & 0o777 == 0o600
    assert status_of(["support-bundle"]) == 64
    assert status_of(["support-bundle", "-o", "json"]) == 64
    assert "the format is --output json" in capsys.readouterr().err


def test_without_root(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert status_of(["support-bundle", "--file", str(tmp_path / "x")]) == 77
    assert not (tmp_path / "x").exists()
