"""A node of values: performs a plan on a `NodeState` and refuses what the kernel would refuse.

A refusal raises `Refused`, which no plan may ever cause. The kernel's are those of `kernel_rules`;
here are those that protect the order of a plan, which the kernel would let pass. What a state does
not know (None) is there all the same: it can be set, and is known then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from nodeagent.plan.actions import (
    Action,
    AddStacked,
    AddSubfunction,
    AwaitLag,
    BindPf,
    BindVf,
    CreateVfs,
    OverrideDriver,
    SetAutoprobe,
    SetDcb,
    SetDriverinit,
    SetEswitch,
    SetEthtool,
    SetLink,
    SetParam,
    SetRates,
    SetRdma,
    SetRoce,
    SetSysctls,
    SetTuning,
    SetVdpa,
    SetVf,
    Stage,
    StartSubfunction,
    UnbindVf,
)
from nodeagent.plan.stack import owners_of_netdevs
from nodeagent.plan.subfunctions import changes
from nodeagent.plan.vdpa import function
from nodeagent.state.addresses import Mac
from nodeagent.state.attributes import fresh, given
from nodeagent.state.dcb import PARTS
from nodeagent.state.eswitch import EswitchMode
from nodeagent.state.lag import ESW_MULTIPORT, Lag
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import (
    NO_DRIVER,
    DeviceHandle,
    Netdev,
    NodeState,
    Param,
    Pf,
    Port,
    RdmaDevice,
    Representor,
    Subfunction,
    Vf,
)
from nodeagent.state.rates import reset
from nodeagent.state.stack import KINDS, Child, Neighbour, NexthopObject, Route, Stack, Stacked
from nodeagent.state.tuning import WHILE_UNBOUND, Tuned, kind
from nodeagent.state.vf import VfAttributes
from tests.support import kernel_rules

FRESH_ETHTOOL = (
    ("coalesce.adaptive-rx", True),
    ("features.rx-gro", True),
    ("rings.rx", 256),
    ("rings.tx", 256),
)
"""What a driver starts with, and no plan can know before it has looked."""

MULTIPORT = "multiport_eswitch"
MULTIPORT_ON = Param(ESW_MULTIPORT, 6, True)
FRESH_DRIVERINIT = (Param("enable_roce", 6, True), Param("event_eq_size", 3, 4096))
"""Likewise, until it is reloaded with others."""
FRESH_REPORTERS = (("reporter.fw.auto_dump", True), ("reporter.fw.grace_period", 600))
"""Likewise: of a function whose driver has just come."""
FRESH_VF = (("function.roce", True), ("msix", 8))
"""Likewise: of a VF, also without a driver."""

ZERO = Mac("00:00:00:00:00:00")


class Refused(AssertionError):
    """The kernel would have said no."""


def simulate(state: NodeState, stages: Iterable[Stage]) -> NodeState:
    """`state` after every action of every stage."""
    for stage in stages:
        for action in stage.actions:
            state = perform(state, action)
    return state


def perform(state: NodeState, action: Action) -> NodeState:
    """`state` after one action."""
    try:
        if isinstance(action, AddStacked):
            return _add(state, action)
        if isinstance(action, SetDriverinit):
            return _reloaded(state, action)
        return _followed(state, _performed(state, action), action)
    except OSError as error:
        raise Refused(f"{action}: {error}") from error


def _performed(state: NodeState, action: Action) -> NodeState:
    if isinstance(action, BindPf):
        if state.pf(action.pf) is not None:
            return state
        netdev, mode = _fresh_netdev(state, 0), EswitchMode.LEGACY
        fresh = Pf(
            *(action.pf, 0, True, netdev),
            eswitch_mode=mode,
            driverinit=FRESH_DRIVERINIT,
            tuning=FRESH_REPORTERS,
            subfunctions=(),
        )
        pfs = (*state.pfs, fresh)
        return dataclasses.replace(state, pfs=tuple(sorted(pfs, key=lambda pf: pf.handle)))
    pf = state.pf(action.pf)
    if pf is None:
        raise Refused(f"no {action.pf}")
    return _with_pf(state, _perform_on_pf(state, pf, action))


def _add(state: NodeState, action: AddStacked) -> NodeState:
    thing, stack = action.thing, state.stack or Stack()
    known = {netdev.name for netdev in state.netdevs()} | {child.dev for child in stack.children}
    if not isinstance(thing, Child) and not known.issuperset(thing.interfaces):
        raise Refused(f"ENODEV: {thing}")
    field = KINDS[type(thing)]
    others = (each for each in getattr(stack, field) if each.key != thing.key)
    return dataclasses.replace(state, stack=dataclasses.replace(stack, **{field: (*others, thing)}))


def _followed(before: NodeState, after: NodeState, action: Action) -> NodeState:
    """What stands on a netdev dies with it, follows its name, and partly goes when it goes down."""
    now = {owner: name for name, owner in owners_of_netdevs(after)}
    names = {name: now.get(owner) for name, owner in owners_of_netdevs(before)}
    flushed = None
    if isinstance(action, SetLink) and action.up is False:
        flushed = next((n for o, n in now.items() if o == (action.pf, action.index)), None)
    return with_stack(after, names, flushed)


def with_stack(
    state: NodeState, names: Mapping[str, str | None], flushed: str | None = None
) -> NodeState:
    """`state` without what stands on nothing; `names`: what interfaces are called now."""
    if state.stack is None:
        return state
    moved = {old: new for old, new in names.items() if new is not None}
    alive = {netdev.name for netdev in state.netdevs()}
    kept: dict[str, list[Stacked]] = {field: [] for field in KINDS.values()}
    for old in state.stack.things():
        if any(names.get(dev, dev) is None for dev in old.interfaces):
            continue
        thing = old.renamed(moved)
        if not alive.issuperset(thing.interfaces):
            continue
        if flushed in thing.interfaces and isinstance(thing, Neighbour | NexthopObject | Route):
            continue
        kept[KINDS[type(thing)]].append(thing)
        if isinstance(thing, Child):
            alive.add(thing.dev)
    made: dict[str, Any] = {field: tuple(things) for field, things in kept.items()}
    return dataclasses.replace(state, stack=dataclasses.replace(state.stack, **made))


def _perform_on_pf(state: NodeState, pf: Pf, action: Action) -> Pf:
    match action:
        case SetAutoprobe():
            return dataclasses.replace(pf, autoprobe=action.on)
        case CreateVfs():
            return _create(state, pf, action.count)
        case SetParam(param=param):
            return _set_param(state, pf, param)
        case AwaitLag():
            return _made_lag(state, pf, action.lag)
        case SetEswitch():
            return _set_eswitch(state, pf, action)
        case SetDcb():
            return _set_dcb(pf, action)
        case SetRates():
            return _set_rates(pf, action)
        case SetTuning():
            return _set_tuning(state, pf, action)
        case AddSubfunction() | StartSubfunction():
            return _with_subfunction(state, pf, action)
        case SetVdpa():
            return _set_vdpa(pf, action)
        case SetVf():
            return _with_vf(pf, _set_vf(_vf(pf, action.index), action))
        case OverrideDriver():
            vf = _vf(pf, action.index)
            return _with_vf(pf, dataclasses.replace(vf, driver_override=action.driver))
        case UnbindVf():
            vf = _vf(pf, action.index)
            if action.driver is not None:
                kernel_rules.check_unbind(vf.driver, action.driver)
            unbound: dict[str, Any] = dict.fromkeys(("netdev", "rdma", "driverinit", "vdpa"))
            tuning = None if vf.tuning is None else _of_vf(vf.tuning)
            return _with_vf(pf, dataclasses.replace(vf, driver=NO_DRIVER, tuning=tuning, **unbound))
        case BindVf():
            return _with_vf(pf, _bind(state, pf, _vf(pf, action.index), action.driver))
        case SetLink():
            return _set_link(state, pf, action)
        case SetEthtool():
            return _set_ethtool(pf, action)
        case SetRdma():
            return _set_rdma(pf, action)
        case SetRoce():
            return _set_roce(pf, action)
        case SetSysctls():
            return _set_sysctls(state, pf, action)
    raise AssertionError(action)


def _create(state: NodeState, pf: Pf, count: int) -> Pf:
    if count == pf.numvfs:
        return pf
    kernel_rules.check_numvfs(pf.numvfs, count)
    if count and pf.autoprobe:
        raise Refused("VFs created while probing is on: they would be probed twice")
    is_device = pf.handle.bus == "pci"
    vfs = tuple(
        Vf(
            index=index,
            address=f"{pf.handle.name[:-1]}{index}" if is_device else None,
            driver=NO_DRIVER if is_device else None,
            driver_override="" if is_device else None,
            **given(fresh(VfAttributes)),
            spoofchk=True,
            tuning=FRESH_VF if is_device else None,
        )
        for index in range(count)
    )
    pf = dataclasses.replace(pf, numvfs=count, vfs=vfs, lag=pf.lag and Lag())
    return _with_representors(state, pf)


def _set_param(state: NodeState, pf: Pf, param: Param) -> Pf:
    others = {each.name: each for each in pf.params} | {param.name: param}
    pf = dataclasses.replace(pf, params=tuple(v for _, v in sorted(others.items())))
    if param == MULTIPORT_ON:
        return _made_lag(state, pf, Lag(True, MULTIPORT, "mpesw"))
    return pf


def _made_lag(state: NodeState, pf: Pf, lag: Lag) -> Pf:
    """Firmware makes it; where debugfs does not tell of it, nothing shows that."""
    if pf.lag is None or lag.is_met_by(pf.lag):
        return pf
    if any(vf.driver == state.driver for vf in pf.vfs):
        raise Refused("LAG is made while VFs are bound")
    return dataclasses.replace(pf, lag=lag)


def _set_eswitch(state: NodeState, pf: Pf, action: SetEswitch) -> Pf:
    bound = (vf.driver == state.driver for vf in pf.vfs)
    kernel_rules.check_eswitch_mode(pf.eswitch_mode, action.eswitch_mode, bound)
    if action.eswitch_mode not in {None, pf.eswitch_mode}:
        pf = dataclasses.replace(pf, rates=reset(pf.rates), lag=pf.lag and Lag())
    return _with_representors(state, dataclasses.replace(pf, **given(action)))


def _with_representors(state: NodeState, pf: Pf) -> Pf:
    """In switchdev each VF has one, in legacy none has (netdevsim, nsim_dev_port_add_all).

    In legacy there are no subfunctions either.
    """
    if not pf.is_switchdev:
        gone = pf.eswitch_mode == EswitchMode.LEGACY
        kept = pf.subfunctions and () if gone else pf.subfunctions
        return dataclasses.replace(pf, representors=(), subfunctions=kept)
    taken = {netdev.name for netdev in state.netdevs()}
    names = (f"eth{n}" for n in range(10_000, 99_999))
    free = (name for name in names if name not in taken)
    ports = (*(f"pf0vf{vf.index}" for vf in pf.vfs), *(f.port for f in pf.subfunctions or ()))
    made = (
        pf.representor(port)
        or Representor(port, dataclasses.replace(_fresh_netdev(state, 0), name=name))
        for port, name in zip(ports, free, strict=False)
    )
    return dataclasses.replace(pf, representors=tuple(sorted(made, key=lambda each: each.port)))


def _with_subfunction(state: NodeState, pf: Pf, action: AddSubfunction | StartSubfunction) -> Pf:
    want = action.subfunction
    now = pf.subfunction(want.port)
    if pf.subfunctions is None or not pf.is_switchdev:
        raise Refused(f"{action}: EOPNOTSUPP")
    if isinstance(action, AddSubfunction):
        now = now or Subfunction(want.port, want.index)
        now = dataclasses.replace(now, **changes(want, now))
    elif now is None:
        raise Refused(f"{action}: ENODEV")
    elif not want.active:
        now = dataclasses.replace(now, active=False, netdev=None, driverinit=None, vdpa=None)
    else:
        if not now.active:
            netdev = _fresh_netdev(state, 88)
            now = dataclasses.replace(
                now, active=True, netdev=netdev, driverinit=FRESH_DRIVERINIT, vdpa=()
            )
        params = {each.name: each for each in now.driverinit or FRESH_DRIVERINIT}
        wanted = {each.name: each for each in want.driverinit or () if each.name in params}
        if now.driverinit is None or wanted.items() - params.items():
            kept = tuple(each for _, each in sorted((params | wanted).items()))
            netdev = _fresh_netdev(state, 88)
            now = dataclasses.replace(now, driverinit=kept, netdev=netdev, vdpa=())
    return _with_representors(state, _and_subfunction(pf, now))


def _and_subfunction(pf: Pf, changed: Subfunction) -> Pf:
    others = {each.port: each for each in pf.subfunctions or ()} | {changed.port: changed}
    return dataclasses.replace(pf, subfunctions=tuple(f for _, f in sorted(others.items())))


def _set_vdpa(pf: Pf, action: SetVdpa) -> Pf:
    """With the features that its management device has, where they are known."""
    owner, wanted = function(pf, action.index), action.vdpa
    if owner is None or owner.vdpa is None:
        raise Refused(f"{action}: ENODEV")
    known = {each.name: each for each in owner.vdpa}
    if wanted.name in known and (offered := known[wanted.name].supported) is not None:
        features = None if wanted.features is None else wanted.features & offered
        wanted = dataclasses.replace(wanted, features=features, supported=offered)
    made = tuple(each for _, each in sorted((known | {wanted.name: wanted}).items()))
    owner = dataclasses.replace(owner, vdpa=made)
    return _with_vf(pf, owner) if isinstance(owner, Vf) else _and_subfunction(pf, owner)


def _set_vf(vf: Vf, action: SetVf) -> Vf:
    return dataclasses.replace(vf, **given(action))


def _bind(state: NodeState, pf: Pf, vf: Vf, driver: str) -> Vf:
    bound = None if vf.driver == NO_DRIVER else vf.driver
    kernel_rules.check_bind(bound, driver, vf.driver_override, state.driver, autoprobe=pf.autoprobe)
    if driver != state.driver:
        return dataclasses.replace(vf, driver=driver)
    if pf.netdev is not None and not pf.netdev.up:
        raise Refused("the VF would come up without its MAC: its PF is down")
    netdev = _fresh_netdev(state, vf.index)
    if vf.admin_mac is not None and not vf.admin_mac.is_zero:
        netdev = dataclasses.replace(netdev, mac=vf.admin_mac)
    tuning = None if vf.tuning is None else tuple(sorted((*_of_vf(vf.tuning), *FRESH_REPORTERS)))
    return dataclasses.replace(
        vf, driver=driver, netdev=netdev, driverinit=FRESH_DRIVERINIT, tuning=tuning, vdpa=()
    )


def _of_vf(tuning: Iterable[Tuned]) -> tuple[Tuned, ...]:
    """What does not go with the driver of a VF."""
    return tuple((name, value) for name, value in tuning if kind(name) in WHILE_UNBOUND)


def _set_tuning(state: NodeState, pf: Pf, action: SetTuning) -> Pf:
    """What is not there is left out."""
    owner: Pf | Vf = pf if action.index is None else _vf(pf, action.index)
    is_bound = isinstance(owner, Pf) or owner.driver == state.driver
    fresh = (*(() if isinstance(owner, Pf) else FRESH_VF), *(FRESH_REPORTERS if is_bound else ()))
    now = dict(fresh if owner.tuning is None else owner.tuning)
    changes = {name: value for name, value in action.values if now.get(name, value) != value}
    if is_bound and isinstance(owner, Vf) and any(kind(name) in WHILE_UNBOUND for name in changes):
        raise Refused(f"{action}: EBUSY, the VF has a driver")
    tuned = dataclasses.replace(owner, tuning=tuple(sorted((now | changes).items())))
    return _with_vf(pf, tuned) if isinstance(tuned, Vf) else tuned


def _changed_params(owner: Pf | Vf, action: SetDriverinit) -> dict[str, Param]:
    """What a reload is needed for: of what the driver has, what is not so already.

    All of it where that is not known: the last reload of that instance has failed.
    """
    if owner.driverinit is None:
        return {each.name: each for each in action.params}
    now = {each.name: each for each in _params(owner)}
    return {each.name: each for each in action.params if now.get(each.name, each) != each}


def _params(owner: Pf | Vf) -> tuple[Param, ...]:
    return FRESH_DRIVERINIT if owner.driverinit is None else owner.driverinit


def _reloaded(state: NodeState, action: SetDriverinit) -> NodeState:
    """What stands on the interface goes with it. udev gives a PF's the name that it gave before."""
    pf = state.pf(action.pf)
    if pf is None:
        raise Refused(f"no {action.pf}")
    owner, between = pf if action.index is None else _vf(pf, action.index), state
    if _changed_params(owner, action):
        bare = dataclasses.replace(owner, netdev=None)
        bare_pf = _with_vf(pf, bare) if isinstance(bare, Vf) else bare
        between = _followed(state, _with_pf(state, bare_pf), action)
    netdev = _fresh_netdev(between, action.index or 0)
    if isinstance(owner, Pf) and owner.netdev is not None:
        netdev = dataclasses.replace(netdev, name=owner.netdev.name)
    found = between.pf(action.pf)
    if found is None:
        raise AssertionError(action)
    return _with_pf(between, _reload(state, found, action, netdev))


