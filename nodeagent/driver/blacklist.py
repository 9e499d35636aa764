"""A modprobe.d file that keeps the host from loading its own driver during a reload.

`blacklist NAME` makes modprobe and udev ignore the module's aliases (modprobe.d(5)), so that no
module is loaded because a device appears. Loading by name, as openibd does, still works; a line
`install NAME /bin/false` would prevent that as well.

The file survives a reboot, and would then keep the host from loading its NIC driver at boot. It is
therefore removed on every exit, and one left by a killed run is removed at the next start.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeagent import durable
from nodeagent.cleanup import afterwards
from nodeagent.errors import DataError, StorageError
from nodeagent.machine import boot_id
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

_OURS = "# written by nodeagent; removed after the reload"
# The first line of the driver container's own file, in bash and in Go.
_CONTAINERS = (
    "# blacklist ofed-related modules on host to prevent inbox or host OFED driver loading"
)
_BODY_LINE = re.compile(r"\s*(#.*|blacklist\s+[A-Za-z0-9_-]+\s*)?")


@contextmanager
def blacklisted(settings: Settings) -> Iterator[None]:
    """Write the blacklist file before the block, and remove it afterwards.

    StorageError if it cannot be written, or removed after a block that succeeded. If the block
    fails, its error is raised, and a failed removal is only logged.
    """
    path = settings.blacklist_file
    check(settings)
    away = settings.third_party_modules if settings.unload_third_party_modules else ()
    durable.replace(path, _content(settings.blacklist_modules + away).encode(), 0o644)
    log.debug("wrote %s", path)
    with afterwards(lambda: _remove(path)):
        yield


def check(settings: Settings) -> None:
    """StorageError if the blacklist could not be written. Changes nothing."""
    path = settings.blacklist_file
    another = "or set OFED_BLACKLIST_MODULES_FILE to another path"
    if not path.parent.is_dir():
        raise StorageError(
            f"cannot write {path}: there is no directory {path.parent}",
            hint=f"mount the host's /etc there, {another}",
        )
    if durable.exists(path) and _writer(path) is None:
        raise StorageError(
            f"cannot write {path}: the existing file was not written by nodeagent, or is a link",
            hint=f"check its content and move it away, {another}",
        )


def sweep(settings: Settings) -> None:
    """Remove a blacklist that a killed run of nodeagent or the driver container left.

    It is recognised by its first line, which only comments and blacklist lines follow; the driver
    container can also leave an empty file. Any other file stays. The caller holds the lock.
    """
    path = settings.blacklist_file
    if not path.parent.is_dir():
        return
    durable.remove_unfinished(path)
    if not durable.exists(path):
        return
    writer = _writer(path)
    if writer is None:
        log.warning("left %s alone: it was not written by nodeagent, or is a link", path)
    elif durable.remove(path):
        log.warning("removed the stale %s: %s was killed during a reload", path, writer)


def _content(modules: tuple[str, ...]) -> str:
    facts = f"# pid {os.getpid()}, boot-id {boot_id()}"
    lines = [_OURS, facts, *(f"blacklist {module}" for module in modules)]
    return "\n".join(lines) + "\n"


def _remove(path: Path) -> None:
    if not durable.exists(path):
        log.warning("%s was removed by another program during the reload", path)
    elif _writer(path) is None:
        log.warning("%s was replaced by another program during the reload: left alone", path)
    else:
        durable.remove(path)


def _writer(path: Path) -> str | None:
    """The writer of the file, for a message; None if it is neither nodeagent nor the container."""
    try:
        content = durable.read_own(path)
    except DataError:
        return None
    first, *rest = (content or b"").decode(errors="replace").splitlines() or [""]
    if not all(_BODY_LINE.fullmatch(line) for line in rest):
        return None
    if first == _OURS:
        return f"nodeagent ({rest[0].removeprefix('# ')})" if rest else "nodeagent"
    return "the driver container" if first in (_CONTAINERS, "") else None
