"""The commands. Each imports what it needs when it runs, so that --help and status start fast.

One that looks at devices imports what it does with the answer after the look.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from nodeagent import logs, settings, trace
from nodeagent.cli.output import as_json, output_path, screen, write, write_json, write_lines
from nodeagent.errors import DataError, ExitCode, NoInputError
from nodeagent.settings import Mode, Settings

if TYPE_CHECKING:
    from nodeagent.agent.by_hand import Forecast
    from nodeagent.agent.probes import Probe
    from nodeagent.plan.actions import Stage
    from nodeagent.render import Cell, Screen
    from nodeagent.state.model import NodeState, Snapshot


@dataclass
class Call:
    """One call of the program: filled in as its arguments are parsed."""

    command: str | None = None
    verbose: bool = False
    log_format: str = "text"

    def settings(self) -> Settings:
        """The settings, and from here on a log that is written as they say."""
        loaded = settings.load()
        self.configure_logs(colour=not loaded.no_color)
        if loaded.trace_points is not None:
            trace.arm(loaded.trace_points)
        return loaded

    def configure_logs(self, *, colour: bool = False) -> None:
        """Write the log as the arguments say."""
        logs.configure(log_format=self.log_format, verbose=self.verbose, colour=colour)


class Format(click.Choice[str]):
    """The formats of a command's output."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As its base. The message says how to write to a file, which -o means elsewhere."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            how = "To write to a file, use > FILE, or --file where a command has it."
            self.fail(f"{error.message} {how}", param, ctx)


FILE: Final = click.Path(readable=False)
"""A file, which a shell completes. Whether it is there is seen when it is used."""

TEXT_OR_JSON: Final = Format(["text", "json"])
output = click.option(
    "-o", "--output", type=TEXT_OR_JSON, default="text", help="For people or programs."
)
page = click.option(
    "-o",
    "--output",
    type=Format(["text", "json", "markdown"]),
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
mode = click.Choice([each.value for each in settings.RELOAD_MODES])


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
    help="Send echoes from start to end, from here, from a pod (namespace/name, or UID) or from a "
    "network namespace. May be given several times.",
)


@click.command("run")
@click.argument("mode", type=click.Choice([each.value for each in Mode]))
@probe
@click.pass_obj
def run(call: Call, mode: str, watched: list[Probe]) -> int:
    """Reload if needed, restore, verify, be ready, stay.

    The agent's whole life, in the place of the driver container's entrypoint. `sources` has the
    driver built, by the Driver Toolkit or right here, and installs it; `precompiled` takes the one
    that is installed; `dtk-build` is the toolkit's side, which only builds. Ends with status 0 on
    SIGTERM once it is ready (or has built), with 1 in any other case.
    """
    # As PID 1 of a container a signal without a handler is dropped: it waits until there is one.
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
    """End in order: flag, udev rule and mounts; the host's driver.

    What `run` becomes on SIGTERM once it is ready. By hand it removes what a pod that was killed
    has left, and asks first; where there is no terminal it needs --yes. The host's own driver comes
    back only with RESTORE_DRIVER_ON_POD_TERMINATION=true. Ends with status 1 on any failure.
    """
    if lock_fd is None and not yes:
        _ask_to_terminate(call.settings())
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    from nodeagent.agent import lifecycle

    lifecycle.terminate(call.settings(), lock_fd, since)