def _reload(state: NodeState, pf: Pf, action: SetDriverinit, netdev: Netdev) -> Pf:
    """The function's interface and RDMA device are made anew, and a PF's eswitch."""
    owner = pf if action.index is None else _vf(pf, action.index)
    changed = _changed_params(owner, action)
    now = {each.name: each for each in _params(owner)} | changed
    new: dict[str, Any] = {"driverinit": tuple(each for _, each in sorted(now.items()))}
    if changed:
        new |= {"netdev": netdev, "rdma": None}
        if owner.tuning is not None:
            kept = () if isinstance(owner, Pf) else _of_vf(owner.tuning)
            new["tuning"] = tuple(sorted((*kept, *FRESH_REPORTERS)))
    if isinstance(owner, Vf):
        if owner.driver != state.driver:
            raise Refused(f"{action}: ENODEV, its function is not bound")
        if changed and owner.admin_mac is not None and not owner.admin_mac.is_zero:
            new["netdev"] = dataclasses.replace(netdev, mac=owner.admin_mac)
        if changed:
            new["vdpa"] = ()
        return _with_vf(pf, dataclasses.replace(owner, **new))
    if changed and pf.numvfs:
        raise Refused(f"{action}: its VFs do not outlive it")
    if changed:
        mode = pf.eswitch_mode and EswitchMode.LEGACY
        new |= {"eswitch_mode": mode, "representors": (), "rates": reset(pf.rates)}
        new["subfunctions"] = pf.subfunctions and ()
    return dataclasses.replace(pf, **new)


