"""`nodeagent support-bundle`: one file for a ticket."""

from __future__ import annotations

import click

from nodeagent.cli.commands import FILE, TEXT_OR_JSON, Call
from nodeagent.cli.output import Output, output_path, write_json, write_lines


@click.command("support-bundle", short_help="Write one file for a ticket.")
@click.option(
    "-o",
    "--file",
    "target",
    type=FILE,
    metavar="FILE",
    required=True,
    help="The archive, a .tar.gz. It is this command's output.",
)
@click.option(
    "--output", type=TEXT_OR_JSON, default="text", help="What is printed: for people or programs."
)
@click.pass_obj
def support_bundle(call: Call, target: str, output: Output) -> None:
    """Write an archive for a maintainer: status, timeline, journal, snapshots, settings, preflight,
    the report of `node report`, versions, and the output of ip, devlink and dmesg about the NIC.

    It changes nothing. Secrets are left out: the values of secret settings, tokens, passwords, the
    machine-id. Still, look through it: it has names, addresses and routes of this node.
    """
    if target in {*Output}:
        raise click.UsageError(f"-o is the archive's name here; the format is --output {target}.")

    from nodeagent import durable
    from nodeagent.agent import support
    from nodeagent.agent.requirements import require_root
    from nodeagent.cli import report

    loaded = call.settings()
    require_root("looks at every process and reads the settings of VFs")
    data, names = support.archive(loaded, {"report.txt": lambda: report.text(loaded)})
    durable.replace(output_path(target), data, 0o600)
    if output == Output.JSON:
        write_json({"file": target, "entries": names})
    else:
        write_lines([f"{len(names)} files in {target}: look through them before you send it"])
