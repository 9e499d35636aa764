"""How RDMA devices and network namespaces go together: a mode of ib_core that a reload forgets.

`rdma system set netns` changes it only while there is no other network namespace, which on a node
with pods is never: so it is given to ib_core when that is loaded, by a modprobe.d file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeagent import durable
from nodeagent.kernel import modules
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

# Read last by modprobe.d(5)'s order, and of two values the kernel takes the later.
_FILE = Path("etc/modprobe.d/zz-nodeagent-rdma-netns.conf")
_MODE = {"Y": "shared", "N": "exclusive"}


@contextmanager
def netns_mode_kept(settings: Settings, sysfs: Path) -> Iterator[None]:
    """Have an ib_core that is loaded in this block take over the mode of the one before."""
    before = modules.parameter("ib_core", "netns_mode", sysfs)
    path = settings.driver_root / _FILE
    if before not in _MODE or not path.parent.is_dir():
        yield
        return
    line = (
        f"# written by nodeagent; removed after the reload\noptions ib_core netns_mode={before}\n"
    )
    durable.replace(path, line.encode(), 0o644)
    try:
        yield
    finally:
        durable.remove(path)
    after = modules.parameter("ib_core", "netns_mode", sysfs)
    if after is not None and after != before:
        log.warning(
            "RDMA devices were %s between network namespaces and are %s now; "
            "`rdma system set netns %s` changes it while there are no pods",
            *(_MODE[before], _MODE.get(after, after), _MODE[before]),
        )


def sweep(settings: Settings) -> None:
    """Remove what a killed run left."""
    if durable.remove(settings.driver_root / _FILE):
        log.warning("removed the stale %s", settings.driver_root / _FILE)
