"""The files in sysfs that each queue of an interface has (`nodeagent.state.queues`).

The kernel has no `xps_cpus` for an interface that can have one queue only (ENOENT).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from nodeagent.errors import KernelError
from nodeagent.kernel import sysfs
from nodeagent.state.queues import FILES


def read(interface: Path) -> Iterator[tuple[str, str]]:
    """The settings of an interface, by its directory; none if it is gone."""
    for key in FILES:
        if words := [word for _, word in _files(interface, key)]:
            yield key, " ".join(words)


def write(interface: Path, values: Mapping[str, object]) -> None:
    """Set those that differ, of the queues that there are. OSError names what is refused."""
    for key, value in values.items():
        files = _files(interface, key)
        for (path, now), word in zip(files, str(value).split(), strict=False):
            if now != word:
                try:
                    sysfs.write(path, word)
                except KernelError as refused:
                    raise OSError(refused.errno, refused.message) from refused


def _files(interface: Path, key: str) -> Iterator[tuple[str, str]]:
    """Path and word of each queue; of the interface where the file is its own."""
    form = f"{interface}/{FILES[key]}"
    for number in itertools.count() if "{}" in form else (0,):
        path = form.format(number)
        if (text := sysfs.text_of(path)) is None:
            return
        # a mask has groups of 32 bits: 00000000,0000000f
        yield path, text.lstrip("0,") or text[-1:]
