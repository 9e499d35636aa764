"""`nodeagent preflight`: show what would make a reload fail or do harm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from nodeagent.cli.commands import Call, output
from nodeagent.cli.output import Output, screen, write_json, write_lines
from nodeagent.errors import ExitCode
from nodeagent.render import Screen, marked, wrapped

if TYPE_CHECKING:
    from nodeagent.driver.findings import Finding


@click.command("preflight")
@output
@click.pass_obj
def preflight(call: Call, output: Output) -> int:
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
    if output == Output.JSON:
        write_json({"blocks": blocks, "findings": [asdict(each) for each in findings]})
    else:
        write_lines(_lines(findings, screen(loaded)))
    return ExitCode.DIFFERS if blocks else 0


def _lines(findings: Iterable[Finding], place: Screen) -> Iterator[str]:
    count = blocking = 0
    for each in findings:
        count, blocking = count + 1, blocking + each.blocks
        word = f"{'BLOCKS' if each.blocks else 'warns':6}"
        first, *rest = wrapped(f"{word}  {each.check}: {each.what}", place, hanging=" " * 8)
        yield first.replace(word, marked(word, place), 1) if each.blocks else first
        yield from rest
        yield from wrapped(f"why: {each.why}", place, indent=" " * 8, hanging=" " * 5)
        if each.remedy:
            yield from wrapped(f"do:  {each.remedy}", place, indent=" " * 8, hanging=" " * 5)
    yield f"{count} findings, {blocking} of them block a reload" if count else "nothing found"
