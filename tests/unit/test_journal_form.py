"""What the journal's files are called and look like to others, and what people are told of them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.errors import BusyError, DataError, StorageError
from nodeagent.record import journal
from nodeagent.record import lock as locks
from nodeagent.record.journal import Journal, Note, seal, unseal
from nodeagent.record.lock import lock, lock_holders
from nodeagent.settings import Settings
from nodeagent.state.codec import snapshot_to_json
from nodeagent.state.model import NodeState, Snapshot

SNAPSHOT = Snapshot("2026-11-21T00:00:00+00:00", "m", "ünïcode", "6.1", (), NodeState("x", ()))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return replace(Settings(), state_dir=tmp_path / "state", ready_path=tmp_path / "run/ready")


@pytest.fixture
def kept(settings: Settings) -> Journal:
    return Journal(settings)


def test_the_names_that_others_know(kept: Journal, settings: Settings) -> None:
    kept.note(Note.DRIVER)
    kept.save(SNAPSHOT)
    assert sorted(p.name for p in settings.state_dir.iterdir()) == [
        "journal.jsonl",
        "open-snapshot.json",
    ]
    kept.close_snapshot()
    assert sorted(p.name for p in settings.state_dir.iterdir()) == [
        "journal.jsonl",
        "last-snapshot.json",
    ]
    kept.save(SNAPSHOT)
    assert kept.set_aside() == settings.state_dir / "set-aside-snapshot.json"
    assert not kept.has_open_snapshot()
    assert stat.S_IMODE(settings.state_dir.stat().st_mode) == 0o700
    assert re.fullmatch(r"[0-9a-f]{8}", kept.run)


def test_the_old_records_have_a_name_too(
    kept: Journal, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_clock", lambda: 1.5)  # each line is as long as the others
    kept.note(Note.READY)
    size = (settings.state_dir / "journal.jsonl").stat().st_size
    line = size  # the next line is of the same length
    monkeypatch.setattr(journal, "RECORDS_LIMIT_BYTES", size + line)
    kept.note(Note.DRIFT)
    assert not (settings.state_dir / "journal.old.jsonl").exists(), "at the limit is not beyond"
    kept.note(Note.PROBE)
    assert (settings.state_dir / "journal.old.jsonl").exists()
    assert [record.name for record in kept.records()] == ["ready", "drift", "probe"]


def test_a_record_line(kept: Journal, settings: Settings) -> None:
    kept.note(Note.DRIVER, what="it")
    kept.note(Note.DRIVER, what="it")
    lines = (settings.state_dir / "journal.jsonl").read_text().splitlines()
    plain = json.loads(lines[0])
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert [json.loads(line)["boot"] for line in lines] == [boot, boot]
    assert plain["clock"] == round(plain["clock"], 3)
    assert isinstance(plain["clock"], float)
    assert plain["pid"] == os.getpid()
    assert plain["facts"] == {"what": "it"}


def test_the_sealed_form_is_what_jq_and_sha256sum_make_of_it() -> None:
    text = seal(SNAPSHOT)
    assert text.startswith('{"sha256": "')
    assert text.endswith("}\n")
    plain = json.loads(text)
    assert list(plain) == ["sha256", "snapshot"]
    assert list(plain["snapshot"]) == sorted(plain["snapshot"])
    compact = json.dumps(
        plain["snapshot"], sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert "ünïcode" in compact
    assert hashlib.sha256(compact.encode()).hexdigest() == plain["sha256"]
    assert text == json.dumps(plain, sort_keys=True) + "\n"


def test_a_lone_surrogate_has_a_sum_as_well() -> None:
    odd = replace(SNAPSHOT, kernel="\udc80")
    assert unseal(seal(odd).encode(), "file", sealed=True) == odd


DAMAGED_HINT = (
    "nodeagent restores nothing from it. If it cannot be repaired, move it away and set up the "
    "node's VFs again before the next reload"
)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not JSON: Expecting value: line 1 column 1 (char 0)"),
        (seal(SNAPSHOT).encode()[:100], "not JSON: "),
        (snapshot_to_json(SNAPSHOT).encode(), "it has no checksum"),
        (
            seal(SNAPSHOT).replace('"6.1"', '"6.2"').encode(),
            "its checksum does not match its content",
        ),
    ],
)
def test_what_is_said_of_a_damaged_one(data: bytes, why: str) -> None:
    with pytest.raises(DataError) as caught:
        unseal(data, "/state/open-snapshot.json", sealed=True)
    assert caught.value.message.startswith(f"/state/open-snapshot.json is damaged: {why}")
    assert caught.value.hint == DAMAGED_HINT


def test_one_whose_content_is_wrong_is_named(tmp_path: Path) -> None:
    plain = json.loads(snapshot_to_json(SNAPSHOT))
    plain["schema"] = 999
    text = json.dumps({"sha256": journal._sum(plain), "snapshot": plain})
    with pytest.raises(DataError, match=r"^/state/x is not a snapshot.*schema is 999"):
        unseal(text.encode(), "/state/x", sealed=True)


def test_what_is_said_when_one_is_open(kept: Journal) -> None:
    kept.save(SNAPSHOT)
    with pytest.raises(StorageError) as caught:
        kept.save(SNAPSHOT)
    assert caught.value.message == (
        f"cannot save a snapshot: {kept.open_path} exists, so a reload is in progress"
    )
    assert caught.value.hint == "run `nodeagent reload` to finish that reload"


def test_what_is_said_when_it_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    told = "see `nodeagent status`; to end an agent in a pod, delete the pod"
    for holders, who in (
        ((1,), "process 1"),
        ((0,), "a process in another container"),
        ((0, 7), "process 7"),
    ):
        monkeypatch.setattr(locks, "lock_holders", lambda _, found=holders: found)
        with lock(path), pytest.raises(BusyError) as caught, lock(path):
            pass
        assert caught.value.message == f"{path} is locked by {who}: another agent runs on this node"
        assert caught.value.hint == told


def test_a_waiter_in_proc_locks_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    facts = path.stat()
    where = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino} 0 EOF"
    (tmp_path / "locks").write_text(
        f"1: FLOCK ADVISORY WRITE 812 {where}\n1: -> FLOCK ADVISORY WRITE 813 {where}\n"
    )
    for pid in ("812", "813"):
        (tmp_path / pid).mkdir()
    assert lock_holders(path, tmp_path) == (812,)


def test_lines_that_are_none_are_left_out_and_counted(
    kept: Journal, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    kept.note(Note.DRIVER)
    path = settings.state_dir / "journal.jsonl"
    good = path.read_text()
    plain = json.loads(good)
    odd = [
        plain | {"at": "2026-11-21T00:00:00"},
        plain | {"at": "yesterdayZ"},
        plain | {"kind": "whim"},
        plain | {"clock": "soon"},
        plain | {"pid": "one"},
        plain | {"facts": {"a": 1}},
        plain | {"facts": []},
        plain | {"more": 1},
    ]
    path.write_text(good + "".join(json.dumps(each) + "\n" for each in odd) + '{"torn')
    caplog.set_level(logging.DEBUG, logger="nodeagent.record.journal")
    assert [record.name for record in kept.records()] == ["driver"]
    assert f"{path}: 9 lines are not records" in caplog.text
    caplog.clear()
    path.write_text(good)
    assert len(kept.records()) == 1
    assert "are not records" not in caplog.text


def test_a_disk_that_takes_no_records_is_said_once(
    kept: Journal, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    settings.state_dir.write_text("in the way")
    kept.note(Note.RUN)
    kept.note(Note.READY)
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith(
        f"cannot write {settings.state_dir}/journal.jsonl, recording stops: "
        f"{settings.state_dir} is not a directory"
    )


def test_what_is_no_snapshot_is_named_whether_sealed_or_not() -> None:
    for sealed in (True, False):
        with pytest.raises(DataError, match=r"^saved\.json is "):
            unseal(b'{"schema": 2}', "saved.json", sealed=sealed)
