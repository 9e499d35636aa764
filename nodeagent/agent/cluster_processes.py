"""What the cluster is told, by short processes beside the agent: started, never waited for.

The resident agent needs no API access. An API server that is away, or says no, can delay neither a
restore nor the ready flag: whatever these processes meet is a line in the log, and what they could
not do the next ones do.
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
from nodeagent.settings import ClusterIntegration, Settings

log = logging.getLogger(__name__)

PATIENCE: Final = 7200
"""Seconds for which the process after a reload keeps trying; it takes 45 MiB as long as it does."""


def wanted(settings: Settings) -> bool:
    """CLUSTER_INTEGRATION: on, or auto in a pod that knows its node's name."""
    if settings.cluster_integration == ClusterIntegration.AUTO:
        return settings.api_host is not None and settings.node_name is not None
    return settings.cluster_integration == ClusterIntegration.ON


@contextmanager
def around(settings: Settings) -> Iterator[None]:
    """`begin`, the agent's work, `end`; a work that was stopped is not over yet."""
    begin(settings)
    try:
        yield
    except Stopped:
        raise
    except BaseException:
        end(settings)
        raise
    end(settings)


def begin(settings: Settings) -> None:
    """Before a reload: record what the node can give to pods, as of now."""
    if wanted(settings):
        _start("device-plugin", "record", "--at", datetime.now(UTC).isoformat(timespec="seconds"))


def end(settings: Settings) -> None:
    """After the agent's work, however it ended: say so, and restart device plugins if that is due.

    The snapshot must be closed by now: that is what makes it due.
    """
    if wanted(settings):
        _start("node", "after-reload", "--patience", str(PATIENCE))


def _start(*arguments: str) -> None:
    """A process of its own session: it has neither our lock (O_CLOEXEC) nor our signals.

    The holder, which this process becomes, has its dead children reaped by the kernel.
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
        log.warning("the cluster is not told: cannot start %s: %s", argv[0], error.strerror)
