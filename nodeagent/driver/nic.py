"""The NIC driver of this node: the installed one, the loaded one, and the restart between them.

srcversion is a hash of a module's sources (modinfo(8), /sys/module/<m>/srcversion): two builds of
the same source have the same one. If neither the installed nor the loaded module has one, their
build-ids are compared, or their versions; without any of these they are taken to be equal.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nodeagent.driver import blacklist, other_modules, rdma
from nodeagent.driver.unloaded import BY_OPENIBD, IF_OF_OFED, always_unloaded, in_use
from nodeagent.errors import AgentError, KernelError, WaitTimeout
from nodeagent.kernel import drvinfo, modules
from nodeagent.kernel.events import StopSignal
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.modes import Mode
from nodeagent.settings import Settings
from nodeagent.state.drivers import Trait, has

if TYPE_CHECKING:
    from nodeagent.kernel.process import Finished

log = logging.getLogger(__name__)

_STACK = ("mlx5_core", "mlx5_ib", "ib_core")
_NFS_RDMA = ("nvme_rdma", "rpcrdma")
_QUOTED_LINES = 6


@dataclass(frozen=True)
class SrcVersions:
    """A module's srcversion on disk and in the kernel; None if it is absent or has none.

    If both sides lack it, it is `build-id <hash>` or `version <text>` for both.
    """

    module: str
    installed: str | None
    loaded: str | None


@dataclass(frozen=True)
class Loss:
    """What a pod, given by its UID, loses for good in a reload."""

    pod: str
    what: str


@dataclass(frozen=True)
class NicDriver:
    """The driver that DRIVER_MODULE names, and its stack."""

    settings: Settings
    mode: Mode
    stop: StopSignal | None
    sysfs: Path = Path("/sys")
    proc: Path = Path("/proc")

    def ensure_built(self) -> None:
        """In mode `sources`, build and install the driver; in `precompiled` do nothing.

        Raises what delivery.deliver() raises. The loaded driver is not touched.
        """
        if self.mode != Mode.PRECOMPILED:
            # not imported by commands that only look at the driver
            from nodeagent.driver import delivery  # noqa: PLC0415

            delivery.deliver(self.settings, os.uname().release, self.stop)

    def srcversions(self) -> tuple[SrcVersions, ...]:
        """The stack's modules that are installed or loaded, the driver itself first."""
        return tuple(self._srcversions(self._modules()))

    def loaded_is_installed(self) -> bool:
        """Whether the loaded driver is the installed one, so that no reload is needed.

        Another module of the stack that is installed but not loaded does not require a reload.
        """
        return not self.outdated()

    def outdated(self) -> tuple[str, ...]:
        """Why a reload is needed, one line for each module; none: the installed driver runs."""
        return tuple(self._wrong(self.srcversions()))

    def check_reload_is_safe(self) -> tuple[Loss, ...]:
        """PreflightFailed, before any change, if a finding blocks the reload.

        Other findings are logged. Returns what pods will lose for good. A process that may lose its
        VF must close it first, within VFIO_TIMEOUT. Checks nothing if no reload is needed.
        """
        if self.loaded_is_installed():
            return ()
        # imports psutil, which `status` does not need
        from nodeagent.driver import preflight  # noqa: PLC0415

        look = preflight.Preflight(self.settings, self.sysfs, self.proc)
        findings = look.findings()
        preflight.enforce(findings)
        look.await_vfio_closed(self.stop, self.settings.vfio_timeout)
        return tuple(
            Loss(uid, f"{found.what}; {found.why}") for found in findings for uid in found.pods
        )

    def modules_loaded(self) -> tuple[tuple[str, str], ...]:
        """The modules that a reload unloads and must load again, with their srcversions."""
        loaded = {name: modules.loaded_srcversion(name, self.sysfs) for name in self.companions()}
        without = [name for name in self._modules() if name in loaded and loaded[name] is None]
        if without:
            loaded |= {each.module: each.loaded for each in self._srcversions(without)}
        return tuple((name, text or "none") for name, text in loaded.items())

    def companions(self) -> tuple[str, ...]:
        """The loaded modules that a reload unloads: those of the stack, others that openibd
        unloads, and those that a setting lets nodeagent unload.
        """
        names = dict.fromkeys((*self._modules(), *self._auxiliary(), *self._unloaded()))
        return tuple(name for name in names if modules.is_loaded(name, self.sysfs))

    def in_use(self) -> tuple[str, ...]:
        """Why an unload would be refused at this moment, a line for each module; none: it is not.

        An unbind is never refused, so this is asked right before one.
        """
        return tuple(in_use(self.settings, modules.all_loaded(self.sysfs, self.proc)))

    def ensure_restarted(self, before_unload: Callable[[], None] = lambda: None) -> None:
        """Restart the stack unless the loaded driver is the installed one.

        `before_unload` is called right before openibd, after all checks. The result is read from
        the kernel. If no driver is loaded after the restart, the installed one is loaded, or else
        the host's own. Raises KernelError if the installed driver is still not loaded, or is in
        use; WaitTimeout if openibd had to be killed (the hint names the loaded driver); and
        Stopped, after openibd has ended.
        """
        from nodeagent.driver import openibd  # noqa: PLC0415  no part of a look at the driver

        before = self._loaded(), self.srcversions()
        if not self._wrong(before[1]):
            return
        started = time.monotonic()
        other_modules.load_dependencies(self._modules(), self.settings, self.sysfs)
        try:
            with (
                blacklist.blacklisted(self.settings),
                rdma.netns_mode_kept(self.settings, self.sysfs),
            ):
                other_modules.unload_dependents(self.settings, self.sysfs)
                before_unload()
                try:
                    said = openibd.restart(self.settings, self.stop)
                finally:
                    self._bring_back(before[1])
        except WaitTimeout as error:
            now = self.srcversions()
            if self._wrong(now, before[0]):
                error.hint = self._what_now(now)
                raise
            log.warning("%s; nevertheless the installed driver is loaded", error.message)
        else:
            now = self.srcversions()
            self._judge(before, now, said)
        log.info(
            "the installed driver is loaded: %s",
            ", ".join(f"{each.module} {each.loaded}" for each in now if each.loaded),
            extra={"elapsed": round(time.monotonic() - started, 3)},
        )

    def ensure_companions(self, before: Iterable[str]) -> None:
        """Load the modules of `before` that are not loaded, and rpcrdma with ENABLE_NFSRDMA.

        KernelError names those of the stack and of the auxiliary modules that cannot be loaded.
        Failures of other modules are logged: the installed driver may lack them. So is that of
        rpcrdma, if it was not loaded before.
        """
        rdma.sweep(self.settings)
        wanted = [m for m in before if not modules.is_loaded(m, self.sysfs)]
        has_hosts = other_modules.has_host_tree(self.settings) and self.is_loaded()
        tree = other_modules.HOST_ROOT if has_hosts and not self.loaded_is_installed() else None
        needed = {*self._modules(), *self._auxiliary()}
        failed = []
        for module in wanted:
            try:
                modules.load(module, self.settings.driver_root, tree=tree)
            except KernelError as error:
                if module in needed:
                    failed.append(error.message)
                else:
                    log.warning("%s; it was loaded before the restart", error.message)
        if failed:
            raise KernelError(
                f"modules loaded before the restart cannot be loaded again: {'; '.join(failed)}",
                hint="see dmesg for the reason, and check that they are installed for this driver",
            )
        if self.settings.enable_nfsrdma and not modules.is_loaded("rpcrdma", self.sysfs):
            try:
                modules.load("rpcrdma", self.settings.driver_root)
            except KernelError as error:
                log.warning("NFS over RDMA is not available: %s", error.message)

    def is_loaded(self) -> bool:
        """Whether any build of the driver is loaded."""
        return modules.is_loaded(self.settings.driver_module, self.sysfs)

    def loading(self) -> int | None:
        """A number that changes whenever the driver is loaded; None while it is not loaded."""
        return modules.loading(self.settings.driver_module, self.sysfs)

    def version(self) -> str:
        """The version that the driver reports on one of its interfaces (ethtool -i), or ""."""
        tree = Sysfs(self.sysfs)
        for bus, device in tree.physical_functions(self.settings.driver_module):
            for path in sorted((tree.device(bus, device) / "net").glob("*")):
                return drvinfo.driver_version(path.name)
        return ""

    def _bring_back(self, before: Iterable[SrcVersions]) -> None:
        """If no driver is loaded, load the installed one, else the host's own, else the old one."""
        driver, root = self.settings.driver_module, self.settings.driver_root
        has_host_tree = other_modules.has_host_tree(self.settings)
        trees = [None, other_modules.HOST_ROOT] if has_host_tree else [None]
        for tree in trees:
            if self.is_loaded():
                return
            which = f"the installed {driver}" if tree is None else f"the host's own {driver}"
            log.warning("openibd left this node without a driver: loading %s", which)
            try:
                modules.load(driver, root, tree=tree)
            except AgentError as error:
                log.warning("%s", error.message)
        old = next((each.loaded for each in before if each.module == driver), None)
        if old and not self.is_loaded():
            other_modules.load_previous(driver, old, root)

    def _judge(
        self,
        before: tuple[frozenset[str], tuple[SrcVersions, ...]],
        now: tuple[SrcVersions, ...],
        said: Finished,
    ) -> None:
        """KernelError unless the installed driver and all modules of `before` are loaded."""
        wrong = self._wrong(now, before[0])
        if not wrong:
            if said.returncode:
                log.warning("openibd exited with status %d, %s", said.returncode, _last_words(said))
            return
        has_done_nothing = before == (self._loaded(), now)
        raise KernelError(
            f"openibd restart did not bring in the installed driver: {'; '.join(wrong)}; "
            f"openibd exited {said.returncode}, {_last_words(said)}",
            hint=_NOTHING_DONE if has_done_nothing and not said.returncode else self._what_now(now),
        )

    def _modules(self) -> tuple[str, ...]:
        if not has(self.settings.driver_module, Trait.OFED_STACK):
            return (self.settings.driver_module,)
        return _STACK + (_NFS_RDMA if self.settings.enable_nfsrdma else ())

    def _auxiliary(self) -> tuple[str, ...]:
        own = self._modules()
        return tuple(name for name in self.settings.auxiliary_modules if name not in own)

    def _unloaded(self) -> tuple[str, ...]:
        """What openibd and the settings unload besides."""
        settings = self.settings
        if not has(settings.driver_module, Trait.OFED_STACK):
            return ()
        allowed = settings.storage_modules if settings.unload_storage_modules else ()
        allowed += settings.third_party_modules if settings.unload_third_party_modules else ()
        return (*always_unloaded(settings, (*BY_OPENIBD, *IF_OF_OFED)), *allowed)

    def _srcversions(self, of: Iterable[str]) -> Iterator[SrcVersions]:
        names = tuple(of)
        on_disk = modules.all_installed(names, self.settings.driver_root)
        for module in names:
            loaded = modules.loaded_srcversion(module, self.sysfs)
            is_loaded = modules.is_loaded(module, self.sysfs)
            if module not in on_disk:
                if is_loaded:
                    yield SrcVersions(module, None, loaded)
            elif is_loaded and loaded is None and on_disk[module].srcversion is None:
                yield self._without_srcversion(module, on_disk[module])
            else:
                yield SrcVersions(module, on_disk[module].srcversion, loaded)

    def _without_srcversion(self, module: str, on_disk: modules.Installed) -> SrcVersions:
        """The build-ids or versions to compare instead; None if one side lacks them."""
        root = self.settings.driver_root
        ids = modules.build_id_of(on_disk, root), modules.loaded_build_id(module, self.sysfs)
        if all(ids):
            return SrcVersions(module, f"build-id {ids[0]}", f"build-id {ids[1]}")
        version = on_disk.fields.get("version")
        loaded_version = modules.loaded_version(module, self.sysfs)
        if version and loaded_version:
            return SrcVersions(module, f"version {version}", f"version {loaded_version}")
        return SrcVersions(module, None, None)

    def _loaded(self) -> frozenset[str]:
        return frozenset(each for each in self._modules() if modules.is_loaded(each, self.sysfs))

    def _wrong(
        self, seen: Iterable[SrcVersions], wanted: frozenset[str] = frozenset()
    ) -> list[str]:
        """Why the loaded modules are not the installed ones, or one of `wanted` is not loaded."""
        driver = self.settings.driver_module
        loaded = self._loaded()
        wrong = [] if driver in loaded else [f"{driver} is not loaded: this node has NO NIC driver"]
        for each in seen:
            if each.module in loaded and each.installed != each.loaded:
                wrong.append(self._described(each))
            elif each.module in wanted - loaded - {driver}:
                wrong.append(f"{each.module} was loaded before and is not now")
        return wrong

    def _described(self, each: SrcVersions) -> str:
        users = modules.refcount(each.module, self.sysfs)
        held = ", ".join(modules.holders(each.module, self.sysfs)) or "no module"
        return (
            f"{each.module} is loaded as {each.loaded or 'a build without srcversion'}, "
            f"installed is {each.installed or 'none with a srcversion'} "
            f"(held by {held}, reference count {users})"
        )

    def _what_now(self, now: tuple[SrcVersions, ...]) -> str:
        driver = self.settings.driver_module
        wrong = self._wrong(now)
        if driver not in self._loaded():
            return (
                f"this node has NO NIC driver now: run `modprobe {driver}`, and look at dmesg when "
                "that fails; nodeagent restores the VFs when it is started again"
            )
        if wrong:
            return (
                f"{driver} is still loaded, so the node has a driver; end what holds the modules "
                "(openibd names it), or see dmesg for why the installed ones do not load, and "
                "start nodeagent again"
            )
        return (
            f"the installed {driver} is loaded; load the missing modules with modprobe (see dmesg "
            "for why it failed), and start nodeagent again, which restores the VFs"
        )


_NOTHING_DONE = (
    "the old driver is still loaded; openibd exits 0 without doing anything when "
    "/etc/infiniband/openib.conf is missing or says ONBOOT=no"
)


def _last_words(said: Finished) -> str:
    lines = said.last_lines(_QUOTED_LINES)
    return f"saying: {' | '.join(lines)}" if lines else "saying nothing"
