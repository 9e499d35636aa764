"""Commands for pods: the sidecar of a driver container, probes, and metrics."""

from __future__ import annotations

import os
import signal

import click

from nodeagent.cli.commands import Call

STOPPING = {signal.SIGTERM, signal.SIGINT}


@click.command("sidecar")
@click.option("--prepare", is_flag=True, help="Only open a snapshot: before that container starts.")
@click.pass_obj
def sidecar(call: Call, prepare: bool) -> int:
    """Save and restore the VFs for a driver container.

    Reloads nothing itself. When the driver container has set its flag
    (DRIVER_CONTAINER_READY_PATH), restores, verifies, sets DRIVER_READY_PATH, and stays until
    SIGTERM. Ends with status 0 on SIGTERM, 1 on any failure.
    """
    from nodeagent.agent import sidecar

    if prepare:
        sidecar.prepare(call.settings())
        return 0
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # as for `run`
    return sidecar.run(call.settings())


@click.command("probe")
@click.argument(
    "which", type=click.Choice(["startup", "live", "ready"]), metavar="startup|live|ready"
)
def probe(which: str) -> None:
    """Answer a pod's probe: has the agent started, is it alive, ready?

    Ends with status 0 for yes, 1 for no. In the image a shell script answers, without Python.
    """
    from pathlib import Path

    from nodeagent import settings

    settings.load()
    script = Path(__file__).parents[1] / "probe.sh"
    os.execv("/bin/sh", ["sh", str(script), which])  # noqa: S606  a file of ours, and a fixed word


@click.command("metrics")
@click.pass_obj
def metrics(call: Call) -> int:
    """Serve Prometheus metrics on METRICS_PORT until SIGTERM.

    It is a process of its own, so that the agent needs no memory and no wake-ups for it.
    """
    from nodeagent.agent import metrics

    return metrics.serve(call.settings())


ALL = (sidecar, probe, metrics)
