"""`nodeagent probe`: what probe.sh answers, with this process's settings."""

from __future__ import annotations

import os
from pathlib import Path

import click

from nodeagent import settings


@click.command("probe")
@click.argument(
    "which", type=click.Choice(["startup", "live", "ready"]), metavar="startup|live|ready"
)
def probe(which: str) -> None:
    """For a pod's probes: has it begun, does it live, is it ready.

    Ends with status 0 for yes, 1 for no. In the image a shell answers, without starting Python.
    """
    settings.load()
    script = Path(__file__).parents[1] / "probe.sh"
    os.execv("/bin/sh", ["sh", str(script), which])  # noqa: S606  a file of ours, and a fixed word
