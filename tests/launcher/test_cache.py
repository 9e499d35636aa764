"""The lab's cache: made once, complete or not there, never removed under anybody."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from emulator.cache import Artefact, Cache, digest  # noqa: E402 - scripts/ is no installed package


def writing(text: str) -> Callable[[Path], None]:
    def build(directory: Path) -> None:
        (directory / "file").write_text(text)

    return build


def never(directory: Path) -> None:
    raise AssertionError(f"{directory} was built again")


def interrupted(directory: Path) -> None:
    (directory / "half").touch()
    raise KeyboardInterrupt


pytestmark = pytest.mark.short

OLD = Artefact("part", {"version": "1"})
NEW = Artefact("part", {"version": "2"})


def test_what_is_made_from_the_same_is_made_once(tmp_path: Path) -> None:
    made = Cache(tmp_path).get(OLD, writing("one"))
    assert (made / "file").read_text() == "one"
    assert Cache(tmp_path).get(Artefact("part", {"version": "1"}), never) == made


def test_what_is_made_from_other_things_is_another_and_replaces_it(tmp_path: Path) -> None:
    first = Cache(tmp_path)
    old = first.get(OLD, writing("one"))
    first.release()
    os.utime(old, (0, 0))
    new = Cache(tmp_path).get(NEW, writing("two"))
    assert (new / "file").read_text() == "two"
    assert not old.exists()


def test_what_was_just_used_is_kept(tmp_path: Path) -> None:
    first = Cache(tmp_path)
    old = first.get(OLD, writing("one"))
    os.utime(old, (0, 0))
    first.release()
    again = Cache(tmp_path)
    again.get(OLD, never)
    again.release()
    Cache(tmp_path).get(NEW, writing("two"))
    assert old.exists()


def test_what_is_in_use_is_not_removed(tmp_path: Path) -> None:
    old = Cache(tmp_path)
    used = old.get(OLD, writing("one"))
    os.utime(used, (0, 0))
    new = Cache(tmp_path)
    new.get(NEW, writing("two"))
    new.release()
    assert Cache(tmp_path).clean() == [used.name]
    assert used.exists()
    old.release()
    assert Cache(tmp_path).clean() == []
    assert not used.exists()


def test_an_interrupted_build_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.get(OLD, interrupted)
    made = cache.get(OLD, writing("one"))
    assert sorted(path.name for path in made.iterdir()) == ["file", "made-from.json"]


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from emulator.cache import Artefact, Cache\n"
        "Cache(Path(sys.argv[1])).get(Artefact('part', {'version': '1'}), lambda path: None)\n"
        "os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, timeout=30, check=False
    )
    assert done.returncode == -9
    assert Cache(tmp_path).clean() == []


def test_two_builds_at_once_build_once(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from emulator.cache import Artefact, Cache\n"
        "def build(path):\n"
        "    time.sleep(0.3)\n"
        "    with (Path(sys.argv[1]) / 'count').open('a') as count: count.write('x')\n"
        "Cache(Path(sys.argv[1])).get(Artefact('part', {}), build)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=environment)
        for _ in range(3)
    ]
    assert [process.wait(30) for process in running] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "x"


def test_digest_sees_contents_names_and_modes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    file = tree / "file"
    file.write_text("one")
    seen = {digest(tree)}
    file.write_text("two")
    seen.add(digest(tree))
    file.chmod(0o755)
    seen.add(digest(tree))
    file.rename(tree / "other")
    seen.add(digest(tree))
    assert len(seen) == 4
