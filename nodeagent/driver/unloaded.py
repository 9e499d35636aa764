"""The modules that openibd unloads, as its mod_load_funcs and UNLOAD_MODULES name them.

Those that were loaded before a reload are loaded again afterwards: openibd loads only those that
/etc/infiniband/openib.conf names.
"""

from __future__ import annotations

from typing import Final

from nodeagent.settings import Settings
from nodeagent.state.drivers import Trait, has

BY_OPENIBD: Final = (
    *("eth_ipoib", "ib_ipoib", "rds_rdma", "rds_tcp", "rds", "rnbd_client", "rnbd_server"),
    *("ib_srp", "ib_iser", "ib_sdp", "rdma_rxe"),
    *("rdma_ucm", "ib_ucm", "rdma_cm", "iw_cm", "ib_cm", "ib_umad", "ib_mad", "ib_uverbs"),
    *("ib_mthca", "iw_nes", "iw_cxgb3", "iw_cxgb4", "ib_qib", "mana_ib", "hns_roce"),
    *("mlx5_fpga_tools", "mlx5_vdpa", "mlx5_vfio_pci", "mlx5_fwctl", "fwctl", "mlx5_dpll"),
    *("mlx5_ib", "mlx5_core", "mlx4_ib", "mlx4_en", "mlx4_core", "ib_core", "mlxfw", "mlxdevm"),
    *("mlx_compat", "mlx5_netdev", "auxiliary", "vfio_mdev"),
)
"""As in DOCA-OFED 25.10: upper layers before lower ones. mlx4_en, mlx4_core, mlx5_netdev and
mlx_compat, on which each module of DOCA-OFED depends, are unloaded with their users."""

IF_OF_OFED: Final = ("scsi_transport_srp", "cls_flower")
"""Modules that it unloads if they are DOCA-OFED's own; it continues if they are in use."""


def always_unloaded(settings: Settings, listed: tuple[str, ...] = BY_OPENIBD) -> tuple[str, ...]:
    """The modules of `listed` that a restart unloads whatever the settings are.

    Storage and other vendors' modules are unloaded by their settings only, though openibd lists
    some of them.
    """
    if not has(settings.driver_module, Trait.OFED_STACK):
        return (settings.driver_module,)
    others = {*settings.storage_modules, *settings.third_party_modules}
    return tuple(module for module in listed if module not in others)
