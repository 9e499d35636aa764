"""Files that are whole or not there: whatever fails, the old content stays and nothing is left."""

from __future__ import annotations

import errno
import itertools
import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeagent import durable, trace
from nodeagent.errors import AgentError, DataError, NoInputError, PermissionDenied, StorageError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(params=[0o000, 0o077])
def _umask(request: pytest.FixtureRequest) -> object:
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_umask")
def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    durable.make_directory(tmp_path / "a", 0o700)
    durable.replace(tmp_path / "a/b", b"x", 0o644)
    assert (mode(tmp_path / "a"), mode(tmp_path / "a/b")) == (0o700, 0o644)


def test_replace_keeps_no_temporary_file(tmp_path: Path) -> None:
    durable.replace(tmp_path / "a", b"one", 0o600)
    durable.replace(tmp_path / "a", b"two", 0o600)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"two")]


def test_replace_replaces_a_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "flag").symlink_to(tmp_path / "target")
    durable.replace(tmp_path / "flag", b"", 0o644)
    assert (tmp_path / "target").read_text() == "precious"
    assert not (tmp_path / "flag").is_symlink()


@pytest.mark.parametrize("taken", ["file", "dead link", "directory"])
def test_create_never_overwrites(tmp_path: Path, taken: str) -> None:
    path = tmp_path / "open.json"
    match taken:
        case "file":
            path.write_text("first")
        case "dead link":
            path.symlink_to(tmp_path / "nowhere")
        case _:
            path.mkdir()
    before = path.lstat().st_ino
    assert durable.create(path, b"second", 0o600) is False
    assert path.lstat().st_ino == before
    assert [p.name for p in tmp_path.iterdir()] == ["open.json"]


def test_create_writes_what_was_not_there(tmp_path: Path) -> None:
    assert durable.create(tmp_path / "a", b"x" * 200_000, 0o600) is True
    assert (tmp_path / "a").stat().st_size == 200_000
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("write", [durable.replace, durable.create])
@pytest.mark.parametrize("call", ["fsync", "fchmod"])
def test_a_full_disk_leaves_everything_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path, bytes, int], object],
    call: str,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageError) as caught:
        write(tmp_path / "a", b"new", 0o600)
    monkeypatch.undo()
    assert caught.value.message == f"cannot write {tmp_path / 'a'}: No space left on device"
    assert "make room" in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_file_and_directory_are_synced_in_that_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def watched(fd: int) -> None:
        synced.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        if synced[-1] == "file":
            assert not (tmp_path / "a").exists()
        real(fd)

    monkeypatch.setattr(os, "fsync", watched)
    durable.replace(tmp_path / "a", b"x", 0o600)
    assert synced == ["file", "directory"]


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file or directory") as caught:
        durable.replace(tmp_path / "no/a", b"x", 0o600)
    assert caught.value.hint == "create its directory first"


