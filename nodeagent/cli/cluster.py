"""The commands that use the API server, in processes of their own."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from nodeagent.cli.commands import Call, output
from nodeagent.cli.output import Output, write_json, write_lines
from nodeagent.errors import AgentError, BusyError, ExitCode, Stopped, UnavailableError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from nodeagent.cluster.client import Client
    from nodeagent.cluster.device_plugin import Restarted
    from nodeagent.settings import Settings

log = logging.getLogger(__name__)


class Seconds(click.FloatRange):
    """Seconds, 0 or more. `nan` is a float, but not a time."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """As its base, without nan."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a time", param, ctx)
        return seconds


class ObjectName(click.ParamType[str]):
    """The name of a Kubernetes object. It becomes part of a request's path."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name unchanged, or a usage error."""
        from nodeagent.parse import object_name

        try:
            return object_name(str(value))
        except ValueError as error:
            self.fail(f"{value!r} is not {error}", param, ctx)


class NodeName(ObjectName):
    """The name of a node, which a shell completes from what the API server has."""

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002  click's parameters
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem[str]]:
        """The names with that beginning; none if the API server does not answer in time."""
        from click.shell_completion import CompletionItem

        from nodeagent import settings
        from nodeagent.cluster import access
        from nodeagent.cluster.client import Client
        from nodeagent.cluster.kinds import NODE

        try:
            client = Client(access.find(settings.load()), patience=COMPLETION_TIMEOUT)
            names = [str(each["metadata"]["name"]) for each in client.list_all(NODE)]
        except AgentError:
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


COMPLETION_TIMEOUT: Final = 2.0
"""Seconds for the names of nodes in a shell's completion."""

SECONDS: Final = Seconds(min=0)
OBJECT_NAME: Final = ObjectName()
of_node = click.option(
    "--node", "name", type=NodeName(), metavar="NAME", help="Another node. Default: NODE_NAME."
)


def require_client() -> None:
    """UnavailableError if the library is missing; only these commands need it."""
    import importlib.util

    if importlib.util.find_spec("kubernetes") is None:
        raise UnavailableError(
            "the Python package kubernetes is not installed; the commands for the cluster need it",
            hint="install it, for example with pip install nodeagent",
        )


@click.group("device-plugin")
def device_plugin() -> None:
    """Restart device plugins, prune their list."""
    require_client()


@device_plugin.command("restart")
@click.option("--wait", is_flag=True, help="Until the node's allocatable has what it had.")
@output
@click.pass_obj
def restart(call: Call, wait: bool, output: Output) -> int:
    """Restart every device plugin pod on this node.

    With --wait, wait until each has a ready successor, and the node's allocatable has as much of
    each resource as before the reload. Ends with status 66 if this node has no device plugin pods,
    69 if the API server is not reachable, 75 if the wait timed out, 77 if it is forbidden, 78
    without NODE_NAME.
    """
    from nodeagent.cluster import device_plugin

    loaded, node = this_node(call)
    done = device_plugin.restart(connect(loaded), loaded, node, wait=wait)
    if done is None:
        log.info(
            "no device plugin pods on node %s in %s with any of %s: nothing to restart",
            node,
            ", ".join(loaded.device_plugin_namespaces),
            ", ".join(loaded.device_plugin_selectors),
        )
        return ExitCode.NO_INPUT
    if output == Output.JSON:
        write_json(asdict(done))
    else:
        write_lines(_restarted_lines(done, wait=wait))
    return 0


@device_plugin.command("hold-off", short_help="Restart them while there are no VFs.")
@click.pass_obj
def hold_off(call: Call) -> int:
    """Restart every device plugin pod on this node, if a reload is in progress.

    The agent starts this command after the VFs were removed, with HOLD_OFF=plugin, and does not
    wait for it: a plugin that starts then finds no devices, so that the kubelet gives none to new
    pods. `node after-reload` restarts the plugins again.
    """
    from nodeagent.cluster import device_plugin
    from nodeagent.record.journal import Journal
    from nodeagent.record.lock import lock_holders

    loaded, node = this_node(call)
    journal = Journal(loaded)

    def is_over() -> bool:
        return not journal.has_open_snapshot() or not lock_holders(loaded.work_path)

    try:
        deleted = device_plugin.hold_off(connect(loaded), loaded, node, is_over)
    except Stopped:
        raise
    except AgentError as error:
        log.warning("device plugins offer VFs that do not exist: %s", error.message)
        return ExitCode.DIFFERS
    if deleted:
        log.info("device plugins restarted while there are no VFs: %s", ", ".join(deleted))
    return 0


