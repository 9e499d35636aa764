"""Perform a plan: stage by stage, each to its end, and collect the failures.

A failed action does not stop the others: the next comparison finds what is left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, get_args

from nodeagent.kernel.events import Watch
from nodeagent.node.attempt import Attempt
from nodeagent.node.dcb import set_dcb
from nodeagent.node.devices import DeviceAction, write_devices
from nodeagent.node.ethtool import set_ethtool
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.lag import await_lags
from nodeagent.node.links import set_links, set_vfs
from nodeagent.node.node import Node
from nodeagent.node.pods import Arrivals
from nodeagent.node.rates import set_rates
from nodeagent.node.rdma import move_rdma_devices, name_rdma_devices, set_roce
from nodeagent.node.settle import (
    await_functions,
    await_netdevs,
    lacks_pf,
    note_settled,
    watching,
)
from nodeagent.node.stack import add_stacked
from nodeagent.node.subfunctions import add_subfunctions, start_subfunctions
from nodeagent.node.sysctls import set_sysctls
from nodeagent.node.tuning import set_tuning
from nodeagent.node.urgent import put_first, urgent
from nodeagent.node.vdpa import set_vdpa
from nodeagent.plan.actions import (
    Action,
    AddStacked,
    AddSubfunction,
    AwaitLag,
    BindVf,
    CreateVfs,
    InPod,
    MoveRdma,
    MoveVf,
    SetDcb,
    SetDriverinit,
    SetEthtool,
    SetLink,
    SetRates,
    SetRdma,
    SetRoce,
    SetSysctls,
    SetTuning,
    SetVdpa,
    SetVf,
    Stage,
    StartSubfunction,
)
from nodeagent.record.gaps import Moment
from nodeagent.state.model import Target

A = TypeVar("A")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """The argument of a performer, with its actions. `lost` are the targets that failed before.

    The performer does not wait for those of them that have no driver. `first` are the VFs to bind
    first.
    """

    attempt: Attempt
    watches: tuple[Watch, ...]
    first: frozenset[Target]
    lost: set[Target]
    arrivals: Arrivals


WAITS: Final = (AwaitLag, MoveVf, InPod)
"""Actions whose performers wait for more than the action's own device."""

Performer = Callable[[Step, Sequence[A]], Failures]


def perform(attempt: Attempt, stages: Sequence[Stage]) -> tuple[str, ...]:
    """Perform all stages; a line for each action that failed and each device that never appeared.

    Raises Stopped between two stages, or in a wait, if a signal arrives: a running action is always
    finished.
    """
    node = attempt.node
    failures: Failures = []
    first = urgent(node, stages)
    with watching(node) as watches, Arrivals(attempt, stages, watches) as arrivals:
        arrivals.put_first(first)
        for planned in put_first(stages, first):
            lost = {target for target, _ in failures}
            stage = _without_lost_pfs(node, attempt.takings.spared(node, planned), lost)
            if node.stop is not None:
                node.stop.drain()
            if planned.actions and not stage.actions:
                log.debug("stage %s: nothing is left to do", stage.name)
                continue
            began = time.monotonic()
            log.debug("stage %s: %d actions", stage.name, len(stage.actions))
            failed = _perform_stage(Step(attempt, watches, first, lost, arrivals), stage)
            failures += failed
            _note_set_up(attempt, stage, {target for target, _ in failed})
            for _, text in failed:
                log.debug("%s: %s", stage.name, text)
            elapsed = round(time.monotonic() - began, 3)
            log.info("%s: %s", stage.name, _tally(stage, failed), extra={"elapsed": elapsed})
        bound = [a for each in stages for a in each.actions if isinstance(a, BindVf)]
        note_settled(node, map(target_of, bound), watches)
        failures += arrivals.announce()
    return tuple(text for _, text in failures)


def _without_lost_pfs(node: Node, stage: Stage, lost: set[Target]) -> Stage:
    """The stage without actions that must fail because an action on their PF has failed."""
    kept = (
        action
        for action in stage.actions
        if isinstance(action, WAITS) or not lacks_pf(node, target_of(action), lost)
    )
    return replace(stage, actions=tuple(kept))


