"""What the disk remembers: the snapshot, that a reload is in flight, the ready flag, the evidence.

    STATE_DIR/open-snapshot.json   a reload is in flight: this is what the node must become again
    STATE_DIR/last-snapshot.json   the one that was proven last
    STATE_DIR/set-aside-snapshot.json  one that a reboot made void (OPEN_SNAPSHOT_AFTER_REBOOT)
    STATE_DIR/journal.jsonl        a line a step and a note, for `status` and `timeline`
    DRIVER_READY_PATH              the node is as it was, proven
    LOCK_FILE_PATH                 flock(2): one driver container a node

A snapshot is never overwritten while it is open, and a damaged one is never taken for none: what
the node looks like after a broken reload is damage, not intent. The records are evidence: no
decision reads them, and a disk too full for them stops nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from nodeagent import durable
from nodeagent.errors import AgentError, BusyError, DataError, Stopped, StorageError
from nodeagent.hostpath import found
from nodeagent.machine import boot_id
from nodeagent.settings import Settings
from nodeagent.state.codec import snapshot_from_json, snapshot_to_json
from nodeagent.state.model import Snapshot
from nodeagent.trace import point

RECORDS_LIMIT: Final = 1024 * 1024
"""Bytes: a journal that has grown beyond becomes the old one, and the older one goes."""

_LONGEST_UPTIME: Final = 1e10  # seconds, 300 years

KINDS: Final = ("start", "done", "failed", "interrupted", "note")

POD_INTERFACE_LOST: Final = "pod-interface-lost"
"""A note whose facts are `uid` or `namespace` and `pod`, or all, and `message`: what a pod had and
could not be given back. With cluster integration it becomes an Event on that pod."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One line of the journal.

    `at` is ISO 8601 in UTC with milliseconds; `clock` is CLOCK_BOOTTIME in seconds, which counts
    suspended time too and compares only within one `boot`. `run` is one per process.
    """

    at: str
    clock: float
    boot: str
    run: str
    pid: int
    kind: str
    name: str
    facts: Mapping[str, str]


class Journal:
    """The durable files of this node, and the records of this run."""

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
        """Remove the ready flag, and what a killed writer left beside it. Needs the lock."""
        durable.remove(self.ready_path)
        durable.remove_unfinished(self.ready_path)
        durable.remove_unfinished(self.open_path)

    def set_ready(self) -> None:
        """Put the ready flag on disk: empty, mode 0644, because others than root wait for it."""
        durable.make_directory(self.ready_path.parent, 0o755)
        durable.replace(self.ready_path, b"", 0o644)

    def is_ready(self) -> bool:
        """The ready flag exists."""
        return durable.exists(self.ready_path)

    def has_open_snapshot(self) -> bool:
        """A reload is in flight. True for a damaged snapshot too."""
        return durable.exists(self.open_path)

    def open_snapshot(self) -> Snapshot | None:
        """The snapshot of the reload in flight; None when there is none; DataError when damaged."""
        return self._load(self.open_path)

    def last_snapshot(self) -> Snapshot | None:
        """The snapshot that was closed last, None when there is none; DataError when damaged."""
        return self._load(self.last_path)

    def save(self, snapshot: Snapshot) -> Snapshot:
        """Open a snapshot: when this returns, it lasts. It never replaces an open one.

        StorageError, also when one is open: the driver must not be touched then.
        """
        durable.make_private_directory(self.state_dir)
        if not durable.create(self.open_path, seal(snapshot).encode(), 0o600):
            raise StorageError(
                f"{self.open_path} exists: a snapshot is open, and it is not overwritten",
                hint="`nodeagent reload` finishes the work that it belongs to",
            )
        return snapshot

    def close_snapshot(self) -> None:
        """The node is proven: the open snapshot becomes the last one."""
        if self.has_open_snapshot():
            durable.rename(self.open_path, self.last_path)

    def save_as_last(self, snapshot: Snapshot) -> Snapshot:
        """The node as it is, with nothing to be put back: in the last one's place. StorageError."""
        durable.make_private_directory(self.state_dir)
        durable.replace(self.last_path, seal(snapshot).encode(), 0o600)
        return snapshot

    def set_aside(self) -> Path:
        """The open snapshot is no longer to be restored: it stays, under the name returned."""
        durable.rename(self.open_path, self.aside_path)
        return self.aside_path

    @contextmanager
    def step(self, name: str, **facts: str) -> Iterator[None]:
        """Record that a step began and how it ended; an error goes on its way."""
        began = _clock()
        self._record("start", name, facts)
        log.debug("%s began", name, extra={"step": name})
        try:
            yield
        except Stopped:
            self._record("interrupted", name, facts)
            raise
        except BaseException as error:
            said = error.message if isinstance(error, AgentError) else repr(error)
            self._record("failed", name, facts | {"message": said})
            raise
        self._record("done", name, facts)
        log.info("%s done", name, extra={"step": name, "elapsed": _clock() - began})

    def note(self, event: str, **facts: str) -> None:
        """Record something seen: `vfs-gone`, `vfs-back`, `srcversion` …"""
        self._record("note", event, facts)

    def records(self) -> tuple[Record, ...]:
        """What is on record, oldest first. Lines that are none (torn, foreign) are left out."""
        found: list[Record] = []
        for path in (self.old_records_path, self.records_path):
            lines = (durable.read_own(path) or b"").splitlines()
            parsed = [_parse_record(line) for line in lines]
            found += [record for record in parsed if record is not None]
            if None in parsed:
                log.debug("%s: %d lines are not records", path, parsed.count(None))
        return tuple(found)

    def _load(self, path: Path) -> Snapshot | None:
        data = durable.read_own(path)
        return None if data is None else unseal(data, str(path), sealed=True)

    def _record(self, kind: str, name: str, facts: Mapping[str, str]) -> None:
        """Append one record; a disk that does not take it is said once, and stops nothing."""
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
            size = durable.append(self.records_path, line, sync=kind not in {"start", "note"})
            if size > RECORDS_LIMIT:
                durable.rename(self.records_path, self.old_records_path)
        except (OSError, StorageError) as error:
            self._recording = False
            log.warning("no more records of this run: %s: %s", self.records_path, error)