@device_plugin.command("record")
@click.option("--at", type=click.DateTime(["%Y-%m-%dT%H:%M:%S%z"]), help="As of. Default: now.")
@output
@click.pass_obj
def record(call: Call, at: datetime | None, output: Output) -> None:
    """Record the node's allocatable, for `restart --wait`.

    While a reload is in progress, or device plugins have not been restarted after the last one, an
    earlier record is kept.
    """
    from nodeagent.cluster import after_reload, allocatable
    from nodeagent.record.journal import Journal

    loaded, node = this_node(call)
    journal = Journal(loaded)
    kept = journal.has_open_snapshot() or bool(after_reload.due(journal, loaded.state_dir))
    stamp = at.isoformat() if at else None
    taken = allocatable.save(connect(loaded), node, loaded.state_dir, in_flight=kept, at=stamp)
    if output == Output.JSON:
        write_json(asdict(taken))
    else:
        write_lines(f"{name}: {count}" for name, count in taken.resources.items())


@device_plugin.command("prune", short_help="Drop entries of devices that are gone.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed, change nothing.")
@click.option("--watch-nodeeni", is_flag=True, help="Stay; prune when a NodeENI is deleted.")
@output
@click.pass_obj
def prune(call: Call, dry_run: bool, watch_nodeeni: bool, output: Output) -> None:
    """Remove entries of missing devices from the device plugin's list.

    The rest of the file is kept byte for byte. The device plugin is restarted only if the file
    changed, now or in an earlier call that could not restart it. Fails while a reload is in
    progress, because then all VFs are missing.
    """
    from nodeagent import durable
    from nodeagent.cluster import device_plugin, nodeeni, pcidp

    if watch_nodeeni:
        if dry_run:
            raise click.UsageError("--watch-nodeeni and --dry-run exclude each other")
        loaded, node = this_node(call)
        client = connect(loaded)
        nodeeni.watch(client, loaded, node, _restarter(client, loaded, node))
        return
    loaded = call.settings()
    _refuse_in_flight(loaded)
    owed = device_plugin.owed(loaded.state_dir)
    path = loaded.device_plugin_config
    pruned = pcidp.prune_file(path, pcidp.present_on(), owed=None if dry_run else owed)
    removed = pruned.removed if pruned else ()
    if output == Output.JSON:
        write_json({"file": str(path), "removed": removed, "dry_run": dry_run})
    else:
        write_lines(f"{'would remove' if dry_run else 'removed'} {each}" for each in removed)
        if not removed:
            write_lines([f"{path}: nothing is to be removed"])
    if not dry_run and durable.exists(owed):
        loaded, node = this_node(call)
        _restarter(connect(loaded), loaded, node)()


@click.group("node")
def node() -> None:
    """Tell the cluster about this node; wait for its gates."""
    require_client()


timeout = click.option("--timeout", type=SECONDS, default=None, help="Seconds. Default: for ever.")


@node.command("announce")
@click.pass_obj
def announce(call: Call) -> None:
    """Announce to the cluster what happened to the driver.

    Creates Events and, if the settings ask for them, a condition and annotations. What cannot be
    announced stays on record for the next call.
    """
    from nodeagent.cluster import announce
    from nodeagent.record.journal import Journal

    loaded, node = this_node(call)
    announce.announce(connect(loaded), loaded, node, Journal(loaded).records())


