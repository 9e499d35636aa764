"""DCB of PFs: looked at first, and set part by part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from nodeagent.errors import reason
from nodeagent.kernel.dcb import Dcbnl
from nodeagent.node import retry
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.locate import link_of, links_by_device
from nodeagent.node.node import Node
from nodeagent.plan.actions import SetDcb
from nodeagent.plan.dcb import attribute
from nodeagent.state.dcb import PARTS, App, Dcb


def set_dcb(node: Node, actions: Sequence[SetDcb]) -> Failures:
    """Set what differs. A PF without an interface is skipped: the next comparison reports it."""
    devices = links_by_device(node)
    failures: Failures = []
    with node.dcb() as edge:
        for action in actions:
            target = target_of(action)
            if (link := link_of(node, target, devices)) is not None:
                failures += [
                    (target, f"{target}: {text}") for text in _set(edge, link.name, action)
                ]
    return failures


def _set(edge: Dcbnl, name: str, action: SetDcb) -> Iterator[str]:
    """Set an interface's DCB; a line for each part that is refused.

    It is read again before each part, because a driver may change several parts at once.
    """
    for part in PARTS:
        now, wanted = edge.dcb(name) or Dcb(), getattr(action.dcb, part)
        if wanted is None or getattr(now, part) in {None, wanted}:
            continue
        try:
            if part == "app":
                _set_apps(edge, name, action.dcb.app or (), now.app or ())
            else:
                retry.call(partial(edge.set, name, part, wanted))
        except OSError as error:
            yield f"cannot set {attribute(part)}: {reason(error)}"


def _set_apps(edge: Dcbnl, name: str, wanted: Sequence[App], now: Sequence[App]) -> None:
    """Superfluous entries are removed first: mlx5 has one priority per DSCP."""
    if gone := sorted({*now} - {*wanted}):
        retry.call(partial(edge.delete_apps, name, gone))
    if new := sorted({*wanted} - {*now}):
        retry.call(partial(edge.add_apps, name, new))
