"""Copies of trees and packages: whole or not there, whatever happens in the middle."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeagent.driver import copies
from nodeagent.errors import DataError, NoInputError, Stopped, StorageError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tree = tmp_path / "source"
    (tree / "SRPMS").mkdir(parents=True)
    (tree / "install.pl").write_text("#!/usr/bin/perl\n")
    (tree / "install.pl").chmod(0o700)
    (tree / "SRPMS/mlnx.src.rpm").write_bytes(os.urandom(100_000))
    (tree / "latest").symlink_to("SRPMS/mlnx.src.rpm")
    return tree


def content(tree: Path) -> dict[str, object]:
    return {
        str(path.relative_to(tree)): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in tree.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_a_tree(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "shared/kernel/MLNX_OFED_SRC"
    copies.tree(source, target)
    assert content(target) == content(source)
    assert (target / "install.pl").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in target.parent.iterdir()] == ["MLNX_OFED_SRC"]


def test_it_takes_the_place_of_what_was_there(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "half").mkdir(parents=True)
    (tmp_path / ".target.old-1.tmp/left").mkdir(parents=True)  # a killed copy's
    (tmp_path / ".targets.1.tmp").mkdir()  # another's
    copies.tree(source, target)
    assert content(target) == content(source)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".targets.1.tmp"]


def test_a_link_in_its_place_is_replaced_and_not_followed(source: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "target").symlink_to(elsewhere)
    copies.files([source / "install.pl"], tmp_path / "target")
    assert not list(elsewhere.iterdir())
    assert content(tmp_path / "target") == {"install.pl": b"#!/usr/bin/perl\n"}
    copies.remove(tmp_path / "target")
    copies.remove(tmp_path / "target")


def full(*_arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fails_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "copyfileobj", full)


def fails_to_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.parametrize("fault", [fails_to_write, fails_to_sync])
def test_a_disk_that_is_full_leaves_what_was_there(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "before").touch()
    fault(monkeypatch)
    with pytest.raises(StorageError, match=r"cannot copy to .*: No space left") as caught:
        copies.tree(source, target)
    assert "make room" in (caught.value.hint or "")
    assert [path.name for path in target.iterdir()] == ["before"]
    assert not list(tmp_path.glob(".target*"))


def test_too_little_room_is_found_out_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "SPARE_BYTES", 1 << 60)
    monkeypatch.setattr(shutil, "copyfileobj", None)
    with pytest.raises(StorageError, match=r"not enough room in .* are free"):
        copies.tree(source, tmp_path / "target")
    assert not list(tmp_path.glob("*target*"))


def test_a_file_that_changes_meanwhile(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody is still writing the package: half of it must not be taken for the whole."""
    real = shutil.copyfileobj

    def copied(reader: object, writer: object, length: int) -> None:
        real(reader, writer, length)  # type: ignore[arg-type] # both are open files
        with (source / "SRPMS/mlnx.src.rpm").open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr(shutil, "copyfileobj", copied)
    with pytest.raises(DataError, match=r"mlnx\.src\.rpm changed while it was copied"):
        copies.files([source / "SRPMS/mlnx.src.rpm"], tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_package_that_is_a_link_or_missing(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a regular file"):
        copies.files([source / "latest"], tmp_path / "target")
    with pytest.raises(NoInputError, match=r"cannot read .*: No such file"):
        copies.files([source / "missing"], tmp_path / "target")


class Asked:
    """A stop that comes before the second file."""

    looks = 0

    def drain(self) -> None:
        self.looks += 1
        if self.looks == 2:
            raise Stopped


def test_a_stop_leaves_nothing(source: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        copies.tree(source, tmp_path / "target", Asked())  # type: ignore[arg-type] # all it uses
    assert not list(tmp_path.glob("*target*"))


def test_what_fails_to_be_prepared_gets_no_name(source: Path, tmp_path: Path) -> None:
    def prepare(copy: Path) -> None:
        assert content(copy) == content(source)
        raise StorageError("cannot label it")

    with pytest.raises(StorageError, match="cannot label it"):
        copies.tree(source, tmp_path / "target", prepare=prepare)
    assert not list(tmp_path.glob("*target*"))


def test_nothing_is_removed_from_a_read_only_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """unlink(2) says EROFS there before it looks: a read-only root with no packages in it."""

    def unlink(_path: Path, *, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", unlink)
    copies.remove(tmp_path / "packages")
    (tmp_path / "packages").touch()
    with pytest.raises(StorageError, match="Read-only"):
        copies.remove(tmp_path / "packages")
