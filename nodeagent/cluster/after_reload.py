"""After a reload: the cluster is told, and device plugins are restarted once for each reload.

Whether that is due is a state, not an event: the snapshot that was closed last is not the one for
which they were restarted last. A process that was killed in between is made good by the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from nodeagent import durable
from nodeagent.cluster import allocatable, announce, device_plugin
from nodeagent.cluster.client import Client
from nodeagent.errors import AgentError, Stopped
from nodeagent.record.journal import Journal
from nodeagent.settings import Settings

log = logging.getLogger(__name__)


def after_reload(client: Client, settings: Settings, node: str, journal: Journal) -> bool:
    """Do both, each whatever becomes of the other; False when something could not be done."""
    said = _done("telling the cluster", lambda: _announce(client, settings, node, journal))
    return _done("device plugins", lambda: _restart(client, settings, node, journal)) and said


def due(journal: Journal, state_dir: Path) -> str:
    """The moment of the snapshot whose reload still asks for a restart; "" when none does."""
    last = journal.last_snapshot()
    if last is None or journal.has_open_snapshot():
        return ""
    handled = durable.read_own(_path(state_dir)) or b""
    return last.taken_at if handled.decode(errors="replace").strip() != last.taken_at else ""


def _announce(client: Client, settings: Settings, node: str, journal: Journal) -> None:
    announce.announce(client, settings, node, journal.records())


def _restart(client: Client, settings: Settings, node: str, journal: Journal) -> None:
    moment = due(journal, settings.state_dir)
    if not moment:
        if not journal.has_open_snapshot():
            allocatable.forget(settings.state_dir)  # recorded for a reload that was not needed
        return
    done = device_plugin.restart(client, settings, node, wait=True)
    if done is None:
        log.info("no device plugin pods on node %s: nothing to restart", node)
        allocatable.forget(settings.state_dir)
    else:
        facts = {"pods": len(done.deleted), "elapsed": done.seconds}
        log.info("device plugins restarted, allocatable is what it was", extra=facts)
        for line in done.failed:
            log.warning("not admitted meanwhile: %s", line)
    durable.replace(_path(settings.state_dir), moment.encode() + b"\n", 0o600)


def _done(what: str, action: Callable[[], None]) -> bool:
    """The failure of one is logged here, because the other is to be done all the same."""
    try:
        action()
    except Stopped:
        raise
    except AgentError as error:
        log.warning("%s: %s", what, error.message)
        return False
    return True


def _path(state_dir: Path) -> Path:
    return state_dir / "plugins-restarted"
