"""The commands. Each imports what it needs when it runs, so that --help and status start quickly.

A command that looks at devices imports the rest after the look.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from nodeagent import logs
from nodeagent.cli.output import (
    Output,
    as_json,
    output_path,
    screen,
    write,
    write_json,
    write_lines,
)
from nodeagent.errors import DataError, ExitCode, NoInputError
from nodeagent.logs import LogFormat
from nodeagent.modes import RELOAD_MODES, Mode

if TYPE_CHECKING:
    from nodeagent.agent.by_hand import Forecast
    from nodeagent.agent.probes import Probe
    from nodeagent.plan.actions import Stage
    from nodeagent.render import Cell, Screen
    from nodeagent.settings import Settings
    from nodeagent.state.model import NodeState, Snapshot


@dataclass
class Call:
    """One call of the program, filled in as its arguments are parsed."""

    command: str | None = None
    verbose: bool = False
    log_format: LogFormat = LogFormat.TEXT

    def settings(self) -> Settings:
        """The settings. From here on the log is written as they say."""
        from nodeagent import settings, trace

        loaded = settings.load()
        self.configure_logs(colour=not loaded.no_color)
        if loaded.trace_points is not None:
            trace.arm(loaded.trace_points)
        return loaded

    def configure_logs(self, *, colour: bool = False) -> None:
        """Set up the log, by the arguments."""
        logs.configure(log_format=self.log_format, verbose=self.verbose, colour=colour)


class Format(click.Choice[str]):
    """The formats of a command's output."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Output:
        """A format. The message tells how to write to a file, for which other tools have -o."""
        try:
            return Output(super().convert(value, param, ctx))
        except click.BadParameter as error:
            how = "To write to a file, use > FILE, or --file where a command has it."
            self.fail(f"{error.message} {how}", param, ctx)


FILE: Final = click.Path(readable=False)
"""A file name, which a shell completes; it is opened later."""

TEXT_OR_JSON: Final = Format([Output.TEXT.value, Output.JSON.value])
output = click.option(
    "-o", "--output", type=TEXT_OR_JSON, default="text", help="For people or programs."
)
page = click.option(
    "-o",
    "--output",
    type=Format([Output.TEXT.value, Output.JSON.value, Output.MARKDOWN.value]),
    default="text",
    help="For people, programs or documents.",
)
snapshot_file = click.option(
    "--snapshot",
    "source",
    type=FILE,
    metavar="FILE",
    help="A snapshot, - for stdin. Default: the open one, else the last.",
)
foreign = click.option("--foreign", is_flag=True, help="Accept a snapshot of another machine.")
mode = click.Choice([each.value for each in RELOAD_MODES])


