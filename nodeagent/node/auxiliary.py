"""Repeat a bind or a devlink reload that a kill has interrupted."""

from __future__ import annotations

import logging

from nodeagent.errors import KernelError, reason
from nodeagent.node.locate import failed_reloads
from nodeagent.node.node import Node

log = logging.getLogger(__name__)


def probe_again(node: Node) -> None:
    """Probe each auxiliary device of the NIC's driver that has no driver (`Sysfs.without_driver`).

    A device whose driver is not loaded (RDMA without mlx5_ib, vDPA) stays unbound. First, each
    devlink instance whose reload has failed is reloaded: it has no interface until that succeeds.
    """
    _reload_again(node)
    left = node.sysfs.without_driver(node.settings.driver_module)
    for name in left:
        try:
            node.sysfs.probe("auxiliary", name)
        except KernelError as error:
            log.warning("%s", error.message)
    still_left = left and node.sysfs.without_driver(node.settings.driver_module)
    if taken := [name for name in left if name not in still_left]:
        log.info("probed again, because they had no driver: %s", ", ".join(taken))


def _reload_again(node: Node) -> None:
    for device in sorted(failed_reloads(node)):
        if node.sysfs.driver(*device) == node.settings.driver_module:
            try:
                with node.devlink() as devlink:
                    devlink.reload(device)
            except OSError as error:
                text = "%s: its devlink reload had failed, and fails again: %s"
                log.warning(text, device, reason(error))
            else:
                log.info("%s: its devlink reload had failed: reloaded", device)
