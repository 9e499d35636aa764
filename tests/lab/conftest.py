"""What a lab test starts from, and nodeagent's own files.

A fixture looks first: making VFs takes seconds here, and after a good test they are as they were.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import lab
from tests.support.lab import PF1, Nodeagent, State
from tests.support.sweep import Share
from tests.support.zygote import Zygote


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--points", metavar="K/N", default="1/1", help="of a sweep, every N-th place from the K-th"
    )
    parser.addoption(
        "--every-point",
        action="store_true",
        help="of a sweep, also the points between which nothing has changed",
    )


@pytest.fixture
def share(request: pytest.FixtureRequest) -> Share:
    """Of a sweep, by --points and --every-point."""
    part, parts = request.config.getoption("--points").split("/")
    return Share(int(part), int(parts), request.config.getoption("--every-point"))


@pytest.fixture(scope="module", autouse=True)
def _as_after_boot() -> Iterator[None]:
    """Whatever a module did: build A, no VFs, no faults afterwards."""
    yield
    if lab.is_emulated():
        lab.clean("A")


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """nodeagent with its imports done."""
    with Zygote(os.environ, tmp_path_factory.mktemp("zygote")) as zygote:
        yield zygote


@pytest.fixture
def nodeagent(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Nodeagent]:
    """The command line; what it leaves running is ended with the test.

    Marked `real_start`, each start is one of Python; else a fork of the zygote.
    """
    real = request.node.get_closest_marker("real_start")
    agent = Nodeagent(tmp_path, None if real else request.getfixturevalue("zygote"))
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
