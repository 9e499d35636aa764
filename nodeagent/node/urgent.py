"""The VFs that are restored first: those that RESTORE_FIRST names by address or by pod.

A pod's Kubernetes namespace is read from the name of its log directory, without the API server.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from nodeagent.kernel.cgroup import pods_in
from nodeagent.node.failures import target_of
from nodeagent.node.node import Node
from nodeagent.plan.actions import BindVf, MoveVf, Stage
from nodeagent.plan.stages import StageName
from nodeagent.state.model import Target

INTERFACE_STAGES: Final = (
    *(StageName.VF_DRIVERINIT, StageName.ETHTOOL, StageName.SYSCTLS, StageName.VF_NETDEVS),
)
"""The stages that set up a VF, and its interface in the host's namespace."""


def urgent(node: Node, stages: Sequence[Stage]) -> frozenset[Target]:
    """The VFs of a plan that are to be bound first; the address of a PF names all its VFs."""
    names = set(node.settings.restore_first or ())
    if not names:
        return frozenset()
    actions = [action for stage in stages for action in stage.actions]
    binds = [each for each in actions if isinstance(each, BindVf)]
    found = {target_of(each) for each in binds if {each.pf.name, each.address} & names}
    moves = [each for each in actions if isinstance(each, MoveVf) and each.namespace.pod]
    pods = pods_in(names, node.proc) if moves else frozenset[str]()
    return frozenset(found | {target_of(each) for each in moves if each.namespace.pod in pods})


def put_first(stages: Sequence[Stage], first: Collection[Target]) -> tuple[Stage, ...]:
    """The stages, with the interfaces of the VFs of `first` set up right after the binds.

    They do not wait for interfaces of other VFs then. If one of those still has their name, they
    get it by the next plan. VFS_LATE, which may wait for carrier, begins with them.
    """
    if not first or StageName.BIND_VFS not in {stage.name for stage in stages}:
        return tuple(stages)
    early: list[Stage] = []
    rest: list[Stage] = []
    for stage in stages:
        is_split = stage.name in {*INTERFACE_STAGES, StageName.VFS_LATE}
        own = tuple(each for each in stage.actions if is_split and target_of(each) in first)
        others = tuple(each for each in stage.actions if each not in own)
        if own:
            (early if stage.name in INTERFACE_STAGES else rest).append(Stage(stage.name, own))
        if others:
            rest.append(Stage(stage.name, others))
    at = 1 + [stage.name for stage in rest].index(StageName.BIND_VFS)
    return (*rest[:at], *early, *rest[at:])
