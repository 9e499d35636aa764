"""Subfunctions as values: which are not as wanted, and which a driver does not make.

A reload of the driver removes their ports, as does a change of the eswitch's mode. What is not
wanted is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from nodeagent.plan.driverinit import differing as differing_params
from nodeagent.plan.driverinit import must_reload, reload_commands
from nodeagent.state.model import DeviceHandle, NodeState, Pf, Subfunction, Target

OF_PORT: Final = ("hw_addr", "roce", "max_io_eqs")
"""What is set before it is active: its driver looks at it then."""


def differing(want: Pf, have: Pf) -> Iterator[tuple[Subfunction, Subfunction | None]]:
    """Each that is not as wanted, and as it is; None for one that is missing."""
    if have.subfunctions is None:
        return
    for each in want.subfunctions or ():
        now = have.subfunction(each.port)
        if now is None or changes(each, now) or must_restart(each, now):
            yield each, now


def changes(want: Subfunction, now: Subfunction) -> Mapping[str, Any]:
    """What has to be set before it is active, by name. A MAC of zero is none, and refused."""
    values = ((name, getattr(want, name)) for name in OF_PORT)
    return {
        name: value
        for name, value in values
        if value not in {None, getattr(now, name), "00:00:00:00:00:00"}
    }


def must_restart(want: Subfunction, now: Subfunction) -> bool:
    """Whether its driver starts, ends or is reloaded: its interface, if any, is a new one then."""
    return want.active != now.active or must_reload(want, now)


def as_made(want: Pf, have: Pf) -> tuple[Subfunction, ...] | None:
    """Those of `have`, without the interfaces that a restart removes."""
    if have.subfunctions is None:
        return None
    restarted = {
        each.port for each, now in differing(want, have) if now and must_restart(each, now)
    }
    return tuple(
        each.without_netdev() if each.port in restarted else each for each in have.subfunctions
    )


def words(of: Subfunction, now: Subfunction | None = None) -> str:
    """What is set of it, as devlink(8) takes it, with the parameters that `now` does not have."""
    found = [f"hw_addr {of.hw_addr}"] if of.hw_addr is not None else []
    if of.roce is not None:
        found.append(f"roce {'enable' if of.roce else 'disable'}")
    if of.max_io_eqs is not None:
        found.append(f"max_io_eqs {of.max_io_eqs}")
    found.append(f"state {state(of)}")
    if now is not None:
        found += [f"{each.name} {each.value}" for each, _ in differing_params(of, now)]
    return " ".join(found)


def state(of: Subfunction) -> str:
    """`active` or `inactive`."""
    return "active" if of.active else "inactive"


def words_now(want: Subfunction, now: Subfunction | None) -> str:
    """What it is instead of what is wanted."""
    if now is None:
        return "missing"
    params = (f"{each.name} {value}" for each, value in differing_params(want, now))
    return " ".join((words(now), *params))


def add_commands(pf: str, want: Subfunction, now: Subfunction | None) -> Iterator[str]:
    """Lines for devlink(8) that make the port, and set what is set before it is active."""
    controller, number, sfnum = want.numbers
    if now is None:
        of = "" if controller is None else f" controller {controller}"
        yield f"devlink port add {pf} flavour pcisf{of} pfnum {number} sfnum {sfnum}"
    now = now or Subfunction(want.port, want.index)
    given = changes(want, now)
    if given:
        port = Subfunction(want.port, now.index, **given)
        what = words(port).removesuffix(f" state {state(port)}")
        yield f"devlink port function set {pf}/{now.index} {what}"


def start_commands(pf: DeviceHandle, want: Subfunction, now: Subfunction | None) -> Iterator[str]:
    """Lines that make it active, or inactive, and reload its driver with its parameters."""
    index = want.index if now is None else now.index
    if now is None or now.active != want.active:
        yield f"devlink port function set {pf}/{index} state {state(want)}"
    if want.driverinit and (now is None or must_reload(want, now)):
        yield own_device(pf, want.own_port)
        yield from reload_commands("auxiliary/$sf", want.driverinit)


def own_device(pf: DeviceHandle, own_port: str) -> str:
    """A line for a shell that finds the auxiliary device of one, and calls it `sf`."""
    files = f"/sys/bus/{pf.bus}/devices/{pf.name}/*.sf.*/sfnum"
    return f'sf=$(basename "$(dirname "$(grep -lx {own_port.removeprefix("sf")} {files})")")'


def no_longer_offered(want: NodeState, have: NodeState) -> Iterator[str]:
    """A line for each, where the driver makes none any more."""
    for pf in want.pfs:
        now = have.pf(pf.handle)
        if now is not None and now.subfunctions is None:
            for each in pf.subfunctions or ():
                yield f"{pf.handle} subfunction {each.port} ({words(each)})"


def without_interface(state_: NodeState) -> Iterator[Target]:
    """Those that should have an interface here, by their parameters, and have it elsewhere."""
    for pf in state_.pfs:
        for each in pf.subfunctions or ():
            has_one = any((p.name, p.value) == ("enable_eth", True) for p in each.driverinit or ())
            if each.active and has_one and each.netdev is None:
                yield Target(pf.handle, each.own_port)
