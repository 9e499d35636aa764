"""VFs that a pod or a virtual machine has taken since the snapshot.

Pods start and end between a driver's unload and the restore of its VFs. A VF that was taken by then
is left to its taker: nodeagent does not wait for it, and changes neither its interface nor what its
PF holds for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nodeagent.plan.actions import SetVf
from nodeagent.state.attributes import parts, rows
from nodeagent.state.eswitch import EswitchAttributes
from nodeagent.state.model import NO_DRIVER, DeviceHandle, NodeState, Pf, Target, Vf
from nodeagent.state.rates import Rate, vf_of
from nodeagent.state.vf import VfAttributes


@dataclass(frozen=True)
class Taken:
    """A VF that was taken since the snapshot; `how` is the evidence."""

    target: Target
    how: str

    def __str__(self) -> str:
        return f"{self.target}: taken since the snapshot ({self.how}): left alone"


def taken(want: NodeState, have: NodeState) -> tuple[Taken, ...]:
    """The VFs of `want` that are taken in `have`, in the order of devices."""
    found = ((on, _how(vf, have.vf(on), want, have)) for on, vf in want.vfs())
    return tuple(Taken(on, how) for on, how in found if how is not None)


def _how(want: Vf, now: Vf | None, wanted: NodeState, have: NodeState) -> str | None:
    """The first evidence that a VF is taken; None if there is none."""
    if now is None:
        return None
    place = have.namespace_of(now)
    if now.inside is not None and wanted.namespace_of(want) != place:
        return f"{now.inside.netdev.name} in {place}"
    if is_anothers_driver(now.driver, want.driver, have.driver):
        return f"bound to {now.driver}"
    if now.used_by not in {None, want.used_by}:
        return now.used_by
    if now.cni is not None and (want.cni is None or want.cni.name != now.cni.name):
        return f"given to a pod by SR-IOV CNI, record {now.cni.name}"
    return None


def is_anothers_driver(now: str | None, wanted: str | None, own: str) -> bool:
    """Whether a VF is bound to neither the driver that it had, nor its NIC's own."""
    return now not in {None, NO_DRIVER, wanted, own} and wanted is not None


def without(want: NodeState, gone: Collection[Target]) -> NodeState:
    """`want` without those VFs."""
    if not gone:
        return want
    return want.with_pfs(tuple(_without(pf, gone) for pf in want.pfs))


def ours(want: NodeState, have: NodeState) -> NodeState:
    """`want` without the VFs that are taken in `have`."""
    return without(want, {each.target for each in taken(want, have)})


def _without(pf: Pf, gone: Collection[Target]) -> Pf:
    kept = tuple(vf for vf in pf.vfs if Target(pf.handle, vf.index) not in gone)
    if len(kept) == len(pf.vfs):
        return pf
    rates = None if pf.rates is None else spared_rates(pf.handle, pf.rates, gone)
    return dataclasses.replace(pf, vfs=kept, rates=rates)


def spared_rates(
    pf: DeviceHandle, rates: Iterable[Rate], gone: Collection[Target]
) -> tuple[Rate, ...]:
    """The rate objects of a PF's eswitch without those of the taken VFs."""
    return tuple(each for each in rates if Target(pf, vf_of(pf.bus, each)) not in gone)


def attainable(want: NodeState, have: NodeState, gone: Collection[Target]) -> NodeState:
    """The part of `want`, which is without the VFs `gone`, that can be restored without them.

    All VFs of a PF are created together, and a change of its eswitch's mode or a reload of its
    devlink instance affects all of them: none of these is done if one of them is taken.
    """
    pfs = {handle for handle, _ in gone}
    changed = (_attainable(pf, have.pf(pf.handle)) if pf.handle in pfs else pf for pf in want.pfs)
    return want.with_pfs(tuple(changed)) if pfs else want


def _attainable(want: Pf, have: Pf | None) -> Pf:
    if have is None:
        return want  # so none of its VFs is taken
    fields: dict[str, Any] = {
        "numvfs": have.numvfs,
        "driverinit": None,
        "vfs": tuple(vf for vf in want.vfs if have.vf(vf.index) is not None),
        "representors": tuple(e for e in want.representors if have.netdev_of(e.port) is not None),
    }
    if want.eswitch_mode not in {None, have.eswitch_mode}:
        fields |= dict.fromkeys(rows(EswitchAttributes))
    return dataclasses.replace(want, **fields)


def restorable(want: NodeState, have: NodeState) -> NodeState:
    """The part of `want` that can be restored without touching the VFs that are taken in `have`."""
    theirs = {each.target for each in taken(want, have)}
    return attainable(without(want, theirs), have, theirs)


def given_back(
    target: Target, written: Mapping[str, object], given: Vf | None, now: Vf
) -> tuple[SetVf | None, tuple[str, ...]]:
    """Undo what was written to a VF that turned out to be taken.

    `written`: attributes and values that we have set since the snapshot; `given`: what the taker's
    CNI has recorded that it set. Returns the action that sets these again, and the attributes whose
    former values are not known.
    """
    still = [name for name in rows(VfAttributes) if name in written]
    ours = [name for name in still if getattr(now, name) == written[name]]
    if given is None:
        return None, tuple(ours)
    wrong = {
        together
        for names in parts(VfAttributes).values()
        for together in names
        if any(name in ours and getattr(given, name) not in {None, written[name]} for name in names)
    }
    values: dict[str, Any] = {name: getattr(given, name) for name in wrong}
    return (SetVf(target.pf, now.index, **values) if values else None), ()
