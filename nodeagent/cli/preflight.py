"""`nodeagent preflight`: show what would make a reload fail or do harm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from nodeagent.cli.commands import Call, output
from nodeagent.cli.output import write_json, write_lines
from nodeagent.errors import ExitCode

if TYPE_CHECKING:
    from nodeagent.driver.findings import Finding


@click.command("preflight")
@output
@click.pass_obj
def preflight(call: Call, output: str) -> int:
    """Show what would make a reload fail or do harm.

    `run` and `reload` make the same checks before they change anything. Ends with status 0 if
    nothing blocks a reload, 1 if something does.
    """
    from nodeagent.agent.requirements import require_root
    from nodeagent.driver.preflight import Preflight

    loaded = call.settings()
    require_root("looks at every process")
    findings = Preflight(loaded).findings()
    blocks = any(finding.blocks for finding in findings)
    if output == "json":
        write_json({"blocks": blocks, "findings": [asdict(each) for each in findings]})
    else:
        write_lines(_lines(findings))
    return ExitCode.DIFFERS if blocks else 0


def _lines(findings: Iterable[Finding]) -> Iterator[str]:
    from nodeagent.render import visible

    count = blocking = 0
    for each in findings:
        count, blocking = count + 1, blocking + each.blocks
        yield f"{'BLOCKS' if each.blocks else 'warns':6}  {each.check}: {visible(each.what)}"
        yield f"        why: {visible(each.why)}"
        if each.remedy:
            yield f"        do:  {visible(each.remedy)}"
    yield f"{count} findings, {blocking} of them block a reload" if count else "nothing found"
