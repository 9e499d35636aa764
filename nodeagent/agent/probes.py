"""Echoes to addresses, from before the reload until after it, and a record of those lost.

`--probe 10.0.0.1` asks from the node, `--probe 10.0.0.1@apps/web-0` from the pod web-0 in the
namespace apps, `--probe 10.0.0.1@0b1c2d3e-…` from the pod with that UID (or the only one whose UID
or container id begins so), `--probe 10.0.0.1@/run/netns/blue` from a network namespace. A process
beside the agent asks (nodeagent.kernel.echo), so that nothing that the agent waits for delays an
echo; its ICMP socket is what the operator asked to have in that pod.
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

from nodeagent.errors import ConfigError, NoInputError
from nodeagent.kernel.cgroup import pod_and_container, pods_called
from nodeagent.kernel.netns import Namespaces
from nodeagent.record.journal import Journal, Note

log = logging.getLogger(__name__)

ANSWER_TIMEOUT: Final = 5.0
"""Seconds in which the process has to begin, and at its end to report."""


@dataclass(frozen=True)
class Probe:
    """An address, and where from: "" for the node, a path, a pod's name, or how its UID begins."""

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
    """Send echoes for the length of the block; the result is a note a probe.

    NoInputError, before anything is touched, when a place to send from is not there.
    """
    if not probes:
        yield
        return
    arguments = [f"{probe.address}@{place_of(probe)}" for probe in probes]
    asking, answers, pid = _start(arguments)
    try:
        # it writes a byte once it has begun
        if not select.select([answers], [], [], ANSWER_TIMEOUT)[0] or not os.read(answers, 1):
            raise ConfigError(
                f"cannot send echoes to {', '.join(map(str, probes))}",
                hint="it takes CAP_NET_RAW, and CAP_SYS_ADMIN for another namespace",
            )
        yield
    finally:
        os.close(asking)
        for probe, facts in zip(probes, _answer(answers), strict=False):
            at = datetime.fromtimestamp(float(facts.pop("gap_at")), UTC)
            words = {name: f"{value:g}" for name, value in facts.items()}
            words["at"] = at.isoformat(timespec="seconds")
            journal.note(Note.PROBE, target=str(probe), **words)
        os.close(answers)
        os.waitpid(pid, 0)


def place_of(probe: Probe) -> str:
    """Where the namespace to send from can be opened, "" for our own; NoInputError for none."""
    if not probe.where or probe.where.startswith("/"):
        if probe.where and not os.path.lexists(probe.where):
            raise NoInputError(f"--probe {probe}: {probe.where} is not there")
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
        how = "are called so" if "/" in probe.where else "have a UID that begins so"
        raise NoInputError(
            f"--probe {probe}: {len(found) or 'no'} pods here with a network of their own {how}",
            hint="the UID, as kubectl get pod NAME -o jsonpath={.metadata.uid} prints it, needs no "
            "name; hostPID is needed to see pods",
        )
    return next(iter(found.values()))


def _chosen(where: str, proc: Path) -> Callable[[str, str], bool]:
    """Tells whether a process with a given pod (UID) and container is one to send from."""
    namespace, slash, name = where.partition("/")
    if not slash:
        return lambda pod, container: pod.startswith(where) or container.startswith(where)
    uids = pods_called(namespace, name, proc)
    return lambda pod, _: pod in uids


def _start(arguments: Sequence[str]) -> tuple[int, int, int]:
    """The process: its stdin, which ends it, its stdout, and its pid."""
    theirs_in, asking = os.pipe2(os.O_CLOEXEC)
    answers, theirs_out = os.pipe2(os.O_CLOEXEC)
    argv = [sys.executable, "-m", "nodeagent.kernel.echo", *arguments]
    actions = [(os.POSIX_SPAWN_DUP2, theirs_in, 0), (os.POSIX_SPAWN_DUP2, theirs_out, 1)]
    try:
        pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=actions, setsid=True)
    finally:
        os.close(theirs_in)
        os.close(theirs_out)
    return asking, answers, pid


def _answer(answers: int) -> list[dict[str, float]]:
    """What the process reports at its end; nothing when it reports none in time, or no JSON."""
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