@contextmanager
def lock(path: Path) -> Iterator[int]:
    """Hold the lock file: yields its descriptor. BusyError when another process holds it.

    flock(2) belongs to the open file, so it survives execve(2) with the descriptor, and goes with
    the last process that has it: there is no stale lock, though a child may outlive whom it was
    locked by. The file stays. StorageError where there can be no lock: two agents would be worse
    than none.
    """
    durable.make_directory(path.parent, 0o755)
    point("lock", path)
    with durable.storage(f"cannot open the lock file {path}"):
        fd = durable.open_plain(path, os.O_RDWR, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _check_named(fd, path)
    except BlockingIOError:
        os.close(fd)
        raise _busy(path) from None
    except OSError as error:
        os.close(fd)
        raise StorageError(
            f"cannot lock {path}: {error.strerror}",
            hint="that file system may have no locks: set LOCK_FILE_PATH to one on a local one",
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _check_named(fd: int, path: Path) -> None:
    """BlockingIOError when the file is another's by now: who removed it may lock what came then."""
    facts = found(path)
    if facts is None or not os.path.samestat(facts, os.fstat(fd)):
        raise BlockingIOError


@contextmanager
def adopted(fd: int, path: Path) -> Iterator[int]:
    """Go on holding the lock file with a descriptor that an execve(2) left us.

    BusyError when it is not that: then somebody else may hold the lock.
    """
    try:
        ours, theirs = os.fstat(fd), path.lstat()
        is_it = (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
        if is_it:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, OverflowError):  # no file has a number that large
        is_it = False
    if not is_it:
        raise _busy(path)
    os.set_inheritable(fd, False)
    try:
        yield fd
    finally:
        os.close(fd)


def lock_holders(path: Path, proc: Path = Path("/proc")) -> tuple[int, ...]:
    """The processes that hold a flock on `path`; 0 for one in another PID namespace.

    /proc/locks (fs/locks.c, lock_get_status()): `1: FLOCK  ADVISORY  WRITE 812 00:18:1345 0 EOF`,
    device in hexadecimal, inode in decimal. The number is that of the process that locked it: when
    that is gone, a child has kept the file open, and is found by its descriptors (proc_pid_fd(5)).
    A look does not take the lock.
    """
    try:
        facts = path.lstat()
        lines = (proc / "locks").read_text().splitlines()
    except OSError:
        return ()
    wanted = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    fields = [line.split() for line in lines if "->" not in line]
    pids = tuple(int(f[4]) for f in fields if f[1] == "FLOCK" and f[5] == wanted)
    if any(pid and not (proc / str(pid)).exists() for pid in pids):
        return tuple(_with_open(facts, proc)) or pids
    return pids


def _with_open(wanted: os.stat_result, proc: Path) -> Iterator[int]:
    """Processes other than this one that have this very file open."""
    for directory in proc.glob("[0-9]*/fd"):
        pid = int(directory.parent.name)
        if pid != os.getpid() and _has_open(directory, wanted):
            yield pid


def _has_open(directory: Path, wanted: os.stat_result) -> bool:
    try:
        entries = [*directory.iterdir()]
    except OSError:
        return False  # it has ended, or is not ours to look at
    for each in entries:
        with suppress(OSError):  # closed since: the others count all the same
            if os.path.samestat(each.stat(), wanted):
                return True
    return False


def seal(snapshot: Snapshot) -> str:
    """A snapshot as our own files hold it: an object of `sha256` and `snapshot`.

    An envelope, not a second file or a trailing line: one rename writes both, and the file stays
    JSON that people and jq can read (`jq .snapshot`). The sum is that of the compact, key-sorted
    form: `jq -jcS .snapshot FILE | sha256sum`.
    """
    plain = json.loads(snapshot_to_json(snapshot))
    return json.dumps({"sha256": _sum(plain), "snapshot": plain}, indent=2, sort_keys=True) + "\n"


def unseal(data: bytes, source: str, *, sealed: bool) -> Snapshot:
    """The reverse of `seal`. Not `sealed`: what `nodeagent snapshot` prints is accepted as well.

    DataError names `source` and what to do about it.
    """
    try:
        text = data.decode()
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(source, f"not JSON: {error}") from None
    if not isinstance(plain, dict) or plain.keys() != {"sha256", "snapshot"}:
        if sealed:
            raise _damaged(source, "it has no checksum")
        return snapshot_from_json(text, source)
    if plain["sha256"] != _sum(plain["snapshot"]):
        raise _damaged(source, "its checksum is not that of its content")
    return snapshot_from_json(json.dumps(plain["snapshot"]), source)


def _damaged(source: str, why: str) -> DataError:
    return DataError(
        f"{source} is damaged: {why}",
        hint="nothing is restored from it. Look at it; when it is of no use, move it away and set "
        "the node's VFs up again before the next reload",
    )


def _sum(plain: object) -> str:
    compact = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(compact.encode(errors="surrogatepass")).hexdigest()


def _busy(path: Path) -> BusyError:
    pids = [pid for pid in lock_holders(path) if pid > 0]
    by = f"process {pids[0]}" if pids else "a process in another container"
    return BusyError(
        f"{path} is locked by {by}: another agent runs on this node",
        hint="`nodeagent status` shows what it does; an agent in a pod ends with its pod",
    )


def _parse_record(line: bytes) -> Record | None:
    """A record, or None for a line that is none: evidence is read with tolerance."""
    try:
        record = Record(**json.loads(line))
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
    good = aware and record.kind in KINDS and all(isinstance(v, kind) for v, kind in typed)
    good = good and 0 <= record.clock < _LONGEST_UPTIME  # NaN is not; integers may have any size
    return record if good and all(isinstance(v, str) for v in record.facts.values()) else None


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
