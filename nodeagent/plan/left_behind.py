"""Which VFs are not put back into their pods, why, and what their PFs hold then: pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.state.attributes import given, rows
from nodeagent.state.model import DeviceHandle, NodeState, RdmaDevice, Vf
from nodeagent.state.namespaces import Namespace
from nodeagent.state.vf import VfAttributes

DEFAULTS: Final[dict[str, Any]] = {
    name: row.fresh for name, row in rows(VfAttributes).items() if name != "admin_mac"
}
"""What a VF starts with under any driver. Of the rest that a pod may have had, its MAC and
spoofchk, each driver has its own: a VF that is made anew has them, and they are not written."""

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

    pf: DeviceHandle
    index: int
    name: str
    namespace: Namespace | None
    why: str
    held: str = ""

    def __str__(self) -> str:
        was = f"{self.name} in {self.namespace}" if self.name else "a pod's"
        held = f"; {self.held}" if self.held else ""
        return f"{self.pf} vf {self.index}: was {was}, and stays here: {self.why}{held}"


def without(
    state: NodeState,
    gone: Mapping[int, str],
    *,
    deleted: Collection[str] = (),
    are_there: bool = False,
) -> tuple[NodeState, tuple[LeftBehind, ...]]:
    """`state` without what belongs to pods that are gone, and which VFs those had.

    `gone`: the inodes of namespaces, and why nothing is put back there. `deleted`: addresses of VFs
    whose pod was deleted, be its namespace there or not. What their PFs hold is what was there
    before those pods; with `are_there` the pods are, and it stays as it is.
    """
    left: list[LeftBehind] = []

    def stripped(pf: DeviceHandle, vf: Vf) -> Vf:
        namespace = None if vf.inside is None else state.namespace(vf.inside.namespace)
        if vf.cni is not None and vf.address in deleted:
            why = "its pod was deleted"
        elif namespace is not None and namespace.inode in gone:
            why = gone[namespace.inode]
        else:
            return vf
        held = "" if are_there else ASSUMED if vf.cni is None else RECORDED
        name = "" if vf.inside is None else vf.inside.netdev.name
        left.append(LeftBehind(pf, vf.index, name, namespace, why, held))
        rdma = vf.rdma
        if vf.inside is not None and vf.inside.rdma is not None:
            rdma = RdmaDevice(vf.inside.rdma)
        bare = dataclasses.replace(vf, inside=None, rdma=rdma, cni=None)
        return bare if are_there else vacated(bare, None if vf.cni is None else vf.cni.before)

    if not gone and not deleted:
        return state, ()
    pfs = tuple(
        dataclasses.replace(pf, vfs=tuple(stripped(pf.handle, vf) for vf in pf.vfs))
        for pf in state.pfs
    )
    kept = tuple(each for each in state.namespaces if each.inode not in gone)
    return dataclasses.replace(state, pfs=pfs, namespaces=kept), tuple(left)


def vacated(vf: Vf, before: Vf | None) -> Vf:
    """The VF as it was before the pod that had it.

    `before` is what a CNI has recorded that its DEL puts back: what is not in it, the pod's network
    has not set. Without that nobody knows what the pod had set: all of it.
    """
    known = given(vf)  # of the rest its PF holds nothing
    if before is None:
        fresh: dict[str, Any] = {name: DEFAULTS.get(name) for name in known}
        return dataclasses.replace(vf, **fresh)
    recorded = {name: value for name, value in given(before).items() if name in known}
    return dataclasses.replace(vf, **recorded, netdev=before.netdev)
