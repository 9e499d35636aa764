"""After a reload: announce it to the cluster, restart the device plugins once, remove a cordon.

A restart is due if the last closed snapshot is not the one of the last restart; for a sidecar,
whose driver container may reload twice for one snapshot or not at all, if the driver has been
loaded since; and after a failed reload in which device plugins were restarted (HOLD_OFF=plugin).
All of this is read from disk, so that the next process finishes the work of one that was killed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from nodeagent import durable
from nodeagent.cluster import allocatable, announce, cordon, device_plugin
from nodeagent.cluster.client import Client
from nodeagent.errors import AgentError, Stopped
from nodeagent.record.journal import Journal, Note
from nodeagent.settings import Settings

log = logging.getLogger(__name__)


def after_reload(client: Client, settings: Settings, node: str, journal: Journal) -> bool:
    """Do all of it, even if a part fails. False if one failed.

    The cordon is removed last, when device plugins report the devices.
    """
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("cannot announce", lambda: _announce(client, settings, node, journal)),
        ("cannot restart device plugins", lambda: _restart(client, settings, node, journal)),
        ("cannot lift the cordon", lambda: cordon.lift(client, node, settings.state_dir)),
    )
    done = [_done(what, action) for what, action in steps]
    return all(done)


def due(journal: Journal, state_dir: Path) -> str:
    """The name of the reload that still requires a restart; "" if none does.

    It is the `taken_at` of its snapshot; of a sidecar, the boot and the number of the loading of
    the driver.
    """
    last = journal.last_snapshot()
    if last is None or journal.has_open_snapshot():
        return ""
    moment = last.taken_at
    proof = journal.last_note(Note.READY)
    if proof is not None and proof.facts.get("snapshot") == last.taken_at:
        moment = f"{proof.boot} {proof.facts.get('loading')}"
    handled = durable.read_own(_path(state_dir)) or b""
    return moment if handled.decode(errors="replace").strip() != moment else ""


def _announce(client: Client, settings: Settings, node: str, journal: Journal) -> None:
    announce.announce(client, settings, node, journal.records())


def _restart(client: Client, settings: Settings, node: str, journal: Journal) -> None:
    held_off = device_plugin.is_held_off(settings.state_dir)
    moment = due(journal, settings.state_dir)
    if held_off and not moment:  # the VFs are restored on the former driver: no new record is due
        device_plugin.restart(client, settings, node, wait=False)
        log.info("device plugins restarted: their last restart was without VFs")
    if not moment:
        if not journal.has_open_snapshot():
            allocatable.forget(settings.state_dir)  # of a reload that was not necessary
        return
    done = device_plugin.restart(client, settings, node, wait=True)
    if done is None:
        log.info("no device plugin pods on node %s: nothing to restart", node)
        allocatable.forget(settings.state_dir)
    else:
        facts = {"pods": len(done.deleted), "elapsed": done.seconds}
        log.info("device plugins restarted, allocatable is as before", extra=facts)
        for line in done.failed:
            log.warning("not admitted during the reload: %s", line)
    durable.replace(_path(settings.state_dir), moment.encode() + b"\n", 0o600)


def _done(what: str, action: Callable[[], object]) -> bool:
    """Do `action`; False after logging its failure, so that the other actions are done as well."""
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
