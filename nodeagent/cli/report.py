"""One page for a ticket: the state of the node, and of the cluster's objects about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import click

from nodeagent.cli.cluster import connect, require_client, this_node
from nodeagent.cli.commands import Call, output
from nodeagent.cli.output import Output, write_json, write_lines
from nodeagent.errors import AgentError
from nodeagent.modes import Mode
from nodeagent.render import Screen, visible

if TYPE_CHECKING:
    from nodeagent.cluster.client import Client
    from nodeagent.settings import Settings


@click.command("report", short_help="One page for a ticket, of node and cluster.")
@output
@click.pass_obj
def report(call: Call, output: Output) -> None:
    """One page for a ticket: driver, VFs, device plugin, allocatable, networks, timeline.

    If a section cannot be read, it has the reason instead.
    """
    loaded, name = this_node(call)
    if output == Output.JSON:
        sections = {title: _read(section) for title, section in _sections(loaded, name)}
        write_json({"node": name, "sections": sections})
        return
    for part in _parts(loaded, name):
        write_lines(part)


def text(loaded: Settings) -> str:
    """The page as text. ConfigError without NODE_NAME, UnavailableError without the library."""
    from nodeagent.cluster import access

    require_client()
    parts = _parts(loaded, access.node_name(loaded))
    return "".join(f"{line}\n" for part in parts for line in part)


def _parts(loaded: Settings, name: str) -> Iterator[list[str]]:
    yield [f"node {name}"]
    for title, section in _sections(loaded, name):
        yield ["", title, *(f"  {visible(line)}" for line in _read(section))]


def _sections(loaded: Settings, name: str) -> Iterator[tuple[str, Callable[[], Iterable[str]]]]:
    yield "driver", lambda: _driver(loaded)
    yield "VFs against the last snapshot", lambda: _vfs(loaded)
    connected: list[Client] = []

    def client() -> Client:
        if not connected:
            connected.append(connect(loaded))
        return connected[0]

    yield "device plugin", lambda: _device_plugin(client(), loaded, name)
    yield "allocatable", lambda: _allocatable(client(), loaded, name)
    yield "networks", lambda: _networks(client(), loaded, name)
    yield "timeline", lambda: _timeline(loaded)


def _read(section: Callable[[], Iterable[str]]) -> list[str]:
    try:
        return [*section()]
    except AgentError as error:
        return [f"not available: {line}" for line in error.message.splitlines()]


def _driver(loaded: Settings) -> Iterable[str]:
    from nodeagent.agent import status
    from nodeagent.driver.nic import NicDriver

    found = status.look(loaded, NicDriver(loaded, Mode.PRECOMPILED, None))
    return (line for line in status.lines(found, Screen()) if line)


def _vfs(loaded: Settings) -> Iterable[str]:
    from nodeagent.agent import by_hand
    from nodeagent.plan.comparison import differences
    from nodeagent.plan.taken import ours, taken
    from nodeagent.record.journal import Journal

    journal = Journal(loaded)
    wanted = journal.wanted_snapshot()
    if wanted is None:
        return ["no snapshot: no reload has begun on this node"]
    wanted, left = by_hand.reachable(wanted, loaded)
    now = by_hand.snapshot_now(loaded).state
    theirs = taken(wanted.state, now)
    found = differences(ours(wanted.state, now), now)
    same = f"{wanted.state.counts} as of {wanted.taken_at}: nothing differs"
    return [*map(str, left), *map(str, theirs), *([str(each) for each in found] or [same])]


def _device_plugin(client: Client, loaded: Settings, name: str) -> Iterable[str]:
    from nodeagent.cluster import device_plugin

    return device_plugin.pods(client, loaded, name) or ["no pods on this node"]


def _allocatable(client: Client, loaded: Settings, name: str) -> Iterable[str]:
    from nodeagent.cluster import allocatable, gates

    (this,) = allocatable.listing(client, name).objects.values()
    record = allocatable.load(loaded.state_dir)
    have = allocatable.of_node(this)
    yield from (f"{resource}: {count}" for resource, count in have.items())
    if not have:
        yield "no extended resources"
    if record is not None:
        lines = allocatable.short(record.resources, have)
        yield from (f"before the reload of {record.taken_at}: {line}" for line in lines)
    yield from (f"held back by {line}" for line in gates.closed(this))


def _networks(client: Client, loaded: Settings, name: str) -> Iterable[str]:
    from nodeagent.cluster import networks

    return [str(each) for each in networks.check(client, loaded, name)] or ["nothing is wrong"]


def _timeline(loaded: Settings) -> Iterable[str]:
    from nodeagent.record import timeline
    from nodeagent.record.journal import Journal

    runs = timeline.runs_of(Journal(loaded).records())[-1:]
    return timeline.lines(runs, Screen()) or ["no run on record"]