def _set_link(state: NodeState, pf: Pf, action: SetLink) -> Pf:
    vf = _vf(pf, action.index) if isinstance(action.index, int) else None
    netdev = pf.netdev_of(action.index)
    if netdev is None:
        raise Refused(f"{action}: no netdev")
    taken = {other.name for other in state.netdevs()} - {netdev.name}
    for attribute, now in (("mac", netdev.mac), ("name", netdev.name)):
        value = getattr(action, attribute)
        if value not in {None, now}:
            kernel_rules.check_link(attribute, value, up=netdev.up, is_taken=taken.__contains__)
    takes_any = pf.eswitch_mode is not None and state.driver == "mlx5_core"
    is_set = vf is not None and vf.admin_mac is not None and not vf.admin_mac.is_zero
    if vf is not None and is_set and not takes_any and action.mac not in {None, netdev.mac}:
        kernel_rules.check_vf_mac(action.mac, vf.admin_mac)
    if vf is not None and action.mtu and pf.netdev:
        kernel_rules.check_vf_mtu(action.mtu, pf.netdev.mtu)
    changed = dataclasses.replace(netdev, **given(action))
    return _with_netdev(pf, action.index, changed)


def _set_ethtool(pf: Pf, action: SetEthtool) -> Pf:
    netdev = pf.netdev_of(action.index)
    if netdev is None or netdev.ethtool is None:
        raise Refused(f"{action}: nothing to set")
    now = dict(netdev.ethtool) | dict(action.values)
    if now.get("coalesce.adaptive-rx"):
        now.pop("coalesce.rx-usecs", None)  # the driver's to move, and not told
    elif "coalesce.adaptive-rx" in now:
        now.setdefault("coalesce.rx-usecs", 8)
    settings = tuple(sorted(now.items()))
    return _with_netdev(pf, action.index, dataclasses.replace(netdev, ethtool=settings))


