"""The names of RDMA devices as values: which have to be set, and which do not come back.

A device of the NIC itself (mlx5_ib) comes back with its function, under a name that the kernel or
udev chooses. A software device (rdma_rxe) on a netdev is removed with the netdev and not made
again; if there is one nevertheless, it gets its name. A device that belongs into a pod is renamed
before it is moved there; one that is in the pod already keeps the name that the pod gave it.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.plan.actions import SetRdma, SetRoce
from nodeagent.plan.stages import StageName
from nodeagent.state.model import DeviceHandle, NodeState, Pf, RdmaDevice, Vf
from nodeagent.state.roce import RocePort, fresh_port


def actions(want: NodeState, have: NodeState) -> Iterator[tuple[StageName, SetRdma]]:
    """Stage and action for each device whose name is another, or that is yet to come."""
    for pf in want.pfs:
        for index, each in _devices(pf):
            if _is_in_a_pod(have, pf, index):
                continue
            now = device(have, pf.handle, index)
            if (now is None and each.soft) or (now is not None and now.name == each.name):
                continue
            vf = pf.vf(index) if index is not None else None
            address = pf.handle.name if vf is None else vf.address or ""
            name_now = None if now is None else now.name
            yield StageName.RDMA_NAMES, SetRdma(pf.handle, index, address, each.name, name_now)


def roce(want: NodeState, have: NodeState) -> Iterator[SetRoce]:
    """For each device the ports whose defaults for RoCE are others, or will be when it comes.

    A device whose defaults cannot be asked now is left out: without rdma_cm nothing uses them.
    """
    for pf in want.pfs:
        for index, each in _devices(pf):
            now = device(have, pf.handle, index)
            if each.roce is None or _is_in_a_pod(have, pf, index):
                continue
            if each.soft if now is None else now.roce is None:
                continue
            if ports := _differing(each.roce, (now and now.roce) or ()):
                yield SetRoce(pf.handle, index, each.name, ports)


def _differing(want: tuple[RocePort, ...], have: tuple[RocePort, ...]) -> tuple[RocePort, ...]:
    """The ports that are not as wanted. One that neither has is that of a fresh device."""
    wanted, now = ({port.port: port for port in ports} for ports in (want, have))
    return tuple(
        wanted.get(number, fresh_port(number))
        for number in sorted({*wanted, *now})
        if wanted.get(number) != now.get(number)
    )


def soft(state: NodeState) -> Iterator[str]:
    """A line for each device in software."""
    for pf in state.pfs:
        for index, each in _devices(pf):
            if each.soft:
                on = str(pf.handle) if index is None else f"{pf.handle} vf {index}"
                yield f"software RDMA device {each.name} on {on}"


def _devices(pf: Pf) -> Iterator[tuple[int | None, RdmaDevice]]:
    if pf.rdma is not None:
        yield None, pf.rdma
    for vf in pf.vfs:
        if (found := _of_vf(vf)) is not None:
            yield vf.index, found


def _is_in_a_pod(have: NodeState, pf: Pf, index: int | None) -> bool:
    known = have.pf(pf.handle)
    vf = None if known is None or index is None else known.vf(index)
    return vf is not None and vf.inside is not None and vf.inside.rdma is not None


def _of_vf(vf: Vf) -> RdmaDevice | None:
    """Here, or where its interface is."""
    if vf.inside is not None and vf.inside.rdma is not None:
        return RdmaDevice(vf.inside.rdma)
    return vf.rdma


def device(state: NodeState, pf: DeviceHandle, index: int | None) -> RdmaDevice | None:
    """A function's, in the host's network namespace."""
    known = state.pf(pf)
    if known is None or index is None:
        return None if known is None else known.rdma
    vf = known.vf(index)
    return None if vf is None else vf.rdma
