"""Points that are numbered and may end the process: in children, because that is what they do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeagent import durable, trace
from nodeagent.errors import ConfigError


@pytest.fixture(autouse=True)
def _unarmed() -> Iterator[None]:
    yield
    trace.arm(None)


def in_child(what: Callable[[], object]) -> int:
    """How a forked child ended: waitpid(2)'s status."""
    pid = os.fork()
    if pid == 0:
        try:
            what()
        finally:
            os._exit(7)
    return os.waitpid(pid, 0)[1]


def test_points_are_numbered_and_written_down(tmp_path: Path) -> None:
    trace.arm(tmp_path)
    trace.point("begin step", "build")
    trace.point("run", ["modprobe", "-d", "/a\nb"])
    trace.point("lonely")
    assert (tmp_path / "points").read_text().splitlines() == [
        "1 begin step build",
        "2 run modprobe -d /a b",
        "3 lonely ",
    ]


def test_unarmed_a_point_does_nothing_and_looks_at_nothing(tmp_path: Path) -> None:
    class Touchy:
        def __str__(self) -> str:
            raise AssertionError("nobody asked")

    trace.point("write", Touchy())
    trace.arm(tmp_path)
    trace.arm(None)
    trace.point("write", Touchy())
    assert (tmp_path / "points").read_text() == ""


def test_unarmed_a_point_costs_a_call() -> None:
    """Measured at about 40 ns; 5 µs would still be nothing beside one fsync."""
    path = Path("/x")
    began = time.perf_counter()
    for _ in range(100_000):
        trace.point("write", path)
    each = (time.perf_counter() - began) / 100_000
    assert each < 5e-6, f"{each * 1e9:.0f} ns"


@pytest.mark.parametrize("number", [1, 2, 3])
def test_killed_at_a_number(tmp_path: Path, number: int) -> None:
    (tmp_path / "end").write_text(f"KILL {number}\n")

    def work() -> None:
        trace.arm(tmp_path)
        for _ in range(5):
            trace.point("step")

    status = in_child(work)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len((tmp_path / "points").read_text().splitlines()) == number


def test_two_signals_in_turn(tmp_path: Path) -> None:
    (tmp_path / "end").write_text("TERM 2 KILL 4")
    seen: list[int] = []

    def work() -> None:
        signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
        trace.arm(tmp_path)
        trace.point("one")
        trace.point("two")
        assert seen
        trace.point("three")
        trace.point("four")

    assert os.WTERMSIG(in_child(work)) == signal.SIGKILL


@pytest.mark.parametrize("text", ["KILL", "KILL 0", "HUP 3", "KILL x", "KILL 3 TERM", "3 KILL"])
def test_a_file_that_says_nothing_we_know(tmp_path: Path, text: str) -> None:
    (tmp_path / "end").write_text(text)
    with pytest.raises(ConfigError, match="KILL, STOP or TERM, and a number"):
        trace.arm(tmp_path)


def test_a_file_is_written_past_these_points(tmp_path: Path) -> None:
    """Everything that makes a file last is a point, in the order that makes it safe."""
    trace.arm(tmp_path)
    target = tmp_path / "file"
    durable.replace(target, b"x", 0o600)
    assert durable.create(target.with_name("new"), b"x", 0o600)
    durable.remove(target)
    words = [line.split(" ", 1)[1] for line in (tmp_path / "points").read_text().splitlines()]
    new = target.with_name("new")
    assert words == [
        f"create {target}",
        f"write {target}",
        f"fsync {target}",
        f"name {target}",
        f"fsync directory {tmp_path}",
        f"create {new}",
        f"write {new}",
        f"fsync {new}",
        f"name {new}",
        f"named {new}",
        f"fsync directory {tmp_path}",
        f"remove {target}",
        f"fsync directory {tmp_path}",
    ]


@pytest.mark.parametrize("number", range(1, 6))
def test_a_file_is_old_or_new_wherever_the_writer_is_killed(tmp_path: Path, number: int) -> None:
    target = tmp_path / "file"
    durable.replace(target, b"old", 0o600)
    (tmp_path / "end").write_text(f"KILL {number}")

    def work() -> None:
        trace.arm(tmp_path)
        durable.replace(target, b"new", 0o600)

    assert os.WTERMSIG(in_child(work)) == signal.SIGKILL
    assert target.read_bytes() == (b"old" if number < 5 else b"new")
    durable.remove_unfinished(target)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "end", "points"}


@pytest.mark.parametrize("name", ["file", "nothing"])
def test_points_need_a_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"cannot write points to {tmp_path}/{name}") as caught:
        trace.arm(tmp_path / name)
    assert "unset it" in str(caught.value.hint)
