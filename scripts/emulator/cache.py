"""Everything slow is made once: directories named by a hash of all that they are made from.

A directory appears by rename when it is complete, so a build that was killed leaves nothing that
looks finished. Locks are flock(2) on files beside the directories: exclusive to build or remove,
shared while in use; the kernel drops them when the process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from emulator.host import say

UNUSED_SECONDS = 3600


def default_root() -> Path:
    """Where the lab keeps what it made: the XDG base directory specification's cache home."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).absolute() / "nodeagent" / "lab"


def digest(*paths: Path) -> str:
    """Hash of the contents, names and modes of files and of directory trees."""
    total = hashlib.sha256()
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                name = file.relative_to(path.parent).as_posix()
                total.update(f"{name}\0{file.stat().st_mode & 0o777:o}\0".encode())
                total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


@dataclass(frozen=True)
class Artefact:
    """Something that takes time to make. Two with the same name and the same parts are the same."""

    name: str
    parts: Mapping[str, str]

    @cached_property
    def key(self) -> str:
        text = json.dumps([self.name, dict(self.parts)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def directory(self) -> str:
        return f"{self.name}.{self.key}"


class Cache:
    """The directories, and this process's locks on those that it uses."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._held: list[int] = []

    def get(self, artefact: Artefact, build: Callable[[Path], None]) -> Path:
        """The artefact's directory, built by `build(empty directory)` if it isn't there.

        It stays locked against removal until `release()` or the end of this process. Older ones of
        the same name are removed when a new one was built, unless someone uses them or has just
        done so: two checkouts may take turns.
        """
        lock = self._lock_file(artefact.directory)
        try:
            path = self._get(artefact, build, lock)
        except BaseException:
            os.close(lock)
            raise
        self._held.append(lock)
        return path

    def release(self) -> None:
        """Let others remove what this cache has given out."""
        while self._held:
            os.close(self._held.pop())

    def _get(self, artefact: Artefact, build: Callable[[Path], None], lock: int) -> Path:
        path = self.root / artefact.directory
        while True:
            _wait_for(lock, fcntl.LOCK_SH, artefact.name)
            if path.is_dir():
                os.utime(path)
                return path
            _wait_for(lock, fcntl.LOCK_EX, artefact.name)
            if not path.is_dir():
                self._build(artefact, path, build)
                self._remove_where(lambda old: _name(old) == artefact.name and _unused(old))

    def remove_states_of_no_image(self) -> None:
        """Remove the machine states saved with an image that is gone: they can't be resumed."""
        self._remove_where(
            lambda old: (
                old.name.startswith("state-")
                and not (self.root / _parts(old).get("image", "-")).is_dir()
                and _unused(old)
            )
        )

    def clean(self) -> list[str]:
        """Remove everything that no running lab uses. Returns the names of what had to stay."""
        return self._remove_where(lambda _path: True)

    def _build(self, artefact: Artefact, path: Path, build: Callable[[Path], None]) -> None:
        work = path.with_name(path.name + ".tmp")
        if work.exists():  # a build that was killed
            shutil.rmtree(work)
        work.mkdir()
        build(work)
        (work / "made-from.json").write_text(json.dumps(dict(artefact.parts), indent=1) + "\n")
        work.rename(path)

    def _remove_where(self, wanted: Callable[[Path], bool]) -> list[str]:
        stayed = []
        for path in self.root.glob("*.*"):
            if not path.is_dir() or not wanted(path):
                continue
            lock = self._lock_file(path.name.removesuffix(".tmp"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            except BlockingIOError:
                stayed.append(path.name)
            finally:
                os.close(lock)
        return stayed

    def _lock_file(self, name: str) -> int:
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        return os.open(locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _wait_for(lock: int, mode: int, name: str) -> None:
    """flock(2); changing the mode is not atomic, so whoever waits for it must look again."""
    try:
        fcntl.flock(lock, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting for another build of {name}")
        fcntl.flock(lock, mode)


def _name(path: Path) -> str:
    return path.name.partition(".")[0]


def _unused(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > UNUSED_SECONDS


def _parts(path: Path) -> dict[str, str]:
    made_from = path / "made-from.json"
    return json.loads(made_from.read_text()) if made_from.exists() else {}
