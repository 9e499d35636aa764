"""Attributes that a driver reports but does not let set (`nodeagent.state.drivers`).

Setting one fails with EOPNOTSUPP for any value.
"""

from __future__ import annotations

import dataclasses

from nodeagent.state.drivers import Trait, has
from nodeagent.state.eswitch import EswitchMode
from nodeagent.state.model import SUBFUNCTION, NodeState, Pf


def settable(want: NodeState) -> NodeState:
    """`want` without attributes that its driver does not let set."""
    return dataclasses.replace(want, pfs=tuple(_settable(pf, want.driver) for pf in want.pfs))


def given_anew(state: NodeState) -> tuple[str, ...]:
    """A line for each PF whose representors' MACs are lost in a reload."""
    if not has(state.driver, Trait.RANDOM_REPRESENTOR_MACS):
        return ()
    return tuple(
        f"{pf.handle}: {state.driver} gives its {len(pf.representors)} representors random MACs "
        "whenever it makes them, and takes no others"
        for pf in state.pfs
        if pf.representors
    )


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
    if has(driver, Trait.NO_QUERY_RSS) and any(vf.query_rss is not None for vf in pf.vfs):
        vfs = (dataclasses.replace(vf, query_rss=None) for vf in pf.vfs)
        pf = dataclasses.replace(pf, vfs=tuple(vfs))
    is_switchdev = pf.eswitch_mode is EswitchMode.SWITCHDEV
    if has(driver, Trait.LINK_STATE_OF_REPRESENTORS) and is_switchdev:
        # auto where VFs were made in switchdev mode, disable where the mode came later
        vfs = (dataclasses.replace(vf, link_state=None) for vf in pf.vfs)
        pf = dataclasses.replace(pf, vfs=tuple(vfs))
    return pf