def test_remove_tells_whether_there_was_one(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("nowhere")
    assert durable.remove(tmp_path / "a") is True
    assert durable.remove(tmp_path / "a") is False
    assert durable.remove(tmp_path / "no/a") is False


def test_what_is_not_there_is_not_removed_from_a_read_only_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's own /etc/modprobe.d, where its root is read-only."""

    def unlink(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "unlink", unlink)
    assert durable.remove(tmp_path / "a") is False
    (tmp_path / "b").touch()
    with pytest.raises(StorageError, match="Read-only"):
        durable.remove(tmp_path / "b")


def test_remove_says_what_it_could_not_remove(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match=r".*/a is neither a file nor a link"):
        durable.remove(tmp_path / "a")


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.0123.tmp", ".a.4567.tmp", ".b.0123.tmp", "a", ".a"):
        (tmp_path / name).touch()
    durable.remove_unfinished(tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a", ".b.0123.tmp", "a"]
    durable.remove_unfinished(tmp_path / "no/a")


def test_exists_sees_dead_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("nowhere")
    assert durable.exists(tmp_path / "a")
    assert not durable.exists(tmp_path / "b")
    assert not durable.exists(tmp_path / "no/b")


def test_a_flag_that_is_held_is_told_from_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "flag"
    with durable.held_flag(path) as none:
        assert none is None
    path.touch()
    with durable.held_flag(path) as flag:
        os.utime(path, (1, 1))
        assert durable.flag(path) == flag
        path.unlink()
        assert durable.flag(path) is None
        path.touch()
        assert durable.flag(path) not in {flag, None}


def test_read_own_reads_what_is_ours(tmp_path: Path) -> None:
    durable.replace(tmp_path / "a", b"x", 0o600)
    assert durable.read_own(tmp_path / "a") == b"x"
    assert durable.read_own(tmp_path / "b") is None
    assert durable.read_own(tmp_path / "a/b") is None


@pytest.mark.parametrize("what", ["link", "fifo", "directory", "world-writable", "foreign"])
def test_read_own_refuses_what_others_can_have_written(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a"
    match what:
        case "link":
            (tmp_path / "b").write_text("x")
            path.symlink_to("b")
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "world-writable":
            path.write_text("x")
            path.chmod(0o666)
        case "foreign":
            if os.geteuid() != 0:
                pytest.skip("only root can give files away")
            path.write_text("x")
            os.chown(path, 65534, 65534)
    with pytest.raises(DataError, match=str(path)):
        durable.read_own(path)


def test_unreadable_says_what_kind_of_trouble_it_is() -> None:
    def kind(number: int) -> type[Exception]:
        return type(durable.unreadable(Path("/a"), OSError(number, os.strerror(number))))

    assert kind(errno.EACCES) is PermissionDenied
    assert kind(errno.ENOENT) is NoInputError
    assert kind(errno.EIO) is StorageError


def test_append_ends_a_torn_line_first(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert durable.append(path, b"one\n", sync=True) == 4
    path.write_bytes(b"one\ntw")
    assert durable.append(path, b"three\n", sync=False) == 13
    assert path.read_bytes() == b"one\ntw\nthree\n"
    assert mode(path) == 0o600 | (mode(path) & 0o044)


def test_append_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / "log").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic"):
        durable.append(tmp_path / "log", b"y\n", sync=False)
    assert (tmp_path / "precious").read_text() == "x"


def test_a_file_where_the_directory_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(StorageError, match="is not a directory"):
        durable.make_directory(tmp_path / "a", 0o700)
    with pytest.raises(
        StorageError, match="link is a symbolic link, which nodeagent does not follow"
    ):
        durable.make_directory(tmp_path / "link", 0o700)


def test_a_directory_whose_maker_was_killed_gets_its_mode(tmp_path: Path) -> None:
    """0700 would hide the ready flag from all others for good."""
    (tmp_path / "new").mkdir(mode=0o700)
    durable.make_directory(tmp_path / "new", 0o755)
    assert mode(tmp_path / "new") == 0o755


def test_a_directory_that_somebody_closed_stays_closed(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(mode=0o700)
    (tmp_path / "old/file").touch()
    durable.make_directory(tmp_path / "old", 0o755)
    assert mode(tmp_path / "old") == 0o700


# What others may have planted on the way, or at its end


ON_THE_WAY: list[Callable[[Path], object]] = [
    lambda path: durable.replace(path, b"x", 0o600),
    lambda path: durable.create(path, b"x", 0o600),
    lambda path: durable.rename(path, path.with_name("other")),
    durable.remove,
    durable.remove_unfinished,
    durable.exists,
    durable.read_own,
    lambda path: durable.append(path, b"x\n", sync=False),
    lambda path: durable.open_plain(path, os.O_WRONLY, 0o600),
    lambda path: durable.make_directory(path, 0o755),
]


@pytest.mark.parametrize("act", ON_THE_WAY)
@pytest.mark.parametrize("depth", [0, 1])
def test_a_link_to_a_directory_on_the_way_is_refused(
    tmp_path: Path, act: Callable[[Path], object], depth: int
) -> None:
    victim = tmp_path / "victim"
    (victim / "sub").mkdir(parents=True)
    (victim / "sub/file").write_text("precious")
    (victim / "file").write_text("precious")
    (tmp_path / "planted").symlink_to(victim)
    before = {path: path.lstat() for path in victim.rglob("*")}
    with pytest.raises((AgentError, OSError)) as caught:
        act(tmp_path / "planted" / ("sub/" * depth) / "file")
    said = f"{caught.value} {getattr(caught.value, 'filename', '')}"
    assert re.search(rf"{tmp_path}/planted(?!/)", said)
    after = {path: path.lstat() for path in victim.rglob("*")}
    assert {p: (s.st_ino, s.st_size, s.st_mtime_ns) for p, s in before.items()} == {
        p: (s.st_ino, s.st_size, s.st_mtime_ns) for p, s in after.items()
    }


@pytest.mark.parametrize("what", ["link", "hard link", "fifo", "socket", "directory", "foreign"])
def test_a_file_that_is_written_in_place_is_a_plain_one_of_ours(tmp_path: Path, what: str) -> None:
    path, victim = tmp_path / "log", tmp_path / "victim"
    victim.write_text("precious")
    match what:
        case "link":
            path.symlink_to(victim)
        case "hard link":
            path.hardlink_to(victim)
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        case "directory":
            path.mkdir()
        case _:
            if os.geteuid() != 0:
                pytest.skip("only root can give files away")
            path.touch()
            os.chown(path, 65534, 65534)
    with pytest.raises((StorageError, OSError)):
        durable.append(path, b"x\n", sync=False)
    with pytest.raises((StorageError, OSError)):
        durable.open_plain(path, os.O_WRONLY, 0o600)
    assert victim.read_text() == "precious"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_a_device_is_not_opened_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 7))  # /dev/full
    except PermissionError:
        pytest.skip("device nodes cannot be made here")
    with pytest.raises((StorageError, OSError)):
        durable.append(path, b"x\n", sync=False)
    with pytest.raises(DataError):
        durable.read_own(path)


def test_read_own_refuses_a_second_name(tmp_path: Path) -> None:
    (tmp_path / "shadow").write_text("x")
    (tmp_path / "a").hardlink_to(tmp_path / "shadow")
    with pytest.raises(DataError, match="2 hard links"):
        durable.read_own(tmp_path / "a")


def test_a_mode_that_drifted_is_put_right(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch(mode=0o666)
    path.chmod(0o666)
    os.close(durable.open_plain(path, os.O_WRONLY, 0o600))
    assert mode(path) == 0o600


def test_temporary_names_cannot_be_foreseen(tmp_path: Path) -> None:
    names: list[str] = []

    def watch(what: str, on: object) -> None:
        if what == "write":
            names.extend(path.name for path in tmp_path.glob("*.tmp"))
            names.extend(path.name for path in tmp_path.glob(".*.tmp"))

    trace._hook = watch
    try:
        for _ in range(20):
            durable.replace(tmp_path / "a", b"x", 0o600)
    finally:
        trace._hook = None
    assert len(set(names)) == 20
    assert all(re.fullmatch(r"\.a\.[0-9a-f]{16}\.tmp", name) for name in names)


# Each write in turn fails, in each way a disk can


DISK_TROUBLE = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT)


def fail_at(number: int, trouble: int) -> Callable[[str, object], None]:
    """A hook: the `number`-th thing done to the disk fails."""
    left = itertools.count(1)

    def hook(_what: str, _on: object) -> None:
        if next(left) == number:
            raise OSError(trouble, os.strerror(trouble))

    return hook


@pytest.mark.parametrize("trouble", DISK_TROUBLE)
@pytest.mark.parametrize("number", range(1, 6))
def test_wherever_a_write_fails_the_old_file_stays(
    tmp_path: Path, number: int, trouble: int
) -> None:
    path = tmp_path / "file"
    durable.replace(path, b"old", 0o600)
    trace._hook = fail_at(number, trouble)
    try:
        with pytest.raises(StorageError) as caught:
            durable.replace(path, b"new", 0o600)
    finally:
        trace._hook = None
    assert str(path) in caught.value.message
    assert os.strerror(trouble) in caught.value.message
    assert caught.value.hint
    # the fifth is the directory's fsync: the new one has its name by then, and may not last
    assert path.read_bytes() == (b"old" if number < 5 else b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("before", "after"), [(0o777, 0o755), (0o770, 0o750), (0o1777, 0o1777)])
def test_a_state_directory_that_others_could_take_files_from(
    tmp_path: Path, before: int, after: int
) -> None:
    """An emptyDir is 0777. Where a sticky bit is (/tmp), nobody takes another's away."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(before)
    durable.make_private_directory(tmp_path / "state")
    assert mode(tmp_path / "state") == after
    durable.make_private_directory(tmp_path / "new")
    assert mode(tmp_path / "new") == 0o700


def test_a_state_directory_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").mkdir()
    facts = (tmp_path / "state").stat()
    foreign = os.stat_result((*facts[:4], 1000, *facts[5:]))
    monkeypatch.setattr(os, "fstat", lambda _: foreign)
    with pytest.raises(StorageError, match=r"state belongs to user 1000") as caught:
        durable.make_private_directory(tmp_path / "state")
    assert "chown root" in str(caught.value.hint)


def test_a_directory_under_a_temporary_name_stops_nobody(tmp_path: Path) -> None:
    """No writer left it: whoever may write there could keep every start from beginning."""
    (tmp_path / ".x.0123456789abcdef.tmp/below").mkdir(parents=True)
    (tmp_path / ".x.fedcba9876543210.tmp").touch()
    durable.remove_unfinished(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == [".x.0123456789abcdef.tmp"]


@pytest.mark.parametrize("do", [durable.remove, lambda path: durable.replace(path, b"", 0o644)])
def test_what_is_no_file_is_not_taken_away(tmp_path: Path, do: Callable[[Path], object]) -> None:
    """DRIVER_READY_PATH=/dev/null: the flag is removed first thing, as root."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    for path in (tmp_path / "fifo", tmp_path / "directory"):
        with pytest.raises(StorageError, match=rf"{path} is neither a file nor a link"):
            do(path)
        assert path.exists()
