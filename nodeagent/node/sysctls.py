"""Sysctls of interfaces: files by name, written after udev has named the interfaces."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nodeagent.errors import KernelError
from nodeagent.kernel import sysctls
from nodeagent.kernel.events import Watch
from nodeagent.node.attempt import Attempt
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.locate import link_of, links_by_device
from nodeagent.node.node import Node
from nodeagent.node.settle import await_netdevs
from nodeagent.plan.actions import SetSysctls
from nodeagent.state.model import Target
from nodeagent.state.sysctls import Sysctl


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
    """Write sysctls: for each interface its target, its name, and the values."""
    failures: Failures = []
    with node.network():
        for target, name, own in values:
            for key, value in own:
                try:
                    sysctls.write(name, key, value, node.proc)
                except KernelError as error:
                    failures.append((target, f"{target}: {error.message}"))
    return failures
