"""The journal: what lasts, what is never overwritten, and evidence that stops nothing."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import logging
import os
import re
import select
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent import durable
from nodeagent.errors import BusyError, DataError, KernelError, Stopped, StorageError
from nodeagent.record import journal
from nodeagent.record import lock as locks
from nodeagent.record.journal import (
    Journal,
    Note,
    Record,
    Step,
    seal,
    unseal,
)
from nodeagent.record.lock import adopted, is_locked, lock, lock_holders
from nodeagent.settings import Settings
from nodeagent.state.addresses import Mac
from nodeagent.state.codec import snapshot_to_json
from nodeagent.state.model import DeviceHandle, NodeState, Pf, Snapshot, Vf

SNAPSHOT = Snapshot(
    taken_at="2026-11-21T12:03:04Z",
    machine_id="0123456789abcdef0123456789abcdef",
    boot_id="b",
    kernel="6.12",
    srcversions=(("mlx5_core", "8EB22241C05BC946606A6BC"),),
    state=NodeState(
        "mlx5_core",
        (
            Pf(
                DeviceHandle("pci", "0000:01:00.0"),
                numvfs=1,
                vfs=(Vf(0, admin_mac=Mac("02:00:00:00:00:01")),),
            ),
        ),
    ),
)


@pytest.fixture
def kept(tmp_path: Path) -> Journal:
    return Journal(
        Settings(ready_path=tmp_path / "drivers/.ready", state_dir=tmp_path / "drivers/state")
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_looking_makes_nothing(kept: Journal, tmp_path: Path) -> None:
    assert not kept.is_ready()
    assert not kept.has_open_snapshot()
    assert kept.open_snapshot() is None
    assert kept.last_snapshot() is None
    assert kept.records() == ()
    kept.clear_ready()
    kept.close_snapshot()
    assert list(tmp_path.iterdir()) == []


def test_the_ready_flag_is_empty_and_for_all_to_see(kept: Journal) -> None:
    kept.set_ready()
    assert kept.is_ready()
    assert kept.ready_path.read_bytes() == b""
    assert mode(kept.ready_path) == 0o644
    assert mode(kept.ready_path.parent) == 0o755
    kept.clear_ready()
    assert not kept.is_ready()


def test_clearing_tidies_up_after_a_killed_writer(kept: Journal) -> None:
    kept.set_ready()
    kept.save(SNAPSHOT)
    left = [
        kept.ready_path.with_name("..ready.12.tmp"),
        kept.open_path.with_name(".open-snapshot.json.12.tmp"),
    ]
    for path in left:
        path.touch()
    kept.clear_ready()
    assert not any(path.exists() for path in left)
    assert kept.has_open_snapshot()


def test_a_snapshot_comes_back_as_it_was(kept: Journal) -> None:
    assert kept.save(SNAPSHOT) == SNAPSHOT
    assert kept.has_open_snapshot()
    assert kept.open_snapshot() == SNAPSHOT
    assert mode(kept.open_path) == 0o600
    assert mode(kept.state_dir) == 0o700
    kept.close_snapshot()
    assert not kept.has_open_snapshot()
    assert kept.open_snapshot() is None
    assert kept.last_snapshot() == SNAPSHOT


def test_an_open_snapshot_is_never_overwritten(kept: Journal) -> None:
    kept.save(SNAPSHOT)
    with pytest.raises(StorageError, match="a reload is in progress"):
        kept.save(dataclasses.replace(SNAPSHOT, kernel="other"))
    assert kept.open_snapshot() == SNAPSHOT


def test_people_and_jq_can_read_a_snapshot_and_check_its_sum(kept: Journal) -> None:
    kept.save(SNAPSHOT)
    envelope = json.loads(kept.open_path.read_text())
    assert envelope["snapshot"] == json.loads(snapshot_to_json(SNAPSHOT))
    assert '"machine_id"' in kept.open_path.read_text()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"02:00:00:00:00:01", b"02:00:00:00:00:02"),
        lambda data: b"\0" * len(data),
        lambda data: b"[" * 100_000,
        lambda data: snapshot_to_json(SNAPSHOT).encode(),
        lambda data: b'{"sha256": null, "snapshot": {}}',
    ],
)
def test_a_damaged_snapshot_is_never_taken_for_none(kept: Journal, damage: object) -> None:
    kept.save(SNAPSHOT)
    data = damage(kept.open_path.read_bytes())  # type: ignore[operator] # one of the lambdas above
    kept.open_path.write_bytes(data)
    assert kept.has_open_snapshot()
    with pytest.raises(DataError) as caught:
        kept.open_snapshot()
    assert str(kept.open_path) in caught.value.message
    assert caught.value.hint
    assert kept.open_path.read_bytes() == data


@given(st.binary(max_size=400))
def test_rubbish_makes_one_message(data: bytes) -> None:
    for sealed in (True, False):
        with pytest.raises(DataError, match=r"\AFILE is "):
            unseal(data, "FILE", sealed=sealed)


def test_what_the_command_prints_is_read_as_well() -> None:
    assert unseal(snapshot_to_json(SNAPSHOT).encode(), "FILE", sealed=False) == SNAPSHOT
    assert unseal(seal(SNAPSHOT).encode(), "FILE", sealed=False) == SNAPSHOT


def test_a_disk_too_full_for_the_snapshot_stops_the_reload(
    kept: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        kept.save(SNAPSHOT)
    assert not kept.has_open_snapshot()


def test_steps_and_notes_are_on_record(kept: Journal) -> None:
    kept.note(Note.RUN, mode="sources")
    with kept.step(Step.BUILD, version="25.07"):
        pass
    with pytest.raises(KernelError), kept.step(Step.RESTART):
        raise KernelError("no driver")
    with pytest.raises(Stopped), kept.step(Step.RESTORE):
        raise Stopped
    with pytest.raises(ZeroDivisionError), kept.step(Step.VERIFY):
        raise ZeroDivisionError("a bug")
    records = kept.records()
    assert [(r.kind, r.name) for r in records] == [
        ("note", "run"),
        ("start", "build"),
        ("done", "build"),
        ("start", "restart"),
        ("failed", "restart"),
        ("start", "restore"),
        ("interrupted", "restore"),
        ("start", "verify"),
        ("failed", "verify"),
    ]
    assert records[1].facts == {"version": "25.07"}
    assert records[4].facts == {"message": "no driver"}
    assert records[8].facts == {"message": "ZeroDivisionError('a bug')"}
    assert {r.run for r in records} == {kept.run}
    assert {r.pid for r in records} == {os.getpid()}
    assert [r.clock for r in records] == sorted(r.clock for r in records)
    assert all(r.at.endswith("Z") and len(r.at) == 24 for r in records)


def test_one_line_of_log_a_step(kept: Journal, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="nodeagent")
    with kept.step(Step.BUILD):
        pass
    with pytest.raises(KernelError), kept.step(Step.RESTART):
        raise KernelError("said once, at the top")
    assert [record.message for record in caplog.records] == ["build done"]
    assert caplog.records[0].__dict__["step"] == "build"
    assert caplog.records[0].__dict__["elapsed"] >= 0


def test_step_ends_are_synced_and_nothing_else(
    kept: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.note(Note.READY)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    kept.note(Note.RUN)
    assert synced == []
    with kept.step(Step.BUILD):
        assert synced == []
    assert len(synced) == 1


def test_torn_and_foreign_lines_spoil_only_themselves(kept: Journal) -> None:
    kept.note(Note.RUN)
    with kept.records_path.open("ab") as file:
        file.write(b'rubbish\n{"at": 1}\n[]\nnull\n\xff\xfe\n' + b"[" * 5000 + b'\n{"at": "20')
    kept.note(Note.READY)
    assert [record.name for record in kept.records()] == ["run", "ready"]


@given(
    st.dictionaries(
        st.sampled_from([field.name for field in dataclasses.fields(Record)] + ["x"]),
        st.one_of(st.text(), st.integers(), st.none(), st.dictionaries(st.text(), st.text())),
    )
)
def test_a_line_is_a_record_with_the_right_types_or_none(fields: dict[str, object]) -> None:
    record = journal._parse_record(json.dumps(fields).encode())
    assert record is None or isinstance(record.facts, dict)


@pytest.mark.parametrize("clock", ["NaN", "Infinity", "-1", "1" + "0" * 400])
def test_a_clock_that_is_none(kept: Journal, clock: str) -> None:
    """It would be calculated with: a timeline of integers of any size ends in an OverflowError."""
    kept.note(Note.READY)
    with kept.records_path.open("a") as file:
        line = kept.records_path.read_text()
        file.write(re.sub(r'"clock": [0-9.]+', f'"clock": {clock}', line))
    assert [record.name for record in kept.records()] == ["ready"]


def test_records_are_bounded(kept: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RECORDS_LIMIT_BYTES", 2000)
    for number in range(100):
        kept.note(Note.DRIFT, number=str(number))
    sizes = [path.stat().st_size for path in (kept.records_path, kept.old_records_path)]
    assert all(size < 2500 for size in sizes)
    numbers = [int(record.facts["number"]) for record in kept.records()]
    assert numbers == list(range(numbers[0], 100))
    assert len(numbers) >= 10


def test_a_disk_too_full_for_records_is_said_once_and_stops_nothing(
    kept: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, line: bytes, *, sync: bool) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "append", full)
    with kept.step(Step.RESTORE):
        kept.note(Note.VFS_BACK)
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "No space left" in warnings[0]


def test_a_state_directory_that_is_none_stops_the_snapshot_but_not_the_records(
    kept: Journal,
) -> None:
    kept.state_dir.parent.mkdir()
    kept.state_dir.touch()
    kept.note(Note.RUN)
    assert kept.records() == ()
    with pytest.raises(StorageError, match="not a directory"):
        kept.save(SNAPSHOT)


# The lock


def test_a_second_instance_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "run/.lock"
    with lock(path) as fd:
        assert fd > 2
        assert not os.get_inheritable(fd)
        assert lock_holders(path) == (os.getpid(),)
        with pytest.raises(BusyError) as caught, lock(path):
            pass
        assert f"{path} is locked by process {os.getpid()}" in caught.value.message
        assert caught.value.hint
    assert lock_holders(path) == ()
    with lock(path):
        pass


def test_a_holder_out_of_sight_is_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "lock_holders", lambda path: (0,))
    busy = pytest.raises(BusyError, match="in another container")
    with lock(tmp_path / "lock"), busy, lock(tmp_path / "lock"):
        pass


def test_a_lock_is_seen_without_proc(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    assert not path.exists()
    with lock(path):
        assert is_locked(path)
    assert not is_locked(path)


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"],
            stdin=subprocess.PIPE,
            pass_fds=[file.fileno()],
        )
    with pytest.raises(BusyError), lock(path):
        pass
    child.communicate(b"\n")
    with lock(path):
        pass


def test_a_child_that_outlives_us_with_the_lock_is_the_one_that_is_named(tmp_path: Path) -> None:
    """The kernel goes on telling the number of the process that locked it, which is nobody's."""
    path = tmp_path / "lock"
    locker = (
        "import fcntl, os, subprocess, sys\n"
        "file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], pass_fds=[file.fileno()],\n"
        "                         stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True)\n"
    )
    locked = subprocess.Popen(
        [sys.executable, "-c", locker, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert locked.stdout is not None
    child = int(locked.stdout.readline())
    end = os.pidfd_open(child)
    locked.wait()
    with pytest.raises(BusyError, match=rf"is locked by process {child}\b"), lock(path):
        pass
    assert lock_holders(path) == (child,)
    locked.communicate(b"\n")
    assert select.select([end], [], [], 10)[0]
    os.close(end)
    with lock(path):
        pass


def test_a_holder_that_closes_another_file_meanwhile_is_found(tmp_path: Path) -> None:
    """Its descriptors are looked at one after the other, and it goes on with its work."""
    path, proc = tmp_path / "lock", tmp_path / "proc"
    path.touch()
    for pid, names in ((812, ("gone", "lock")), (813, ("gone",))):
        (proc / f"{pid}/fd").mkdir(parents=True)
        for number, name in enumerate(names):
            (proc / f"{pid}/fd/{number}").symlink_to(tmp_path / name)
    facts = path.stat()
    where = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    (proc / "locks").write_text(f"1: FLOCK  ADVISORY  WRITE 811 {where} 0 EOF\n")
    assert lock_holders(path, proc) == (812,)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_a_file_system_without_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    refused = pytest.raises(StorageError, match=f"cannot lock {tmp_path}/lock: ")
    with refused as caught, lock(tmp_path / "lock"):
        pass
    assert "LOCK_FILE_PATH" in (caught.value.hint or "")


@pytest.mark.parametrize("what", ["fifo", "hard link", "directory", "foreign"])
def test_a_lock_file_that_somebody_planted_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "lock"
    match what:
        case "fifo":
            os.mkfifo(path)
        case "hard link":
            (tmp_path / "precious").touch()
            path.hardlink_to(tmp_path / "precious")
        case "directory":
            path.mkdir()
        case _:
            path.touch()
            os.chown(path, 65534, 65534)
    with pytest.raises(StorageError, match=str(path)), lock(path):
        pass


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (lambda path: path.symlink_to("/etc/passwd"), "symbolic link"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: socket.socket(socket.AF_UNIX).bind(str(path)), "No such device"),
    ],
)
def test_what_cannot_be_a_lock_file_is_to_be_moved_away(
    tmp_path: Path, plant: Callable[[Path], None], says: str
) -> None:
    path = tmp_path / "lock"
    plant(path)
    with (
        pytest.raises(StorageError, match=rf"the lock file {path}: .*{says}") as caught,
        lock(path),
    ):
        pass
    assert "move" in str(caught.value.hint)


