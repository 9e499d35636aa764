"""Whether an agent lives, as far as this container can tell, and the runs on record in that light.

The lock is the best evidence: the kernel releases it with its holder. But /proc/locks leaves out
what was locked in other PID namespaces (fs/locks.c, locks_show()): a second container of the pod
sees no holder at all. There the heartbeat tells (nodeagent/kernel/heart.py), which is a file: an
agent at work writes it several times within BEAT_LIMIT. One that is ready writes none, and its run
is over on record.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent import durable
from nodeagent.errors import AgentError
from nodeagent.machine import boot_id
from nodeagent.record.journal import Journal, Record, lock_holders
from nodeagent.record.timeline import Run, runs_of
from nodeagent.settings import Settings

ELSEWHERE: Final = 0
"""The process ID of an agent in another PID namespace."""

_INITIAL_PID_NAMESPACE: Final = 0xEFFF_FFFC  # include/linux/proc_ns.h, PROC_PID_INIT_INO
_TRIES: Final = 3


@dataclass(frozen=True)
class Life:
    """The process that holds the lock, if it can be seen; and the seconds since the last beat.

    `sees_all`: this process is in the initial PID namespace, so that no holder is hidden from it.
    """

    pid: int | None
    silent: float | None
    sees_all: bool
    limit: float

    @property
    def is_alive(self) -> bool:
        """Whether an agent that has not ended on record is still at work."""
        if self.pid is not None or self.sees_all:
            return self.pid is not None
        return self.silent is not None and self.silent <= self.limit


def look(settings: Settings) -> Life:
    """What can be seen now."""
    beat, holders = last_beat(settings), lock_holders(settings.lock_path)
    return Life(
        holders[0] if holders else None,
        None if beat is None else _uptime() - beat,
        sees_all(),
        settings.beat_limit,
    )


def runs(settings: Settings, journal: Journal) -> tuple[Life, tuple[Run, ...]]:
    """Every run on record, oldest first. The last one is running if its agent lives."""
    life, records, now = on_record(settings, journal)
    return life, runs_of(records, now=now)


def on_record(
    settings: Settings, journal: Journal
) -> tuple[Life, tuple[Record, ...], float | None]:
    """All records, and the present CLOCK_BOOTTIME if the agent of the last one lives, else None.

    Journal and lock are read one after the other: if the holder has changed meanwhile, again.
    """
    for _ in range(_TRIES):
        life, records = look(settings), journal.records()
        if look(settings).pid == life.pid:
            break
    same_boot = bool(records) and records[-1].boot == boot_id()
    return life, records, _uptime() if life.is_alive and same_boot else None


def last_beat(settings: Settings) -> float | None:
    """CLOCK_BOOTTIME, in seconds, of the agent's last beat; None if there is none of this boot."""
    try:
        text = durable.read_own(settings.beat_path) or b""
    except AgentError:
        return None
    found = re.fullmatch(rb"(\d{10})\n", text)
    return float(found[1]) if found and float(found[1]) <= _uptime() + 1 else None


def sees_all(proc: Path = Path("/proc")) -> bool:
    """Whether this process is in the initial PID namespace, as with hostPID."""
    try:
        return (proc / "self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE
    except OSError:
        return False


def _uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
