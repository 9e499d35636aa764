"""Which VFs come back first: those that RESTORE_FIRST names, by their addresses or their pods.

A pod's Kubernetes namespace is in the name of the directory that the kubelet keeps its logs in, so
the API server is not asked; it has the pod's annotations, and these are therefore not looked at.
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

SETS_UP: Final = (StageName.ETHTOOL, StageName.SYSCTLS, StageName.VF_NETDEVS)
"""What is done to a VF's interface in the host."""


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
    """The stages, in which the interfaces of the VFs of `first` are set up right after the binds.

    They wait for no interface of another VF then. Where one of those has the name that is theirs,
    the next plan gives it to them. VFS_LATE, which may wait for carrier, begins with them.
    """
    if not first or StageName.BIND_VFS not in {stage.name for stage in stages}:
        return tuple(stages)
    early: list[Stage] = []
    rest: list[Stage] = []
    for stage in stages:
        is_split = stage.name in {*SETS_UP, StageName.VFS_LATE}
        own = tuple(each for each in stage.actions if is_split and target_of(each) in first)
        others = tuple(each for each in stage.actions if each not in own)
        if own:
            (early if stage.name in SETS_UP else rest).append(Stage(stage.name, own))
        if others:
            rest.append(Stage(stage.name, others))
    at = 1 + [stage.name for stage in rest].index(StageName.BIND_VFS)
    return (*rest[:at], *early, *rest[at:])
