"""Wait for the LAG of a card, which the driver makes when the PFs have joined their bond."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final

from nodeagent.errors import WaitTimeout
from nodeagent.kernel import lag
from nodeagent.kernel.events import Watch, wait_until_clear
from nodeagent.kernel.stack import memberships
from nodeagent.node.attempt import Attempt
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.locate import is_bound, link_of, links_by_device
from nodeagent.node.managers import MANAGERS_TIMEOUT
from nodeagent.node.node import Node
from nodeagent.node.retry import RETRY_INTERVAL
from nodeagent.node.settle import in_fatal_error
from nodeagent.node.stack import add_stacked
from nodeagent.plan.actions import AddStacked, AwaitLag
from nodeagent.state.model import DeviceHandle

log = logging.getLogger(__name__)

LAG_TIMEOUT: Final = 60.0
"""Seconds. mlx5 makes a LAG in milliseconds, but a firmware command may take this long."""
JOINED_TIMEOUT: Final = 5.0
"""Seconds until a PF leaves a bond that has not become a LAG, and joins it again. mlx5 itself tries
again each second while an eswitch is being changed (mlx5_do_bond_work())."""

_WHAT_TO_DO: Final = (
    "firmware makes one while no VF of the card is bound and all ports of the card, and no others, "
    "are in the bond; see dmesg for `Failed to activate VF LAG`. Remove the cause and start again; "
    "where dmesg says `driver restart required`, reload again"
)


def await_lags(
    attempt: Attempt, actions: Sequence[AwaitLag], watches: tuple[Watch, ...]
) -> Failures:
    """Wait until each LAG is active. If one is late, its PFs leave their bond and join it again.

    mlx5 checks a bond when a port joins or leaves. It made no LAG if a VF was bound then; and a
    network manager may not have set up the bond in time. The LAG of a card of which a port has no
    driver, or has had a fatal error, is not waited for.
    """
    node = attempt.node
    is_managed = any(each.manager for each in actions)
    first_timeout = MANAGERS_TIMEOUT if is_managed else JOINED_TIMEOUT
    late, hopeless = _await(node, actions, watches, first_timeout)
    failures = _join_anew(node, late) if late else []
    if late:
        late, others = _await(node, actions, watches, LAG_TIMEOUT)
        timed_out = f"after {LAG_TIMEOUT:g} s: {_WHAT_TO_DO}"
        hopeless |= others | {each: f"{why} {timed_out}" for each, why in late.items()}
    attempt.without_lag.update(each.pf for each in hopeless)
    return failures + [(target_of(each), why) for each, why in hopeless.items()]


def _await(
    node: Node, actions: Sequence[AwaitLag], watches: tuple[Watch, ...], seconds: float
) -> tuple[dict[AwaitLag, str], dict[AwaitLag, str]]:
    """The LAGs that are not active after that time, and those that cannot come; each with why.

    debugfs has no events: it is read at each event of a link, and every RETRY_INTERVAL seconds.
    """

    broken = in_fatal_error(watches)

    def late() -> dict[AwaitLag, str]:
        hopeless = _without_a_port(node, actions, broken)
        others = (each for each in actions if each not in hopeless)
        return {each: why for each in others if (why := _why(node, each)) is not None}

    with suppress(WaitTimeout):
        wait_until_clear(
            lambda: late().values(), *watches, what="LAG", timeout=seconds, resync=RETRY_INTERVAL
        )
    return late(), _without_a_port(node, actions, broken)


def _without_a_port(
    node: Node, actions: Sequence[AwaitLag], broken: Collection[DeviceHandle]
) -> dict[AwaitLag, str]:
    """The LAGs that cannot come, each with the port of its card that is to blame."""
    to_blame = {}
    for each in actions:
        if not is_bound(node, target_of(each)):
            to_blame[each.pf.slot] = f"{each.pf} of the same card has no driver"
        elif each.pf in broken:
            to_blame[each.pf.slot] = f"the firmware of {each.pf} has had a fatal error"
    return {
        each: f"{why}: {to_blame[each.pf.slot]}"
        for each in actions
        if each.pf.slot in to_blame and (why := _why(node, each)) is not None
    }


def _why(node: Node, action: AwaitLag) -> str | None:
    """The present state of a LAG that is not as wanted; None if it is, or is not reported."""
    now = lag.read(action.pf, node.sysfs.root, node.proc)
    if now is None or action.lag.is_met_by(now):
        return None
    port = action.port
    by = "esw_multiport" if port is None else f"{port.dev} in {port.kind} {port.master}"
    return f"{action.pf}: LAG by {by} is {now}, and was {action.lag}"


def _join_anew(node: Node, late: Mapping[AwaitLag, str]) -> Failures:
    devices = links_by_device(node)
    joins = []
    with node.stack() as edge:
        for each, why in late.items():
            if each.port is not None:
                log.info("%s: leaving the bond and joining it again", why)
                link = link_of(node, target_of(each), devices)
                if link is not None and link.master:
                    edge.send([memberships.leave_message(link.index)])
                joins.append(AddStacked(each.pf, None, each.port, each.port.dev))
    return add_stacked(node, joins)
