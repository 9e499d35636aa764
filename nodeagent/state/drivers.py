"""Differences between drivers, in one table. No other module compares a driver's name."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final


class Trait(Enum):
    """Traits that some drivers have and others do not."""

    RANDOM_REPRESENTOR_MACS = auto()
    """A representor gets a random MAC whenever it is made, and takes no other."""
    NO_QUERY_RSS = auto()
    """query_rss, whether a VF may read the RSS table, cannot be set."""
    LINK_STATE_OF_REPRESENTORS = auto()
    """In switchdev mode a VF's link state follows its representor, and cannot be set."""
    EINVAL_IS_BUSY = auto()
    """A change of the eswitch fails with EINVAL while another one is in progress."""
    MODE_UNDER_UNBOUND_VFS = auto()
    """The eswitch's mode can change while there are VFs, if none is bound.

    If the change is refused nevertheless, removing the VFs does not help.
    """
    ANY_VF_MAC = auto()
    """A VF's interface can have another MAC than the admin MAC if the PF has an eswitch."""
    OFED_STACK = auto()
    """It is part of DOCA-OFED: openibd restarts it together with the RDMA modules."""


TRAITS: Final[Mapping[str, frozenset[Trait]]] = {
    # drivers/net/ethernet/mellanox/mlx5/core. Representors: mlx5e_build_rep_netdev() in en_rep.c
    # makes a random MAC up, and mlx5e_netdev_ops_rep has no ndo_set_mac_address. RSS: en_main.c has
    # no ndo_set_vf_rss_query_en, and mlx5_eswitch_get_vport_config() says off. Link
    # state: mlx5e_rep_open() and mlx5e_rep_close() set it, for others it is EOPNOTSUPP. EINVAL:
    # mlx5_devlink_eswitch_mode_set() takes its lock by mlx5_esw_try_lock(). Mode: VFs that are made
    # in switchdev mode get no VLAN, trust and spoof checking (EOPNOTSUPP). MAC: mlx5e_set_mac()
    # asks for no permission.
    "mlx5_core": frozenset(Trait),
}


def has(driver: str, trait: Trait) -> bool:
    """Whether the driver has the trait; a driver that is not in the table has none."""
    return trait in TRAITS.get(driver, frozenset())