def _note_set_up(attempt: Attempt, stage: Stage, failed: set[Target]) -> None:
    """Note the VFs that are bound and set up; those in pods are noted when they are moved."""
    times = attempt.node.vf_times
    in_pods = (BindVf, MoveVf, InPod)
    for target in {target_of(each) for each in stage.actions if not isinstance(each, in_pods)}:
        if times.has(target, Moment.BOUND) and target not in failed:
            times.note(target, Moment.SET_UP)


def _tally(stage: Stage, failed: Failures) -> str:
    tally = f"{len(stage.actions)} actions"
    return f"{tally}, {len(failed)} FAILED" if failed else tally


def _perform_stage(step: Step, stage: Stage) -> Failures:
    failures: Failures = []
    for types, performer in PERFORMERS:
        actions = [
            action
            for action in stage.actions
            if isinstance(action, types) and not _is_anothers_name(step, action)
        ]
        if actions:
            failures += performer(step, actions)
    return failures


def _write_devices(step: Step, actions: Sequence[DeviceAction]) -> Failures:
    """Write, and move VFs into their pods while others are still being bound."""
    node, arrivals = step.attempt.node, step.arrivals
    moves = arrivals.expected and any(isinstance(action, BindVf) for action in actions)
    # a stop takes effect between stages and in waits: running writes are finished
    events = tuple(watch for watch in step.watches if watch is not node.stop)
    waiting = (arrivals.move_settled, events) if moves else ()
    failures = write_devices(step.attempt, actions, *waiting, urgent=step.first)
    counts = {action.pf: action.count for action in actions if isinstance(action, CreateVfs)}
    failures += await_functions(node, counts, step.watches)
    reloads = [action for action in actions if isinstance(action, SetDriverinit)]
    arrivals.to_reload.difference_update(map(target_of, reloads))
    lost = {target for target, _ in failures} | step.lost
    pfs = [target_of(action) for action in reloads if action.has_netdev]
    if pfs := [target for target in pfs if target not in lost]:
        failures += await_netdevs(step.attempt, pfs, step.watches, lost)
    return failures


def _is_anothers_name(step: Step, action: Action) -> bool:
    """Whether an RDMA device is a port's, because the LAG that it was one of has not come."""
    is_pfs = isinstance(action, SetRdma) and action.index is None
    return is_pfs and action.pf in step.attempt.without_lag


def _row(types: tuple[type[A], ...], performer: Performer[A]) -> tuple[Any, Performer[Any]]:
    return types, performer


PERFORMERS: Final = (
    _row(get_args(DeviceAction), _write_devices),
    _row((SetVf,), lambda step, actions: set_vfs(step.attempt, actions, step.watches)),
    _row((SetDcb,), lambda step, actions: set_dcb(step.attempt.node, actions)),
    _row((AddSubfunction,), lambda step, actions: add_subfunctions(step.attempt.node, actions)),
    _row(
        (StartSubfunction,),
        lambda step, actions: start_subfunctions(step.attempt, actions, step.watches),
    ),
    _row((SetRates,), lambda step, actions: set_rates(step.attempt.node, actions)),
    _row((SetTuning,), lambda step, actions: set_tuning(step.attempt.node, actions)),
    _row((SetVdpa,), lambda step, actions: set_vdpa(step.attempt.node, actions, step.watches)),
    _row((SetEthtool,), lambda step, actions: set_ethtool(step.attempt.node, actions)),
    _row(
        (SetSysctls,),
        lambda step, actions: set_sysctls(step.attempt, actions, step.watches, step.lost),
    ),
    _row(
        (SetRdma,),
        lambda step, actions: name_rdma_devices(step.attempt, actions, step.watches, step.lost),
    ),
    _row((SetRoce,), lambda step, actions: set_roce(step.attempt.node, actions)),
    _row((MoveRdma,), lambda step, actions: move_rdma_devices(step.attempt.node, actions)),
    _row(
        (SetLink,), lambda step, actions: set_links(step.attempt, actions, step.watches, step.lost)
    ),
    _row((AddStacked,), lambda step, actions: add_stacked(step.attempt.node, actions)),
    _row((AwaitLag,), lambda step, actions: await_lags(step.attempt, actions, step.watches)),
    _row((MoveVf, InPod), lambda step, _actions: step.arrivals.await_all(step.watches, step.lost)),
)
"""The functions that perform actions, by type, in the order within a stage."""

if _forgotten := {*get_args(Action)} - {each for types, _ in PERFORMERS for each in types}:
    raise TypeError(f"no performer for {_forgotten}")
