"""Probe auxiliary devices again that a killed bind or modprobe has left without a driver."""

from __future__ import annotations

import logging

from nodeagent.errors import KernelError
from nodeagent.node.node import Node

log = logging.getLogger(__name__)


def probe_again(node: Node) -> None:
    """Probe each auxiliary device of the NIC's driver that has no driver (`Sysfs.without_driver`).

    A device without a loaded driver (RDMA without mlx5_ib, vDPA) stays without one.
    """
    left = node.sysfs.without_driver(node.settings.driver_module)
    for name in left:
        try:
            node.sysfs.probe("auxiliary", name)
        except KernelError as error:
            log.warning("%s", error.message)
    still_left = left and node.sysfs.without_driver(node.settings.driver_module)
    if taken := [name for name in left if name not in still_left]:
        log.info("probed again, because they had no driver: %s", ", ".join(taken))
