"""ethtool settings of interfaces: read first, and set in one batch, by ifindex.

The order between kinds is that of `nodeagent.state.ethtool.EthtoolKind`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nodeagent.errors import reason
from nodeagent.kernel.ethtool import Change, in_order
from nodeagent.node import retry
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.locate import link_of, links_by_device
from nodeagent.node.node import Node
from nodeagent.plan.actions import SetEthtool
from nodeagent.state.model import Target


def set_ethtool(node: Node, actions: Sequence[SetEthtool]) -> Failures:
    """Set what differs. A refused change is sent again key by key, to name what is refused.

    A missing interface is skipped: the next comparison reports it.
    """
    devices = links_by_device(node)
    found = ((action, link_of(node, target_of(action), devices)) for action in actions)
    links = [(action, link) for action, link in found if link is not None]
    settings = node.ethtool.settings([link.index for _, link in links])
    changes: list[tuple[Target, Change]] = []
    for action, link in links:
        now = dict(settings.get(link.index, ()))
        left = tuple((key, value) for key, value in action.values if now.get(key) != value)
        changes += [(target_of(action), change) for change in in_order(link.index, left)]
    return _send(node, changes)


def _send(node: Node, changes: Sequence[tuple[Target, Change]]) -> Failures:
    results = retry.send(node, [change for _, change in changes], node.ethtool.change)
    single = [
        (target, dataclasses.replace(change, values=(pair,)))
        for (target, change), error in zip(changes, results, strict=True)
        if error is not None
        for pair in change.values
    ]
    again = node.ethtool.change([change for _, change in single])
    return [
        (target, f"{target}: cannot set {change.values[0][0]}: {reason(error)}")
        for (target, change), error in zip(single, again, strict=True)
        if error is not None
    ]
