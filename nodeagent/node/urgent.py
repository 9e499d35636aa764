"""Which VFs come back first: those that RESTORE_FIRST names, by their addresses or their pods.

A pod's Kubernetes namespace is in the name of the directory that the kubelet keeps its logs in, so
the API server is not asked; it has the pod's annotations, and these are therefore not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from nodeagent.kernel.cgroup import pods_in
from nodeagent.node.failures import target_of
from nodeagent.node.node import Node
from nodeagent.plan.actions import BindVf, MoveVf, Stage
from nodeagent.state.model import Target


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
