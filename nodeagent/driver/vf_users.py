"""VFs in use that a virtual machine, a process or a pod would lose for good in a reload."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from nodeagent.driver.findings import Check, Finding
from nodeagent.kernel import modules, rooms, users
from nodeagent.kernel.events import EndWatch, StopSignal, Watch, wait_until_clear
from nodeagent.kernel.netns import Namespaces
from nodeagent.kernel.sysfs import PASSED_THROUGH, Sysfs
from nodeagent.record.lock import is_locked
from nodeagent.settings import PodInterfaces, PodLosses, Settings
from nodeagent.state.model import SUBFUNCTION, DeviceHandle
from nodeagent.state.namespaces import Namespace

_VHOST_VDPA = "/vhost-vdpa-"


def findings(settings: Settings, sysfs: Path, proc: Path, dev: Path) -> Iterator[Finding]:
    """The findings about VFs in use. Changes nothing."""
    return _Look(settings, sysfs, proc, dev).findings()


def await_vfio_closed(
    settings: Settings,
    stop: StopSignal | None,
    sysfs: Path,
    proc: Path,
    dev: Path,
    *,
    timeout: float,
) -> None:
    """Return when no process has a VF open through VFIO. Changes nothing.

    The removal of such a VF waits until the process closes it, without a time limit and even after
    SIGKILL (drivers/vfio/vfio_main.c, vfio_unregister_group_dev()): openibd would hang with the
    driver half unloaded. WaitTimeout after `timeout` seconds names the processes.
    """
    look = _Look(settings, sysfs, proc, dev)
    held = [*look.held_by_vfio()]
    if not held:
        return
    with ExitStack() as stack:
        watches: list[Watch] = [] if stop is None else [stop]
        for pid in {user.pid for _, user in held}:
            with suppress(ProcessLookupError):
                watches.append(stack.enter_context(EndWatch(pid)))
        wait_until_clear(
            lambda: (f"{vf}: {user}" for vf, user in replace(look).held_by_vfio()),
            *watches,
            what="processes to close VFs that they have open through VFIO, whose loss is accepted",
            timeout=timeout,
        )


@dataclass(frozen=True)
class _Look:
    settings: Settings
    sysfs: Path
    proc: Path
    dev: Path

    @property
    def _strict(self) -> bool:
        return not self.settings.skip_preflight

    @property
    def _blocks(self) -> bool:
        """Whether the loss of a pod's device blocks a reload."""
        return self._strict or self.settings.pod_losses == PodLosses.BLOCK

    @cached_property
    def _has_companion(self) -> bool:
        """Whether a companion is on the node, which saves what is in pods and puts it back."""
        return is_locked(self.settings.companion_lock_path)

    @cached_property
    def _tree(self) -> Sysfs:
        return Sysfs(self.sysfs)

    def held_by_vfio(self) -> Iterator[tuple[str, users.User]]:
        """VFs, by their names in messages, and the processes that have them open."""
        for pf in self._tree.physical_functions(self.settings.driver_module):
            for index, device, bound in self._vfs(pf):
                if "vfio" in bound:
                    for user in self._users_of(*device):
                        yield f"{pf} vf {index} ({device.name}, {bound})", user

    def _vfs(self, pf: DeviceHandle) -> Iterator[tuple[int, DeviceHandle, str]]:
        """A PF's VFs that are devices: index, function, and the driver it is bound to."""
        for index, vf in sorted(self._tree.functions(*pf).items()):
            device = pf.with_name(vf)
            yield index, device, self._tree.driver(*device)

    def findings(self) -> Iterator[Finding]:
        """The findings about passed-through VFs, subfunctions, vDPA devices, and VFs in pods."""
        driver = self.settings.driver_module
        away: dict[DeviceHandle, str] = {}
        subfunctions: list[DeviceHandle] = []
        for pf in self._tree.physical_functions(driver):
            given: dict[str, Sequence[users.User]] = {}
            for index, device, bound in self._vfs(pf):
                if bound in PASSED_THROUGH:
                    given[f"{index} ({device.name}, {bound}"] = self._users_of(*device)
                elif bound == driver and self._has_no_interface(*device):
                    away[device] = f"{pf} vf {index} ({device.name})"
            if given:
                yield self._given(str(pf), given)
            if ports := sorted(filter(SUBFUNCTION.fullmatch, self._tree.ports(*pf))):
                yield _subfunctions(pf, ports)
            for number, device in sorted(self._tree.subfunctions(*pf).items()):
                subfunctions.append(device)
                if self._has_no_interface(*device):
                    yield self._elsewhere(f"{pf} subfunction sf{number} ({device.name})")
        for device in (*self._own_functions(), *subfunctions):
            yield from self._vdpa(device)
        yield from self._in_namespaces(away)

    def _vdpa(self, device: DeviceHandle) -> Iterator[Finding]:
        """The vDPA devices of a function. An open one always blocks a reload.

        The unload of mlx5_vdpa, and with it openibd, would wait until it is closed
        (drivers/vhost/vdpa.c, vhost_vdpa_remove()).
        """
        named = self._tree.vdpa_devices(*device)
        if not named:
            return
        holders = [
            user
            for user in self._users_of(*device)
            if any(_VHOST_VDPA in path for path in user.holds)
        ]
        if holders:
            yield Finding(
                Check.VFS,
                f"{device}: its vDPA device is in use: {', '.join(map(str, holders))}",
                "the unload of mlx5_vdpa waits until it is closed, with half of the stack unloaded",
                "end that process, or migrate the virtual machine",
                blocks=True,
                pods=users.pods_of(holders),
            )
        yield Finding(
            Check.VFS,
            f"{device} has vDPA devices: {', '.join(named)}",
            "nodeagent makes them again after the reload, if the new driver can; what is set on "
            "an interface of virtio_vdpa is lost",
            "set that again afterwards, if it was set",
            blocks=False,
        )

    def _elsewhere(self, subfunction: str) -> Finding:
        return Finding(
            Check.PODS,
            f"{subfunction}: its interface is in another network namespace",
            "the pod loses it: the subfunction is made again, and its interface stays in the "
            "host's namespace",
            "restart that pod afterwards, or accept the loss (POD_LOSSES=accept)",
            blocks=self._blocks,
        )

    def _given(self, pf: str, given: Mapping[str, Sequence[users.User]]) -> Finding:
        """`given`: VFs with their drivers, and the processes that hold them."""
        holders = [user for held_by in given.values() for user in held_by]
        lines = (", ".join([vf, *map(str, held_by)]) + ")" for vf, held_by in given.items())
        return Finding(
            Check.VFS,
            f"{pf}: given to virtual machines or userspace drivers: VF {', '.join(lines)}",
            "a virtual machine or a DPDK process that uses the VF loses it",
            "drain the node first, or accept the loss (POD_LOSSES=accept)",
            blocks=self._blocks if holders else self._strict,
            pods=users.pods_of(holders),
        )

    def _in_namespaces(self, away: Mapping[DeviceHandle, str]) -> Iterator[Finding]:
        """VFs whose interface is in another namespace and would not be restored."""
        elsewhere = self._tree.other_rdma_devices()
        found = rooms.locate(Namespaces(self.proc), away, elsewhere) if away else {}
        if self.settings.pod_interfaces == PodInterfaces.REPORT:
            for device, (namespace, _) in found.items():
                yield Finding(
                    Check.PODS,
                    f"{away[device]} is in {namespace}",
                    "with POD_INTERFACES=report the pod's interface is not restored",
                    "set POD_INTERFACES=restore, or restart those pods afterwards",
                    blocks=self._strict,
                    pods=_pod_of(namespace),
                )
        if modules.parameter("ib_core", "netns_mode", self.sysfs) == "N":
            yield from self._rdma_devices(away, found)
        missing = {device: title for device, title in away.items() if device not in found}
        # a CNI may have moved one to the host's namespace in between
        if lost := [title for each, title in missing.items() if self._has_no_interface(*each)]:
            what = f"in a network namespace that is not visible: {', '.join(lost)}"
            if self._has_companion:
                why = "the pod is without its interface until the companion puts it back"
                yield Finding(Check.PODS, what, why, "see the companion's log", blocks=False)
                return
            yield Finding(
                Check.PODS,
                what,
                "the pod loses its interface, which cannot be restored",
                "deploy the companion beside it (manifests/overlays/companion); or run it with "
                "hostPID: true and the host's /run/netns, or on the host; or drain the node first "
                "(a NicClusterPolicy does, by safeLoad and drain of its upgradePolicy); or accept "
                "the loss (POD_LOSSES=accept)",
                blocks=self._blocks,
            )

    def _rdma_devices(
        self,
        away: Mapping[DeviceHandle, str],
        found: Mapping[DeviceHandle, tuple[Namespace, str | None]],
    ) -> Iterator[Finding]:
        """RDMA devices in exclusive mode that are in another namespace than their interface.

        It is unknown: sysfs shows the directory of a device in any namespace, but not its name.
        """
        here = {each.device for each in self._tree.rdma_devices()}
        for device in self._own_functions():
            namespace, name = found.get(device, (None, None))
            if name is None and device not in here and self._has_rdma(device):
                where = f" ({away[device]} is in {namespace})" if namespace is not None else ""
                yield Finding(
                    Check.PODS,
                    f"the RDMA device of {device} is neither here nor where its "
                    f"interface is{where}",
                    "it returns in the host's namespace, and is not moved to the pod",
                    "restart that pod afterwards, or accept the loss (POD_LOSSES=accept)",
                    blocks=self._blocks and not self._has_companion,
                    pods=() if namespace is None else _pod_of(namespace),
                )

    def _has_rdma(self, device: DeviceHandle) -> bool:
        return (self._tree.device(*device) / "infiniband").is_dir()

    def _own_functions(self) -> Iterator[DeviceHandle]:
        """All PFs and their VFs."""
        pfs = self._tree.physical_functions(self.settings.driver_module)
        return self._tree.with_functions(pfs)

    def _has_no_interface(self, bus: str, device: str) -> bool:
        """Whether an Ethernet function lacks its interface; on InfiniBand ib_ipoib creates them."""
        layers = self._tree.device(bus, device).glob("infiniband/*/ports/*/link_layer")
        is_ib = any(path.read_text().strip() == "InfiniBand" for path in layers)
        has_one = self._tree.interfaces(bus, device) or self._tree.has_no_ethernet(bus, device)
        return not is_ib and not has_one

    def _users_of(self, bus: str, device: str) -> list[users.User]:
        """The processes that have the function open."""
        wanted = users.files_of_function(self._tree.device(bus, device), self.dev)
        return [user for user in self._holders if wanted & {*user.holds}]

    @cached_property
    def _holders(self) -> tuple[users.User, ...]:
        return users.of_passed_through(self.dev, self.proc)


def _subfunctions(pf: DeviceHandle, ports: Iterable[str]) -> Finding:
    return Finding(
        Check.VFS,
        f"{pf} has subfunctions: {', '.join(ports)}",
        "the driver forgets their devlink ports, and takes their interfaces and RDMA devices with "
        "it; nodeagent makes them again, but not what DOCA-OFED's mlxdevm has set (trust, caps) "
        "and their RDMA devices' names, and nothing on a driver without CONFIG_MLX5_SF",
        "set that again afterwards, if it was set",
        blocks=False,
    )


def _pod_of(namespace: Namespace) -> tuple[str, ...]:
    return (namespace.pod,) if namespace.pod else ()
