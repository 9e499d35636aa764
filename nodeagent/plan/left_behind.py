"""Which VFs are not put back into their pods, and why: pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from nodeagent.state.model import DeviceHandle, NodeState, RdmaDevice, Vf
from nodeagent.state.namespaces import Namespace


@dataclass(frozen=True)
class LeftBehind:
    """A VF whose interface stays in the host's namespace, though it was `name` in `namespace`."""

    pf: DeviceHandle
    index: int
    name: str
    namespace: Namespace
    why: str

    def __str__(self) -> str:
        return (
            f"{self.pf} vf {self.index}: was {self.name} in {self.namespace}, and stays here: "
            f"{self.why}"
        )


def without(state: NodeState, gone: Mapping[int, str]) -> tuple[NodeState, tuple[LeftBehind, ...]]:
    """`state` without what belongs into the namespaces `gone` (inode and reason), and who that is.

    What PFs hold for those VFs stays wanted.
    """
    if not gone:
        return state, ()
    left = tuple(
        LeftBehind(pf.handle, vf.index, vf.inside.netdev.name, namespace, gone[namespace.inode])
        for pf in state.pfs
        for vf in pf.vfs
        if vf.inside is not None
        and (namespace := state.namespace(vf.inside.namespace)).inode in gone
    )

    def stripped(vf: Vf) -> Vf:
        if vf.inside is None or vf.inside.namespace not in gone:
            return vf
        device = None if vf.inside.rdma is None else RdmaDevice(vf.inside.rdma)
        return dataclasses.replace(vf, inside=None, rdma=device)

    pfs = tuple(dataclasses.replace(pf, vfs=tuple(map(stripped, pf.vfs))) for pf in state.pfs)
    kept = tuple(each for each in state.namespaces if each.inode not in gone)
    return dataclasses.replace(state, pfs=pfs, namespaces=kept), left
