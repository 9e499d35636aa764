"""Attributes that a driver reports but that cannot be set (`nodeagent.state.drivers`).

Setting one fails with EOPNOTSUPP for any value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from nodeagent.state.addresses import Mac
from nodeagent.state.drivers import Trait, has
from nodeagent.state.model import SUBFUNCTION, NodeState, Pf, Vf
from nodeagent.state.stack import Stack


def settable(want: NodeState, have: NodeState) -> NodeState:
    """`want` without the attributes that cannot be set with its driver, and without subfunctions if
    it makes none.
    """
    want = want.with_pfs(tuple(_offered(pf, have.pf(pf.handle)) for pf in want.pfs))
    pfs = tuple(_settable(pf, want.driver) for pf in want.pfs)
    return dataclasses.replace(want, pfs=pfs, stack=_settable_stack(want))


def given_anew(state: NodeState) -> tuple[str, ...]:
    """A line for each PF whose representors' MACs are lost in a reload."""
    if not has(state.driver, Trait.RANDOM_REPRESENTOR_MACS):
        return ()
    return tuple(
        f"{pf.handle}: {state.driver} makes its {len(pf.representors)} representors with random "
        "MACs, which cannot be set"
        for pf in state.pfs
        if pf.representors
    )


def _settable_stack(want: NodeState) -> Stack | None:
    """Children of representors without the MACs that they have inherited (vlan_dev_init()).

    The representor gets another MAC in a reload. A VLAN that kept the old one would make it
    promiscuous.
    """
    if want.stack is None or not has(want.driver, Trait.RANDOM_REPRESENTOR_MACS):
        return want.stack
    netdevs = (each.netdev for pf in want.pfs for each in pf.representors)
    macs = {netdev.name: netdev.mac for netdev in netdevs}
    by_name = {child.dev: child for child in want.stack.children}

    def inherited(dev: str) -> Mac | None:
        child = by_name.get(dev)
        if child is None:
            return macs.get(dev)
        return child.mac if child.mac == inherited(child.parent) else None

    children = (
        dataclasses.replace(child, mac=None) if inherited(child.dev) else child
        for child in want.stack.children
    )
    return dataclasses.replace(want.stack, children=tuple(children))


def _offered(pf: Pf, have: Pf | None) -> Pf:
    """Without subfunctions where the driver makes none, or the eswitch's mode is not known.

    Version 0.2.0 saved representors of subfunctions without these, which do not come again.
    """
    makes_none = have is not None and have.subfunctions is None
    if pf.subfunctions and (makes_none or not pf.is_switchdev):
        pf = dataclasses.replace(pf, subfunctions=None)
    made = {each.port for each in pf.subfunctions or ()}
    gone = [SUBFUNCTION.fullmatch(r.port) and r.port not in made for r in pf.representors]
    if any(gone):
        kept = (each for each, is_gone in zip(pf.representors, gone, strict=True) if not is_gone)
        pf = dataclasses.replace(pf, representors=tuple(kept))
    return pf


def _settable(pf: Pf, driver: str) -> Pf:
    if has(driver, Trait.RANDOM_REPRESENTOR_MACS) and pf.representors:
        anonymous = (
            dataclasses.replace(each, netdev=dataclasses.replace(each.netdev, mac=None))
            for each in pf.representors
        )
        pf = dataclasses.replace(pf, representors=tuple(anonymous))
    unset: list[str] = []
    if has(driver, Trait.NO_QUERY_RSS):
        unset.append("query_rss")
    if has(driver, Trait.LINK_STATE_OF_REPRESENTORS) and pf.is_switchdev:
        # auto where VFs were made in switchdev mode, disable where the mode came later
        unset.append("link_state")
    return dataclasses.replace(pf, vfs=tuple(_without(vf, unset) for vf in pf.vfs))


def _without(vf: Vf, names: Iterable[str]) -> Vf:
    """A VF without these attributes; itself if it has none of them."""
    known: dict[str, Any] = {name: None for name in names if getattr(vf, name) is not None}
    return dataclasses.replace(vf, **known) if known else vf