def _set_dcb(pf: Pf, action: SetDcb) -> Pf:
    """What its driver does not have cannot be set: it says EOPNOTSUPP."""
    if pf.dcb is None:
        return pf
    parts = {name: (getattr(action.dcb, name), getattr(pf.dcb, name)) for name in PARTS}
    set_ = {name: want for name, (want, now) in parts.items() if None not in {want, now}}
    return dataclasses.replace(pf, dcb=dataclasses.replace(pf.dcb, **set_))


def _set_rates(pf: Pf, action: SetRates) -> Pf:
    """Nodes are made; a leaf that is not there, or an eswitch without rates, is left out."""
    if pf.rates is None:
        return pf
    now = {each.key: each for each in pf.rates}
    now |= {each.key: each for each in action.rates if each.is_node or each.key in now}
    parents = {each.parent for each in now.values()} - {None}
    if not parents <= {name for is_node, name in now if is_node}:
        raise Refused(f"{action}: ENODEV, no such parent")
    return dataclasses.replace(pf, rates=tuple(rate for _, rate in sorted(now.items())))


def _set_rdma(pf: Pf, action: SetRdma) -> Pf:
    """It came with its function, with the defaults of a fresh device, or is there."""
    holder = pf if action.index is None else _vf(pf, action.index)
    if isinstance(holder, Vf) and holder.driver == NO_DRIVER:
        raise Refused(f"{action}: ENODEV, its function is not bound")
    made = dataclasses.replace(holder.rdma or RdmaDevice("new", roce=()), name=action.name)
    return _with_rdma(pf, holder, made)