@node.command("after-reload", short_help="Announce; restart device plugins; lift a cordon.")
@click.option("--patience", type=SECONDS, help="Seconds. Default: API_TIMEOUT.")
@click.pass_obj
def after_reload(call: Call, patience: float | None) -> int:
    """Announce, restart device plugins if a reload requires it, and lift the cordon of `cordon`.

    The agent starts this command when its work is done, and does not wait for it. Ends with status
    1 if something could not be done; the next call does it. Of several calls at a time one works,
    one waits, and the others exit.
    """
    from nodeagent.cluster import turns

    loaded, node = this_node(call)
    with turns.turn(loaded.state_dir) as ours:
        if not ours:
            log.info("another process is waiting to do the same")
            return 0
        # imported after the wait, which can take an hour: the library needs 30 MB
        from nodeagent.cluster import after_reload
        from nodeagent.record.journal import Journal

        client = connect(loaded)
        client.patience = loaded.api_timeout if patience is None else patience
        done = after_reload.after_reload(client, loaded, node, Journal(loaded))
    return 0 if done else ExitCode.DIFFERS


@node.command("cordon", short_help="Keep new pods away until a reload is over.")
@click.pass_obj
def cordon(call: Call) -> None:
    """Mark this node unschedulable until `node after-reload` is done.

    The agent starts this command before the snapshot, with HOLD_OFF=cordon, and does not wait for
    it. A node that is cordoned already stays so, also afterwards.
    """
    from nodeagent.cluster import cordon
    from nodeagent.record.journal import Journal

    loaded, node = this_node(call)
    cordon.cordon(connect(loaded), node, loaded.state_dir, Journal(loaded).is_ready)


@node.command("wait-safe-load", short_help="Wait until the driver may be loaded.")
@of_node
@timeout
@click.pass_obj
def wait_safe_load(call: Call, name: str | None, timeout: float | None) -> None:
    """Wait until the driver may be loaded: the safe-load annotation is gone."""
    from nodeagent.cluster import gates

    loaded, node = this_node(call, name)
    gates.wait_for_safe_load(connect(loaded), node, timeout=_seconds(timeout))


@node.command("wait-mofed", short_help="Wait until the Network Operator opens the node.")
@of_node
@timeout
@click.pass_obj
def wait_mofed(call: Call, name: str | None, timeout: float | None) -> None:
    """Wait until the Network Operator's mofed.wait label is not true."""
    from nodeagent.cluster import gates

    loaded, node = this_node(call, name)
    gates.wait_for_driver(connect(loaded), node, timeout=_seconds(timeout))


ALL = (device_plugin, node)


def connect(loaded: Settings) -> Client:
    """A client. From here on SIGTERM raises Stopped."""
    from nodeagent.cluster import access
    from nodeagent.cluster.client import Client

    found = access.find(loaded)
    signal.signal(signal.SIGTERM, _stop)
    return Client(found, patience=loaded.api_timeout)


def _seconds(timeout: float | None) -> float:
    return float("inf") if timeout is None else timeout


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise Stopped


def this_node(call: Call, name: str | None = None) -> tuple[Settings, str]:
    """The settings, and the name that was given, else NODE_NAME."""
    from nodeagent.cluster import access

    loaded = call.settings()
    return loaded, name or access.node_name(loaded)


def _restarter(client: Client, loaded: Settings, node: str) -> Callable[[], None]:
    from nodeagent.cluster import device_plugin

    def restart() -> None:
        done = device_plugin.restart(client, loaded, node, wait=False)
        for name in done.deleted if done else ():
            log.info("restarted the device plugin %s", name)
        if done is None:
            log.info("no device plugin pods on node %s: nothing to restart", node)

    return restart


def _refuse_in_flight(loaded: Settings) -> None:
    from nodeagent.record.journal import Journal

    if Journal(loaded).has_open_snapshot():
        raise BusyError(
            "cannot prune during a reload: the missing devices will return",
            hint="run it again when `nodeagent status` says that the node is ready",
        )


def _restarted_lines(done: Restarted, *, wait: bool) -> list[str]:
    said = [f"restarted {name}" for name in done.deleted]
    said += [f"left {name}: no controller would create it again" for name in done.left]
    said += [f"not admitted: {line}" for line in done.failed]
    if wait:
        given = ", ".join(f"{name} {count}" for name, count in done.resources.items())
        said.append(f"allocatable after {done.seconds:.1f} s: {given or 'no extended resources'}")
    return said
