"""What a driver reports and cannot be told: one table, so that nobody wants it back for ever.

Each of these is refused with EOPNOTSUPP whenever it is asked for, whatever the value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Final

from nodeagent.state.model import NodeState, Pf


class Unsettable(Enum):
    """An attribute that some driver makes up by itself."""

    REPRESENTOR_MAC = "the MACs of representors"
    QUERY_RSS = "whether a VF may ask for the RSS table"


UNSETTABLE: Final[Mapping[str, frozenset[Unsettable]]] = {
    # drivers/net/ethernet/mellanox/mlx5/core: mlx5e_build_rep_netdev() in en_rep.c makes a random
    # MAC up at each creation, and mlx5e_netdev_ops_rep has no ndo_set_mac_address. There is no
    # ndo_set_vf_rss_query_en in en_main.c, and mlx5_eswitch_get_vport_config() says off.
    "mlx5_core": frozenset({Unsettable.REPRESENTOR_MAC, Unsettable.QUERY_RSS}),
}


def settable(want: NodeState) -> NodeState:
    """`want` without what its driver cannot be told."""
    unsettable = UNSETTABLE.get(want.driver, frozenset())
    if not unsettable:
        return want
    return dataclasses.replace(want, pfs=tuple(_settable(pf, unsettable) for pf in want.pfs))


def given_anew(state: NodeState) -> tuple[str, ...]:
    """A line for each PF whose representors have a MAC that no reload keeps."""
    if Unsettable.REPRESENTOR_MAC not in UNSETTABLE.get(state.driver, frozenset()):
        return ()
    return tuple(
        f"{pf.handle}: {state.driver} gives its {len(pf.representors)} representors random MACs "
        "whenever it makes them, and takes no others"
        for pf in state.pfs
        if pf.representors
    )


def _settable(pf: Pf, unsettable: frozenset[Unsettable]) -> Pf:
    if Unsettable.REPRESENTOR_MAC in unsettable and pf.representors:
        anonymous = (
            dataclasses.replace(each, netdev=dataclasses.replace(each.netdev, mac=None))
            for each in pf.representors
        )
        pf = dataclasses.replace(pf, representors=tuple(anonymous))
    if Unsettable.QUERY_RSS in unsettable and any(vf.query_rss is not None for vf in pf.vfs):
        vfs = (dataclasses.replace(vf, query_rss=None) for vf in pf.vfs)
        pf = dataclasses.replace(pf, vfs=tuple(vfs))
    return pf