def _set_roce(pf: Pf, action: SetRoce) -> Pf:
    holder = pf if action.index is None else _vf(pf, action.index)
    if holder.rdma is None or holder.rdma.name != action.name or holder.rdma.roce is None:
        raise Refused(f"{action}: ENODEV, there is no such device")
    now = {port.port: port for port in (*holder.rdma.roce, *action.ports)}
    ports = tuple(now[number] for number in sorted(now) if not now[number].is_fresh)
    return _with_rdma(pf, holder, dataclasses.replace(holder.rdma, roce=ports))


def _with_rdma(pf: Pf, holder: Pf | Vf, device: RdmaDevice) -> Pf:
    if isinstance(holder, Pf):
        return dataclasses.replace(pf, rdma=device)
    return _with_vf(pf, dataclasses.replace(holder, rdma=device))


def _set_sysctls(state: NodeState, pf: Pf, action: SetSysctls) -> Pf:
    """A value that is the node's default is not told of an interface."""
    netdev = pf.netdev_of(action.index)
    if netdev is None:
        raise Refused(f"{action}: ENOENT")
    now, defaults = dict(netdev.sysctls or ()) | dict(action.values), dict(state.sysctls)
    values = tuple(sorted((k, v) for k, v in now.items() if defaults.get(k) != v))
    return _with_netdev(pf, action.index, dataclasses.replace(netdev, sysctls=values))


