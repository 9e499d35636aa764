"""The commands that diagnose networks and the SR-IOV operator, and save its configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from nodeagent.cli.cluster import (
    OBJECT_NAME,
    SECONDS,
    connect,
    of_node,
    require_client,
    this_node,
)
from nodeagent.cli.commands import FILE, Call, output
from nodeagent.cli.output import Output, output_path, write_json, write_lines
from nodeagent.errors import DataError, ExitCode
from nodeagent.render import visible

if TYPE_CHECKING:
    from nodeagent.cluster.findings import Finding
    from nodeagent.cluster.operators import Verdict

log = logging.getLogger(__name__)


@click.group("network")
def network() -> None:
    """Diagnose networks that pods ask for; wait for them."""
    require_client()


@network.command("check")
@click.option(
    "-n", "--namespace", metavar="N", type=OBJECT_NAME, help="Only networks in N. Default: all."
)
@of_node
@output
@click.pass_obj
def check_networks(call: Call, namespace: str | None, name: str | None, output: Output) -> int:
    """Show what is wrong with the networks of this node.

    One line per finding: problem, evidence, owner, and the change to make there. Changes nothing.
    Ends with status 0 if nothing is wrong, 1 if something is, 64 or above on failure.
    """
    from nodeagent.cluster import networks

    loaded, node = this_node(call, name)
    found = networks.check(connect(loaded), loaded, node, namespace=namespace)
    if output == Output.JSON:
        write_json([asdict(each) for each in found])
    else:
        write_lines(_lines(found) if found else [f"networks of node {node}: nothing is wrong"])
    return ExitCode.DIFFERS if found else 0


@network.command("wait", short_help="Wait until networks exist and are complete.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, type=OBJECT_NAME)
@click.option("-n", "--namespace", metavar="NS", required=True, type=OBJECT_NAME)
@click.option("--timeout", type=SECONDS, default=120.0, help="Seconds.  [120]")
@output
@click.pass_obj
def wait(call: Call, names: Sequence[str], namespace: str, timeout: float, output: Output) -> None:
    """Wait until each network exists, is complete, and is stable for a moment.

    Prints how long each took. Ends with status 75 on time-out, and then prints the known causes
    that apply.
    """
    from nodeagent.cluster import arrivals

    loaded = call.settings()
    arrived = arrivals.wait(connect(loaded), loaded, names, namespace, timeout=timeout)
    if output == Output.JSON:
        write_json([asdict(each) for each in arrived])
    else:
        shown = ((f"{namespace}/{each.name}", each.seconds) for each in arrived)
        write_lines(f"{name} complete after {seconds:.2f} s" for name, seconds in shown)


@click.group("operator")
def operator() -> None:
    """Check the SR-IOV operator; save and restore its settings."""
    require_client()


@operator.command("check", short_help="Is the operator working, slow, or silent?")
@output
@click.pass_obj
def check_operator(call: Call, output: Output) -> int:
    """Find out whether the SR-IOV operator is working, slow, silent, absent or unknown.

    Takes up to 30 s, the time that a working controller needs to notice an object. Ends with status
    0 if the operator and its webhooks work, 1 if not, 64 or above on failure.
    """
    from nodeagent.cluster import operators

    loaded = call.settings()
    verdict = operators.check(connect(loaded), loaded)
    if output == Output.JSON:
        write_json(asdict(verdict))
    else:
        write_lines(_verdict_lines(verdict))
    states = operators.OperatorState
    is_well = verdict.state in {states.WORKING, states.UNKNOWN} and not verdict.findings
    return 0 if is_well else ExitCode.DIFFERS


@operator.command("capture")
@click.option("--file", "target", type=FILE, metavar="FILE", required=True, help="Where to write.")
@output
@click.pass_obj
def capture(call: Call, target: str, output: Output) -> None:
    """Save the operator's configuration to a file, for a reinstall.

    Subscription, OperatorGroup, CatalogSource, image mirrors, SriovOperatorConfig, policies and
    networks, without fields that the server sets and without secrets.
    """
    from nodeagent import durable
    from nodeagent.cluster import capture

    loaded = call.settings()
    taken = capture.capture(connect(loaded), loaded)
    durable.replace(output_path(target), taken.text.encode(), 0o600)
    for each in taken.withheld:
        log.warning("left out, because it may be secret: %s; set it by hand after a restore", each)
    if output == Output.JSON:
        write_json({"file": target, "objects": taken.count, "withheld": taken.withheld})
    else:
        write_lines([f"{taken.count} objects in {target}"])


@operator.command("restore")
@click.argument("source", type=FILE, metavar="FILE")
@click.option("--dry-run", is_flag=True, help="Print the difference, change nothing.")
@output
@click.pass_obj
def restore(call: Call, source: str, dry_run: bool, output: Output) -> int:
    """Restore what `capture` saved, by server-side apply, in order.

    Prints the differences. Ends with status 0 if all is as in the file, 1 if something still
    differs, or its kind is not served yet: run it again when the operator is installed.
    """
    from nodeagent.cli.input import content
    from nodeagent.cluster import capture

    loaded = call.settings()
    try:
        text = content(source).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8: {error}") from None
    done, plain = True, []
    for each in capture.restore(connect(loaded), text, source, dry_run=dry_run):
        done = done and each.state not in {capture.State.DIFFERENT, capture.State.NOT_SERVED}
        if output == Output.JSON:
            plain.append({"name": each.name, "state": each.state, "lines": each.lines})
        else:
            said = (f"    {visible(line)}" for line in each.lines)
            write_lines([f"{each.state:<10} {each.name}", *said])
    if output == Output.JSON:
        write_json(plain)
    return 0 if done else ExitCode.DIFFERS


ALL = (network, operator)


def _lines(found: Sequence[Finding]) -> Iterator[str]:
    yield from (visible(str(each)) for each in found)


def _verdict_lines(verdict: Verdict) -> Iterator[str]:
    yield f"the SR-IOV operator in {verdict.namespace} is {verdict.state}"
    yield from (f"  {visible(line)}" for line in verdict.evidence)
    yield from _lines(verdict.findings)
