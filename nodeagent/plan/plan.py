"""What has to be done to turn one `NodeState` into another, as a value.

`plan(want, have)` is a pure function. It returns stages of actions: stages one after the other,
the actions of a stage in any order (and in parallel, where they are sysfs writes that block). An
empty plan means that nothing differs. Dry-run prints it, restore performs it, verify demands that
it is empty, and resuming after a crash is calling it again.

Order, and the kernel's reason for it, is the table `STAGES` of `nodeagent.plan.actions`; how a
plan is printed is `nodeagent.plan.lines`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from nodeagent.plan import rdma, sysctls
from nodeagent.plan.actions import (
    STAGES,
    Action,
    BindPf,
    BindVf,
    CreateVfs,
    OverrideDriver,
    SetAutoprobe,
    SetEswitch,
    SetEthtool,
    SetLink,
    SetParam,
    SetSysctls,
    SetVf,
    Stage,
    UnbindVf,
)
from nodeagent.plan.ethtool import to_set
from nodeagent.plan.pods import pod_actions
from nodeagent.plan.stack import stack_actions
from nodeagent.state.addresses import Mac
from nodeagent.state.attributes import at_once, changed, fresh, given, later, needs_down
from nodeagent.state.eswitch import EswitchAttributes
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import NO_DRIVER, Netdev, NodeState, Pf, Port, Vf
from nodeagent.state.stack import Stack
from nodeagent.state.vf import VfAttributes

TEMPORARY_NAME: Final = "natmp"

FRESH: Final = fresh(VfAttributes)
FRESH_LINK: Final = fresh(LinkAttributes)


def plan(want: NodeState, have: NodeState) -> tuple[Stage, ...]:
    """The stages that turn `have` into `want`; PFs that `want` does not name are left alone."""
    found: dict[str, list[Action]] = {name: [] for name, _ in STAGES}
    for pf in want.pfs:
        for stage, action in _pf_actions(pf, have.pf(pf.handle), want.driver):
            found[stage].append(action)
    for stage, action in itertools.chain(
        _freed_names(want, have),
        _sysctls(want, have),
        rdma.actions(want, have),
        stack_actions(want, have),
        pod_actions(want, have, lambda pf, vf: _known(pf, have.pf(pf.handle), vf), link_changes),
    ):
        found[stage].append(action)
    return tuple(Stage(name, tuple(actions)) for name, actions in found.items() if actions)


def after_reload(state: NodeState) -> NodeState:
    """What an unload and load of the driver leaves of `state`: the PFs, down, with defaults.

    1500 is the MTU of a fresh Ethernet device (ETH_DATA_LEN, alloc_etherdev). Autoprobe belongs to
    the PCI device, not to the driver, and outlives it.
    """
    pfs = tuple(map(_reloaded, state.pfs))
    return replace(state, pfs=pfs, stack=state.stack and Stack(), namespaces=())


def _reloaded(pf: Pf) -> Pf:
    new: dict[str, Any] = {
        **given(FRESH_LINK),
        "mtu": 1500,
        "up": False,
        "ethtool": None,
        "sysctls": (),
    }
    return replace(
        pf,
        numvfs=None if pf.numvfs is None else 0,
        vfs=(),
        eswitch_mode=None if pf.eswitch_mode is None else "legacy",
        representors=(),
        netdev=pf.netdev and replace(pf.netdev, **new),
    )


Step = tuple[str, Action]


def _pf_actions(want: Pf, have: Pf | None, driver: str) -> Iterator[Step]:
    if have is None:
        yield "bind PFs", BindPf(want.handle, driver)
        # nothing is known of it: it is treated as a device that was never touched
        have = Pf(
            want.handle,
            numvfs=None if want.numvfs is None else 0,
            autoprobe=None if want.autoprobe is None else True,
        )
    creates = _must_create(want, have)
    if creates and have.numvfs:
        yield "remove VFs", CreateVfs(want.handle, 0)
    if creates and want.numvfs:
        yield "create VFs", CreateVfs(want.handle, want.numvfs)
    vf_steps = [
        step
        for vf in want.vfs
        for step in _vf_actions(want, have, vf, None if creates else have.vf(vf.index))
    ]
    yield from _autoprobe(want, have, creates, vf_steps)
    yield from _devlink(want, have, creates)
    yield from _pf_link(want, have, vf_steps)
    yield from vf_steps


def _devlink(want: Pf, have: Pf, creates: bool) -> Iterator[Step]:
    known = {param.name: param.value for param in have.params}
    for param in want.params:
        if known.get(param.name) != param.value:
            yield "set parameters", SetParam(want.handle, param)
    changes = changed(EswitchAttributes, want, have)
    if creates and want.numvfs and want.eswitch_mode == "switchdev":
        # without VFs some drivers fall back to legacy (netdevsim): looked at again, set if need be
        changes = replace(changes, eswitch_mode=want.eswitch_mode)
    if values := given(changes):
        yield "set eswitch", SetEswitch(want.handle, **values)
    for each in want.representors:
        now = None if creates else have.netdev_of(each.port)
        yield from _ethtool("set ethtool", want, each.port, each.netdev, now)
        if link := given(link_changes(each.netdev, now)):
            yield "set representors", SetLink(want.handle, each.port, **link)


def _changes_mode(want: Pf, have: Pf) -> bool:
    return want.eswitch_mode not in {None, have.eswitch_mode}


def _must_create(want: Pf, have: Pf) -> bool:
    """Whether the VFs have to be made (anew): another number, or a function that is not there."""
    if want.numvfs is None:
        return False
    if want.numvfs != have.numvfs:
        return True
    return any(have.vf(vf.index) is None for vf in want.vfs)


def _autoprobe(want: Pf, have: Pf, creates: bool, vf_steps: list[Step]) -> Iterator[Step]:
    if have.autoprobe is None:
        return
    now = have.autoprobe
    if creates and want.numvfs and now:
        yield "hold probing", SetAutoprobe(want.handle, False)
        now = False
    if not now and any(isinstance(a, BindVf) and not a.override for _, a in vf_steps):
        yield "allow probing", SetAutoprobe(want.handle, True)
        now = True
    wanted = have.autoprobe if want.autoprobe is None else want.autoprobe
    if now != wanted:
        yield "put autoprobe back", SetAutoprobe(want.handle, wanted)


def _pf_link(want: Pf, have: Pf, vf_steps: list[Step]) -> Iterator[Step]:
    """A PF is up while VFs are bound and set, and its MTU is never lowered before theirs."""
    if want.netdev is None:
        return
    yield from _ethtool("set PF ethtool", want, None, want.netdev, have.netdev)
    first, last = link_changes(want.netdev, have.netdev), LinkAttributes()
    lowers = have.netdev is not None and (have.netdev.mtu or 0) > (want.netdev.mtu or 0)
    if first.mtu is not None and lowers:
        first, last = replace(first, mtu=None), replace(last, mtu=first.mtu)
    if want.netdev.up is False and vf_steps:
        first, last = replace(first, up=True), replace(last, up=False)
    if have.netdev is not None and have.netdev.up and first.up and not needs_down(first):
        first = replace(first, up=None)
    if values := given(first):
        yield "prepare PFs", SetLink(want.handle, None, **values)
    if values := given(last):
        yield "finish PFs", SetLink(want.handle, None, **values)


def _vf_actions(pf: Pf, now: Pf, want: Vf, have: Vf | None) -> Iterator[Step]:
    changes, late = changed(VfAttributes, want, have or FRESH), VfAttributes()
    binds, unbinds = _binding(want, have, _changes_mode(pf, now))
    address = want.address or (have and have.address) or ""
    if unbinds and have is not None and have.driver is not None:
        yield "unbind VFs", UnbindVf(pf.handle, want.index, address, have.driver)
    if pf.eswitch_mode != "switchdev":  # there rates are devlink's, so they are set before it
        changes, late = at_once(changes), later(changes)
    if binds and _keeps_another_mac(want):
        changes = replace(changes, admin_mac=_mac_of(want))
        late = replace(late, admin_mac=want.admin_mac)
    if values := given(changes):
        yield "set VFs", SetVf(pf.handle, want.index, **values)
    if values := given(late):
        yield "set VFs late", SetVf(pf.handle, want.index, **values)
    override = want.driver_override
    if override is not None and override != (have.driver_override if have else ""):
        yield "set VFs", OverrideDriver(pf.handle, want.index, address, override)
    if binds and want.driver is not None:
        yield "bind VFs", BindVf(pf.handle, want.index, address, want.driver, bool(override))
    if want.netdev is not None:
        known = None if have is None or binds else have.netdev
        yield from _ethtool("set ethtool", pf, want.index, want.netdev, known)
        if link := given(link_changes(want.netdev, known)):
            yield "set VF netdevs", SetLink(pf.handle, want.index, **link)


def _binding(want: Vf, have: Vf | None, new_mode: bool) -> tuple[bool, bool]:
    """Whether the VF must be bound, and whether it must be unbound first.

    `new_mode`: the eswitch's mode changes, which mlx5 wants to see with its VFs unbound.
    """
    has = have.driver if have is not None else NO_DRIVER
    if want.driver is None or has is None:
        return False, False
    bound = has != NO_DRIVER
    if want.driver != has:
        return want.driver != NO_DRIVER, bound
    # the right driver, but its netdev came up with another MAC than the PF's admin MAC gives it
    stale = bound and have is not None and (new_mode or _needs_another_bind(want, have))
    return stale, stale


def _needs_another_bind(want: Vf, have: Vf) -> bool:
    """An admin MAC reaches the netdev at bind only, and igb then refuses the VF any other one."""
    own, now = _mac_of(want), _mac_of(have)
    if own is None or now is None or own == now:
        return False
    return want.admin_mac is not None and not want.admin_mac.is_zero


def _mac_of(vf: Vf) -> Mac | None:
    netdev = vf.netdev if vf.inside is None else vf.inside.netdev
    return netdev.mac if netdev is not None else None


def _known(want: Pf, have: Pf | None, vf: Vf) -> Vf | None:
    """A VF as it is; None where it, or its interface, is made anew."""
    now = None if have is None or _must_create(want, have) else have.vf(vf.index)
    if have is None or now is None or any(_binding(vf, now, _changes_mode(want, have))):
        return None
    return now


def _keeps_another_mac(want: Vf) -> bool:
    """A VF that had its own MAC before an administrator set another one, and was not bound since.

    Once an admin MAC is set, igb refuses the VF another one (EADDRNOTAVAIL), so such a VF is bound
    with its own MAC as the admin MAC, and the real admin MAC follows.
    """
    own = _mac_of(want)
    if own is None or want.admin_mac is None or want.admin_mac.is_zero:
        return False
    return own != want.admin_mac


def link_changes(want: Netdev, have: Netdev | None) -> LinkAttributes:
    """The attributes that differ; `have` is None for an interface yet to come."""
    changes = changed(LinkAttributes, want, have or FRESH_LINK)
    if have is not None and have.up and want.up and needs_down(changes):
        return replace(changes, up=True)
    return changes


def _ethtool(stage: str, pf: Pf, port: Port, want: Netdev, have: Netdev | None) -> Iterator[Step]:
    values = to_set(want, have)
    if values:
        yield stage, SetEthtool(pf.handle, port, values)


def _sysctls(want: NodeState, have: NodeState) -> Iterator[Step]:
    for pf in want.pfs:
        pairs = _netdev_pairs(pf, have.pf(pf.handle))
        there = {port: now for port, _, now, stays in pairs if stays}
        for port, netdev in pf.netdevs():
            values = sysctls.to_set(netdev, there.get(port), want, have)
            if values:
                stage = "set PF sysctls" if port is None else "set sysctls"
                yield stage, SetSysctls(pf.handle, port, values)


def _freed_names(want: NodeState, have: NodeState) -> Iterator[Step]:
    """Links that go down to be changed, and names that are taken from one for another of ours."""
    wanted_names = {netdev.name for netdev in want.netdevs()}
    taken = wanted_names | {netdev.name for netdev in have.netdevs()}
    spare = (f"{TEMPORARY_NAME}{n}" for n in itertools.count())
    spare_names = (name for name in spare if name not in taken)
    for pf in want.pfs:
        for index, wanted, now, stays in _netdev_pairs(pf, have.pf(pf.handle)):
            in_the_way = now.name in wanted_names and now.name != wanted.name
            if now.up and (in_the_way or (stays and needs_down(link_changes(wanted, now)))):
                yield "take links down", SetLink(pf.handle, index, up=False)
            if in_the_way:
                yield "free names", SetLink(pf.handle, index, name=next(spare_names))


def _netdev_pairs(want: Pf, have: Pf | None) -> Iterator[tuple[Port, Netdev, Netdev, bool]]:
    """The netdevs of a PF that are wanted and are there: whose, wanted, now, and whether it stays.

    A netdev does not stay when its VF is bound anew, a representor when the VFs are made anew.
    """
    if have is None:
        return
    creates = _must_create(want, have)
    for port, wanted in want.netdevs():
        now = have.netdev_of(port)
        if now is None or (creates and port is not None):
            continue
        vf, known = (want.vf(port), have.vf(port)) if isinstance(port, int) else (None, None)
        stays = vf is None or _binding(vf, known, _changes_mode(want, have)) == (False, False)
        yield port, wanted, now, stays
