"""Modules that the driver stack needs from the host, and modules that use the stack.

openibd handles neither. Modules that the new driver needs and its own tree lacks (tls, psample,
macsec, mlxfw) are loaded from the host's tree. Modules that use the stack are unloaded before it:
the auxiliary ones, those of storage and of other vendors if the settings allow it, and
nvidia_peermem last, because the GPU driver may load it again at any time.
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
"""The driver pod's mount of the host's directories, as a path inside DRIVER_ROOT."""


def host(root: Path) -> Path:
    """The same mount, as a path of this process; `root` is DRIVER_ROOT."""
    return root / HOST_ROOT.relative_to("/")


def has_host_tree(settings: Settings) -> bool:
    """Whether the host's module tree for this kernel is mounted."""
    return hostpath.is_directory(modules.tree(host(settings.driver_root), os.uname().release))


def load_dependencies(wanted: Iterable[str], settings: Settings, sysfs: Path) -> None:
    """Load from the host's tree the modules that the installed ones need and their tree lacks.

    Without the host's tree modprobe finds them itself. KernelError if one cannot be loaded: the
    driver could not be loaded either. The stack is not touched.
    """
    if not has_host_tree(settings):
        return
    for module in _missing(wanted, settings, sysfs):
        log.debug("loading %s from the host's tree", module)
        modules.load(module, settings.driver_root, tree=HOST_ROOT)


def load_previous(module: str, srcversion: str, root: Path) -> None:
    """Load the previous build of the driver, if its file still exists below lib/modules.

    The packages install to another directory than the kernel, and kmod then finds theirs only.
    """
    path = modules.find(module, root / "lib/modules" / os.uname().release, srcversion)
    if path is None:
        log.warning("the previous %s, %s, is no longer on disk", module, srcversion)
        return
    log.warning("loading the previous %s from %s", module, path)
    try:
        modules.insert(path)
    except KernelError as error:
        log.warning("%s", error.message)


def unload_dependents(settings: Settings, sysfs: Path) -> None:
    """Unload the modules that use the stack and may be unloaded. KernelError if one is in use."""
    dependents = set(settings.auxiliary_modules)
    if settings.unload_storage_modules:
        dependents |= set(settings.storage_modules)
    if settings.unload_third_party_modules:
        dependents |= set(settings.third_party_modules)
    for module in _dependents_first(dependents, sysfs):
        log.info("unloading %s", module)
        modules.unload(module, settings.driver_root)
    _unload_peermem(settings, sysfs)


def _unload_peermem(settings: Settings, sysfs: Path) -> None:
    count = modules.refcount(PEERMEM, sysfs)
    if count:
        raise KernelError(
            f"{PEERMEM} is in use ({count} references), so the driver cannot be unloaded",
            hint="end the jobs that use GPUDirect RDMA, and start nodeagent again",
        )
    if count == 0:
        log.info("unloading %s; the GPU driver loads it again after the reload", PEERMEM)
        modules.unload(PEERMEM, settings.driver_root)


def _dependents_first(names: Iterable[str], sysfs: Path) -> list[str]:
    """The loaded ones of these modules, each after the modules that use it."""
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
    """The direct and indirect dependencies that are neither loaded nor in the driver's tree."""
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
