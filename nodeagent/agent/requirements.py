"""Checks that commands and the agent make before they look at devices or change them."""

from __future__ import annotations

import os

from nodeagent import machine
from nodeagent.errors import DataError, PermissionDenied, UnavailableError
from nodeagent.record.journal import Journal
from nodeagent.state.model import Snapshot


def require_root(why: str) -> None:
    """PermissionDenied for another user. Missing capabilities of root are refused by the kernel."""
    if os.geteuid() != 0:
        raise PermissionDenied(f"this needs root: it {why}", hint="use sudo, or a privileged pod")


def require_same_machine(snapshot: Snapshot, own_id: str, *, hint: str) -> None:
    """DataError if the snapshot was taken on another machine. One without an id fits any."""
    if snapshot.machine_id and own_id and snapshot.machine_id != own_id:
        raise DataError(
            f"the snapshot of {snapshot.taken_at} was taken on another machine: "
            f"its machine-id is {snapshot.machine_id}, this one's is {own_id}",
            hint=hint,
        )


def open_snapshot_of_here(journal: Journal) -> Snapshot | None:
    """The open snapshot; None if there is none. DataError if it is damaged or another machine's."""
    snapshot = journal.open_snapshot()
    if snapshot is not None:
        hint = f"move {journal.open_path} away when this node came from a copy"
        require_same_machine(snapshot, machine.machine_id(), hint=hint)
    return snapshot


def require_devices(now: Snapshot) -> None:
    """UnavailableError if the node has no device of the driver."""
    if not now.state.pfs:
        raise UnavailableError(
            f"no device on this node is bound to the driver {now.state.driver}",
            hint="DRIVER_MODULE names the driver; it may not be loaded, see `nodeagent status`",
        )
