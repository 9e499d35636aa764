"""The modules that openibd unloads, as its mod_load_funcs and UNLOAD_MODULES name them.

Those that were loaded before a reload are loaded again afterwards: openibd loads only those that
/etc/infiniband/openib.conf names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from nodeagent.kernel.modules import Loaded
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


def in_use(settings: Settings, loaded: Mapping[str, Loaded]) -> Iterator[str]:
    """Why the kernel would refuse the unload of a module now, a line each.

    An open RDMA device, a mount or a connection holds references to one of these modules, whether
    its process is visible or not (try_module_get(), ib_uverbs_open()).
    """
    ours = [loaded[name] for name in always_unloaded(settings) if name in loaded]
    known = {module.name for module in ours} | {*IF_OF_OFED}
    for module in ours:
        if others := [name for name in module.holders if name not in known]:
            yield f"{', '.join(others)} uses {module.name}"
        if module.unexplained:
            yield f"{module.name} is in use (reference count {module.refcount})"