def test_a_lock_file_that_is_removed_while_it_is_being_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another agent may lock the one that is made then: this one holds a file without a name."""
    path = tmp_path / "lock"
    real = fcntl.flock

    def flock(fd: int, operation: int) -> None:
        real(fd, operation)
        path.unlink()
        path.touch()

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(BusyError), lock(path):
        pass


@pytest.mark.parametrize("fd", [1 << 70, 999_999])
def test_a_descriptor_that_is_none(tmp_path: Path, fd: int) -> None:
    (tmp_path / "lock").touch()
    with pytest.raises(BusyError), adopted(fd, tmp_path / "lock"):
        pass


def test_the_lock_works_where_it_was_left(tmp_path: Path) -> None:
    """A lock file that stays behind is no lock: only a process that lives holds it."""
    path = tmp_path / "lock"
    path.write_text("12345\n")
    with lock(path):
        pass


def test_a_lock_file_is_not_a_link(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match="cannot open the lock file"), lock(tmp_path / "lock"):
        pass
    assert not (tmp_path / "precious").exists()


def test_locks_of_proc(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    facts = path.stat()
    device = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}"
    locks = tmp_path / "locks"
    locks.write_text(
        f"1: FLOCK  ADVISORY  WRITE 812 {device}:{facts.st_ino} 0 EOF\n"
        f"1: -> FLOCK  ADVISORY  WRITE 813 {device}:{facts.st_ino} 0 EOF\n"
        f"2: POSIX  ADVISORY  WRITE 814 {device}:{facts.st_ino} 0 EOF\n"
        f"3: FLOCK  ADVISORY  WRITE 815 {device}:1 0 EOF\n"
    )
    (tmp_path / "812").mkdir()
    assert lock_holders(path, tmp_path) == (812,)
    assert lock_holders(path, tmp_path / "missing") == ()
    assert lock_holders(tmp_path / "missing", tmp_path) == ()
