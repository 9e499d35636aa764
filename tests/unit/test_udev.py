"""udev's state as files: a real socket in a directory like /run/udev."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.kernel import udev


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path


@pytest.fixture
def control(run: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(run / "control"))
        listener.listen(0)
        yield listener


def test_not_running_without_a_socket(run: Path) -> None:
    assert not udev.is_running(run)
    assert not udev.is_running(run / "absent")


def test_running(run: Path, control: socket.socket) -> None:
    assert udev.is_running(run)
    with control.accept()[0] as peer:
        assert peer.recv(1) == b""  # we hung up, having asked for nothing


def test_running_and_too_busy_to_answer(run: Path, control: socket.socket) -> None:
    assert all(udev.is_running(run) for _ in range(10))


def test_killed_udevd_leaves_its_socket(run: Path, control: socket.socket) -> None:
    control.close()
    assert (run / "control").exists()
    assert not udev.is_running(run)


def test_something_else_is_there(run: Path) -> None:
    (run / "control").touch()
    assert not udev.is_running(run)


def test_initialized(run: Path) -> None:
    (run / "data/n7").write_text("I:12345\nE:ID_NET_NAME_PATH=enp1s0\nG:systemd\n")
    assert udev.is_initialized(7, run)


@pytest.mark.parametrize("entry", ["", "E:ID_RENAMING=1\n", "E:I:1\n"])
def test_not_initialized(run: Path, entry: str) -> None:
    (run / "data/n7").write_text(entry)
    assert not udev.is_initialized(7, run)
    assert not udev.is_initialized(8, run)
