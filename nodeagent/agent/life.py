"""Whether an agent is alive, as far as this container can see, and the runs on record.

The lock is the best evidence: the kernel releases it when its holder ends. But /proc/locks shows no
locks of other PID namespaces (fs/locks.c, locks_show()), so that a second container of the pod sees
no holder. There the heartbeat file is the evidence (nodeagent/kernel/heart.py): an agent at work
writes it several times within BEAT_LIMIT. An agent that is ready does not write it, and the journal
has the end of its run.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Final

from nodeagent import durable
from nodeagent.errors import AgentError
from nodeagent.kernel.users import sees_the_host
from nodeagent.machine import boot_id
from nodeagent.record.journal import Journal, Record
from nodeagent.record.lock import lock_holders
from nodeagent.record.timeline import Run, runs_of
from nodeagent.settings import Settings

HIDDEN_PID: Final = 0
"""In place of the process ID of an agent in another PID namespace."""


_TRIES: Final = 3


@dataclass(frozen=True)
class Life:
    """`pid` is the process that holds the lock, if it is visible; `silent` the seconds since the
    last heartbeat.

    `sees_all`: this process is in the initial PID namespace, so that every holder is visible.
    """

    pid: int | None
    silent: float | None
    sees_all: bool
    limit: float

    @property
    def is_alive(self) -> bool:
        """Whether an agent whose end is not on record is at work."""
        if self.pid is not None or self.sees_all:
            return self.pid is not None
        return self.silent is not None and self.silent <= self.limit


def look(settings: Settings) -> Life:
    """The present evidence."""
    beat, holders = last_beat(settings), lock_holders(settings.lock_path)
    return Life(
        holders[0] if holders else None,
        None if beat is None else _uptime() - beat,
        sees_the_host(),
        settings.beat_limit,
    )


def runs(settings: Settings, journal: Journal) -> tuple[Life, tuple[Run, ...]]:
    """Every run on record, oldest first. The last one is running if its agent is alive."""
    life, records, now = on_record(settings, journal)
    return life, runs_of(records, now=now)


def on_record(
    settings: Settings, journal: Journal
) -> tuple[Life, tuple[Record, ...], float | None]:
    """All records, and the present CLOCK_BOOTTIME if the last one's agent is alive, else None.

    Journal and lock are read again if the holder has changed in between.
    """
    for _ in range(_TRIES):
        life, records = look(settings), journal.records()
        if look(settings).pid == life.pid:
            break
    same_boot = bool(records) and records[-1].boot == boot_id()
    return life, records, _uptime() if life.is_alive and same_boot else None


def last_beat(settings: Settings) -> float | None:
    """CLOCK_BOOTTIME, in seconds, of the last heartbeat; None if there is none of this boot."""
    try:
        text = durable.read_own(settings.beat_path) or b""
    except AgentError:
        return None
    found = re.fullmatch(rb"(\d{10})\n", text)
    return float(found[1]) if found and float(found[1]) <= _uptime() + 1 else None


def _uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
