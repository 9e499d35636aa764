"""Performing a plan: stage by stage, each to its end, every failure collected.

A failed action does not hold up the others: what is left over is found by looking at the node
again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

from nodeagent.kernel.events import Watch
from nodeagent.node.devices import await_functions, write_devices
from nodeagent.node.failures import Failures
from nodeagent.node.links import set_links, set_vfs
from nodeagent.node.node import Node, Target
from nodeagent.node.pods import Arrivals
from nodeagent.node.rdma import move_rdma_devices, name_rdma_devices
from nodeagent.node.stack import add_stacked
from nodeagent.node.tuning import set_ethtool, set_sysctls
from nodeagent.plan.actions import (
    AddStacked,
    BindVf,
    InPod,
    MoveRdma,
    MoveVf,
    SetEthtool,
    SetLink,
    SetRdma,
    SetSysctls,
    SetVf,
    Stage,
)

IN_BATCHES: Final = (
    *(SetVf, SetLink, SetEthtool, SetSysctls, SetRdma, AddStacked, MoveVf, MoveRdma, InPod),
)

log = logging.getLogger(__name__)


def perform(node: Node, stages: Sequence[Stage]) -> tuple[str, ...]:
    """Perform all stages; a line for each action that failed and each thing that never came.

    Raises Stopped between two stages, or in a wait, when a signal has come: a running action is
    always finished.
    """
    failures: Failures = []
    with node.watches() as watches, Arrivals(node, stages, watches) as arrivals:
        for stage in stages:
            if node.stop is not None:
                node.stop.drain()
            began = time.monotonic()
            log.debug("stage %s: %d actions", stage.name, len(stage.actions))
            lost = {target for target, _ in failures}
            failed = _perform_stage(node, stage, watches, lost, arrivals)
            failures += failed
            for _, text in failed:
                log.debug("%s: %s", stage.name, text)
            elapsed = round(time.monotonic() - began, 3)
            log.info("%s: %s", stage.name, _tally(stage, failed), extra={"elapsed": elapsed})
        failures += arrivals.greet()
    return tuple(text for _, text in failures)


def _tally(stage: Stage, failed: Failures) -> str:
    tally = f"{len(stage.actions)} actions"
    return f"{tally}, {len(failed)} FAILED" if failed else tally


def _perform_stage(
    node: Node,
    stage: Stage,
    watches: tuple[Watch, ...],
    lost: set[Target],
    arrivals: Arrivals,
) -> Failures:
    """One stage. `lost`: targets whose failure is known; none is waited for if it has no driver.

    VFs go into their pods while others are still being bound.
    """
    writes = [action for action in stage.actions if not isinstance(action, IN_BATCHES)]
    meets = arrivals.expected and any(isinstance(action, BindVf) for action in writes)
    # a stop is heeded between stages and in waits: what is being written is finished
    events = tuple(watch for watch in watches if watch is not node.stop)
    failures = write_devices(node, writes, arrivals.let_in if meets else None, events)
    failures += await_functions(node, writes, watches)
    vf_actions = [action for action in stage.actions if isinstance(action, SetVf)]
    if vf_actions:
        failures += set_vfs(node, vf_actions, watches)
    ethtool_actions = [action for action in stage.actions if isinstance(action, SetEthtool)]
    if ethtool_actions:
        failures += set_ethtool(node, ethtool_actions)
    sysctl_actions = [action for action in stage.actions if isinstance(action, SetSysctls)]
    if sysctl_actions:
        failures += set_sysctls(node, sysctl_actions, watches, lost)
    rdma_actions = [action for action in stage.actions if isinstance(action, SetRdma)]
    if rdma_actions:
        failures += name_rdma_devices(node, rdma_actions, watches, lost)
    rdma_moves = [action for action in stage.actions if isinstance(action, MoveRdma)]
    failures += move_rdma_devices(node, rdma_moves)
    link_actions = [action for action in stage.actions if isinstance(action, SetLink)]
    if link_actions:
        failures += set_links(node, link_actions, watches, lost)
    stacked = [action for action in stage.actions if isinstance(action, AddStacked)]
    if stacked:
        failures += add_stacked(node, stacked)
    if any(isinstance(action, MoveVf | InPod) for action in stage.actions):
        failures += arrivals.await_all(watches, lost)
    return failures
