"""Attributes that a driver reports but that cannot be set (`nodeagent.state.drivers`).

Setting one fails with EOPNOTSUPP for any value.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from nodeagent.state.addresses import Mac
from nodeagent.state.drivers import Trait, has
from nodeagent.state.eswitch import EswitchMode
from nodeagent.state.model import SUBFUNCTION, NodeState, Pf
from nodeagent.state.stack import Stack


def settable(want: NodeState) -> NodeState:
    """`want` without the attributes that cannot be set with its driver."""
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


def _settable(pf: Pf, driver: str) -> Pf:
    if any(SUBFUNCTION.fullmatch(each.port) for each in pf.representors):
        # version 0.2.0 saved these, too
        kept = (each for each in pf.representors if not SUBFUNCTION.fullmatch(each.port))
        pf = dataclasses.replace(pf, representors=tuple(kept))
    if has(driver, Trait.RANDOM_REPRESENTOR_MACS) and pf.representors:
        anonymous = (
            dataclasses.replace(each, netdev=dataclasses.replace(each.netdev, mac=None))
            for each in pf.representors
        )
        pf = dataclasses.replace(pf, representors=tuple(anonymous))
    unset: dict[str, Any] = {}
    if has(driver, Trait.NO_QUERY_RSS):
        unset["query_rss"] = None
    if has(driver, Trait.LINK_STATE_OF_REPRESENTORS) and pf.eswitch_mode is EswitchMode.SWITCHDEV:
        # auto where VFs were made in switchdev mode, disable where the mode came later
        unset["link_state"] = None
    return dataclasses.replace(pf, vfs=tuple(dataclasses.replace(vf, **unset) for vf in pf.vfs))
