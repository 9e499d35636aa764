"""Wait until network managers have finished with an interface.

systemd-networkd and NetworkManager set up the interfaces that they manage when these are back. They
would undo what nodeagent sets at the same time. It therefore waits for them, for a limited time,
and then restores what is still missing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from nodeagent.errors import WaitTimeout
from nodeagent.kernel import managers
from nodeagent.kernel.events import FileWatch, Watch, wait_until_clear
from nodeagent.node.locate import link_of, links_by_device
from nodeagent.node.node import Node
from nodeagent.state.model import NodeState, Target

log = logging.getLogger(__name__)

MANAGERS_TIMEOUT: Final = 30.0
"""Seconds; then the restore continues. DHCP may take longer."""


def managed_netdevs(state: NodeState) -> dict[Target, str]:
    """The netdevs that a network manager has set up, and the manager's name."""
    return {on: netdev.manager for on, netdev in state.targets() if netdev.manager is not None}


def await_managers(node: Node, targets: dict[Target, str]) -> None:
    """Wait until each target's manager has finished with it; log those that take too long."""

    def unsettled() -> Iterator[str]:
        devices = links_by_device(node)
        for target, name in targets.items():
            link = link_of(node, target, devices)
            found = None if link is None else managers.manager_of(link.index, node.run)
            if link is not None and (found is None or found.name != name or not found.settled):
                yield f"{target} ({link.name}): {name} has not finished with it"

    with ExitStack() as held:
        watches: list[Watch] = [
            held.enter_context(FileWatch(path)) for path in managers.files(0, node.run)
        ]
        watches += node.stops
        try:
            wait_until_clear(unsettled, *watches, what="network managers", timeout=MANAGERS_TIMEOUT)
        except WaitTimeout as late:
            log.warning("%s", late.message)
