"""What a command or the agent asks for before it looks at devices or changes them."""

from __future__ import annotations

import os

from nodeagent.errors import DataError, PermissionDenied, UnavailableError
from nodeagent.state.model import Snapshot


def require_root(why: str) -> None:
    """PermissionDenied for another user. The kernel says which privilege root lacks, if any."""
    if os.geteuid() != 0:
        raise PermissionDenied(f"this needs root: it {why}", hint="use sudo, or a privileged pod")


def require_same_machine(snapshot: Snapshot, machine_id: str, *, hint: str) -> None:
    """DataError when the snapshot was taken on another machine. One without an id fits any."""
    if snapshot.machine_id and machine_id and snapshot.machine_id != machine_id:
        raise DataError(
            f"the snapshot of {snapshot.taken_at} was taken on another machine: "
            f"its machine-id is {snapshot.machine_id}, this one's is {machine_id}",
            hint=hint,
        )


def require_devices(now: Snapshot) -> None:
    """UnavailableError when there is no device of the driver."""
    if not now.state.pfs:
        raise UnavailableError(
            f"no device on this node is bound to the driver {now.state.driver}",
            hint="DRIVER_MODULE names the driver; it may not be loaded, see `nodeagent status`",
        )
