"""The VFs that are not moved back into their pods, why, and what their PFs hold then."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.state.attributes import given, rows
from nodeagent.state.model import NodeState, RdmaDevice, Target, Vf
from nodeagent.state.namespaces import Namespace
from nodeagent.state.vf import VfAttributes

DEFAULTS: Final[dict[str, Any]] = {
    name: row.fresh for name, row in rows(VfAttributes).items() if name != "admin_mac"
}
"""The defaults of a new VF that all drivers share. MAC and spoofchk, which a pod may also have had,
depend on the driver: a new VF has them, and they are not written."""

RECORDED: Final = "its PF holds what SR-IOV CNI has recorded from before that pod"
ASSUMED: Final = (
    "no CNI has recorded what its PF held before that pod: it holds the driver's defaults"
)


@dataclass(frozen=True)
class LeftBehind:
    """A VF whose interface stays in the host's namespace, though it was `name` in `namespace`.

    `name` is "" where it had none (vfio-pci). `held` says what its PF holds for it, unless that is
    what it held for the pod.
    """

    target: Target
    name: str
    namespace: Namespace | None
    why: str
    held: str = ""

    def __str__(self) -> str:
        was = f"{self.name} in {self.namespace}" if self.name else "a pod's"
        held = f"; {self.held}" if self.held else ""
        return f"{self.target}: was {was}, and stays here: {self.why}{held}"


def without(
    state: NodeState,
    gone: Mapping[int, str],
    *,
    deleted: Collection[str] = (),
    are_there: bool = False,
) -> tuple[NodeState, tuple[LeftBehind, ...]]:
    """`state` without what belongs to pods that are gone, and the VFs of those pods.

    `gone`: the inodes of namespaces, and why nothing is restored there. `deleted`: addresses of VFs
    whose pod was deleted, even if its namespace still exists. What their PFs hold becomes what they
    held before those pods; with `are_there` the pods exist, and it stays.
    """
    left: list[LeftBehind] = []

    def stripped(on: Target, vf: Vf) -> Vf:
        namespace = state.namespace_of(vf)
        if vf.cni is not None and vf.address in deleted:
            why = "its pod was deleted"
        elif namespace is not None and namespace.inode in gone:
            why = gone[namespace.inode]
        else:
            return vf
        held = "" if are_there else ASSUMED if vf.cni is None else RECORDED
        name = "" if vf.inside is None else vf.inside.netdev.name
        left.append(LeftBehind(on, name, namespace, why, held))
        rdma = vf.rdma
        if vf.inside is not None and vf.inside.rdma is not None:
            rdma = RdmaDevice(vf.inside.rdma)
        bare = dataclasses.replace(vf, inside=None, rdma=rdma, cni=None)
        return bare if are_there else vacated(bare, None if vf.cni is None else vf.cni.before)

    if not gone and not deleted:
        return state, ()
    kept = tuple(each for each in state.namespaces if each.inode not in gone)
    return dataclasses.replace(state.with_vfs(stripped), namespaces=kept), tuple(left)


def vacated(vf: Vf, before: Vf | None) -> Vf:
    """The VF as it was before its pod.

    `before` is what a CNI has recorded, to be restored by its DEL: the pod's network has set
    nothing else. Without a record the pod may have set everything.
    """
    known = given(vf)  # its PF holds nothing else
    if before is None:
        fresh: dict[str, Any] = {name: DEFAULTS.get(name) for name in known}
        return dataclasses.replace(vf, **fresh)
    recorded = {name: value for name, value in given(before).items() if name in known}
    return dataclasses.replace(vf, **recorded, netdev=before.netdev)
