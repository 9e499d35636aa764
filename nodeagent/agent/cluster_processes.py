"""Short processes that talk to the API server beside the agent, which never waits for them.

The resident agent needs no API access. An API server that is away, or refuses, can delay neither a
restore nor the ready flag: what these processes meet is a line in the log, and what they could not
do the next ones do.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from nodeagent.errors import Stopped
from nodeagent.settings import ClusterIntegration, HoldOff, Settings

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 7200
"""How long the process after a reload keeps trying, at 45 MiB of memory."""


def is_enabled(settings: Settings) -> bool:
    """CLUSTER_INTEGRATION: on, or auto in a pod that knows its node's name."""
    if settings.cluster_integration == ClusterIntegration.AUTO:
        return settings.api_host is not None and settings.node_name is not None
    return settings.cluster_integration == ClusterIntegration.ON


@contextmanager
def around(settings: Settings) -> Iterator[None]:
    """`before_reload`, the block, `after_reload`. Not after a stop: the termination follows."""
    before_reload(settings)
    try:
        yield
    except Stopped:
        raise
    except BaseException:
        after_reload(settings)
        raise
    after_reload(settings)


def before_reload(settings: Settings) -> None:
    """Record what the node offers to pods, as of now."""
    if is_enabled(settings):
        _start("device-plugin", "record", "--at", datetime.now(UTC).isoformat(timespec="seconds"))


def before_snapshot(settings: Settings) -> None:
    """Keep new pods off the node (HOLD_OFF=cordon), right before the snapshot.

    `after_reload` lifts that.
    """
    if is_enabled(settings) and HoldOff.CORDON in settings.hold_off:
        _start("node", "cordon")


def without_vfs(settings: Settings) -> None:
    """Have device plugins find no devices (HOLD_OFF=plugin), right after VFs were removed.

    `after_reload` restarts them again.
    """
    if is_enabled(settings) and HoldOff.PLUGIN in settings.hold_off:
        _start("device-plugin", "hold-off")


def after_reload(settings: Settings) -> None:
    """Announce how the agent's work ended, and restart device plugins if that is due.

    It is due once the snapshot is closed: the caller has closed it by now.
    """
    if is_enabled(settings):
        _start("node", "after-reload", "--patience", str(RETRY_SECONDS))


def _start(*arguments: str) -> None:
    """Start a process in its own session: it gets neither our lock (O_CLOEXEC) nor our signals.

    The kernel reaps it when it ends: the holder, which this process becomes, ignores SIGCHLD.
    """
    argv = [sys.executable, "-m", "nodeagent", *arguments]
    nowhere = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    try:
        os.posix_spawn(
            argv[0],
            argv,
            os.environ,  # handed on, not read
            file_actions=[nowhere],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGTERM, signal.SIGINT, signal.SIGCHLD),
        )
    except OSError as error:
        log.warning(
            "nothing is announced to the cluster: cannot start %s: %s", argv[0], error.strerror
        )
