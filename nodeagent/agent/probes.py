"""Echo requests to addresses, from before a reload until after it, and a record of the lost ones.

`--probe 10.0.0.1` sends them from the node, `--probe 10.0.0.1@apps/web-0` from the pod web-0 in the
namespace apps, `--probe 10.0.0.1@0b1c2d3e-…` from the pod with that UID (or the only one whose UID
or container ID begins with it), `--probe 10.0.0.1@/run/netns/blue` from a network namespace. A
process of their own sends them (nodeagent.kernel.echo), so that no wait of the agent delays one.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from nodeagent.errors import ConfigError, NoInputError, WaitTimeout
from nodeagent.kernel.cgroup import pod_and_container, pods_called
from nodeagent.kernel.netns import Namespaces
from nodeagent.record.journal import Journal, Note

log = logging.getLogger(__name__)

START_TIMEOUT: Final = 60.0
"""Seconds within which the process must begin: a Python, on a machine that may be busy."""
ANSWER_TIMEOUT: Final = 5.0
"""Seconds within which it must report at its end."""


@dataclass(frozen=True)
class Probe:
    """An address, and the sender: "" for the node, a path, a pod's name, or a prefix of its UID."""

    address: str
    where: str = ""

    @classmethod
    def parse(cls, text: str) -> Probe:
        """`ADDRESS[@NAMESPACE/POD|@UID|@PATH]`; ValueError for anything else."""
        address, at, where = text.partition("@")
        if at and not where:
            raise ValueError(f"{text!r} names nothing after the @")
        try:
            return cls(str(ip_address(address)), where)
        except ValueError:
            raise ValueError(f"{address!r} is not an IP address") from None

    def __str__(self) -> str:
        return f"{self.address}@{self.where}" if self.where else self.address


@contextmanager
def around(probes: Sequence[Probe], journal: Journal) -> Iterator[None]:
    """Send echo requests during the block; record the result of each probe in a note.

    NoInputError, before the block, if a pod or namespace does not exist.
    """
    if not probes:
        yield
        return
    arguments = [f"{probe.address}@{place_of(probe)}" for probe in probes]
    requests, answers, pid = _start(arguments)
    try:
        # it writes a byte once it has begun, and closes its end when it cannot
        if not select.select([answers], [], [], START_TIMEOUT)[0]:
            raise WaitTimeout("the start of echoes", [*map(str, probes)], START_TIMEOUT)
        if not os.read(answers, 1):
            raise ConfigError(
                f"cannot send echoes to {', '.join(map(str, probes))}",
                hint="it takes CAP_NET_RAW, and CAP_SYS_ADMIN for another namespace",
            )
        yield
    finally:
        os.close(requests)
        for probe, facts in zip(probes, _answer(answers), strict=False):
            at = datetime.fromtimestamp(float(facts.pop("gap_at")), UTC)
            words = {name: f"{value:g}" for name, value in facts.items()}
            words["at"] = at.isoformat(timespec="milliseconds")
            journal.note(Note.PROBE, target=str(probe), **words)
        os.close(answers)
        os.waitpid(pid, 0)


def place_of(probe: Probe) -> str:
    """A path of the namespace to send from, "" for our own. NoInputError if there is none."""
    if not probe.where or probe.where.startswith("/"):
        if probe.where and not os.path.lexists(probe.where):
            raise NoInputError(f"--probe {probe}: {probe.where} does not exist")
        return probe.where
    namespaces = Namespaces()
    is_meant = _chosen(probe.where, namespaces.proc)
    found = {}
    for inode, holders in namespaces.scan().items():
        for holder in holders:
            words = pod_and_container(namespaces.proc / str(holder.pid))
            if holder.pid is not None and is_meant(*words):
                found[inode] = holder.path
    if len(found) != 1:
        how = "have that name" if "/" in probe.where else "have a UID that begins with it"
        raise NoInputError(
            f"--probe {probe}: {len(found) or 'no'} pods here with a network of their own {how}",
            hint="the UID, as kubectl get pod NAME -o jsonpath={.metadata.uid} prints it, needs no "
            "name; hostPID is needed to see pods",
        )
    return next(iter(found.values()))


def _chosen(where: str, proc: Path) -> Callable[[str, str], bool]:
    """A predicate of a process's pod (UID) and container: whether to send from it."""
    namespace, slash, name = where.partition("/")
    if not slash:
        return lambda pod, container: pod.startswith(where) or container.startswith(where)
    uids = pods_called(namespace, name, proc)
    return lambda pod, _: pod in uids


def _start(arguments: Sequence[str]) -> tuple[int, int, int]:
    """The process: its stdin, whose end ends it, its stdout, and its PID."""
    theirs_in, requests = os.pipe2(os.O_CLOEXEC)
    answers, theirs_out = os.pipe2(os.O_CLOEXEC)
    argv = [sys.executable, "-m", "nodeagent.kernel.echo", *arguments]
    actions = [(os.POSIX_SPAWN_DUP2, theirs_in, 0), (os.POSIX_SPAWN_DUP2, theirs_out, 1)]
    try:
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions, setsid=True)
    finally:
        os.close(theirs_in)
        os.close(theirs_out)
    return requests, answers, pid


def _answer(answers: int) -> list[dict[str, float]]:
    """The process's report at its end; empty if there is none in time, or it is not JSON."""
    answer = b""
    while select.select([answers], [], [], ANSWER_TIMEOUT)[0] and (
        part := os.read(answers, 1 << 16)
    ):
        answer += part
    try:
        report: list[dict[str, float]] = json.loads(answer)
    except ValueError:
        log.warning("the process that sent the echoes ended without a report")
        return []
    return report
