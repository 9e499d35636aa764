"""Blocking writes in parallel. No other module starts threads.

A write to `sriov_numvfs`, `bind` or `unbind` blocks in the kernel while devices are probed, and
releases the interpreter meanwhile. A write that never returns cannot be cancelled: its thread
remains as a daemon, and the failure says so.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Self, TypeVar

from nodeagent.errors import AgentError, KernelError, WaitTimeout
from nodeagent.kernel.events import Watch, wait_until_clear

Job = Callable[[], None]

T = TypeVar("T")


def run_all(
    jobs: Sequence[Job],
    *,
    timeout: float,
    threads: int,
    name: Callable[[int], str] = str,
    meanwhile: Callable[[], None] = lambda: None,
    watches: Iterable[Watch] = (),
) -> list[AgentError | None]:
    """Run every job, at most `threads` at a time; for each, in order, None or its failure.

    A job that has not returned after `timeout` seconds has failed, and jobs that were not begun by
    then are not begun. `name` is the name of a job in messages; `meanwhile` is called at each event
    of `watches` and after each job. Exceptions other than AgentError are bugs and are raised here.
    """
    with Running(jobs, threads=threads) as running:

        def left() -> Iterator[str]:
            meanwhile()
            yield from map(name, running.unfinished())

        with suppress(WaitTimeout):
            wait_until_clear(
                left, running, *watches, what="the kernel", timeout=timeout, progress=True
            )
        return running.results(timeout)


class Stuck(KernelError):
    """A job that was begun and has not returned in time."""


class Running:
    """Jobs in threads. A watch (nodeagent.kernel.events) that is readable after a job has ended.

    At the end of the `with` block, jobs that were not begun are dropped.
    """

    def __init__(self, jobs: Sequence[Job], *, threads: int) -> None:
        self._jobs = jobs
        self._waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()
        self._ended: dict[int, AgentError | None] = {}
        self._not_begun: set[int] = set()
        # objects, not descriptors: a thread may end long after this object was closed
        self._news, self._teller = socket.socketpair()
        self._news.setblocking(False)
        self._teller.setblocking(False)
        self._threads = min(threads, len(jobs))
        for number in range(len(jobs)):
            self._waiting.put(number)

    def fileno(self) -> int:
        """One end of a socket pair."""
        return self._news.fileno()

    def drain(self) -> None:
        """Read the results of jobs. Exceptions other than AgentError are bugs, and raised."""
        with suppress(BlockingIOError):
            self._news.recv(4096)
        for number, error in _taken(self._done):
            if error is not None and not isinstance(error, AgentError):
                raise error
            self._ended[number] = error

    def unfinished(self) -> list[int]:
        """The numbers of the jobs that have not ended."""
        return [number for number in range(len(self._jobs)) if number not in self._ended]

    def results(self, timeout: float) -> list[AgentError | None]:
        """For each job, in order, None or its failure, after `timeout` seconds if it has none."""
        self._stop_beginning()
        stuck = f"still blocked in the kernel after {timeout:g} s; its thread is left there"
        late = f"not begun within {timeout:g} s: other writes are blocked in the kernel"
        return [
            self._ended[n]
            if n in self._ended
            else KernelError(late)
            if n in self._not_begun
            else Stuck(stuck)
            for n in range(len(self._jobs))
        ]

    def __enter__(self) -> Self:
        for started in range(self._threads):
            try:
                threading.Thread(target=self._work, daemon=True).start()
            except RuntimeError as error:  # EAGAIN of clone(2): those that run do all jobs
                if started:
                    break
                self._news.close()
                raise KernelError(
                    f"cannot start a thread: {error}",
                    hint="the container's or the cgroup's limit of processes (pids.max) may be "
                    "reached, or its memory",
                ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_beginning()
        self._news.close()

    def _work(self) -> None:
        while True:
            try:
                number = self._waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._jobs[number]()
            except BaseException as error:  # handed to the caller, who raises it
                self._done.put((number, error))
            else:
                self._done.put((number, None))
            with suppress(OSError):  # the other end is closed, or the buffer is full
                self._teller.send(b"!")

    def _stop_beginning(self) -> None:
        self._not_begun |= set(_taken(self._waiting))


def _taken(waiting: queue.SimpleQueue[T]) -> Iterator[T]:
    with suppress(queue.Empty):
        while True:
            yield waiting.get_nowait()
