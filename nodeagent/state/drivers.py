"""What differs by driver: one table, so that no other module asks for a driver's name."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final


class Trait(Enum):
    """What holds for some drivers and not for others."""

    RANDOM_REPRESENTOR_MACS = auto()
    """A representor gets a random MAC whenever it is made, and takes no other."""
    NO_QUERY_RSS = auto()
    """Whether a VF may ask for the RSS table cannot be set."""
    LINK_STATE_OF_REPRESENTORS = auto()
    """In switchdev mode a VF's link state follows its representor, and cannot be set."""
    EINVAL_IS_BUSY = auto()
    """The eswitch answers EINVAL while another changes it."""
    MODE_UNDER_UNBOUND_VFS = auto()
    """The eswitch changes its mode under VFs that no driver has; removing them does not help."""
    ANY_VF_MAC = auto()
    """A VF's interface takes another MAC than the admin MAC, where the PF has an eswitch."""
    OFED_STACK = auto()
    """DOCA-OFED has it: openibd restarts it, together with the RDMA modules."""


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
    """Whether it holds for the driver; what the table does not have holds for none."""
    return trait in TRAITS.get(driver, frozenset())
