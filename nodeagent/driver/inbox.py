"""Load the host's own (inbox) driver again, for RESTORE_DRIVER_ON_POD_TERMINATION.

The inbox driver is the one below kernel/ in the host's module tree; the packages install to other
directories (updates/, extra/). Like the driver container, nodeagent runs `mlnxofedctl --alt-mods
force-restart`. On a host without the packages that unloads the driver, finds none to load, and
exits with status 1. The status is therefore ignored: nodeagent reads from the kernel whether a
driver is loaded, and if not, loads one from the host's tree.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from nodeagent.driver import openibd, other_modules, preflight, rdma
from nodeagent.driver.findings import Check
from nodeagent.driver.nic import NicDriver
from nodeagent.errors import AgentError, KernelError, WaitTimeout
from nodeagent.kernel import modules
from nodeagent.kernel.events import StopSignal

log = logging.getLogger(__name__)

_OF_THE_INSTALLED = frozenset({Check.INSTALLED, Check.LOADABLE})
"""The checks of the driver that will be unloaded."""


def runs(driver: NicDriver) -> bool:
    """Whether the loaded driver is the host's own, or at least not the installed one.

    The second if the host's tree is not visible.
    """
    module, root = driver.settings.driver_module, driver.settings.driver_root
    if not driver.is_loaded():
        return False
    tree = modules.tree(other_modules.host(root), os.uname().release)
    path = modules.find(module, tree / "kernel")
    if path is None:
        return not driver.loaded_is_installed()
    own = modules.field_of_file(path, "srcversion")
    loaded = modules.loaded_srcversion(module, driver.sysfs)
    return own == loaded if own and loaded else not driver.loaded_is_installed()


def check_is_safe(driver: NicDriver) -> None:
    """Raise, before any change, if it is not possible or a finding blocks a reload.

    A process that may lose its VF has half of the grace period to close it.
    """
    settings = driver.settings
    openibd.check_inbox(settings)
    look = preflight.Preflight(settings, driver.sysfs, driver.proc)
    found = look.findings()
    preflight.enforce(each for each in found if each.check not in _OF_THE_INSTALLED)
    left = openibd.time_left(settings, driver.stop)
    look.await_vfio_closed(driver.stop, min(settings.vfio_timeout, left / 2))


def ensure(
    driver: NicDriver,
    before: Iterable[str],
    stop: StopSignal,
    before_unload: Callable[[], None] = lambda: None,
) -> None:
    """Load the host's own driver, and the modules of `before` that the host has.

    `before_unload` is called right before mlnxofedctl, after all checks. KernelError if another
    driver is loaded in the end, or none. Stopped, after the restart.
    """
    settings = driver.settings
    with rdma.netns_mode_kept(settings, driver.sysfs):
        other_modules.unload_dependents(settings, driver.sysfs)
        before_unload()
        try:
            said = openibd.inbox(settings, stop)
        except WaitTimeout as error:
            log.warning("%s", error.message)
        else:
            if said.returncode:
                log.warning("mlnxofedctl exited with status %d", said.returncode)
        finally:
            _load(driver)
    for module in before:
        if not modules.is_loaded(module, driver.sysfs):
            _try(module, settings.driver_root, _tree(driver))
    if not runs(driver):
        now = modules.loaded_srcversion(settings.driver_module, driver.sysfs)
        raise KernelError(
            f"the host's own {settings.driver_module} is not loaded: "
            + (f"{now} is loaded" if driver.is_loaded() else "this node has NO NIC driver"),
            hint="the next start of nodeagent restores the VFs on the installed driver",
        )


def _load(driver: NicDriver) -> None:
    """If no driver is loaded, load the host's own, else the installed one."""
    settings = driver.settings
    for tree in dict.fromkeys((_tree(driver), None)):
        if not driver.is_loaded():
            log.warning("loading %s from %s", settings.driver_module, tree or "the pod's own tree")
            _try(settings.driver_module, settings.driver_root, tree)


def _tree(driver: NicDriver) -> Path | None:
    return other_modules.HOST_ROOT if other_modules.has_host_tree(driver.settings) else None


def _try(module: str, root: Path, tree: Path | None) -> None:
    try:
        modules.load(module, root, tree=tree)
    except AgentError as error:
        log.warning("%s", error.message)
