"""Devlink parameters of the mode driverinit: which differ, and which a driver no longer has.

`devlink dev reload` puts them into effect. It makes the function's interface (in the host's
namespace) and RDMA device again; of a PF also the eswitch, in legacy mode. So a PF is reloaded
before its VFs are made, and a VF before its interface is set up or moved to a pod. The parameters
of a driver that is not bound yet are not known: an action that ensures them is planned.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator

from nodeagent.state.model import NodeState, Param, Pf, Subfunction, Vf

Function = Pf | Vf | Subfunction


def differing(want: Function, have: Function) -> Iterator[tuple[Param, bool | int | str | None]]:
    """Each parameter that is not as wanted, with its present value; None if that is not known."""
    known = {each.name: each.value for each in have.driverinit or ()}
    for each in want.driverinit or ():
        if have.driverinit is None or known.get(each.name, each.value) != each.value:
            yield each, known.get(each.name)


def must_reload(want: Function, have: Function) -> bool:
    """Whether the instance has to be reloaded, as far as is known."""
    return any(differing(want, have))


def no_longer_offered(want: NodeState, have: NodeState) -> Iterator[str]:
    """A line for each parameter that a driver no longer has."""
    for on, was in want.functions():
        now = have.function(on)
        offered = None if now is None else now.driverinit
        names = {param.name for param in offered or ()}
        for param in was.driverinit or ():
            if offered is not None and param.name not in names:
                yield f"{on} {param.name} {param.value}"


def reload_commands(device: str, params: Iterable[Param]) -> Iterator[str]:
    """Lines for devlink(8) that reload an instance with these parameters."""
    yield from (param_command(device, param, "driverinit") for param in params)
    yield f"devlink dev reload {device}"


def param_command(device: str, param: Param, mode: str) -> str:
    """The line for devlink(8) that sets a parameter of that mode."""
    value = str(param.value).lower() if isinstance(param.value, bool) else str(param.value)
    what = f"{device} name {param.name} value {shlex.quote(value)}"
    return f"devlink dev param set {what} cmode {mode}"
