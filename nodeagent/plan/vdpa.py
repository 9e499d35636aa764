"""vDPA devices as values: which are not as wanted, and which a driver does not make.

They go with the driver of their function. What is not wanted is left alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace

from nodeagent.state.model import NO_DRIVER, NodeState, Pf, Port, Subfunction, Target, Vdpa, Vf

_BUS = "/sys/bus/vdpa"


def functions(pf: Pf) -> Iterator[tuple[Port, Vf | Subfunction]]:
    """VFs and subfunctions; mlx5's PFs have no vDPA devices (mlx5_vnet_supported())."""
    yield from ((vf.index, vf) for vf in pf.vfs)
    yield from ((each.own_port, each) for each in pf.subfunctions or ())


def function(pf: Pf, port: Port) -> Vf | Subfunction | None:
    """The function of that port."""
    return pf.vf(port) if isinstance(port, int) else pf.subfunction(str(port))


def differing(want: Pf, have: Pf) -> Iterator[tuple[Port, Vdpa, Vdpa | None]]:
    """Each that is not as wanted, and as it is; None for one that is missing."""
    for port, owner in functions(want):
        now = function(have, port)
        if now is not None and now.vdpa is None:
            continue  # its driver makes none
        there = {} if now is None else {each.name: each for each in now.vdpa or ()}
        for each in owner.vdpa or ():
            known = there.get(each.name)
            if known is None or _offered(each, known) != known:
                yield port, each, known


def no_longer_offered(want: NodeState, have: NodeState) -> Iterator[str]:
    """A line for each device, and for features of one, that the driver does not make any more."""
    for pf in want.pfs:
        now_pf = have.pf(pf.handle)
        for port, owner in functions(pf):
            now = None if now_pf is None else function(now_pf, port)
            there = {} if now is None else {each.name: each for each in now.vdpa or ()}
            for each in owner.vdpa or ():
                title = f"{Target(pf.handle, port)} vDPA device {each.name}"
                known = there.get(each.name)
                if known is None:
                    yield f"{title} ({words(each)})"
                elif lost := (each.features or 0) & ~(known.supported or 0):
                    yield f"{title} device_features {lost:#x}"


def words(of: Vdpa) -> str:
    """As vdpa(8) takes them, and the driver."""
    return " ".join((*_given(of), f"driver {of.driver}"))


def commands(want: Vdpa, now: Vdpa | None, manager: str) -> Iterator[str]:
    """Lines for vdpa(8), and for its bus."""
    name = shlex.quote(want.name)
    if now is None or must_remake(want, now):
        if now is not None:
            yield f"vdpa dev del {name}"
        yield " ".join((f"vdpa dev add name {name} mgmtdev {manager}", *_given(want)))
    yield f"echo {name} > {_BUS}/devices/{name}/driver/unbind"
    if want.driver != NO_DRIVER:
        yield f"echo {name} > {_BUS}/drivers/{want.driver}/bind"


def must_remake(want: Vdpa, now: Vdpa) -> bool:
    """Whether something differs that is given when it is made."""
    return _fixed(now) != _fixed(_offered(want, now))


def _offered(want: Vdpa, now: Vdpa) -> Vdpa:
    """As it can be: with the features that the management device has."""
    if want.features is None or now.supported is None:
        return want
    return replace(want, features=want.features & now.supported)


def _fixed(of: Vdpa) -> Vdpa:
    return replace(of, driver=NO_DRIVER)


def _given(of: Vdpa) -> Iterator[str]:
    if of.mac is not None and not of.mac.is_zero:
        yield f"mac {of.mac}"
    if of.mtu is not None:
        yield f"mtu {of.mtu}"
    if of.max_vqp is not None:
        yield f"max_vqp {of.max_vqp}"
    if of.features is not None:
        yield f"device_features {of.features:#x}"