def _with_netdev(pf: Pf, port: Port, netdev: Netdev) -> Pf:
    own = pf.subfunction(port) if isinstance(port, str) else None
    if own is not None and port == own.own_port:
        return _and_subfunction(pf, dataclasses.replace(own, netdev=netdev))
    if isinstance(port, str):
        changed = Representor(port, netdev)
        others = (changed if each.port == port else each for each in pf.representors)
        return dataclasses.replace(pf, representors=tuple(others))
    if port is None:
        return dataclasses.replace(pf, netdev=netdev)
    return _with_vf(pf, dataclasses.replace(_vf(pf, port), netdev=netdev))


def _fresh_netdev(state: NodeState, seed: int) -> Netdev:
    taken = {netdev.name for netdev in state.netdevs()}
    name = next(f"eth{n}" for n in range(10_000) if f"eth{n}" not in taken)
    mac = Mac(f"06:00:00:00:00:{seed % 256:02x}")
    return Netdev(
        name,
        mac=mac,
        mtu=1500,
        up=False,
        **given(fresh(LinkAttributes)),
        ethtool=FRESH_ETHTOOL,
        sysctls=(),
    )


def _vf(pf: Pf, index: int) -> Vf:
    vf = pf.vf(index)
    if vf is None:
        raise Refused(f"{pf.handle} has no vf {index}")
    return vf


def _with_vf(pf: Pf, vf: Vf) -> Pf:
    return dataclasses.replace(
        pf, vfs=tuple(vf if old.index == vf.index else old for old in pf.vfs)
    )


def _with_pf(state: NodeState, pf: Pf) -> NodeState:
    pfs = tuple(pf if old.handle == pf.handle else old for old in state.pfs)
    return dataclasses.replace(state, pfs=pfs)


def without(state: NodeState, handle: DeviceHandle) -> NodeState:
    """`state` with that PF gone."""
    return dataclasses.replace(state, pfs=tuple(pf for pf in state.pfs if pf.handle != handle))
