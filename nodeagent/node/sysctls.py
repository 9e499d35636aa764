"""Sysctls of interfaces: files by name, written after udev has named the interfaces."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Final

from nodeagent.errors import KernelError, WaitTimeout
from nodeagent.kernel import sysctls
from nodeagent.kernel.events import Watch, wait_until_clear
from nodeagent.node.attempt import Attempt
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.locate import link_of, links_by_device
from nodeagent.node.node import Node
from nodeagent.node.settle import await_netdevs
from nodeagent.plan.actions import SetSysctls
from nodeagent.state.model import Target
from nodeagent.state.sysctls import Sysctl

READY_TIMEOUT: Final = 20.0
"""Seconds. The port of a NIC that was set up takes a few; the next plan waits again."""


def set_sysctls(
    attempt: Attempt, actions: Sequence[SetSysctls], watches: tuple[Watch, ...], lost: set[Target]
) -> Failures:
    """Write them all. An interface that does not appear is a failure of the wait."""
    failures = await_netdevs(attempt, [target_of(action) for action in actions], watches, lost)
    return failures + write_sysctls(attempt.node, actions)


def write_sysctls(node: Node, actions: Sequence[SetSysctls]) -> Failures:
    """Write those of existing interfaces."""
    devices = links_by_device(node)
    found = ((action, link_of(node, target_of(action), devices)) for action in actions)
    return written(node, ((target_of(a), link.name, a.values) for a, link in found if link))


def written(node: Node, values: Iterable[tuple[Target, str, tuple[Sysctl, ...]]]) -> Failures:
    """Write sysctls: for each interface its target, its name, and the values.

    An interface that is up and gets an MTU of IPv6 is waited for. One that is down loses it when it
    is set up: the next plan sets it again.
    """
    failures: Failures = []
    values = list(values)
    _await_ready(node, {name for _, name, own in values if sysctls.MTU in dict(own)})
    with node.network():
        for target, name, own in values:
            for key, value in own:
                try:
                    sysctls.write(name, key, value, node.proc)
                except KernelError as error:
                    failures.append((target, f"{target}: {error.message}"))
    return failures


def _await_ready(node: Node, names: Collection[str]) -> None:
    """Wait for the kernel to have set the MTU of IPv6 itself, which it does with carrier."""
    if not names:
        return

    def without() -> list[str]:
        links = node.rtnl.links().values()
        return [
            link.name
            for link in links
            if link.name in names and link.up and not sysctls.is_ready(link.af_spec)
        ]

    with node.address_watch() as watch, suppress(WaitTimeout):
        wait_until_clear(without, watch, *node.stops, what="carrier", timeout=READY_TIMEOUT)