def _probes(_ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> list[Probe]:
    from nodeagent.agent.probes import Probe

    try:
        return [Probe.parse(text) for text in given]
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


probe = click.option(
    "--probe",
    "watched",
    metavar="ADDRESS[@POD|@PATH]",
    multiple=True,
    callback=_probes,
    help="Send echo requests from start to end, from the node, a pod (namespace/name, or UID) or a "
    "network namespace. May be given several times.",
)


@click.command("run")
@click.argument("mode", type=click.Choice([each.value for each in Mode]))
@probe
@click.pass_obj
def run(call: Call, mode: str, watched: list[Probe]) -> int:
    """Reload if needed, restore, verify, set the ready flag, stay.

    Replaces the driver container's entrypoint. `sources` builds the driver, here or in the Driver
    Toolkit's container, and installs it; `precompiled` uses the installed one; `dtk-build` builds
    in the toolkit's container. Ends with status 0 on SIGTERM once it is ready (or has built), with
    1 in any other case.
    """
    # The kernel drops signals of a container's PID 1 that have no handler; blocked ones it keeps.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    from nodeagent.agent import lifecycle

    if mode == Mode.DTK_BUILD:
        return lifecycle.build(call.settings())
    return lifecycle.run(Mode(mode), call.settings(), call.log_format, watched)


@click.command("terminate")
@click.option("--yes", is_flag=True, help="By hand: do not ask.")
@click.option("--lock-fd", type=click.IntRange(min=0), hidden=True)
@click.option("--since", type=float, hidden=True)
@click.pass_obj
def terminate(call: Call, yes: bool, lock_fd: int | None, since: float | None) -> None:
    """Remove flag, udev rule and mounts; load the host's driver.

    `run` becomes this command on SIGTERM once it is ready. By hand it removes what a killed pod has
    left. It asks first, or needs --yes if there is no terminal. The host's own driver is loaded
    only with RESTORE_DRIVER_ON_POD_TERMINATION=true. Ends with status 1 on any failure.
    """
    if lock_fd is None and not yes:
        _ask_to_terminate(call.settings())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    from nodeagent.agent import lifecycle

    lifecycle.terminate(call.settings(), lock_fd, since)


@click.command("reload")
@click.argument("mode", type=mode, default="precompiled")
@probe
@click.option("--dry-run", is_flag=True, help="Print what it would do, change nothing.")
@output
@click.pass_obj
def reload(call: Call, mode: str, watched: list[Probe], dry_run: bool, output: Output) -> int:
    """Like `run`, but exit when the node is ready.

    Reloads only if the loaded driver is not the installed one, or an earlier reload has not been
    finished. The ready flag remains. The default mode uses the installed driver.

    With --dry-run, print whether it would reload, what would block that, and the plan of the
    restore; nothing is built. Ends then with status 1 if something blocks a reload.
    """
    from nodeagent.agent import by_hand

    if not dry_run:
        by_hand.reload_once(Mode(mode), call.settings(), watched)
        return 0
    if watched:
        raise click.UsageError("--probe and --dry-run exclude each other")
    loaded = call.settings()
    found = by_hand.forecast(Mode(mode), loaded)
    if output == Output.JSON:
        plain = {"reload": bool(found.why), "why": found.why, "unfinished": found.unfinished}
        plain |= {"blocks": found.blocks, "findings": [asdict(each) for each in found.findings]}
        write_json(plain | _plain_plan(found.stages, found.want, found.have))
    else:
        write_lines(_forecast_lines(found, screen(loaded)))
    return ExitCode.DIFFERS if found.blocks else 0


@click.command("snapshot")
@click.option(
    "--file", "target", type=FILE, metavar="FILE", help="Write to FILE, whole or not at all."
)
@click.option(
    "-o",
    "--output",
    type=TEXT_OR_JSON,
    help="For people or programs. Default: text on a terminal and for --diff, else json.",
)
@click.option(
    "--diff", "pair", type=FILE, nargs=2, metavar="A B", help="Compare two snapshots instead."
)
@click.pass_obj
def snapshot(
    call: Call, target: str | None, output: Output | None, pair: tuple[str, str] | None
) -> int:
    """Print or write the node's SR-IOV state.

    With --diff, compare two files of it. Ends then with status 0 if nothing differs, 1 if something
    does.
    """
    import sys

    from nodeagent.render import Screen

    loaded = call.settings()
    place = screen(loaded) if target is None else Screen()
    status = 0
    usual = Output.TEXT if target is None and sys.stdout.isatty() else Output.JSON
    if pair is not None:
        text, status = _compared(*pair, output or Output.TEXT, place)
    elif (output or usual) == Output.JSON:
        now = _taken(loaded)
        from nodeagent.state.codec import snapshot_to_json

        text = snapshot_to_json(now)
    else:
        now = _taken(loaded)
        from nodeagent.cli import state_table

        text = "".join(f"{line}\n" for line in state_table.lines(now.state, place))
    if target is None:
        write(text)
    else:
        from nodeagent import durable

        durable.replace(output_path(target), text.encode(), 0o600)
    return status


@click.command("plan")
@snapshot_file
@click.option("--after-reload", is_flag=True, help="The plan after a reload of the driver.")
@output
@click.pass_obj
def plan(call: Call, source: str | None, after_reload: bool, output: Output) -> None:
    """Print what restore would do, as shell commands.

    With --after-reload, print how the present state, or the given snapshot, would be restored after
    a reload of the driver.
    """
    loaded = call.settings()
    if after_reload:
        from nodeagent.plan.plan import after_reload as reloaded

        want = (_chosen(source, loaded, or_last=False) or _taken(loaded)).state
        have = reloaded(want)
    else:
        wanted = _reachable(_needed(source, loaded), loaded)
        have = _observed(loaded, wanted).state
        want = _attainable(wanted.state, have)
    from nodeagent.plan.plan import plan

    _write_plan(plan(want, have), want, have, output)


@click.command("restore")
@snapshot_file
@click.option("--dry-run", is_flag=True, help="Print the plan, change nothing.")
@foreign
@output
@click.pass_obj
def restore(call: Call, source: str | None, dry_run: bool, foreign: bool, output: Output) -> None:
    """Restore a snapshot, and verify the node.

    With --dry-run, print the plan, or the error with which it would be refused.

    This is for recovery by hand, also while an agent is ready; while an agent is changing devices
    it is refused. It does not set the ready flag or close the snapshot: `reload` and `run` do. Ends
    with status 1 if something could not be restored.
    """
    loaded = call.settings()
    wanted = _reachable(_needed(source, loaded), loaded)
    now = _observed(loaded, wanted, accept_foreign=foreign)
    from nodeagent.plan.plan import plan

    want = _attainable(wanted.state, now.state)
    stages = plan(want, now.state)
    if not dry_run:
        from nodeagent.agent import by_hand

        by_hand.restore_now(wanted, loaded)
    _write_plan(stages, want, now.state, output, done=not dry_run)


@click.command("verify")
@snapshot_file
@output
@click.pass_obj
def verify(call: Call, source: str | None, output: Output) -> int:
    """Show what differs from a snapshot.

    VFs that a pod or a virtual machine has taken since are listed, and not compared. Ends with
    status 0 if nothing differs, 1 if something does, above 1 on failure.
    """
    loaded = call.settings()
    wanted = _reachable(_needed(source, loaded), loaded)
    now = _observed(loaded, wanted)
    from nodeagent.plan.comparison import differences
    from nodeagent.plan.taken import ours
    from nodeagent.render import Marked, table

    _list_taken(wanted.state, now.state)
    found = differences(ours(wanted.state, now.state), now.state)
    if output == Output.JSON:
        names = ("target", "attribute", "want", "have")
        plain = [{name: asdict(each)[name] for name in names} for each in found]
        write_json({"same": not found, "taken_at": wanted.taken_at, "differences": plain})
    elif found:
        rows: list[tuple[Cell, ...]] = [
            (d.target, d.attribute, str(d.want), Marked(str(d.have))) for d in found
        ]
        write_lines(table(("target", "attribute", "want", "have"), rows, screen(loaded)))
    else:
        write_lines([f"{wanted.state.counts}: nothing differs"])
    return ExitCode.DIFFERS if found else 0


@click.command("status")
@click.option("--watch", "stay", is_flag=True, help="Print it again at each change, until ^C.")
@output
@click.pass_obj
def status(call: Call, stay: bool, output: Output) -> int:
    """Show phase and driver of this node, and what is missing.

    Ends with status 0 if the node is ready, 1 if it is not. With --watch, JSON is one line for each
    change.
    """
    from nodeagent.agent import status
    from nodeagent.driver.nic import NicDriver

    loaded = call.settings()
    driver = NicDriver(loaded, Mode.PRECOMPILED, None)
    before: list[str] = []

    def show(found: status.Status) -> None:
        if output == Output.JSON:
            write(as_json(asdict(found), indent=None if stay else 2))
        else:
            write_lines([*before, *status.lines(found, screen(loaded))])
        before[:] = [""]

    if stay:
        found = status.watch(loaded, driver, show)
    else:
        found = status.look(loaded, driver)
        show(found)
    return 0 if found.ready else ExitCode.DIFFERS


@click.command("timeline")
@click.option("--last", type=click.IntRange(min=1), default=1, metavar="N", help="The last N runs.")
@click.option(
    "-o",
    "--output",
    type=Format([each.value for each in Output]),
    default="text",
    help="For people, programs, documents, or as a chart.",
)
@click.pass_obj
def timeline(call: Call, last: int, output: Output) -> None:
    """Show phases, srcversions and times without VFs of runs.

    As svg, print a chart with one scale for all runs.
    """
    from nodeagent.agent import life
    from nodeagent.record import timeline
    from nodeagent.record.journal import Journal

    loaded = call.settings()
    journal = Journal(loaded)
    runs = life.runs(loaded, journal)[1][-last:]
    if output == Output.JSON:
        write_json([asdict(run) for run in runs])
    elif output == Output.MARKDOWN:
        from nodeagent.record import report

        write_lines(report.lines(runs, loaded.driver_module))
    elif output == Output.SVG:
        from nodeagent.record import chart

        write(chart.svg(runs))
    elif runs:
        write_lines(timeline.lines(runs, screen(loaded)))
    else:
        write_lines([f"no run on record in {journal.records_path}"])


ALL = (run, terminate, reload, snapshot, plan, restore, verify, status, timeline)


def _chosen(source: str | None, loaded: Settings, *, or_last: bool = True) -> Snapshot | None:
    """The given snapshot; else the open one, else the last one, else None."""
    from nodeagent.cli.input import content
    from nodeagent.record.journal import Journal, unseal

    if source is not None:
        return unseal(content(source), "stdin" if source == "-" else source, sealed=False)
    journal = Journal(loaded)
    return journal.wanted_snapshot() if or_last else journal.open_snapshot()


def _compared(first: str, second: str, output: Output, place: Screen) -> tuple[str, int]:
    """The differences between two snapshots, each attribute once; and the exit status."""
    from nodeagent.cli.input import content
    from nodeagent.plan.comparison import all_differences
    from nodeagent.record.journal import unseal
    from nodeagent.render import Marked, table

    one, two = (unseal(content(name), name, sealed=False).state for name in (first, second))
    found = {(d.target, d.attribute): (d.want, d.have) for d in all_differences(one, two)}
    for d in all_differences(two, one):
        found.setdefault((d.target, d.attribute), (d.have, d.want))
    status = ExitCode.DIFFERS if found else ExitCode.OK
    if output == Output.JSON:
        plain = [
            {"target": target, "attribute": attribute, "first": a, "second": b}
            for (target, attribute), (a, b) in sorted(found.items())
        ]
        return as_json({"same": not found, "differences": plain}), status
    rows: list[tuple[Cell, ...]] = [
        (target, attribute, str(a), Marked(str(b)))
        for (target, attribute), (a, b) in sorted(found.items())
    ]
    headers = ("target", "attribute", first, second)
    lines = table(headers, rows, place) if rows else ["nothing differs"]
    return "".join(f"{line}\n" for line in lines), status


def _needed(source: str | None, loaded: Settings) -> Snapshot:
    found = _chosen(source, loaded)
    if found is None:
        raise NoInputError(
            f"there is no snapshot in {loaded.state_dir}: no reload has begun on this node",
            hint="`nodeagent snapshot --file FILE` takes one; --snapshot FILE uses it",
        )
    return found


def _reachable(wanted: Snapshot, loaded: Settings) -> Snapshot:
    """The snapshot without pods that are gone, which are listed on stderr."""
    from nodeagent.agent import by_hand

    reachable, left = by_hand.reachable(wanted, loaded)
    for each in left:
        click.echo(f"note: {each}", err=True)
    return reachable


def _attainable(want: NodeState, have: NodeState) -> NodeState:
    """The part that a restore would restore. VFs that are taken are listed on stderr."""
    from nodeagent.plan.taken import restorable

    _list_taken(want, have)
    return restorable(want, have)


def _list_taken(want: NodeState, have: NodeState) -> None:
    from nodeagent.plan.taken import taken

    for each in taken(want, have):
        click.echo(f"note: {each}", err=True)


def _taken(loaded: Settings) -> Snapshot:
    """A snapshot of the node; UnavailableError if it has no device of the driver."""
    from nodeagent.agent import by_hand
    from nodeagent.agent.requirements import require_devices

    now = by_hand.snapshot_now(loaded, to_keep=True)
    require_devices(now)
    return now


def _observed(loaded: Settings, wanted: Snapshot, *, accept_foreign: bool = True) -> Snapshot:
    """The node's present state, to compare with a snapshot. DataError if that is another node's."""
    from nodeagent.agent import by_hand
    from nodeagent.agent.requirements import require_same_machine

    now = by_hand.snapshot_now(loaded)
    try:
        require_same_machine(wanted, now.machine_id, hint="--foreign accepts it")
    except DataError as error:
        if not accept_foreign:
            raise
        click.echo(f"warning: {error.message}", err=True)
    return now


def _ask_to_terminate(loaded: Settings) -> None:
    """UsageError if there is no terminal, Abort if the answer is no."""
    import sys

    what = "the ready flag, the udev rule and the mounts of an agent are removed from this node"
    if loaded.restore_driver:
        what += ", its own driver is loaded, and the VFs are restored on it"
    if not sys.stdin.isatty():
        raise click.UsageError(f"--yes is missing: {what}")
    click.confirm(f"With this, {what}. Continue?", abort=True, err=True)


def _forecast_lines(found: Forecast, place: Screen) -> Iterator[str]:
    """Shell commands, with everything else in comments."""
    from nodeagent.plan import lines
    from nodeagent.render import wrapped

    def comment(text: str) -> list[str]:
        return wrapped(text, place, indent="# ", hanging="  ")

    for why in found.why:
        yield from comment(f"reload: {why}")
    if found.unfinished is not None:
        yield from comment(
            f"an earlier reload is unfinished: its snapshot is of {found.unfinished}"
        )
    for each in found.findings:
        yield from comment(f"{'BLOCKS' if each.blocks else 'warns'}: {each.check}: {each.what}")
        yield from comment(f"  why: {each.why}")
        if each.remedy:
            yield from comment(f"  do: {each.remedy}")
    if not found.why and found.unfinished is None:
        yield from comment("nothing to do: the loaded driver is the installed one")
    elif found.stages:
        yield "# afterwards:"
        yield from lines.lines(found.stages, found.want, found.have)


def _plain_plan(stages: Sequence[Stage], want: NodeState, have: NodeState) -> dict[str, object]:
    from nodeagent.plan import lines

    plain = [{"name": name, "lines": text} for name, text in lines.by_stage(stages, want, have)]
    return {"actions": sum(len(stage.actions) for stage in stages), "stages": plain}


def _write_plan(
    stages: Sequence[Stage], want: NodeState, have: NodeState, output: Output, *, done: bool = False
) -> None:
    from nodeagent.plan import lines

    actions = sum(len(stage.actions) for stage in stages)
    if output == Output.JSON:
        write_json({"done": done} | _plain_plan(stages, want, have))
    elif not stages:
        write_lines(["# nothing to do: nothing differs"])
    elif done:
        write_lines([f"restored with {actions} actions: nothing differs"])
    else:
        write_lines(lines.lines(stages, want, have))