@click.command("reload")
@click.argument("mode", type=mode, default="precompiled")
@probe
@click.option("--dry-run", is_flag=True, help="Print what it would do, touch nothing.")
@output
@click.pass_obj
def reload(call: Call, mode: str, watched: list[Probe], dry_run: bool, output: str) -> int:
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
    if output == "json":
        told = {"reload": bool(found.why), "why": found.why, "unfinished": found.unfinished}
        told |= {"blocks": found.blocks, "findings": [asdict(each) for each in found.findings]}
        write_json(told | _plain_plan(found.stages, found.want, found.have))
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
    call: Call, target: str | None, output: str | None, pair: tuple[str, str] | None
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
    if pair is not None:
        text, status = _compared(*pair, output or "text", place)
    elif (output or ("text" if target is None and sys.stdout.isatty() else "json")) == "json":
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
@click.option("--after-reload", is_flag=True, help="What a reload of the driver would ask for.")
@output
@click.pass_obj
def plan(call: Call, source: str | None, after_reload: bool, output: str) -> None:
    """Print what restore would do, as lines to paste.

    With --after-reload: what restoring the node as it is now, or the given snapshot, would take
    once the driver has been reloaded.
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
@click.option("--dry-run", is_flag=True, help="Print the plan, touch nothing.")
@foreign
@output
@click.pass_obj
def restore(call: Call, source: str | None, dry_run: bool, foreign: bool, output: str) -> None:
    """Make the node what a snapshot says, and verify.

    With --dry-run, print the plan; what would be refused is refused.

    For recovery by hand: beside an agent that is ready it may be used, beside one at work it is
    refused. It sets no ready flag and closes no snapshot: `reload` and `run` do, when they have
    finished what was begun. Ends with status 1 if something could not be restored.
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
def verify(call: Call, source: str | None, output: str) -> int:
    """Show what differs from a snapshot, want against have.

    A VF that a pod or a virtual machine has taken since is theirs: it is named, and not compared.
    Ends with status 0 if nothing differs, 1 if something does, above 1 on failure.
    """
    loaded = call.settings()
    wanted = _reachable(_needed(source, loaded), loaded)
    now = _observed(loaded, wanted)
    from nodeagent.plan.comparison import differences
    from nodeagent.plan.taken import ours
    from nodeagent.render import Marked, table

    _name_taken(wanted.state, now.state)
    found = differences(ours(wanted.state, now.state), now.state)
    if output == "json":
        said = ("target", "attribute", "want", "have")
        plain = [{name: asdict(each)[name] for name in said} for each in found]
        write_json({"same": not found, "taken_at": wanted.taken_at, "differences": plain})
    elif found:
        rows: list[tuple[Cell, ...]] = [
            (d.target, d.attribute, str(d.want), Marked(str(d.have))) for d in found
        ]
        write_lines(table(("target", "attribute", "want", "have"), rows, screen(loaded)))
    else:
        state = wanted.state
        write_lines([f"{len(state.pfs)} PFs, {state.vf_count} VFs: nothing differs"])
    return ExitCode.DIFFERS if found else 0


@click.command("status")
@click.option("--watch", "stay", is_flag=True, help="Print it again at each change, until ^C.")
@output
@click.pass_obj
def status(call: Call, stay: bool, output: str) -> int:
    """Where this node stands: phase, driver, ready or what is missing.

    Ends with status 0 when the node is ready, 1 when it is not. With --watch, JSON is one line for
    each change.
    """
    from nodeagent.agent import status
    from nodeagent.driver.nic import NicDriver

    loaded = call.settings()
    driver = NicDriver(loaded, Mode.PRECOMPILED, None)
    before: list[str] = []

    def show(found: status.Status) -> None:
        if output == "json":
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
    type=Format(["text", "json", "markdown", "svg"]),
    default="text",
    help="For people, programs, documents, or as a chart.",
)
@click.pass_obj
def timeline(call: Call, last: int, output: str) -> None:
    """Phases of the last runs, srcversions, how long the VFs were gone.

    As svg: a chart, in which all runs have one scale.
    """
    from nodeagent.agent import life
    from nodeagent.record import timeline
    from nodeagent.record.journal import Journal

    loaded = call.settings()
    journal = Journal(loaded)
    runs = life.runs(loaded, journal)[1][-last:]
    if output == "json":
        write_json([asdict(run) for run in runs])
    elif output == "markdown":
        from nodeagent.record import report

        write_lines(report.lines(runs, loaded.driver_module))
    elif output == "svg":
        from nodeagent.record import chart

        write(chart.svg(runs))
    elif runs:
        write_lines(timeline.lines(runs, screen(loaded)))
    else:
        write_lines([f"no run on record in {journal.records_path}"])


