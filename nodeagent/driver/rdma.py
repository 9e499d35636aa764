"""The netns mode of ib_core (shared or exclusive RDMA devices), which a reload would reset.

`rdma system set netns` fails while there is another network namespace, which is always the case on
a node with pods. The mode is therefore passed to ib_core by a modprobe.d file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nodeagent import durable
from nodeagent.cleanup import afterwards
from nodeagent.kernel import modules
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

# The last file in the order of modprobe.d(5); of several values the kernel uses the last.
_FILE = Path("etc/modprobe.d/zz-nodeagent-rdma-netns.conf")
_MODE = {"Y": "shared", "N": "exclusive"}


@contextmanager
def netns_mode_kept(settings: Settings, sysfs: Path) -> Iterator[None]:
    """Give an ib_core that is loaded within the block the mode of the present one."""
    before = modules.parameter("ib_core", "netns_mode", sysfs)
    path = settings.driver_root / _FILE
    if before not in _MODE or not path.parent.is_dir():
        yield
        return
    line = (
        f"# written by nodeagent; removed after the reload\noptions ib_core netns_mode={before}\n"
    )
    durable.replace(path, line.encode(), 0o644)
    with afterwards(lambda: durable.remove(path)):
        yield
    after = modules.parameter("ib_core", "netns_mode", sysfs)
    if after is not None and after != before:
        log.warning(
            "RDMA devices were %s between network namespaces and are %s now; "
            "`rdma system set netns %s` changes it while there are no pods",
            *(_MODE[before], _MODE.get(after, after), _MODE[before]),
        )


def sweep(settings: Settings) -> None:
    """Remove the file that a killed run left, complete or not."""
    path = settings.driver_root / _FILE
    durable.remove_unfinished(path)
    if durable.remove(path):
        log.warning("removed the stale %s", path)
