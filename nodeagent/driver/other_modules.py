"""The modules around the stack: what it needs from the host, and what holds it.

openibd knows neither. What the new driver needs and its own tree lacks (tls, psample, macsec,
mlxfw) comes from the host's. What holds the stack goes before it: the auxiliary modules, those of
storage and of other vendors if that is allowed, and nvidia_peermem last of all, because the GPU
driver loads it by itself at any time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from nodeagent import hostpath
from nodeagent.errors import KernelError
from nodeagent.kernel import modules
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

PEERMEM = "nvidia_peermem"
HOST_ROOT = Path("/host")
"""Where the driver pod has the host's directories; the path is that inside DRIVER_ROOT."""


def has_host_tree(settings: Settings) -> bool:
    """Tell whether the host's modules of this kernel are beside the driver's own.

    Its lib may be a link; what modprobe(8) and depmod(8) are then given is a real directory.
    """
    host = settings.driver_root / HOST_ROOT.relative_to("/")
    return hostpath.is_directory(
        hostpath.resolve_in_root(host, Path("lib")) / "modules" / os.uname().release
    )


def load_dependencies(wanted: Iterable[str], settings: Settings, sysfs: Path) -> None:
    """Load from the host's tree what the installed modules need and their own tree lacks.

    Without a host's tree there is one tree for all, and modprobe finds it by itself. KernelError
    when one can't be had: the driver could not be loaded either. Nothing of ours was touched.
    """
    if not has_host_tree(settings):
        return
    for module in _missing(wanted, settings, sysfs):
        log.debug("loading %s from the host's tree", module)
        modules.load(module, settings.driver_root, tree=HOST_ROOT)


def load_previous(module: str, srcversion: str, root: Path) -> None:
    """Load the build of before from wherever it still lies below lib/modules, if it does.

    The packages install beside the kernel's own tree, and kmod then sees their module only.
    """
    path = modules.find(module, root / "lib/modules" / os.uname().release, srcversion)
    if path is None:
        log.warning("the %s of before, %s, is nowhere on disk any more", module, srcversion)
        return
    log.warning("loading the %s of before from %s", module, path)
    try:
        modules.insert(path)
    except KernelError as error:
        log.warning("%s", error.message)


def unload_dependents(settings: Settings, sysfs: Path) -> None:
    """Unload what holds the stack and may go. KernelError when one does not: see its holders."""
    going = set(settings.auxiliary_modules)
    if settings.unload_storage_modules:
        going |= set(settings.storage_modules)
    if settings.unload_third_party_modules:
        going |= set(settings.third_party_modules)
    for module in _dependents_first(going, sysfs):
        log.info("unloading %s", module)
        modules.unload(module, settings.driver_root)
    _unload_peermem(settings, sysfs)


def _unload_peermem(settings: Settings, sysfs: Path) -> None:
    count = modules.refcount(PEERMEM, sysfs)
    if count:
        raise KernelError(
            f"{PEERMEM} is in use ({count} references): the driver is not unloaded under it",
            hint="end the jobs that use GPUDirect RDMA and start nodeagent again",
        )
    if count == 0:
        log.info("unloading %s, which the GPU driver loads again once we are ready", PEERMEM)
        modules.unload(PEERMEM, settings.driver_root)


def _dependents_first(names: Iterable[str], sysfs: Path) -> list[str]:
    """Those that are loaded, each after the ones that use it."""
    loaded = modules.all_loaded(sysfs)
    order: list[str] = []

    def add(name: str) -> None:
        for holder in loaded[name].holders:
            if holder in wanted and holder not in order:
                add(holder)
        if name not in order:
            order.append(name)

    wanted = sorted({name.replace("-", "_") for name in names} & loaded.keys())
    for name in wanted:
        add(name)
    return order


def _missing(wanted: Iterable[str], settings: Settings, sysfs: Path) -> Iterator[str]:
    """What the modules need, directly or not, that is neither loaded nor in the driver's tree."""
    seen: set[str] = set()
    queue = list(wanted)
    while queue:
        module = queue.pop(0)
        if module in seen:
            continue
        seen.add(module)
        try:
            on_disk = modules.installed(module, settings.driver_root)
        except modules.NoSuchModule:
            if module not in wanted and not modules.is_loaded(module, sysfs):
                yield module
        else:
            words = on_disk.fields.get("depends", "").replace(",", " ").split()
            queue += [each for each in words if modules.valid_module_name(each)]
