"""The help page: commands by task, files, environment and exit statuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click

SECTIONS: Final = {
    "The agent": ("run", "reload", "terminate", "sidecar"),
    "By hand": ("snapshot", "plan", "restore", "verify"),
    "Information": ("preflight", "status", "timeline", "settings", "probe", "metrics"),
    "For a ticket, for a shell": ("support-bundle", "completion"),
    "In the cluster": ("device-plugin", "node", "network", "operator"),
}

FILES: Final = (
    (".driver-ready", "the ready flag: the node is verified to be as it was"),
    (".lock, .lock.beat", "the lock of the agent, and its heartbeat"),
    (".nodeagent/", "the open and the last snapshot, the journal"),
)

ENVIRONMENT: Final = (
    ("NVIDIA_NIC_DRIVER_VER", "the driver version; required by `run`"),
    ("DTK_OCP_DRIVER_BUILD", "wait for the Driver Toolkit's build (false)"),
    ("DRIVER_MODULE", "the driver to reload (mlx5_core)"),
    ("STATE_DIR", "the directory of snapshots and journal"),
    ("VF_TIMEOUT, PF_TIMEOUT", "time limits in seconds (150, 120)"),
    ("NODE_NAME, KUBECONFIG", "for the commands in the cluster"),
)

EXIT: Final = (
    (
        "0",
        "success; verify, snapshot --diff: nothing differs; status, probe: yes; "
        "run, sidecar: SIGTERM",
    ),
    (
        "1",
        "verify, snapshot --diff: something differs; restore: something could not be restored; "
        "status, probe: no; preflight, reload --dry-run: something blocks a reload; "
        "network check, operator check: something is wrong; operator restore, node after-reload: "
        "something is left to do; run, terminate, sidecar: any failure",
    ),
    ("64, 78", "a wrong argument, or none; a wrong environment variable"),
    ("65, 66, 74", "a file is damaged or foreign; missing; not writable"),
    ("69, 71", "a device, tool or driver is missing; the kernel refused"),
    ("70", "a bug in nodeagent; stderr has its traceback"),
    ("75, 77", "busy, or a wait timed out; root or a permission is required"),
    ("130, 141, 143", "ended by SIGINT; by a reader that closed the pipe; by SIGTERM"),
)
"""nodeagent/README.md has the same table."""


class Page(click.Group):
    """The group of all commands, with a help page that is sorted by task."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands by task, each with the first line of its help; then the options."""
        for title, names in SECTIONS.items():
            found = [(name, self.commands[name].get_short_help_str(70)) for name in names]
            _definitions(formatter, title, found)
        click.Command.format_options(self, ctx, formatter)

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Files, environment and exit status."""
        _definitions(formatter, "Files in /run/mellanox/drivers", FILES)
        _definitions(formatter, "Environment (all: nodeagent settings --all)", ENVIRONMENT)
        _definitions(formatter, "Exit status", EXIT)


def _definitions(
    formatter: click.HelpFormatter, title: str, pairs: Sequence[tuple[str, str]]
) -> None:
    with formatter.section(title):
        formatter.write_dl(pairs, col_max=30)
