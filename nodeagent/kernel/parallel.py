"""Blocking writes side by side: the one place with threads.

A write to `sriov_numvfs`, `bind` or `unbind` blocks in the kernel while devices are probed, and
releases the interpreter meanwhile. A write that never returns cannot be cancelled: its thread is
left behind as a daemon, and the failure says so.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

from nodeagent.errors import AgentError, KernelError

Job = Callable[[], None]


def run_all(jobs: Sequence[Job], *, timeout: float, threads: int) -> list[AgentError | None]:
    """Run every job, at most `threads` at a time; for each, in order, None or its failure.

    A job that has not come back after `timeout` seconds counts as failed. Exceptions other than
    AgentError are bugs and are raised here.
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
    return _collected(done, len(jobs), timeout)


def _collected(
    done: queue.SimpleQueue[tuple[int, BaseException | None]], count: int, timeout: float
) -> list[AgentError | None]:
    stuck = KernelError(
        f"still blocked in the kernel after {timeout:g} s; its thread is left there"
    )
    results: list[AgentError | None] = [stuck] * count
    deadline = time.monotonic() + timeout
    for _ in range(count):
        try:
            number, error = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        if error is not None and not isinstance(error, AgentError):
            raise error
        results[number] = error
    return results
