"""The kernel headers, shared with the GPU driver's container, which builds nvidia-peermem.

The pod mounts the host's MLX_DRIVERS_MOUNT with Bidirectional propagation: a mount below it appears
on the host, and in every container that mounts it. If it is not a mount point, as on the host
itself, nothing is shared and /sys is not changed.
"""

from __future__ import annotations

import logging
from pathlib import Path

from nodeagent import durable
from nodeagent.errors import KernelError
from nodeagent.kernel import mounts
from nodeagent.settings import Settings

log = logging.getLogger(__name__)


def ensure(settings: Settings, sys: Path = Path("/sys")) -> None:
    """Mount the headers, replacing mounts that a killed container left.

    Before that /sys is made private, and all mounts below it unbindable, as the driver container
    does, so that the GPU driver's mounts of it do not propagate back. KernelError, StorageError.
    """
    source = settings.driver_root / settings.headers_dir.relative_to("/")
    target = place(settings)
    if not mounts.on(settings.drivers_mount):
        log.debug("%s is not a mount point: the headers are not shared", settings.drivers_mount)
        return
    if not source.is_dir():
        log.warning("cannot share headers with the GPU driver: there is no %s", source)
        return
    remove(settings)
    mounts.propagate(sys, mounts.UNBINDABLE | mounts.RECURSIVE)
    mounts.propagate(sys, mounts.PRIVATE)
    durable.make_directory(target, 0o755)
    mounts.bind(source, target)
    if not mounts.on(target)[-1].is_shared:
        log.warning(
            "%s is not visible on the host: mount %s with Bidirectional propagation",
            target,
            settings.drivers_mount,
        )
    log.info("the headers are shared: %s", target)


def remove(settings: Settings) -> None:
    """Unmount the headers, every mount of them, and remove the empty directory.

    KernelError if a mount remains.
    """
    target = place(settings)
    found = mounts.on(target)
    for _ in found:
        try:
            mounts.unmount(target)
        except KernelError:
            if not mounts.on(target):  # unmounted by propagation together with another
                break
            raise
    if found:
        log.debug("unmounted %s", target)
    if durable.remove_directory(target):
        durable.remove_directory(target.parent)


def place(settings: Settings) -> Path:
    """The mount point of the headers: SHARED_KERNEL_HEADERS_DIR below MLX_DRIVERS_MOUNT."""
    return settings.drivers_mount / settings.headers_dir.relative_to("/")
