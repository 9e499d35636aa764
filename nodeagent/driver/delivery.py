"""Mode `sources`: build the driver's packages or find built ones, check and install them.

Every step can be repeated: after a kill the next start begins again. Only complete packages are
installed, and the end is a check that modprobe would load the installed module.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nodeagent.driver import copies, dtk, host_tree, packages, sources
from nodeagent.driver.inventory import Inventory, fingerprint
from nodeagent.errors import DataError, NoInputError
from nodeagent.kernel.events import StopSignal
from nodeagent.settings import Settings

log = logging.getLogger(__name__)


def deliver(settings: Settings, release: str, stop: StopSignal | None) -> None:
    """Install the driver NVIDIA_NIC_DRIVER_VER for the kernel `release` (`uname -r`).

    The loaded driver is not touched. Raises ConfigError, NoInputError, StorageError, DataError,
    UnavailableError, WaitTimeout and Stopped.
    """
    if settings.ubuntu_pro_token is not None:
        log.warning("UBUNTU_PRO_TOKEN is not used: install FIPS packages in the driver's image")
    copies.remove(settings.driver_root / packages.STAGE)
    store = inventory(settings, release)
    with _packages(settings, release, store, stop) as found:
        try:
            packages.check(found, settings.driver_root)
            brought = packages.brings(settings.driver_module, release, found, settings.driver_root)
        except DataError:
            if store is not None:
                store.forget()
            raise
        host_tree.unlink(settings, release)
        packages.prepare_tree(release, settings.driver_root)
        packages.install(found, settings.driver_root, stop)
    host_tree.share(settings, release, stop)
    packages.index(release, settings.driver_root)
    packages.require_installed(settings.driver_module, brought, settings)
    if store is not None:
        store.clean_up()


def inventory(settings: Settings, release: str) -> Inventory | None:
    """The inventory that keeps packages for the next start; None if each start builds them."""
    if settings.inventory is None:
        return None
    store = Inventory(settings.inventory, release, settings.nic_driver_ver or "")
    store.require()
    return store


@contextmanager
def _packages(
    settings: Settings, release: str, store: Inventory | None, stop: StopSignal | None
) -> Iterator[Sequence[Path]]:
    """The packages, below DRIVER_ROOT, in a directory that only nodeagent writes to."""
    built_with = fingerprint(
        release, settings.nic_driver_ver or "", sources.arguments(settings, release)
    )
    found = () if store is None else store.packages(built_with)
    if not found:
        found = _built(settings, release, stop)
        if store is not None:
            found = store.store(found, built_with, stop)
    if store is not None and settings.driver_root == Path("/"):
        yield found
    else:
        with packages.staged(found, settings.driver_root, stop) as copied:
            yield copied


def _built(settings: Settings, release: str, stop: StopSignal | None) -> tuple[Path, ...]:
    """Newly built packages, in the directory of the build."""
    make = dtk.ensure_built if settings.dtk_build else sources.compile_here
    place = make(settings, release, stop)
    found = packages.built(place)
    if not found:
        raise NoInputError(
            f"the build has ended, but there are no packages below {place}",
            hint="see the log of the build",
        )
    return found
