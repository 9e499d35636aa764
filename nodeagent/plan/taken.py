"""VFs that a pod or a virtual machine has taken since the snapshot: found by comparing. Pure.

Pods start and end between a driver's unload and the restore of its VFs. A VF that one of them, or a
virtual machine, has by then is its taker's: nodeagent does not wait for it, and writes neither to
its interface nor to what its PF holds for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nodeagent.plan.actions import SetVf
from nodeagent.state.attributes import parts, rows
from nodeagent.state.eswitch import EswitchAttributes
from nodeagent.state.model import NO_DRIVER, DeviceHandle, NodeState, Pf, Vf
from nodeagent.state.rates import Rate, vf_of
from nodeagent.state.vf import VfAttributes

Owner = tuple[DeviceHandle, int]
"""A VF: its PF, and its index."""


@dataclass(frozen=True)
class Taken:
    """A VF that is another's by now; `how` says what shows it."""

    pf: DeviceHandle
    index: int
    how: str

    def __str__(self) -> str:
        return f"{self.pf} vf {self.index}: taken since the snapshot ({self.how}): left alone"

    @property
    def owner(self) -> Owner:
        """Its PF and its index."""
        return self.pf, self.index


def taken(want: NodeState, have: NodeState) -> tuple[Taken, ...]:
    """Which VFs of `want` are others' in `have`, in the order of devices."""
    return tuple(
        Taken(pf.handle, vf.index, how)
        for pf in want.pfs
        for vf in pf.vfs
        for how in _how(pf, vf, want, have)
    )


def _how(pf: Pf, want: Vf, wanted: NodeState, have: NodeState) -> Iterator[str]:
    """At most one way: the first that is seen."""
    known = have.pf(pf.handle)
    now = None if known is None else known.vf(want.index)
    if now is None:
        return
    if now.inside is not None:
        place = have.namespace(now.inside.namespace)
        if want.inside is None or wanted.namespace(want.inside.namespace) != place:
            yield f"{now.inside.netdev.name} in {place}"
            return
    if is_anothers_driver(now.driver, want.driver, have.driver):
        yield f"bound to {now.driver}"
    elif now.used_by not in {None, want.used_by}:
        yield f"{now.used_by}"
    elif now.cni is not None and (want.cni is None or want.cni.name != now.cni.name):
        yield f"given to a pod by SR-IOV CNI, record {now.cni.name}"


def is_anothers_driver(now: str | None, wanted: str | None, own: str) -> bool:
    """Whether a VF is bound to neither the driver that it had, nor its NIC's own."""
    return now not in {None, NO_DRIVER, wanted, own} and wanted is not None


def without(want: NodeState, gone: Collection[Owner]) -> NodeState:
    """`want` without those VFs: what has to be so all the same."""
    if not gone:
        return want
    return dataclasses.replace(want, pfs=tuple(_without(pf, gone) for pf in want.pfs))


def ours(want: NodeState, have: NodeState) -> NodeState:
    """`want` without the VFs that are others' in `have`."""
    return without(want, {each.owner for each in taken(want, have)})


def _without(pf: Pf, gone: Collection[Owner]) -> Pf:
    kept = tuple(vf for vf in pf.vfs if (pf.handle, vf.index) not in gone)
    if len(kept) == len(pf.vfs):
        return pf
    rates = None if pf.rates is None else spared_rates(pf.handle, pf.rates, gone)
    return dataclasses.replace(pf, vfs=kept, rates=rates)


def spared_rates(
    pf: DeviceHandle, rates: Iterable[Rate], gone: Collection[Owner]
) -> tuple[Rate, ...]:
    """The rate objects of a PF's eswitch without those of the VFs that are another's."""
    return tuple(each for each in rates if (pf, vf_of(pf.bus, each)) not in gone)


def attainable(want: NodeState, have: NodeState, gone: Collection[Owner]) -> NodeState:
    """What of `want`, which is without them, can be had without touching the VFs `gone`.

    A PF's VFs are made all together, and its eswitch changes its mode under all of them: where one
    is another's, neither is done.
    """
    pfs = {handle for handle, _ in gone}
    changed = (_attainable(pf, have.pf(pf.handle)) if pf.handle in pfs else pf for pf in want.pfs)
    return dataclasses.replace(want, pfs=tuple(changed)) if pfs else want


def _attainable(want: Pf, have: Pf | None) -> Pf:
    if have is None:
        return want  # and so none of its VFs is another's
    fields: dict[str, Any] = {
        "numvfs": have.numvfs,
        "vfs": tuple(vf for vf in want.vfs if have.vf(vf.index) is not None),
        "representors": tuple(e for e in want.representors if have.netdev_of(e.port) is not None),
    }
    if want.eswitch_mode not in {None, have.eswitch_mode}:
        fields |= dict.fromkeys(rows(EswitchAttributes))
    return dataclasses.replace(want, **fields)


def restorable(want: NodeState, have: NodeState) -> NodeState:
    """What of `want` a restore can do without touching the VFs that are others' in `have`."""
    theirs = {each.owner for each in taken(want, have)}
    return attainable(without(want, theirs), have, theirs)


def given_back(
    owner: Owner, written: Mapping[str, object], given: Vf | None, now: Vf
) -> tuple[SetVf | None, tuple[str, ...]]:
    """What was written to a VF that turned out to be another's, as its taker had set it.

    `written`: attributes and values that we have set since the snapshot; `given`: what the taker's
    CNI has recorded that it set. Returns the action that puts that back, and the attributes of
    which it is not known what they were.
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
    return (SetVf(*owner, **values) if values else None), ()
