"""Sysctls of interfaces: files by name, written after udev has named the interfaces."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Final

from nodeagent.errors import KernelError, WaitTimeout
from nodeagent.kernel import sysctls
from nodeagent.kernel.events import Watch, wait_until_clear
from nodeagent.kernel.rtnl import Link
from nodeagent.kernel.stack import linkinfo
from nodeagent.node.attempt import Attempt
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.locate import by_device, link_of, links_by_device
from nodeagent.node.node import Node
from nodeagent.node.settle import await_netdevs
from nodeagent.plan.actions import SetSysctls
from nodeagent.state.model import NodeState, Target
from nodeagent.state.sysctls import Sysctl

log = logging.getLogger(__name__)

READY_TIMEOUT: Final = 20.0
"""Seconds. The port of a NIC that was set up takes a few."""


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


def await_ipv6(node: Node, want: NodeState) -> bool:
    """Wait until IPv6 is ready on the interfaces that have an MTU of IPv6: whether any was not.

    The kernel sets that MTU when IPv6 becomes ready (`sysctls.MTU`), so that one that was restored
    before is lost then. An interface that has no carrier in time keeps it until it has.
    """
    children = want.stack.children if want.stack is not None else ()
    named = {each.dev for each in children if sysctls.MTU in dict(each.sysctls)}
    own = [on for on, netdev in want.targets() if sysctls.MTU in dict(netdev.sysctls or ())]
    if not named and not own:
        return False

    def unready() -> list[str]:
        links = node.rtnl.links()
        found = by_device(node, links)
        ours = {link.name for on in own if (link := link_of(node, on, found)) is not None}
        return [
            link.name
            for link in links.values()
            if link.name in ours | named and link.up and not ipv6_is_ready(link)
        ]

    if not unready():
        return False
    with node.address_watch() as watch:
        try:
            wait_until_clear(unready, watch, *node.stops, what="carrier", timeout=READY_TIMEOUT)
        except WaitTimeout as late:
            for name in late.missing:
                log.warning(
                    "%s has no carrier: the kernel sets net.ipv6.conf.%s.mtu when it has",
                    name,
                    name,
                )
    return True


def ipv6_is_ready(link: Link) -> bool:
    """Whether the kernel has made IPv6 ready there, or does not run it.

    It runs none on ports of bonds and teams either (IFF_NO_ADDRCONF).
    """
    is_port = linkinfo.decoded(link.info).port_kind in {"bond", "team"}
    return is_port or sysctls.keeps_mtu(link.af_spec)
