"""What would make the reload fail, or hurt: looked at before anything is touched.

Two kinds of finding. What would leave the node without its driver, or what the driver container
refuses, always blocks. The rest blocks only with SKIP_PREFLIGHT_CHECKS=false, as there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nodeagent.driver import blacklist, openibd, privileges, uplink, users
from nodeagent.driver.neighbours import PEERMEM
from nodeagent.errors import AgentError
from nodeagent.kernel import modules
from nodeagent.kernel.modules import Loaded
from nodeagent.kernel.netns import Namespaces
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.settings import Settings
from nodeagent.sriov import inside
from nodeagent.sriov.namespaces import Namespace

log = logging.getLogger(__name__)

MLX5 = "mlx5_core"
NEEDED_BYTES = 16 * 1024 * 1024
"""For the snapshot and the journal: no snapshot of a node comes near a megabyte."""

# What the real openibd's stop unloads by itself: our stack, the upper layers before the lower.
STACK = (
    *("ib_ipoib", "rdma_ucm", "ib_ucm", "rdma_cm", "iw_cm", "ib_cm", "ib_umad", "ib_uverbs"),
    *("mlx5_ib", MLX5, "mlx4_ib", "mlx4_en", "mlx4_core", "ib_core", "mlxfw", "mlxdevm"),
    *("mlx_compat", "mlx5_netdev", "auxiliary"),
)
# Taking these ends the use of the devices by processes, so a process explains their references.
_OPENED = frozenset({"ib_uverbs", "ib_umad", "rdma_ucm", "rdma_cm", "mlx5_ib"})

# The sentence of the driver container, which people search for.
STORAGE_LOADED = (
    "storage modules are loaded for current driver, terminating prior driver reload failure due "
    'to UNLOAD_STORAGE_MODULES not set to "true"'
)


class PreflightFailed(AgentError):
    """A finding blocks the reload. Nothing was touched."""


@dataclass(frozen=True)
class Finding:
    """`check` is what was looked at; `what` is there, `why` it matters, `remedy` what to do."""

    check: str
    what: str
    why: str
    remedy: str
    blocks: bool
    pods: tuple[str, ...] = ()
    """UIDs of the pods that lose something for good."""


@dataclass(frozen=True)
class Look:
    """One look at this node, through /sys, /proc and /dev."""

    settings: Settings
    sysfs: Path = Path("/sys")
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")

    def findings(self) -> tuple[Finding, ...]:
        """Everything that was found, what blocks first. Touches nothing."""
        checks = (
            *(self._allowed, self._installed, self._loadable, self._storage, self._third_party),
            *(self._peermem, self._foreign_holders, self._processes, self._references),
            *(self._functions, self._uplink, self._space),
        )
        found = [finding for check in checks for finding in check()]
        return tuple(sorted(found, key=lambda finding: not finding.blocks))

    @cached_property
    def loaded(self) -> dict[str, Loaded]:
        """The kernel's modules."""
        return modules.all_loaded(self.sysfs, self.proc)

    @cached_property
    def ours(self) -> tuple[str, ...]:
        """The loaded modules that the restart takes away."""
        driver = self.settings.driver_module
        return tuple(m for m in (STACK if driver == MLX5 else (driver,)) if m in self.loaded)

    @cached_property
    def dependents(self) -> dict[str, str]:
        """Every other module that uses one of ours, directly or not, and through which."""
        found: dict[str, str] = {}
        for module in self.ours:
            found = modules.held_through(module, self.loaded) | found
        return {module: through for module, through in found.items() if module not in self.ours}

    @property
    def _strict(self) -> bool:
        return not self.settings.skip_preflight

    @property
    def _keeps_pods(self) -> bool:
        return self.settings.pod_losses == "block"

    def _allowed(self) -> Iterator[Finding]:
        if missing := [*privileges.lacking(self.sysfs, self.proc)]:
            yield Finding(
                "privileges",
                "; ".join(missing),
                "the driver would not be unloaded, or its VFs not be made again",
                "run it in a container with privileged: true, or as root on the host",
                blocks=True,
            )

    def _installed(self) -> Iterator[Finding]:
        settings = self.settings
        needed: tuple[Callable[[], object], ...] = (
            lambda: openibd.check(settings),
            lambda: modules.installed_filename(settings.driver_module, settings.driver_root),
            lambda: blacklist.check(settings),
        )
        for check in needed:
            try:
                check()
            except AgentError as error:
                why = "the restart would fail, or leave the node without its driver"
                yield Finding("installed", error.message, why, error.hint or "", blocks=True)

    def _loadable(self) -> Iterator[Finding]:
        """The kernel would refuse the module: built for another one, or not signed."""
        driver, root = self.settings.driver_module, self.settings.driver_root
        why = "the kernel would not load it, and the node would be without its driver"
        try:
            vermagic = modules.installed_field(driver, "vermagic", root).split()[:1]
            signer = modules.installed_field(driver, "signer", root)
        except AgentError:
            return  # told by _installed
        release = os.uname().release
        if vermagic and vermagic != [release]:
            what = f"the installed {driver} is built for {vermagic[0]}, this kernel is {release}"
            yield Finding("loadable", what, why, "install the driver for this kernel", blocks=True)
        if (enforced := self._signatures_enforced()) and not signer:
            what = f"the installed {driver} is not signed, and {enforced}"
            remedy = "sign it with a key that the kernel has (mokutil), or lift the lockdown"
            yield Finding("loadable", what, why, remedy, blocks=True)

    def _signatures_enforced(self) -> str:
        """Why unsigned modules are refused; "" when they are not (kernel_lockdown(7))."""
        lockdown = _text(self.sysfs / "kernel/security/lockdown")
        if "[integrity]" in lockdown or "[confidentiality]" in lockdown:
            return f"the kernel is locked down ({lockdown.partition('[')[2].partition(']')[0]})"
        if _text(self.sysfs / "module/module/parameters/sig_enforce") == "Y":
            return "the kernel takes signed modules only (module.sig_enforce)"
        return ""

    def _storage(self) -> Iterator[Finding]:
        found = self._loaded_of(self.settings.storage_modules)
        if found and not self.settings.unload_storage_modules:
            yield Finding(
                "storage",
                f"{STORAGE_LOADED}: {', '.join(found)}",
                "what is mounted or exported over RDMA would hang, and the unload would fail",
                "end that use and unload them, or set UNLOAD_STORAGE_MODULES=true",
                blocks=True,
            )

    def _third_party(self) -> Iterator[Finding]:
        found = self._loaded_of(self.settings.third_party_modules)
        held = [module for module in found if module in self.dependents]
        if held and not self.settings.unload_third_party_modules:
            yield Finding(
                "third-party",
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
                "peermem",
                f"{PEERMEM} is in use ({_count(module.refcount, 'reference')})",
                "a GPU job uses RDMA: its memory is registered with the driver",
                "end the jobs that use GPUDirect RDMA",
                blocks=True,
            )

    def _foreign_holders(self) -> Iterator[Finding]:
        """Modules that use ours, and that nobody unloads."""
        settings = self.settings
        told = {PEERMEM, *STACK, *settings.auxiliary_modules}
        told |= {*settings.storage_modules, *settings.third_party_modules}
        for module, through in self.dependents.items():
            if module.replace("-", "_") not in {each.replace("-", "_") for each in told}:
                yield Finding(
                    "modules",
                    f"the module {module} uses {through}",
                    "openibd does not know it: the unload would fail half-way, with part of the "
                    "stack or the driver itself gone",
                    f"end its use and unload it (modprobe -r {module}), or name it in "
                    "MLX5_AUXILIARY_MODULES: those are unloaded before and loaded again after",
                    blocks=True,
                )

    @cached_property
    def _device_users(self) -> tuple[users.User, ...]:
        return users.of_files(self.dev / "infiniband", self.proc)

    def _processes(self) -> Iterator[Finding]:
        for user in self._device_users:
            yield Finding(
                "processes",
                str(user),
                "openibd refuses to unload the driver while RDMA devices are open",
                f"end it (kill {user.pid}), or drain the node",
                blocks=self._strict or (bool(user.pod) and self._keeps_pods),
                pods=_pods([user]),
            )
        for user in users.of_interfaces(self._interfaces(), self.proc):
            yield Finding(
                "processes",
                str(user),
                "its interface goes and comes back as another: it will see no packets any more",
                "start it again after the reload",
                blocks=self._strict,
            )
        if not users.sees_the_host(self.proc):
            yield Finding(
                "processes",
                "the host's processes are not visible from this PID namespace",
                "who holds a device can't be told",
                "run it with hostPID: true, or on the host",
                blocks=False,
            )

    def _references(self) -> Iterator[Finding]:
        """Held, and no module and no process that is seen holds it."""
        for name in self.ours:
            module = self.loaded[name]
            if not module.unexplained or (self._device_users and name in _OPENED):
                continue
            driver = self.settings.driver_module
            is_below = bool({driver, "mlx5_ib"} & modules.held_through(name, self.loaded).keys())
            yield Finding(
                "references",
                f"{name} has {_count(module.unexplained, 'reference')} that no module and no "
                "process seen here explains",
                "it can't be unloaded while it is held"
                + (": openibd would have unloaded the driver before it" if is_below else ""),
                "look for users in the kernel (mounts, sockets, tc, ipsec) and in containers",
                blocks=is_below or self._strict,
            )

    def _functions(self) -> Iterator[Finding]:
        """VFs that somebody has: a virtual machine, a userspace driver, a pod."""
        tree = Sysfs(self.sysfs)
        driver = self.settings.driver_module
        unseen: dict[tuple[str, str], str] = {}
        for bus, pf in tree.physical_functions(driver):
            given, holders = [], []
            for index, vf in sorted(tree.functions(bus, pf).items()) if bus == "pci" else ():
                bound = tree.driver(bus, vf)
                if bound in _PASSED_THROUGH:
                    users_of_it = self._group_users(bus, vf)
                    said = "".join(f", {user}" for user in users_of_it)
                    given.append(f"{index} ({vf}, {bound}{said})")
                    holders += users_of_it
                elif bound == driver and not tree.interfaces(bus, vf) and not self._is_ib(bus, vf):
                    unseen[bus, vf] = f"{bus}/{pf} vf {index} ({vf})"
            if given:
                yield Finding(
                    "vfs",
                    f"{bus}/{pf}: given to virtual machines or userspace drivers: VF "
                    + ", ".join(given),
                    "the VF vanishes under its user; a guest or a DPDK process loses its device",
                    "drain the node first, or accept it: POD_LOSSES=accept",
                    blocks=self._strict or (bool(holders) and self._keeps_pods),
                    pods=_pods(holders),
                )
        yield from self._in_namespaces(unseen)

    def _in_namespaces(self, away: Mapping[tuple[str, str], str]) -> Iterator[Finding]:
        """VFs (by bus and device) whose interface is not here: those that can't be put back."""
        found = inside.locate(Namespaces(self.proc), away) if away else {}
        if self.settings.pod_interfaces == "report":
            for device, namespace in found.items():
                yield Finding(
                    "pods",
                    f"{away[device]} is in {namespace}",
                    "with POD_INTERFACES=report the pod's interface is not put back",
                    "set POD_INTERFACES=restore, or start those pods again afterwards",
                    blocks=self._strict,
                    pods=(namespace.pod,) if namespace.pod else (),
                )
        if modules.parameter("ib_core", "netns_mode", self.sysfs) == "N":
            yield from self._rdma_devices(away, found)
        if lost := [title for device, title in away.items() if device not in found]:
            yield Finding(
                "pods",
                f"in a network namespace that can't be seen: {', '.join(lost)}",
                "the pod loses its interface, and it can't be put back",
                "run it with hostPID: true and the host's /run/netns, or on the host; or drain the "
                "node first; or accept it: POD_LOSSES=accept",
                blocks=self._strict or self._keeps_pods,
            )

    def _rdma_devices(
        self, away: Mapping[tuple[str, str], str], found: Mapping[tuple[str, str], Namespace]
    ) -> Iterator[Finding]:
        """In exclusive mode an RDMA device is in one namespace, like an interface.

        Its directory is there whatever namespace it is in; its name is not.
        """
        for device, namespace in found.items():
            if (Sysfs(self.sysfs).device(*device) / "infiniband").is_dir():
                yield Finding(
                    "pods",
                    f"the RDMA device of {away[device]} is in {namespace} (exclusive mode)",
                    "it comes back in the host's namespace, and is not put back into the pod",
                    "start that pod again afterwards, or accept it: POD_LOSSES=accept",
                    blocks=self._strict or self._keeps_pods,
                    pods=(namespace.pod,) if namespace.pod else (),
                )

    def _uplink(self) -> Iterator[Finding]:
        allowed = self.settings.allow_uplink_reload
        pfs = {
            name for _, name in Sysfs(self.sysfs).physical_functions(self.settings.driver_module)
        }
        for link in uplink.uplinks(self.settings.api_host, self.proc, self.sysfs):
            if on := sorted(link.devices & pfs):
                yield Finding(
                    "uplink",
                    f"{link.interface} on {', '.join(on)} is {link.reason}",
                    "the node is cut off while the driver is away; its addresses and routes there "
                    "are put back with the VFs, what a DHCP client or a VPN keeps in memory is not"
                    + ("; ALLOW_UPLINK_RELOAD=true allows it" if allowed else ""),
                    "set ALLOW_UPLINK_RELOAD=true, and have a console at hand",
                    blocks=not allowed,
                )

    def _space(self) -> Iterator[Finding]:
        settings = self.settings
        for path, needed in (
            (settings.state_dir, NEEDED_BYTES),
            (settings.ready_path, 4096),
            (settings.blacklist_file, 4096),
        ):
            place = next(each for each in (path, *path.parents) if each.is_dir())
            facts = os.statvfs(place)
            free = facts.f_bavail * facts.f_frsize
            if free < needed or (facts.f_files and not facts.f_favail):
                yield Finding(
                    "disk",
                    f"the file system of {path} has {free} bytes and {facts.f_favail} inodes free,"
                    f" needed are {needed} bytes",
                    "what the driver forgets could not be saved",
                    "make room there",
                    blocks=True,
                )

    def _loaded_of(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name.replace("-", "_") in self.loaded]

    def _interfaces(self) -> Mapping[int, str]:
        """ifindex and a name of each interface of our PFs and their VFs, in this namespace."""
        tree = Sysfs(self.sysfs)
        found: dict[int, str] = {}
        for bus, pf in tree.physical_functions(self.settings.driver_module):
            vfs = tree.functions(bus, pf).values() if bus == "pci" else ()
            for device in (pf, *vfs):
                found |= dict.fromkeys(tree.interfaces(bus, device), f"{bus}/{device}")
        return found

    def _is_ib(self, bus: str, device: str) -> bool:
        """An InfiniBand function has an interface only when ib_ipoib makes one."""
        layers = Sysfs(self.sysfs).device(bus, device).glob("infiniband/*/ports/*/link_layer")
        return any(_text(path) == "InfiniBand" for path in layers)

    def _group_users(self, bus: str, device: str) -> list[users.User]:
        """Who has the function's IOMMU group open."""
        group = Sysfs(self.sysfs).device(bus, device) / "iommu_group"
        wanted = str(self.dev / "vfio" / group.resolve().name)
        return [user for user in self._vfio_users if wanted in user.holds]

    @cached_property
    def _vfio_users(self) -> tuple[users.User, ...]:
        return users.of_files(self.dev / "vfio", self.proc)


# Drivers that hand a function to a virtual machine or to a process.
_PASSED_THROUGH = frozenset(
    {"vfio-pci", "mlx5_vfio_pci", "mlx5-vfio-pci", "pci-stub", "xen-pciback", "uio_pci_generic"}
    | {"igb_uio"}
)


def enforce(findings: Iterable[Finding]) -> None:
    """Log each finding; PreflightFailed with all that block, when any does."""
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


def _pods(found: Iterable[users.User]) -> tuple[str, ...]:
    return tuple(sorted({user.pod for user in found if user.pod}))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
