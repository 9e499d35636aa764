"""Set rate objects of eswitches that differ, nodes before the leafs that belong to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from nodeagent.errors import reason
from nodeagent.kernel.devlink import Devlink
from nodeagent.node import retry
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.node import Node
from nodeagent.plan.actions import SetRates
from nodeagent.state.model import DeviceHandle
from nodeagent.state.rates import Rate


def set_rates(node: Node, actions: Sequence[SetRates]) -> Failures:
    """Set what differs. A missing leaf is skipped: it is no difference."""
    failures: Failures = []
    with node.devlink() as devlink:
        found = devlink.rates()
        for action in actions:
            target, now = target_of(action), found.get(action.pf, ())
            failures += [
                (target, f"{target}: {text}")
                for text in _set(devlink, action.pf, action.rates, now)
            ]
    return failures


def _set(
    devlink: Devlink, pf: DeviceHandle, wanted: Iterable[Rate], now: Iterable[Rate]
) -> Iterator[str]:
    """Set the rates of a PF's eswitch; a line for each that is refused.

    All nodes are created first, because any of them may be a parent.
    """
    known = {each.key: each for each in now}
    for each in sorted(wanted, key=lambda rate: not rate.is_node):
        try:
            if each.is_node and each.key not in known:
                retry.call(partial(devlink.add_rate_node, pf, each.name))
                known[each.key] = Rate(name=each.name, is_node=True)
        except OSError as error:
            yield f"cannot create {each}: {reason(error)}"
    for each in sorted(wanted, key=lambda rate: not rate.is_node):
        is_now = known.get(each.key)
        if is_now is None or not (changes := each.changes(is_now)):
            continue
        try:
            retry.call(partial(devlink.set_rate, pf, each, changes))
        except OSError as error:
            yield f"cannot set {each}: {reason(error)}"
