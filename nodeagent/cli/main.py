"""The entry point: parse the arguments, run the command, turn errors into an exit status."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Final, NoReturn

import click

from nodeagent import __version__
from nodeagent.cli import cluster, commands, diagnosis, pod, report
from nodeagent.cli.completion import completion
from nodeagent.cli.page import Page
from nodeagent.cli.preflight import preflight
from nodeagent.cli.settings import show as show_settings
from nodeagent.cli.support import support_bundle
from nodeagent.errors import AgentError, ExitCode, KernelError
from nodeagent.logs import LogFormat
from nodeagent.modes import Mode

AGENT_COMMANDS: Final = ("run", "terminate", "sidecar")
"""They log their errors, for the container's log, and exit with 0 or 1."""

log = logging.getLogger(__name__)


@click.group(
    cls=Page,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="COMMAND ...",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Log every write.")
@click.option(
    "--log-format",
    type=click.Choice([each.value for each in LogFormat]),
    default="text",
    help="How stderr is written.",
)
@click.pass_context
def nodeagent(ctx: click.Context, verbose: bool, log_format: str) -> None:
    """Reloads this node's NIC driver and puts its SR-IOV configuration back exactly as it was.

    Saves every PF and VF before the driver is unloaded, restores what differs afterwards, and sets
    the ready flag when nothing differs.
    """
    call: commands.Call = ctx.obj
    call.command, call.verbose = ctx.invoked_subcommand, verbose
    call.log_format = LogFormat(log_format)
    if call.command is None:
        raise click.exceptions.NoArgsIsHelpError(ctx)


for _command in (
    *commands.ALL,
    show_settings,
    preflight,
    completion,
    support_bundle,
    *pod.ALL,
    *cluster.ALL,
    *diagnosis.ALL,
):
    nodeagent.add_command(_command)
cluster.node.add_command(report.report)


def main() -> NoReturn:
    """Run the program, and exit with a status of the help page."""
    sys.exit(status_of(sys.argv[1:]))


def status_of(arguments: Sequence[str]) -> int:
    """Run the command of the arguments; return the exit status."""
    call = commands.Call()
    if arguments and arguments[0] in [*Mode]:
        arguments = ("run", *arguments)  # the driver container is started with a mode alone
    try:
        done = nodeagent.main([*arguments], "nodeagent", standalone_mode=False, obj=call)
    except click.ClickException as error:
        _say_usage(error)
        return _failed(call, ExitCode.USAGE)
    except click.Abort:
        return _failed(call, ExitCode.INTERRUPTED)
    except AgentError as error:
        _say(call, error)
        return _failed(call, error.exit_code)
    except MemoryError:
        refused = KernelError(
            "out of memory: the operation in progress is not complete",
            hint="raise the limit (limits.memory of the container, ulimit -v), and start it again",
        )
        _say(call, refused)
        return _failed(call, refused.exit_code)
    except Exception:  # a bug: its traceback is the message, and its status is not Python's 1
        _say_bug(call)
        return _failed(call, ExitCode.SOFTWARE)
    return done if isinstance(done, int) else 0


def _failed(call: commands.Call, status: int) -> int:
    """The driver container exits with 0 or 1; a status 1 of verify means that something differs."""
    if call.command in AGENT_COMMANDS:
        return ExitCode.DIFFERS
    return max(status, ExitCode.TROUBLE) if call.command == "verify" else status


def _say(call: commands.Call, error: AgentError) -> None:
    """Print the error and its hint: in the log for AGENT_COMMANDS, else as two lines on stderr."""
    if call.command in AGENT_COMMANDS or call.log_format == LogFormat.JSON:
        call.configure_logs()
        hint = f"\nhint: {error.hint}" if error.hint and call.log_format == LogFormat.TEXT else ""
        extra = {"hint": error.hint} if error.hint and call.log_format == LogFormat.JSON else {}
        log.error("%s%s", error.message, hint, extra=extra)
        return
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def _say_usage(error: click.ClickException) -> None:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    click.echo(f"error: {' '.join(error.format_message().split())}", err=True)
    if ctx is not None:
        click.echo(f"hint: {ctx.command_path} --help", err=True)


def _say_bug(call: commands.Call) -> None:
    if call.log_format == LogFormat.JSON:
        call.configure_logs()
        log.exception("a bug in nodeagent")
    else:
        traceback.print_exc()
