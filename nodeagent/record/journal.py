"""The state of a reload on disk: snapshots, the ready flag, and the journal.

    STATE_DIR/open-snapshot.json   a reload is in progress: the state that the node must return to
    STATE_DIR/last-snapshot.json   the snapshot that was restored and verified last
    STATE_DIR/set-aside-snapshot.json  one that a reboot made obsolete (OPEN_SNAPSHOT_AFTER_REBOOT)
    STATE_DIR/journal.jsonl        one record per line, for `status` and `timeline`
    DRIVER_READY_PATH              the ready flag: the node is verified to be as it was

An open snapshot is never overwritten, and a damaged one is an error, not a missing one: the state
of a node in the middle of a reload is not the one that its administrator set up. The journal's
records are for people. No decision depends on them, and a full disk that does not take them does
not stop a reload.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from nodeagent import durable
from nodeagent.errors import AgentError, DataError, Stopped, StorageError
from nodeagent.machine import boot_id
from nodeagent.settings import Settings
from nodeagent.state.codec import snapshot_from_json, snapshot_to_plain
from nodeagent.state.model import Snapshot

RECORDS_LIMIT_BYTES: Final = 1024 * 1024
"""A larger journal is renamed to journal.old.jsonl, which replaces the one before."""

_MAX_UPTIME_SECONDS: Final = 1e10  # seconds, 300 years


class RecordKind(StrEnum):
    """The kinds of record: the beginning of a step, the ways it can end, and a note."""

    START = "start"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    NOTE = "note"


class Step(StrEnum):
    """The steps that begin and end on record, in their order."""

    BUILD = "build"
    PREFLIGHT = "preflight"
    SNAPSHOT = "snapshot"
    RESTART = "restart"
    INBOX = "inbox"
    """At a termination, instead of `restart`: the host's own driver is loaded."""
    QUIESCE = "quiesce"
    """Part of `restart` and of `inbox`: the VFs are unbound, and removed unless PFs are unbound."""
    UNBIND = "unbind"
    """Part of them, too: the PFs are unbound, and their VFs removed with them."""
    RESTORE = "restore"
    VERIFY = "verify"


class Note(StrEnum):
    """The notes, each with the names of its facts."""

    RUN = "run"
    """The run begins: `mode`, `driver`, `container`."""
    REBOOTED = "rebooted"
    """A snapshot is open that was taken before a reboot: `taken_at`."""
    SRCVERSION = "srcversion"
    """`checkpoint` (CheckpointKind), and for each module its srcversion."""
    VFS_GONE = "vfs-gone"
    VF_TIMES = "vf-times"
    """By VF: `gone=81.213 bound=93.4 settled=93.51`, CLOCK_BOOTTIME seconds."""
    VFS_BACK = "vfs-back"
    DRIVER = "driver"
    """The driver that was loaded: `version`."""
    POD_INTERFACE_LOST = "pod-interface-lost"
    """A pod lost an interface for good: `message`, and `uid`, or `namespace` and `pod`. With
    cluster integration it becomes an Event on that pod."""
    PROBE = "probe"
    """The echoes of a --probe: `target`, `sent`, `lost`, `gap`, `at`."""
    READY = "ready"
    """The node is verified. Of a sidecar: `loading` of the driver, and `snapshot`, its time."""
    DRIFT = "drift"
    """With WATCH_DRIFT, an attribute has changed: `target`, `attribute`, `want`, `have`."""
    DRIFT_OVER = "drift-over"
    """The attribute is as it was again: `target`, `attribute`."""
    TERMINATED = "terminated"
    FAILED = "failed"
    """The run has failed: `message`."""


