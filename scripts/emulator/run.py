"""A run: a directory of its own, a machine resumed from a saved state, one command in it.

With a disk of its own the machine boots, and may be reset: its end is then like a loss of power.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from emulator import machine, session, stall, tree
from emulator.build import BOOT_SECONDS, Builder
from emulator.host import locked, say
from emulator.machine import Options
from emulator.session import Command


def run(
    builder: Builder,
    options: Options,
    command: Command,
    *,
    out: Path | None = None,
    bring: Sequence[Path] = (),
    keep: bool = False,
) -> int:
    """Run a command in a fresh node. Returns its exit status; LabError if the lab itself failed.

    The files in `bring` are /host/NAME there. What the command leaves in /host/out is copied to
    `out`, however it ended. With `keep`, the run's directory (host/, serial.log, qemu.log) stays
    until `clean`.
    """
    made = builder.ready(options)
    runs = builder.root / ("kept" if keep else "runs")
    with _kept(runs) if keep else _directory(runs) as files:
        (files / "host" / "out").mkdir(parents=True)
        tree.pack(files / "host" / "tree.tar")
        for path in bring:
            _link(path, files / "host" / path.name)
        with (
            machine.started(options, made, files) as node,
            stall.reported(node, builder.root / "failed"),
            _copied(files / "host" / "out", out),
        ):
            if made.state is None:
                session.wait_ready(node, BOOT_SECONDS)
            status = session.run(node, command)
            _tell_mended(node.serial)
            return status


def _tell_mended(serial: Path) -> None:
    """Whether the emulator lost interrupts; lab_eoi.c has the story."""
    lines = serial.read_text(errors="replace").splitlines() if serial.exists() else []
    for line in lines:
        if "lab_eoi: processor" in line:
            say(f"the emulator lost an interrupt, which was mended: {line}")


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # another file system
        shutil.copy(path, target)


@contextlib.contextmanager
def _kept(runs: Path) -> Iterator[Path]:
    runs.mkdir(exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=runs))
    try:
        yield path
    finally:
        say(f"kept: {path}")


@contextlib.contextmanager
def _directory(runs: Path) -> Iterator[Path]:
    """A directory that is locked while the run lasts, so that what a killed run left can go."""
    runs.mkdir(exist_ok=True)
    with contextlib.ExitStack() as held:
        with locked(runs):
            for old in runs.iterdir():
                with contextlib.suppress(BlockingIOError), locked(old, wait=False):
                    shutil.rmtree(old)
            path = Path(tempfile.mkdtemp(dir=runs))
            held.enter_context(locked(path))
        try:
            yield path
        finally:
            shutil.rmtree(path)


@contextlib.contextmanager
def _copied(source: Path, target: Path | None) -> Iterator[None]:
    try:
        yield
    finally:
        if target:
            shutil.copytree(source, target, dirs_exist_ok=True)
