"""Repeat a bind or a devlink reload that a kill has interrupted, and a recovery that failed."""

from __future__ import annotations

import logging

from nodeagent.errors import KernelError, reason
from nodeagent.node.locate import failed_reloads
from nodeagent.node.node import Node

log = logging.getLogger(__name__)


def probe_again(node: Node) -> None:
    """Probe each auxiliary device of the NIC's driver that has no driver (`Sysfs.without_driver`).

    A device whose driver is not loaded (RDMA without mlx5_ib, vDPA) stays unbound. First, each
    device is recovered from a fatal error, and each devlink instance whose reload has failed is
    reloaded: it has no interface until that succeeds.
    """
    _recover(node)
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


def _recover(node: Node) -> None:
    """PFs first, which lose their subfunctions in that."""
    driver = node.settings.driver_module
    with node.devlink() as devlink:
        failed = sorted(devlink.in_fatal_error(), key=lambda each: (each.bus == "auxiliary", each))
        for device in failed:
            if node.sysfs.driver(*device) in {driver, f"{driver}.sf"}:
                try:
                    devlink.recover(device)
                    log.info("%s: recovered from a fatal error of its firmware", device)
                except OSError as error:
                    log.warning(
                        "%s: cannot recover from a fatal error of its firmware: %s",
                        device,
                        reason(error),
                    )


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
