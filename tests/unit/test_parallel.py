"""Writes side by side: in order, all failures, and what never comes back."""

from __future__ import annotations

import threading

import pytest

from nodeagent.errors import AgentError, KernelError
from nodeagent.kernel.parallel import Job, run_all

LONG, SHORT = 30.0, 0.5


def failing(text: str) -> Job:
    def job() -> None:
        raise KernelError(text)

    return job


def test_nothing_to_do() -> None:
    assert run_all([], timeout=LONG, threads=16) == []


def test_results_are_in_the_order_of_the_jobs_not_of_their_ends() -> None:
    second_is_done = threading.Event()

    def first() -> None:
        assert second_is_done.wait(LONG)
        raise KernelError("first")

    def second() -> None:
        second_is_done.set()

    one, two = run_all([first, second], timeout=LONG, threads=2)
    assert isinstance(one, KernelError)
    assert one.message == "first"
    assert two is None


def test_every_failure_is_collected_and_the_others_are_done() -> None:
    done: list[int] = []
    jobs: list[Job] = [
        failing(str(n)) if n % 3 == 0 else (lambda n=n: done.append(n))  # type: ignore[misc] # each its own
        for n in range(30)
    ]
    results = run_all(jobs, timeout=LONG, threads=4)
    assert sorted(done) == [n for n in range(30) if n % 3]
    said = {n: result.message for n, result in enumerate(results) if result is not None}
    assert said == {n: str(n) for n in range(0, 30, 3)}


def test_jobs_run_side_by_side() -> None:
    """Each waits for all the others: one after another they would never end."""
    together = threading.Barrier(8, timeout=LONG)

    def job() -> None:
        together.wait()

    assert run_all([job] * 8, timeout=LONG, threads=8) == [None] * 8


def test_no_more_at_a_time_than_there_are_threads() -> None:
    lock, now, most = threading.Lock(), [0], [0]
    pair = threading.Barrier(2, timeout=LONG)

    def job() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        pair.wait()
        with lock:
            now[0] -= 1
        pair.wait()

    assert run_all([job] * 10, timeout=LONG, threads=2) == [None] * 10
    assert most == [2]


def test_a_job_that_stays_in_the_kernel_is_a_failure_that_says_so() -> None:
    held = threading.Event()
    done: list[str] = []

    def blocked() -> None:
        held.wait()

    try:
        stuck, other = run_all([blocked, lambda: done.append("other")], timeout=SHORT, threads=2)
    finally:
        held.set()
    assert isinstance(stuck, AgentError)
    assert "still blocked in the kernel after 0.5 s" in stuck.message
    assert other is None
    assert done == ["other"]


def test_what_had_not_begun_by_the_deadline_is_not_begun_after_it() -> None:
    """The caller has given up and looks at the node: nothing may be written behind its back."""
    held = threading.Event()
    begun: list[str] = []

    def blocked() -> None:
        held.wait()

    def late() -> None:
        begun.append("late")

    threads_before = set(threading.enumerate())
    stuck, never = run_all([blocked, late], timeout=SHORT, threads=1)
    left = set(threading.enumerate()) - threads_before
    held.set()
    for thread in left:
        thread.join(LONG)
    assert begun == []
    assert isinstance(stuck, AgentError)
    assert isinstance(never, AgentError)
    assert "blocked in the kernel" in stuck.message
    assert never.message != stuck.message
    assert "not begun" in never.message


def test_a_bug_is_raised() -> None:
    def bug() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_all([lambda: None, bug], timeout=LONG, threads=2)


def test_even_one_that_is_no_exception() -> None:
    class Crash(BaseException):
        pass

    def crash() -> None:
        raise Crash

    with pytest.raises(Crash):
        run_all([crash], timeout=LONG, threads=1)


def test_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container has a limit of processes: one line, and no traceback."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(KernelError, match="cannot start a thread: can't start") as caught:
        run_all([lambda: None], timeout=LONG, threads=4)
    assert "pids.max" in (caught.value.hint or "")


def test_one_thread_does_all_where_there_is_no_second(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, [0]

    def first_only(thread: threading.Thread) -> None:
        started[0] += 1
        if started[0] > 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", first_only)
    done: list[int] = []
    jobs: list[Job] = [lambda n=n: done.append(n) for n in range(5)]  # type: ignore[misc] # each its own
    assert run_all(jobs, timeout=LONG, threads=4) == [None] * 5
    assert sorted(done) == list(range(5))
