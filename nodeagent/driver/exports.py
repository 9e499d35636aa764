"""The kernel headers, shared with the GPU driver's container, which builds nvidia-peermem on them.

The pod mounts the host's MLX_DRIVERS_MOUNT with Bidirectional propagation: what is mounted below it
here shows on the host, and in every container that mounts it, too. Where it is no mount (on the
host itself) there is nobody to share with, and /sys is not touched.
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
    """Mount the headers at their place, in the place of whatever a killed container left there.

    /sys is made unbindable below its top and private first, as the driver container does: else the
    GPU driver's own mounts of it would come back here. KernelError, StorageError when it fails.
    """
    source = settings.driver_root / settings.headers_dir.relative_to("/")
    target = place(settings)
    if not mounts.on(settings.drivers_mount):
        log.debug("%s is no mount: no headers to share", settings.drivers_mount)
        return
    if not source.is_dir():
        log.warning("no headers to share with the GPU driver: there is no %s", source)
        return
    remove(settings)
    mounts.propagate(sys, mounts.UNBINDABLE | mounts.RECURSIVE)
    mounts.propagate(sys, mounts.PRIVATE)
    durable.make_directory(target, 0o755)
    mounts.bind(source, target)
    if not mounts.on(target)[-1].is_shared:
        log.warning(
            "%s does not show on the host: mount %s with Bidirectional propagation",
            target,
            settings.drivers_mount,
        )
    log.info("the headers are shared: %s", target)


def remove(settings: Settings) -> None:
    """Unmount them, however often they are mounted there, and remove the empty directory.

    KernelError when a mount stays.
    """
    target = place(settings)
    found = mounts.on(target)
    for _ in found:
        try:
            mounts.unmount(target)
        except KernelError:
            if not mounts.on(target):  # it went with another that it was a copy of
                break
            raise
    if found:
        log.debug("unmounted %s", target)
    if durable.remove_directory(target):
        durable.remove_directory(target.parent)


def place(settings: Settings) -> Path:
    """Where the headers are mounted: SHARED_KERNEL_HEADERS_DIR below MLX_DRIVERS_MOUNT."""
    return settings.drivers_mount / settings.headers_dir.relative_to("/")