ALL = (run, terminate, reload, snapshot, plan, restore, verify, status, timeline)


def _chosen(source: str | None, loaded: Settings, *, or_last: bool = True) -> Snapshot | None:
    """The snapshot that was asked for; else the open one, else the last one, else None."""
    from nodeagent.cli.input import content
    from nodeagent.record.journal import Journal, unseal

    if source is not None:
        return unseal(content(source), "stdin" if source == "-" else source, sealed=False)
    journal = Journal(loaded)
    return journal.open_snapshot() or (journal.last_snapshot() if or_last else None)


def _compared(first: str, second: str, output: str, place: Screen) -> tuple[str, int]:
    """What differs between two snapshots, each attribute once; and the exit status."""
    from nodeagent.cli.input import content
    from nodeagent.plan.comparison import all_differences
    from nodeagent.record.journal import unseal
    from nodeagent.render import Marked, table

    one, two = (unseal(content(name), name, sealed=False).state for name in (first, second))
    found = {(d.target, d.attribute): (d.want, d.have) for d in all_differences(one, two)}
    for d in all_differences(two, one):
        found.setdefault((d.target, d.attribute), (d.have, d.want))
    status = ExitCode.DIFFERS if found else ExitCode.OK
    if output == "json":
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
    """The same without what belongs into pods that are gone: they are named on stderr."""
    from nodeagent.agent import by_hand

    reachable, left = by_hand.reachable(wanted, loaded)
    for each in left:
        click.echo(f"note: {each}", err=True)
    return reachable


def _attainable(want: NodeState, have: NodeState) -> NodeState:
    """What a restore would do of it without touching VFs that others have taken: they are named."""
    from nodeagent.plan.taken import restorable

    _name_taken(want, have)
    return restorable(want, have)


def _name_taken(want: NodeState, have: NodeState) -> None:
    from nodeagent.plan.taken import taken

    for each in taken(want, have):
        click.echo(f"note: {each}", err=True)


def _taken(loaded: Settings) -> Snapshot:
    """The node as it is; UnavailableError when it has no device of ours."""
    from nodeagent.agent import by_hand
    from nodeagent.agent.requirements import require_devices

    now = by_hand.snapshot_now(loaded, to_keep=True)
    require_devices(now)
    return now


def _observed(loaded: Settings, wanted: Snapshot, *, accept_foreign: bool = True) -> Snapshot:
    """The node as it is, which may be without its devices; is it the node of the snapshot?"""
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
    """UsageError where there is no terminal to ask on, Abort after a no."""
    import sys

    what = "the ready flag, the udev rule and the mounts of an agent are removed from this node"
    if loaded.restore_driver:
        what += ", its own driver is loaded, and the VFs are restored on it"
    if not sys.stdin.isatty():
        raise click.UsageError(f"--yes is missing: {what}")
    click.confirm(f"With this, {what}. Go on?", abort=True, err=True)


def _forecast_lines(found: Forecast, place: Screen) -> Iterator[str]:
    """Lines to paste: what is no command is a comment."""
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
    stages: Sequence[Stage], want: NodeState, have: NodeState, output: str, *, done: bool = False
) -> None:
    from nodeagent.plan import lines

    actions = sum(len(stage.actions) for stage in stages)
    if output == "json":
        write_json({"done": done} | _plain_plan(stages, want, have))
    elif not stages:
        write_lines(["# nothing to do: nothing differs"])
    elif done:
        write_lines([f"restored with {actions} actions: nothing differs"])
    else:
        write_lines(lines.lines(stages, want, have))