class RunMode(StrEnum):
    """The modes of runs that do not have one of the driver container's."""

    SIDECAR = "sidecar"
    TERMINATE = "terminate"


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One line of the journal.

    `at` is ISO 8601 in UTC with milliseconds. `clock` is CLOCK_BOOTTIME in seconds, which includes
    suspended time and is comparable only within the same `boot`. `run` identifies the process.
    """

    at: str
    clock: float
    boot: str
    run: str
    pid: int
    kind: RecordKind
    name: str
    facts: Mapping[str, str]

    def is_note(self, *notes: Note) -> bool:
        """Whether it is one of these notes."""
        return self.kind == RecordKind.NOTE and self.name in notes

    def begins(self, step: Step) -> bool:
        """Whether it is the beginning of this step."""
        return self.kind == RecordKind.START and self.name == step


class Journal:
    """The files of this node, and the records of this process."""

    def __init__(self, settings: Settings) -> None:
        self.ready_path = settings.ready_path
        self.state_dir = settings.state_dir
        self.open_path = settings.state_dir / "open-snapshot.json"
        self.last_path = settings.state_dir / "last-snapshot.json"
        self.aside_path = settings.state_dir / "set-aside-snapshot.json"
        self.records_path = settings.state_dir / "journal.jsonl"
        self.old_records_path = settings.state_dir / "journal.old.jsonl"
        self.run = os.urandom(4).hex()
        self._boot = ""
        self._recording = True

    def clear_ready(self) -> None:
        """Remove the ready flag, and files of killed writers. The caller holds the lock."""
        durable.remove(self.ready_path)
        durable.remove_unfinished(self.ready_path)
        durable.remove_unfinished(self.open_path)

    def set_ready(self) -> None:
        """Create the ready flag: empty, with mode 0644, because processes without root read it."""
        durable.make_directory(self.ready_path.parent, 0o755)
        durable.replace(self.ready_path, b"", 0o644)

    def is_ready(self) -> bool:
        """Whether the ready flag exists."""
        return durable.exists(self.ready_path)

    def has_open_snapshot(self) -> bool:
        """Whether a reload is in progress. True for a damaged snapshot, too."""
        return durable.exists(self.open_path)

    def open_snapshot(self) -> Snapshot | None:
        """The snapshot of the reload in progress; None if there is none. DataError if damaged."""
        return self._load(self.open_path)

    def last_snapshot(self) -> Snapshot | None:
        """The snapshot that was closed last; None if there is none. DataError if damaged."""
        return self._load(self.last_path)

    def wanted_snapshot(self) -> Snapshot | None:
        """The snapshot that the node should match: the open one, else the last. DataError."""
        return self.open_snapshot() or self.last_snapshot()

    def save(self, snapshot: Snapshot) -> Snapshot:
        """Write `snapshot` durably as the open one.

        StorageError if it cannot be written, or a snapshot is open already. The caller must then
        not touch the driver.
        """
        durable.make_private_directory(self.state_dir)
        if not durable.create(self.open_path, seal(snapshot).encode(), 0o600):
            raise StorageError(
                f"cannot save a snapshot: {self.open_path} exists, so a reload is in progress",
                hint="run `nodeagent reload` to finish that reload",
            )
        return snapshot

    def close_snapshot(self) -> None:
        """Rename the open snapshot to the last one: the node is verified."""
        if self.has_open_snapshot():
            durable.rename(self.open_path, self.last_path)

    def save_as_last(self, snapshot: Snapshot) -> Snapshot:
        """Write `snapshot` durably as the last one. StorageError."""
        durable.make_private_directory(self.state_dir)
        durable.replace(self.last_path, seal(snapshot).encode(), 0o600)
        return snapshot

    def set_aside(self) -> Path:
        """Rename the open snapshot to the set-aside one, which is not restored; return its path."""
        durable.rename(self.open_path, self.aside_path)
        return self.aside_path

    @contextmanager
    def step(self, name: Step, **facts: str) -> Iterator[None]:
        """Record the beginning of a step and how it ends. Errors of the block are raised again."""
        began = _clock()
        self._record(RecordKind.START, name, facts)
        log.debug("%s began", name, extra={"step": name})
        try:
            yield
        except Stopped:
            self._record(RecordKind.INTERRUPTED, name, facts)
            raise
        except BaseException as error:
            said = error.message if isinstance(error, AgentError) else repr(error)
            self._record(RecordKind.FAILED, name, facts | {"message": said})
            raise
        self._record(RecordKind.DONE, name, facts)
        log.info("%s done", name, extra={"step": name, "elapsed": _clock() - began})

    def note(self, name: Note, **facts: str) -> None:
        """Record an observation."""
        self._record(RecordKind.NOTE, name, facts)

    def records(self) -> tuple[Record, ...]:
        """All records, oldest first. Other lines (truncated, foreign) are skipped."""
        found: list[Record] = []
        for path in (self.old_records_path, self.records_path):
            lines = (durable.read_own(path) or b"").splitlines()
            parsed = [_parse_record(line) for line in lines]
            found += [record for record in parsed if record is not None]
            if None in parsed:
                log.debug("%s: %d lines are not records", path, parsed.count(None))
        return tuple(found)

    def last_note(self, name: Note) -> Record | None:
        """The newest note of that name on record."""
        return next((each for each in reversed(self.records()) if each.is_note(name)), None)

    def _load(self, path: Path) -> Snapshot | None:
        data = durable.read_own(path)
        return None if data is None else unseal(data, str(path), sealed=True)

    def _record(self, kind: RecordKind, name: str, facts: Mapping[str, str]) -> None:
        """Append one record. If that fails, log it once and stop recording."""
        if not self._recording:
            return
        self._boot = self._boot or boot_id()
        fields = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "clock": round(_clock(), 3),
            "boot": self._boot,
            "run": self.run,
            "pid": os.getpid(),
            "kind": kind,
            "name": name,
            "facts": dict(facts),
        }
        try:
            durable.make_private_directory(self.state_dir)
            line = json.dumps(fields).encode() + b"\n"
            is_end = kind not in {RecordKind.START, RecordKind.NOTE}
            size = durable.append(self.records_path, line, sync=is_end)
            if size > RECORDS_LIMIT_BYTES:
                durable.rename(self.records_path, self.old_records_path)
        except (OSError, StorageError) as error:
            self._recording = False
            log.warning("cannot write %s, recording stops: %s", self.records_path, error)


def seal(snapshot: Snapshot) -> str:
    """A snapshot in the form of nodeagent's own files: an object of `sha256` and `snapshot`.

    With both in one file, a single rename replaces them, and jq can read it (`jq .snapshot`). The
    checksum is that of the compact form with sorted keys: `jq -jcS .snapshot FILE | sha256sum`.
    It is one line: to indent it, `json` encodes in Python, which takes ten times as long.
    """
    plain = snapshot_to_plain(snapshot)
    return json.dumps({"sha256": _sum(plain), "snapshot": plain}, sort_keys=True) + "\n"


def unseal(data: bytes, source: str, *, sealed: bool) -> Snapshot:
    """The snapshot of a sealed file, its checksum verified. DataError names `source`.

    Unless `sealed`, the output of `nodeagent snapshot`, which has no checksum, is accepted as well.
    """
    try:
        text = data.decode()
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        if sealed:
            raise _damaged(source, f"not JSON: {error}") from None
        raise DataError(
            f"{source} is not a snapshot: it is not JSON, or cut short: {error}",
            hint="`nodeagent snapshot --file FILE` writes one",
        ) from None
    if not isinstance(plain, dict) or plain.keys() != {"sha256", "snapshot"}:
        if sealed:
            raise _damaged(source, "it has no checksum")
        return snapshot_from_json(text, source)
    if plain["sha256"] != _sum(plain["snapshot"]):
        raise _damaged(source, "its checksum does not match its content")
    return snapshot_from_json(json.dumps(plain["snapshot"]), source)


def _damaged(source: str, why: str) -> DataError:
    return DataError(
        f"{source} is damaged: {why}",
        hint="nodeagent restores nothing from it. If it cannot be repaired, move it away and set "
        "up the node's VFs again before the next reload",
    )


def _sum(plain: object) -> str:
    # OpenSSL comes with it: 4 MB, for snapshots alone
    import hashlib  # noqa: PLC0415

    compact = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(compact.encode(errors="surrogatepass")).hexdigest()


def _parse_record(line: bytes) -> Record | None:
    """The record of a line; None if it is not one."""
    try:
        record = Record(**json.loads(line))
        record = replace(record, kind=RecordKind(record.kind))
        aware = record.at.endswith("Z") and datetime.fromisoformat(record.at)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    typed = (
        (record.clock, (int, float)),
        (record.boot, str),
        (record.run, str),
        (record.pid, int),
        (record.name, str),
        (record.facts, dict),
    )
    good = aware and all(isinstance(value, types) for value, types in typed)
    good = good and 0 <= record.clock < _MAX_UPTIME_SECONDS  # neither NaN nor a huge integer
    return record if good and all(isinstance(v, str) for v in record.facts.values()) else None


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
