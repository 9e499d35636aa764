"""What is made of the kernel's answer; a real one is asked in tests/lab/test_preflight.py."""

from __future__ import annotations

import ctypes
import errno
import lzma
import os
from pathlib import Path
from typing import Any

import pytest

from nodeagent.kernel import trial
from nodeagent.kernel.modules import Installed


class Kernel:
    """libc with one system call, which always fails."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls: list[tuple[Any, ...]] = []

    def syscall(self, *arguments: Any) -> int:
        self.calls.append(tuple(getattr(each, "value", each) for each in arguments))
        ctypes.set_errno(self.number)
        return -1


@pytest.fixture
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*name[:4], "x86_64")))


def asked(monkeypatch: pytest.MonkeyPatch, number: int) -> Kernel:
    kernel = Kernel(number)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: kernel)
    return kernel


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EKEYREJECTED, "Key was rejected by service"),
        (errno.EBADMSG, "Bad message"),
        (errno.ENOEXEC, "Exec format error"),
        (errno.EPERM, "Operation not permitted"),
        (errno.EEXIST, None),
        (errno.EFAULT, None),
        (errno.EBUSY, None),
        (errno.ENOMEM, None),
        (errno.ENOSYS, None),
    ],
)
def test_what_is_a_refusal(
    x86: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, said: str | None
) -> None:
    (tmp_path / "mlx5_core.ko").write_bytes(b"\x7fELF")
    kernel = asked(monkeypatch, number)
    assert trial.refusal(Installed(f"{tmp_path}/mlx5_core.ko", {})) == said
    ((call, fd, parameters, flags),) = kernel.calls
    assert (call, parameters, flags) == (313, None, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_packed_module_is_unpacked_for_it(
    x86: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mlx5_core.ko.xz").write_bytes(lzma.compress(b"\x7fELF"))
    kernel = asked(monkeypatch, errno.EKEYREJECTED)
    assert trial.refusal(Installed("/mlx5_core.ko.xz", {}), Path("/")) is None
    assert trial.refusal(Installed(f"{tmp_path}/mlx5_core.ko.xz", {}), tmp_path) is not None
    assert kernel.calls == [(175, b"\x7fELF", 4, None)]


@pytest.mark.parametrize("filename", ["(builtin)", "/nonexistent/mlx5_core.ko", "x.ko.zst"])
def test_what_cannot_be_asked_is_no_refusal(
    x86: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, filename: str
) -> None:
    (tmp_path / "x.ko.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    kernel = asked(monkeypatch, errno.EKEYREJECTED)
    path = filename if filename[0] in "(/" else f"{tmp_path}/{filename}"
    assert trial.refusal(Installed(path, {})) is None
    assert kernel.calls == []


def test_a_machine_whose_calls_are_not_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*name[:4], "sparc64")))
    kernel = asked(monkeypatch, errno.EKEYREJECTED)
    (tmp_path / "mlx5_core.ko").write_bytes(b"\x7fELF")
    assert trial.refusal(Installed(f"{tmp_path}/mlx5_core.ko", {})) is None
    assert kernel.calls == []
