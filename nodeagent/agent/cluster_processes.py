"""Short processes that talk to the API server for the agent, which never waits for them.

The agent itself needs no API access. An API server that is unreachable, or refuses, delays neither
a restore nor the ready flag: the processes log their failures, and the next ones do what they could
not do.
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
"""Time limit of the process after a reload, which takes 45 MiB of memory."""


def is_enabled(settings: Settings) -> bool:
    """Whether CLUSTER_INTEGRATION is on, or auto in a pod with NODE_NAME."""
    if settings.cluster_integration == ClusterIntegration.AUTO:
        return settings.api_host is not None and settings.node_name is not None
    return settings.cluster_integration == ClusterIntegration.ON


@contextmanager
def around(settings: Settings) -> Iterator[None]:
    """Call `before_reload`, and after the block `after_reload`, unless it was stopped."""
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
    """Record the node's allocatable resources."""
    if is_enabled(settings):
        _start("device-plugin", "record", "--at", datetime.now(UTC).isoformat(timespec="seconds"))


def before_snapshot(settings: Settings) -> None:
    """Cordon the node (HOLD_OFF=cordon), right before the snapshot; `after_reload` uncordons it."""
    if is_enabled(settings) and HoldOff.CORDON in settings.hold_off:
        _start("node", "cordon")


def without_vfs(settings: Settings) -> None:
    """Restart device plugins while there are no VFs (HOLD_OFF=plugin), so that they offer none.

    `after_reload` restarts them again.
    """
    if is_enabled(settings) and HoldOff.PLUGIN in settings.hold_off:
        _start("device-plugin", "hold-off")


def after_reload(settings: Settings) -> None:
    """Announce the result, and restart device plugins if the snapshot was closed."""
    if is_enabled(settings):
        _start("node", "after-reload", "--patience", str(RETRY_SECONDS))


def _start(*arguments: str) -> None:
    """Start a process in its own session: it inherits neither the lock (O_CLOEXEC) nor signals.

    The kernel reaps it when it ends: the holder, which this process becomes, ignores SIGCHLD.
    """
    argv = [sys.executable, "-m", "nodeagent", *arguments]
    nowhere = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
    try:
        os.posix_spawn(
            argv[0],
            argv,
            os.environ,
            file_actions=[nowhere],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGTERM, signal.SIGINT, signal.SIGCHLD),
        )
    except OSError as error:
        log.warning(
            "nothing is announced to the cluster: cannot start %s: %s", argv[0], error.strerror
        )
