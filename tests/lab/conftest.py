"""What a lab test starts from, and nodeagent's own files.

A fixture looks first: making VFs takes seconds here, and after a good test they are as they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.lab import PF1, Nodeagent, State


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part", metavar="K/N", help="only the K-th of N parts of about as many tests each"
    )
    parser.addoption(
        "--points", metavar="K/N", default="1/1", help="of a sweep, every N-th point from the K-th"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the part that was asked for. A module stays whole: its tests share what they start from.

    The largest module goes first, always to the part that has the fewest tests so far.
    """
    if not (text := config.getoption("--part")):
        return
    part, parts = (int(number) for number in text.split("/"))
    sizes = Counter(item.path for item in items)
    load, part_of = [0] * parts, {}
    for path, size in sorted(sizes.items(), key=lambda each: (-each[1], each[0])):
        part_of[path] = load.index(min(load))
        load[part_of[path]] += size
    config.hook.pytest_deselected(items=[item for item in items if part_of[item.path] != part - 1])
    items[:] = [item for item in items if part_of[item.path] == part - 1]


@pytest.fixture
def shard(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Of --points: the first number, and the step to the next."""
    first, step = request.config.getoption("--points").split("/")
    return int(first), int(step)


@pytest.fixture(scope="module", autouse=True)
def _as_after_boot() -> Iterator[None]:
    """Whatever a module did: build A, no VFs, no faults afterwards."""
    yield
    if lab.is_emulated():
        lab.clean("A")


@pytest.fixture
def nodeagent(tmp_path: Path) -> Iterator[Nodeagent]:
    """The command line; what it leaves running is ended with the test."""
    agent = Nodeagent(tmp_path)
    yield agent
    agent.end()
    if lab.is_emulated():
        lab.remove_faults()


@pytest.fixture
def no_vfs() -> None:
    """No VFs; build A or B, on disk and loaded."""
    lab.clean()


@pytest.fixture(scope="session")
def remembered() -> dict[str, State]:
    """What a node looks like that other tests may take over, if it still looks like that."""
    return {}


@pytest.fixture
def three_vfs(remembered: dict[str, State]) -> State:
    """Three VFs on the first PF, none on the second; what the node looks like then."""
    lab.remove_faults()
    lab.put_loaded_build_on_disk()
    if remembered.get("three VFs") != lab.read():
        lab.clean()
        lab.make_vfs(PF1, 3)
        remembered["three VFs"] = lab.read()
    return lab.read()
