"""The actions that turn one `NodeState` into another, as a value.

`plan(want, have)` is a pure function. It returns stages of actions: stages one after the other,
the actions of a stage in any order (and in parallel, where they are sysfs writes that block).
Dry-run prints it, restore performs it, and resuming after a crash is calling it again.

`nodeagent.plan.comparison` finds the differences: first on the present node, which decides what is
created (PFs bound, VFs created and bound, `nodeagent.plan.made`), then on the node after that. Each
difference becomes an action here. Their order requires more actions: links are set down, interfaces
get temporary names, autoprobe is turned off.

The order, and the kernel's reason for it, is `nodeagent.plan.stages`; how a plan is printed is
`nodeagent.plan.lines`.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, assert_never

from nodeagent.plan import dcb, ethtool, lag, rates, rdma, subfunctions, sysctls, tuning, vdpa
from nodeagent.plan.actions import (
    Action,
    AddSubfunction,
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
    SetSysctls,
    SetTuning,
    SetVdpa,
    SetVf,
    Stage,
    StartSubfunction,
    UnbindVf,
)
from nodeagent.plan.comparison import Difference, Subject, all_differences, differences
from nodeagent.plan.made import (
    Binding,
    bindings,
    goes_to_legacy,
    mac_of,
    must_create,
    needs_temporary_mac,
    once_made,
    reloaded,
    untouched,
)
from nodeagent.plan.pods import pod_actions
from nodeagent.plan.stack import stack_actions
from nodeagent.plan.stages import ORDER, AnyStage, StageName
from nodeagent.plan.unsettable import settable
from nodeagent.state.attributes import (
    changed,
    fresh,
    given,
    needs_down,
    rows,
    together,
)
from nodeagent.state.eswitch import EswitchAttributes, EswitchMode
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import DeviceHandle, Netdev, NodeState, Pf, Subfunction, Target, Vf
from nodeagent.state.stack import Stack
from nodeagent.state.vf import VfAttributes

TEMPORARY_NAME: Final = "natmp"

MAKING: Final = {Subject.PF, Subject.FUNCTIONS, Subject.DRIVER}
"""Subjects that are as wanted once devices exist. The others are compared again then."""

OF_VFS: Final = {
    *(Subject.VF, Subject.DRIVER, Subject.OVERRIDE),
    *(Subject.INTERFACE, Subject.LINK, Subject.ETHTOOL),
}
"""Subjects of VFs whose PF must be up."""

Step = tuple[AnyStage, Action]


def plan(want: NodeState, have: NodeState) -> tuple[Stage, ...]:
    """The stages that turn `have` into `want`. PFs that `want` does not name are left alone, as are
    attributes that their driver does not let set (`nodeagent.plan.unsettable`).
    """
    want = settable(want, have)
    now = _ours(all_differences(want, have))
    if not now:
        return ()
    made = once_made(want, have)
    then = _ours(differences(want, made))
    found: dict[AnyStage, list[Action]] = {name: [] for name in ORDER}
    todos = {pf.handle: Todo() for pf in want.pfs}
    for each in (*(each for each in now if each.subject in MAKING), *then):
        if each.on is not None:
            on = Target(each.on.pf) if each.subject is Subject.FUNCTIONS else each.on
            todos[on.pf].add(on, each.subject, each.attribute)
    for pf in want.pfs:
        known = have.pf(pf.handle) or untouched(pf)
        creates, how = must_create(pf, known), bindings(pf, known, want.driver)
        part = Part(pf, known, _pf(made, pf), want.driver, creates, how, todos[pf.handle])
        for stage, action in _pf_steps(part):
            found[stage].append(action)
    for stage, action in itertools.chain(
        _freed_names(want, have, made),
        _sysctls(want, have, made, then),
        rdma.actions(want, made),
        ((StageName.ROCE, action) for action in rdma.roce(want, made)),
        lag.steps(want, stack_actions(want, made), _remade_lags(todos)),
        pod_actions(want, made, lambda pf, vf: _pf(made, pf).vf(vf.index), link_changes),
    ):
        found[stage].append(action)
    return tuple(Stage(name, tuple(actions)) for name, actions in found.items() if actions)


def _ours(found: Iterable[Difference]) -> tuple[Difference, ...]:
    return tuple(each for each in found if not each.is_anothers and not each.is_drivers)


def after_reload(state: NodeState) -> NodeState:
    """`state` after the driver was unloaded and loaded: the PFs, down, with defaults.

    1500 is the MTU of a fresh Ethernet device (ETH_DATA_LEN, alloc_etherdev). Autoprobe belongs to
    the PCI device, not to the driver, and outlives it.
    """
    pfs = tuple(map(reloaded, state.pfs))
    return replace(state, pfs=pfs, stack=state.stack and Stack(), namespaces=())


def link_changes(want: Netdev, have: Netdev | None) -> LinkAttributes:
    """The attributes that differ; `have` is None for an interface that does not exist yet."""
    changes = changed(LinkAttributes, want, have or fresh(LinkAttributes))
    if have is not None and have.up and want.up and needs_down(changes):
        return replace(changes, up=True)
    return changes


@dataclass(frozen=True)
class Todo:
    """The names of the attributes that differ, by target and subject."""

    found: defaultdict[Target, defaultdict[Subject, set[str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(set))
    )

    def add(self, on: Target, subject: Subject, *names: str) -> None:
        """Add names of attributes that differ."""
        self.found[on][subject].update(names)

    def of(self, on: Target) -> Mapping[Subject, set[str]]:
        """The differences of a target."""
        return self.found.get(on, {})

    def has_vfs(self) -> bool:
        """Whether a VF is to be bound, or an attribute of one to be set."""
        return any(
            isinstance(on.port, int) and not OF_VFS.isdisjoint(subjects)
            for on, subjects in self.found.items()
        )


@dataclass(frozen=True)
class Part:
    """A PF's part of a plan: as wanted, at present, and once its devices exist.

    `creates`: its VFs are created, perhaps again. `bindings`: by index, how they get their drivers.
    """

    pf: Pf
    have: Pf
    made: Pf
    driver: str
    creates: bool
    bindings: Mapping[int, Binding]
    todo: Todo


def _pf(state: NodeState, want: Pf) -> Pf:
    return state.pf(want.handle) or untouched(want)


def _pf_steps(part: Part) -> Iterator[Step]:
    pf, todo, on = part.pf, part.todo, Target(part.pf.handle)
    if part.creates:
        todo.add(on, Subject.FUNCTIONS)
    for vf in pf.vfs:
        if part.bindings[vf.index].is_anew:
            todo.add(Target(pf.handle, vf.index), Subject.DRIVER)
            # what does not go with its driver is as it is now
            if (vf_now := part.have.vf(vf.index)) is not None:
                names = (name for (name, _), _ in tuning.differing(vf, vf_now))
                todo.add(Target(pf.handle, vf.index), Subject.TUNING, *names)
        if part.bindings[vf.index].binds and needs_temporary_mac(pf, vf, part.driver):
            todo.add(Target(pf.handle, vf.index), Subject.VF, "admin_mac")
    if part.creates and pf.numvfs and pf.is_switchdev:
        # without VFs some drivers fall back to legacy (netdevsim): set again if needed
        todo.add(on, Subject.ESWITCH, "eswitch_mode")
    if _changes_mode(todo, on) and pf.dcb is not None:
        todo.add(on, Subject.DCB, *dcb.attributes(pf.dcb))
    if _changes_mode(todo, on):
        todo.add(on, Subject.TUNING, *tuning.set_by_hand(pf))
    if _loses_rates(part):
        todo.add(on, Subject.RATE, *map(str, rates.set_by_hand(pf)))
        todo.add(on, Subject.LAG)
    vf_steps = [step for vf in pf.vfs for step in _steps(part, Target(pf.handle, vf.index))]
    if part.creates or any(isinstance(action, BindVf) for _, action in vf_steps):
        todo.add(on, Subject.AUTOPROBE)
    if todo.has_vfs() and Subject.INTERFACE not in todo.of(on):
        todo.add(on, Subject.LINK)
    yield from _steps(part, on)
    for port, _ in pf.netdevs():
        if isinstance(port, str):
            yield from _steps(part, Target(pf.handle, port))
    yield from vf_steps


def _steps(part: Part, on: Target) -> Iterator[Step]:
    found = part.todo.of(on)
    for subject in sorted(found):
        yield from _ensure(part, on, subject, found[subject])


def _ensure(part: Part, on: Target, subject: Subject, names: set[str]) -> Iterator[Step]:
    """The actions that set attributes of a target: at least one for each."""
    pf = part.pf
    match subject:
        case Subject.PF:
            yield StageName.BIND_PFS, BindPf(pf.handle, part.driver)
        case Subject.FUNCTIONS:
            yield from _create(part)
        case Subject.AUTOPROBE:
            yield from _autoprobe(part)
        case Subject.PARAM:
            for param in pf.params:
                if param.name in names:
                    yield lag.stage_of(param), SetParam(pf.handle, param)
        case Subject.DRIVERINIT:
            yield from _driverinit(part, on, names)
        case Subject.ESWITCH:
            modes = given(together(EswitchAttributes, names, pf, part.made))
            yield StageName.ESWITCH, SetEswitch(pf.handle, **modes)
        case Subject.DCB:
            if pf.dcb is not None:
                stage = StageName.DCB if _changes_mode(part.todo, on) else StageName.PF_DCB
                yield stage, SetDcb(pf.handle, dcb.to_set(pf.dcb, names))
        case Subject.RATE:
            yield from _rates(part, names)
        case Subject.TUNING:
            yield from _tuning(part, on, names)
        case Subject.SUBFUNCTION:
            # in this order each gets its index again
            found = subfunctions.differing(pf, part.made)
            for each, now in sorted(found, key=lambda pair: pair[0].index):
                if now is None or subfunctions.changes(each, now):
                    yield StageName.SUBFUNCTIONS, AddSubfunction(pf.handle, each, now)
                if subfunctions.must_restart(each, now or Subfunction(each.port, each.index)):
                    yield StageName.START_SUBFUNCTIONS, StartSubfunction(pf.handle, each, now)
        case Subject.VDPA:
            yield from _vdpa(part)
        case Subject.VF:
            yield from _held(part, _vf(pf, on), names)
        case Subject.DRIVER:
            yield from _bind(part, _vf(pf, on))
        case Subject.OVERRIDE:
            vf = _vf(pf, on)
            driver = vf.driver_override or ""
            yield StageName.VFS, OverrideDriver(pf.handle, vf.index, _address(part, vf), driver)
        case Subject.INTERFACE | Subject.LINK:
            yield from _link(part, on)
        case Subject.ETHTOOL:
            yield from _ethtool(part, on)
        case Subject.SYSCTL | Subject.POD | Subject.RDMA | Subject.STACKED | Subject.LAG:
            pass  # planned for all PFs together: `_sysctls`, `pod_actions`, `rdma`, `lag`
        case _:
            assert_never(subject)


def _remade_lags(todos: Mapping[DeviceHandle, Todo]) -> set[DeviceHandle]:
    return {pf for pf, todo in todos.items() if Subject.LAG in todo.of(Target(pf))}


def _driverinit(part: Part, on: Target, names: set[str]) -> Iterator[Step]:
    """A reload of an instance, where it is not known to have what is wanted."""
    owner, index, address = _function(part, on)
    params = tuple(each for each in owner.driverinit or () if each.name in names)
    has_netdev = index is None and owner.netdev is not None
    stage = StageName.PF_DRIVERINIT if index is None else StageName.VF_DRIVERINIT
    yield stage, SetDriverinit(on.pf, index, address, params, has_netdev)


def _tuning(part: Part, on: Target, names: set[str]) -> Iterator[Step]:
    """By the stages in which they are set."""
    owner, index, address = _function(part, on)
    for stage, values in tuning.by_stage(owner, names):
        yield stage, SetTuning(on.pf, index, address, values)


def _changes_mode(todo: Todo, on: Target) -> bool:
    return "eswitch_mode" in todo.of(on).get(Subject.ESWITCH, set())


def _loses_rates(part: Part) -> bool:
    """Whether ports are created again. A change of mode must be in `todo` before."""
    return part.creates or _changes_mode(part.todo, Target(part.pf.handle))


def _rates(part: Part, names: set[str]) -> Iterator[Step]:
    """Nodes first, because leafs refer to them."""
    known = {} if _loses_rates(part) else rates.by_key(part.made)
    wanted = sorted(
        (each for each in part.pf.rates or () if str(each) in names),
        key=lambda each: (not each.is_node, each.name),
    )
    now = tuple(known[each.key] for each in wanted if each.key in known)
    if wanted:
        yield StageName.RATES, SetRates(part.pf.handle, tuple(wanted), now)


def _create(part: Part) -> Iterator[Step]:
    if part.have.numvfs or not part.pf.numvfs:
        yield StageName.REMOVE_VFS, CreateVfs(part.pf.handle, 0)
    if goes_to_legacy(part.pf, part.have):
        yield StageName.LEGACY, SetEswitch(part.pf.handle, eswitch_mode=EswitchMode.LEGACY)
    if part.pf.numvfs:
        yield StageName.CREATE_VFS, CreateVfs(part.pf.handle, part.pf.numvfs)


def _autoprobe(part: Part) -> Iterator[Step]:
    """Off while VFs are created, on while they are bound, then as wanted, or as before."""
    pf, have = part.pf, part.have
    if pf.autoprobe is None and have.autoprobe is None:
        return
    now = have.autoprobe
    if part.creates and pf.numvfs and now is not False:
        yield StageName.HOLD_PROBING, SetAutoprobe(pf.handle, False)
        now = False
    binds = any(part.bindings[vf.index].binds and not vf.driver_override for vf in pf.vfs)
    if now is not True and binds:
        yield StageName.ALLOW_PROBING, SetAutoprobe(pf.handle, True)
        now = True
    wanted = have.autoprobe if pf.autoprobe is None else pf.autoprobe
    if wanted is not None and now != wanted:
        yield StageName.AUTOPROBE, SetAutoprobe(pf.handle, wanted)


def _bind(part: Part, vf: Vf) -> Iterator[Step]:
    pf, address = part.pf, _address(part, vf)
    how = part.bindings[vf.index]
    if how.unbinds:
        now = part.have.vf(vf.index)
        driver = None if now is None else now.driver
        yield StageName.UNBIND_VFS, UnbindVf(pf.handle, vf.index, address, driver)
    if how.binds and vf.driver is not None:
        override = bool(vf.driver_override)
        yield StageName.BIND_VFS, BindVf(pf.handle, vf.index, address, vf.driver, override)


def _held(part: Part, vf: Vf, names: set[str]) -> Iterator[Step]:
    """Attributes that the PF holds for a VF: before the VF is bound, except for late ones."""
    pf = part.pf
    first = given(together(VfAttributes, names, vf, part.made.vf(vf.index) or VfAttributes()))
    every = rows(VfAttributes).items()
    late: dict[str, Any] = {n: first[n] for n, row in every if row.is_late and n in first}
    # in switchdev mode some drivers keep what legacy mode had, and others (mlx5) take it in both
    if not pf.is_switchdev:
        first = {name: value for name, value in first.items() if name not in late}
    elif not _loses_rates(part):
        late = {}
    if part.bindings[vf.index].binds and needs_temporary_mac(pf, vf, part.driver):
        first["admin_mac"], late["admin_mac"] = mac_of(vf), vf.admin_mac
    if first:
        yield StageName.VFS, SetVf(pf.handle, vf.index, **first)
    if late:
        yield StageName.VFS_LATE, SetVf(pf.handle, vf.index, **late)


def _link(part: Part, on: Target) -> Iterator[Step]:
    netdev, now = part.pf.netdev_of(on.port), part.made.netdev_of(on.port)
    if netdev is None:
        return
    changes = link_changes(netdev, now)
    if on.port is None:
        yield from _pf_link(part, netdev, now, changes)
        return
    stage = StageName.VF_NETDEVS if isinstance(on.port, int) else StageName.REPRESENTORS
    yield stage, SetLink(*on, **given(changes))


def _pf_link(
    part: Part, want: Netdev, have: Netdev | None, first: LinkAttributes
) -> Iterator[Step]:
    """A PF is up while its VFs are bound and set, and its MTU is not lowered before theirs."""
    last = LinkAttributes()
    lowers = have is not None and (have.mtu or 0) > (want.mtu or 0)
    if first.mtu is not None and lowers:
        first, last = replace(first, mtu=None), replace(last, mtu=first.mtu)
    if want.up is False and part.todo.has_vfs():
        first, last = replace(first, up=True), replace(last, up=False)
    if have is not None and have.up and first.up and not needs_down(first):
        first = replace(first, up=None)
    if values := given(first):
        yield StageName.PREPARE_PFS, SetLink(part.pf.handle, None, **values)
    if values := given(last):
        yield StageName.FINISH_PFS, SetLink(part.pf.handle, None, **values)


def _ethtool(part: Part, on: Target) -> Iterator[Step]:
    netdev = part.pf.netdev_of(on.port)
    values = () if netdev is None else ethtool.to_set(netdev, part.made.netdev_of(on.port))
    stage = StageName.PF_ETHTOOL if on.port is None else StageName.ETHTOOL
    yield stage, SetEthtool(*on, values)


def _vf(pf: Pf, on: Target) -> Vf:
    vf = pf.vf(on.port) if isinstance(on.port, int) else None
    if vf is None:
        raise LookupError(f"{on} is not planned for")
    return vf


def _vdpa(part: Part) -> Iterator[Step]:
    for port, device, now in vdpa.differing(part.pf, part.made):
        vf = part.pf.vf(port) if isinstance(port, int) else None
        address = None if vf is None else _address(part, vf)
        yield StageName.VDPA, SetVdpa(part.pf.handle, port, address, device, now)


def _function(part: Part, on: Target) -> tuple[Pf | Vf, int | None, str]:
    """A PF or a VF, the VF's index, and the function's name on its bus."""
    if not isinstance(on.port, int):
        return part.pf, None, part.pf.handle.name
    vf = _vf(part.pf, on)
    return vf, vf.index, _address(part, vf)


def _address(part: Part, vf: Vf) -> str:
    now = part.have.vf(vf.index)
    return vf.address or (now and now.address) or ""


def _sysctls(
    want: NodeState, have: NodeState, made: NodeState, then: tuple[Difference, ...]
) -> Iterator[Step]:
    """Sysctls that differ; for interfaces that do not exist yet, those that are not the default."""
    concerned = {each.on for each in then if each.subject in {Subject.SYSCTL, Subject.INTERFACE}}
    for pf in want.pfs:
        for port, netdev in pf.netdevs():
            if (on := Target(pf.handle, port)) not in concerned:
                continue
            values = sysctls.to_set(netdev, _pf(made, pf).netdev_of(port), want, have)
            if values:
                stage = StageName.PF_SYSCTLS if port is None else StageName.SYSCTLS
                yield stage, SetSysctls(*on, values)


def _freed_names(want: NodeState, have: NodeState, made: NodeState) -> Iterator[Step]:
    """Set links down that are to be changed, and free names that another interface of ours gets."""
    wanted_names = {netdev.name for netdev in want.netdevs()}
    taken = wanted_names | {netdev.name for netdev in have.netdevs()}
    spare = (f"{TEMPORARY_NAME}{n}" for n in itertools.count())
    spare_names = (name for name in spare if name not in taken)
    for on, wanted, now in _netdevs_there(want, have, made):
        stays = _pf_of(made, on).netdev_of(on.port) is not None
        in_the_way = now.name in wanted_names and now.name != wanted.name
        if now.up and (in_the_way or (stays and needs_down(link_changes(wanted, now)))):
            yield StageName.LINKS_DOWN, SetLink(*on, up=False)
        if in_the_way:
            yield StageName.FREE_NAMES, SetLink(*on, name=next(spare_names))


def _pf_of(state: NodeState, on: Target) -> Pf:
    return state.pf(on.pf) or Pf(on.pf)


def _netdevs_there(
    want: NodeState, have: NodeState, made: NodeState
) -> Iterator[tuple[Target, Netdev, Netdev]]:
    """Netdevs that exist and are wanted: both values, without those that are removed before."""
    for pf in want.pfs:
        known = have.pf(pf.handle)
        if known is None:
            continue
        creates, then = must_create(pf, known), _pf(made, pf)
        for port, wanted in pf.netdevs():
            now = known.netdev_of(port)
            stays = port is None or not creates
            if isinstance(port, str):
                stays = then.representor(port) is not None or then.subfunction(port) is not None
            if now is not None and stays:
                yield Target(pf.handle, port), wanted, now
