"""The checks before a reload: what would make it fail or do harm. They change nothing.

A finding always blocks a reload if the reload would leave the node without its driver, or if the
driver container refuses it, too. Others block only with SKIP_PREFLIGHT_CHECKS=false.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nodeagent import hostpath
from nodeagent.driver import blacklist, openibd, privileges, uplink, vf_users
from nodeagent.driver.findings import Check, Finding
from nodeagent.driver.other_modules import PEERMEM
from nodeagent.driver.unloaded import BY_OPENIBD, IF_OF_OFED, always_unloaded
from nodeagent.errors import AgentError, WaitTimeout
from nodeagent.kernel import modules, trial, users
from nodeagent.kernel.events import StopSignal
from nodeagent.kernel.modules import Loaded
from nodeagent.kernel.sysfs import Sysfs, text_of
from nodeagent.settings import PodLosses, Settings
from nodeagent.state.model import DeviceHandle

log = logging.getLogger(__name__)

STATE_BYTES = 16 * 1024 * 1024
"""Space for snapshot and journal; a snapshot is well below a megabyte."""

# Open RDMA devices hold references to these modules, so a process explains the references.
_OPENED = frozenset({"ib_uverbs", "ib_umad", "rdma_ucm", "rdma_cm", "mlx5_ib"})

# The message of the driver container, so that a search finds it.
STORAGE_LOADED = (
    "storage modules are loaded for current driver, terminating prior driver reload failure due "
    'to UNLOAD_STORAGE_MODULES not set to "true"'
)


class PreflightFailed(AgentError):
    """A finding blocks the reload. Nothing was touched."""


@dataclass(frozen=True)
class Preflight:
    """The checks of this node, through /sys, /proc and /dev."""

    settings: Settings
    sysfs: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")

    def findings(self) -> tuple[Finding, ...]:
        """All findings, blocking ones first."""
        checks = (
            *(self._allowed, self._installed, self._loadable, self._storage, self._third_party),
            *(self._peermem, self._foreign_holders, self._processes, self._references),
            *(self._functions, self._uplink, self._space),
        )
        found = [finding for check in checks for finding in check()]
        return tuple(sorted(found, key=lambda finding: not finding.blocks))

    def await_vfio_closed(self, stop: StopSignal | None, timeout: float) -> None:
        """Return when no process has a VF open through VFIO, after their loss was accepted.

        PreflightFailed after `timeout` seconds. Changes nothing.
        """
        try:
            vf_users.await_vfio_closed(
                self.settings, stop, self.sysfs, self.proc, self.dev, timeout=timeout
            )
        except WaitTimeout as error:
            raise PreflightFailed(
                f"the driver is not reloaded, nothing was touched: {error.message}",
                hint="end these processes, or delete their pods, and start nodeagent again",
            ) from error

    @cached_property
    def loaded(self) -> dict[str, Loaded]:
        """The kernel's modules."""
        return modules.all_loaded(self.sysfs, self.proc)

    @cached_property
    def installed(self) -> modules.Installed:
        """The driver's module on disk; NoSuchModule, UnavailableError."""
        return modules.installed(self.settings.driver_module, self.settings.driver_root)

    @cached_property
    def ours(self) -> tuple[str, ...]:
        """The loaded modules that the restart unloads whatever the settings are."""
        return tuple(m for m in always_unloaded(self.settings) if m in self.loaded)

    @cached_property
    def dependents(self) -> dict[str, str]:
        """The other modules that use one of `ours`, directly or indirectly, and through which."""
        found: dict[str, str] = {}
        for module in self.ours:
            found = modules.held_through(module, self.loaded) | found
        return {module: through for module, through in found.items() if module not in self.ours}

    @property
    def _strict(self) -> bool:
        return not self.settings.skip_preflight

    @property
    def _keeps_pods(self) -> bool:
        return self.settings.pod_losses == PodLosses.BLOCK

    def _allowed(self) -> Iterator[Finding]:
        if missing := [*privileges.missing(self.sysfs, self.proc)]:
            yield Finding(
                Check.PRIVILEGES,
                "; ".join(missing),
                "the driver could not be unloaded, or its VFs could not be created again",
                "run it in a container with privileged: true, or as root on the host",
                blocks=True,
            )

    def _installed(self) -> Iterator[Finding]:
        settings = self.settings
        needed: tuple[Callable[[], object], ...] = (
            lambda: openibd.check(settings),
            lambda: self.installed,
            lambda: blacklist.check(settings),
        )
        for check in needed:
            try:
                check()
            except AgentError as error:
                why = "the restart would fail, or leave the node without its driver"
                yield Finding(Check.INSTALLED, error.message, why, error.hint or "", blocks=True)

    def _loadable(self) -> Iterator[Finding]:
        """The kernel would reject the module: it is for another kernel, or not signed."""
        driver = self.settings.driver_module
        why = "the kernel would reject it, and the node would be without its driver"
        try:
            fields = self.installed.fields
        except AgentError:
            return  # reported by _installed
        vermagic, signer = fields.get("vermagic", "").split()[:1], fields.get("signer")
        release = os.uname().release
        if vermagic and vermagic != [release]:
            what = f"the installed {driver} is built for {vermagic[0]}, this kernel is {release}"
            yield Finding(
                Check.LOADABLE, what, why, "install the driver for this kernel", blocks=True
            )
        if (enforced := self._signatures_enforced()) and not signer:
            what = f"the installed {driver} is not signed, and {enforced}"
            remedy = "sign it with a key that the kernel has (mokutil), or lift the lockdown"
            yield Finding(Check.LOADABLE, what, why, remedy, blocks=True)
            return
        if not [*privileges.missing(self.sysfs, self.proc)]:
            yield from self._refused()

    def _refused(self) -> Iterator[Finding]:
        """The modules of the reload that the kernel itself would reject."""
        settings = self.settings
        for name, module in modules.all_installed(self.ours, settings.driver_root).items():
            if said := trial.refusal(module, settings.driver_root):
                yield Finding(
                    Check.LOADABLE,
                    f"the kernel refuses the installed {name} ({module.filename}): {said}",
                    "it would be unloaded and not loaded again"
                    + (": the node would be without its driver" * (name == settings.driver_module)),
                    "install it again; a signed module that was changed afterwards (strip) must be "
                    "signed again",
                    blocks=True,
                )

    def _signatures_enforced(self) -> str:
        """Why the kernel rejects unsigned modules (kernel_lockdown(7)); "" if it does not."""
        lockdown = text_of(self.sysfs / "kernel/security/lockdown") or ""
        if "[integrity]" in lockdown or "[confidentiality]" in lockdown:
            return f"the kernel is locked down ({lockdown.partition('[')[2].partition(']')[0]})"
        if text_of(self.sysfs / "module/module/parameters/sig_enforce") == "Y":
            return "the kernel accepts signed modules only (module.sig_enforce)"
        return ""

    def _storage(self) -> Iterator[Finding]:
        found = self._loaded_of(self.settings.storage_modules)
        if found and not self.settings.unload_storage_modules:
            yield Finding(
                Check.STORAGE,
                f"{STORAGE_LOADED}: {', '.join(found)}",
                "storage mounted or exported over RDMA would hang, and the unload would fail",
                "unmount that storage and unload the modules, or set UNLOAD_STORAGE_MODULES=true",
                blocks=True,
            )

    def _third_party(self) -> Iterator[Finding]:
        found = self._loaded_of(self.settings.third_party_modules)
        held = [module for module in found if module in self.dependents]
        if held and not self.settings.unload_third_party_modules:
            yield Finding(
                Check.THIRD_PARTY,
                f"other vendors' RDMA modules are loaded: {', '.join(held)}",
                f"they use {', '.join(sorted({self.dependents[m] for m in held}))}, whose unload "
                "would fail after that of the driver: the node would be without one",
                "unload them, or set UNLOAD_THIRD_PARTY_RDMA_MODULES=true",
                blocks=True,
            )

    def _peermem(self) -> Iterator[Finding]:
        module = self.loaded.get(PEERMEM)
        if module is not None and module.refcount:
            yield Finding(
                Check.PEERMEM,
                f"{PEERMEM} is in use ({_count(module.refcount, 'reference')})",
                "a GPU job uses RDMA: its memory is registered with the driver",
                "end the jobs that use GPUDirect RDMA",
                blocks=True,
            )

    def _foreign_holders(self) -> Iterator[Finding]:
        """Modules that use `ours` and that neither openibd nor nodeagent unloads."""
        settings = self.settings
        known = {PEERMEM, *BY_OPENIBD, *IF_OF_OFED, *settings.auxiliary_modules}
        known |= {*settings.storage_modules, *settings.third_party_modules}
        for module, through in self.dependents.items():
            if module.replace("-", "_") not in {each.replace("-", "_") for each in known}:
                yield Finding(
                    Check.MODULES,
                    f"the module {module} uses {through}",
                    "openibd does not unload it: the unload would fail half-way, with part of the "
                    "stack or the driver itself unloaded",
                    f"unload it (modprobe -r {module}), or add it to MLX5_AUXILIARY_MODULES, which "
                    "nodeagent unloads before a reload and loads again afterwards",
                    blocks=True,
                )

    @cached_property
    def _device_users(self) -> tuple[users.User, ...]:
        return users.of_files(self.dev / "infiniband", self.proc)

    def _processes(self) -> Iterator[Finding]:
        for user in self._device_users:
            yield Finding(
                Check.PROCESSES,
                str(user),
                "openibd refuses to unload the driver while RDMA devices are open",
                f"end it (kill {user.pid}), or drain the node",
                blocks=self._strict or (bool(user.pod) and self._keeps_pods),
                pods=users.pods_of([user]),
            )
        for user in users.of_interfaces(self._interfaces(), self.proc):
            yield Finding(
                Check.PROCESSES,
                str(user),
                "its interface is removed and created again: it will receive no more packets",
                "restart it after the reload",
                blocks=self._strict,
            )
        for user in users.of_these_files(self._clocks(), self.proc):
            yield Finding(
                Check.PROCESSES,
                str(user),
                "the clock goes with the driver (ENODEV); while this is open, the new one has "
                "another number",
                f"end it (pid {user.pid}) before the reload, and start it again afterwards",
                blocks=self._strict,
                pods=users.pods_of([user]),
            )
        if not users.sees_the_host(self.proc):
            yield Finding(
                Check.PROCESSES,
                "the host's processes are not visible from this PID namespace",
                "processes that hold a device cannot be found",
                "run it with hostPID: true, or on the host",
                blocks=False,
            )

    def _references(self) -> Iterator[Finding]:
        """References to modules that no visible module or process explains."""
        for name in self.ours:
            module = self.loaded[name]
            if not module.unexplained or (self._device_users and name in _OPENED):
                continue
            driver = self.settings.driver_module
            is_below = bool({driver, "mlx5_ib"} & modules.held_through(name, self.loaded).keys())
            yield Finding(
                Check.REFERENCES,
                f"{name} has {_count(module.unexplained, 'reference')} that no module and no "
                "process seen here explains",
                "it cannot be unloaded while it is in use"
                + (": openibd would have unloaded the driver before it" if is_below else ""),
                "look for users in the kernel (mounts, sockets, tc, ipsec) and in containers",
                blocks=is_below or self._strict,
            )

    def _functions(self) -> Iterator[Finding]:
        return vf_users.findings(self.settings, self.sysfs, self.proc, self.dev)

    def _uplink(self) -> Iterator[Finding]:
        allowed = self.settings.allow_uplink_reload
        pfs = {
            name for _, name in Sysfs(self.sysfs).physical_functions(self.settings.driver_module)
        }
        for link in uplink.uplinks(self.settings.api_host, self.proc, self.sysfs):
            if on := sorted(link.devices & pfs):
                yield Finding(
                    Check.UPLINK,
                    f"{link.interface} on {', '.join(on)} is {link.reason}",
                    "the node is cut off during the reload; its addresses and routes are restored "
                    "with the VFs, but the state of a DHCP client or a VPN is not"
                    + ("; ALLOW_UPLINK_RELOAD=true allows it" if allowed else ""),
                    "set ALLOW_UPLINK_RELOAD=true, and have a console at hand",
                    blocks=not allowed,
                )

    def _space(self) -> Iterator[Finding]:
        settings = self.settings
        for path, needed in (
            (settings.state_dir, STATE_BYTES),
            (settings.ready_path, 4096),
            (settings.blacklist_file, 4096),
        ):
            place = next(each for each in (path, *path.parents) if hostpath.is_directory(each))
            facts = os.statvfs(place)
            free = facts.f_bavail * facts.f_frsize
            if free < needed or (facts.f_files and not facts.f_favail):
                yield Finding(
                    Check.DISK,
                    f"the file system of {path} has {free} bytes and {facts.f_favail} inodes free,"
                    f" but {needed} bytes are needed",
                    "the node's configuration could not be saved before the reload",
                    "make room on that file system",
                    blocks=True,
                )

    def _loaded_of(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name.replace("-", "_") in self.loaded]

    def _clocks(self) -> frozenset[str]:
        """The files of the PTP clocks of our PFs and VFs (drivers/ptp/ptp_clock.c)."""
        tree = Sysfs(self.sysfs)
        clocks = (each for own in self._devices() for each in tree.device(*own).glob("ptp/ptp*"))
        return frozenset(f"{self.dev}/{each.name}" for each in clocks)

    def _interfaces(self) -> Mapping[int, str]:
        """By ifindex, the devices of the interfaces of our PFs and VFs in this namespace."""
        tree = Sysfs(self.sysfs)
        found: dict[int, str] = {}
        for bus, device in self._devices():
            found |= dict.fromkeys(tree.interfaces(bus, device), f"{bus}/{device}")
        return found

    def _devices(self) -> Iterator[DeviceHandle]:
        """Our PFs and VFs."""
        tree = Sysfs(self.sysfs)
        return tree.with_functions(tree.physical_functions(self.settings.driver_module))


def enforce(findings: Iterable[Finding]) -> None:
    """Log the findings; PreflightFailed if any of them blocks."""
    blocking = []
    for each in findings:
        if each.blocks:
            blocking.append(each)
        else:
            log.warning("%s: %s; %s", each.check, each.what, each.why)
    if blocking:
        lines = [f"  {each.check}: {each.what}; {each.why}" for each in blocking]
        raise PreflightFailed(
            "\n".join(["the driver is not reloaded, nothing was touched:", *lines]),
            hint="; ".join(dict.fromkeys(each.remedy for each in blocking if each.remedy)),
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
