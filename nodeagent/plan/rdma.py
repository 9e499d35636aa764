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
from nodeagent.state.model import NodeState, Pf, RdmaDevice, Target, Vf
from nodeagent.state.roce import RocePort, port_of


def actions(want: NodeState, have: NodeState) -> Iterator[tuple[StageName, SetRdma]]:
    """Stage and action for each device that has another name, or does not exist yet."""
    for on, function, wanted in _devices(want):
        index, now = _index(on), device(have, on)
        if _is_in_a_pod(have, on) or (now is None and wanted.soft):
            continue
        if now is not None and now.name == wanted.name:
            continue
        address = function.handle.name if isinstance(function, Pf) else function.address or ""
        name_now = None if now is None else now.name
        yield StageName.RDMA_NAMES, SetRdma(on.pf, index, address, wanted.name, name_now)


def roce(want: NodeState, have: NodeState) -> Iterator[SetRoce]:
    """For each device the ports whose RoCE defaults differ, or will when it appears.

    A device whose defaults cannot be read now is left out: without rdma_cm nothing uses them.
    """
    for on, _, wanted in _devices(want):
        now = device(have, on)
        if wanted.roce is None or _is_in_a_pod(have, on):
            continue
        if wanted.soft if now is None else now.roce is None:
            continue
        if ports := _differing(wanted.roce, (now and now.roce) or ()):
            yield SetRoce(on.pf, _index(on), wanted.name, ports)


def _differing(want: tuple[RocePort, ...], have: tuple[RocePort, ...]) -> tuple[RocePort, ...]:
    """The ports that are not as wanted, as they are wanted."""
    numbers = sorted({port.port for port in (*want, *have)})
    wanted = (port_of(want, number) for number in numbers)
    return tuple(port for port in wanted if port != port_of(have, port.port))


def soft(state: NodeState) -> Iterator[str]:
    """A line for each software device."""
    for on, _, each in _devices(state):
        if each.soft:
            yield f"software RDMA device {each.name} on {on}"


def device(state: NodeState, on: Target) -> RdmaDevice | None:
    """The RDMA device of a PF or VF, in the host's network namespace."""
    function = state.function(on)
    return None if function is None else function.rdma


def _devices(state: NodeState) -> Iterator[tuple[Target, Pf | Vf, RdmaDevice]]:
    for pf in state.pfs:
        if pf.rdma is not None:
            yield Target(pf.handle), pf, pf.rdma
        for vf in pf.vfs:
            if (found := _of_vf(vf)) is not None:
                yield Target(pf.handle, vf.index), vf, found


def _is_in_a_pod(have: NodeState, on: Target) -> bool:
    """Whether it is in a pod, under a name that the pod may have given it."""
    vf = have.vf(on)
    return vf is not None and vf.inside is not None and vf.inside.rdma is not None


def _index(on: Target) -> int | None:
    return on.port if isinstance(on.port, int) else None


def _of_vf(vf: Vf) -> RdmaDevice | None:
    """In the host's namespace, or in that of its interface."""
    if vf.inside is not None and vf.inside.rdma is not None:
        return RdmaDevice(vf.inside.rdma)
    return vf.rdma
