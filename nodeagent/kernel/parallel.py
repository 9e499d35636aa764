"""Blocking writes side by side: the one place with threads.

A write to `sriov_numvfs`, `bind` or `unbind` blocks in the kernel while devices are probed, and
releases the interpreter meanwhile. A write that never returns cannot be cancelled: its thread is
left behind as a daemon, and the failure says so.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from nodeagent.errors import AgentError, KernelError

Job = Callable[[], None]


def run_all(jobs: Sequence[Job], *, timeout: float, threads: int) -> list[AgentError | None]:
    """Run every job, at most `threads` at a time; for each, in order, None or its failure.

    A job that has not come back after `timeout` seconds counts as failed, and one that was not
    begun by then never is. Exceptions other than AgentError are bugs and are raised here.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()
    for number in range(len(jobs)):
        waiting.put(number)

    def work() -> None:
        while True:
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                jobs[number]()
            except BaseException as error:  # handed to the caller, who raises it
                done.put((number, error))
            else:
                done.put((number, None))

    for _ in range(min(threads, len(jobs))):
        threading.Thread(target=work, daemon=True).start()
    try:
        ended = _collected(done, len(jobs), timeout)
    finally:
        # whoever called looks at the node next: nothing may be begun behind its back
        not_begun = set(_taken(waiting))
    stuck = f"still blocked in the kernel after {timeout:g} s; its thread is left there"
    late = f"not begun within {timeout:g} s: other writes are blocked in the kernel"
    return [
        ended[n] if n in ended else KernelError(late if n in not_begun else stuck)
        for n in range(len(jobs))
    ]


def _collected(
    done: queue.SimpleQueue[tuple[int, BaseException | None]], count: int, timeout: float
) -> dict[int, AgentError | None]:
    """How the jobs ended that did so in time, by number."""
    ended: dict[int, AgentError | None] = {}
    deadline = time.monotonic() + timeout
    with suppress(queue.Empty):
        while len(ended) < count:
            number, error = done.get(timeout=max(0.0, deadline - time.monotonic()))
            if error is not None and not isinstance(error, AgentError):
                raise error
            ended[number] = error
    return ended


def _taken(waiting: queue.SimpleQueue[int]) -> Iterator[int]:
    with suppress(queue.Empty):
        while True:
            yield waiting.get_nowait()
