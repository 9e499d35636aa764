"""A run: a directory of its own, a machine resumed from a saved state, one command in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from emulator import machine, session, stall, tree
from emulator.build import Builder
from emulator.machine import Options
from emulator.session import Command


def run(builder: Builder, options: Options, command: Command, out: Path | None) -> int:
    """Run a command in a fresh node. Returns its exit status; LabError if the lab itself failed.

    What the command leaves in /host/out is copied to `out`, however it ended.
    """
    image, state = builder.ready(options)
    with _directory(builder.root / "runs") as files:
        (files / "host" / "out").mkdir(parents=True)
        tree.pack(files / "host" / "tree.tar")
        with machine.started(options, image, files, state=state / "state") as resumed:
            with stall.reported(resumed, builder.root / "failed"), _copied(files, out):
                return session.run(resumed, command)


@contextlib.contextmanager
def _directory(runs: Path) -> Iterator[Path]:
    """A directory that is locked while the run lasts, so that what a killed run left can go."""
    runs.mkdir(exist_ok=True)
    for old in runs.iterdir():
        with contextlib.suppress(OSError), _locked(old):
            shutil.rmtree(old)
    path = Path(tempfile.mkdtemp(dir=runs))
    with _locked(path):
        try:
            yield path
        finally:
            shutil.rmtree(path)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """An exclusive flock on the directory. BlockingIOError if somebody has it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _copied(files: Path, out: Path | None) -> Iterator[None]:
    try:
        yield
    finally:
        if out:
            shutil.copytree(files / "host" / "out", out, dirs_exist_ok=True)
