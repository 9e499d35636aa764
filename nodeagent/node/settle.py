"""Wait for PFs, VFs and their interfaces, until udev has finished with them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain

from nodeagent.errors import WaitTimeout
from nodeagent.kernel import udev
from nodeagent.kernel.devlink import HealthWatch
from nodeagent.kernel.events import LinkWatch, UdevWatch, Watch, wait_until_clear
from nodeagent.kernel.sysfs import PASSED_THROUGH
from nodeagent.node.attempt import Attempt
from nodeagent.node.auxiliary import probe_again
from nodeagent.node.devices import write_devices
from nodeagent.node.failures import Failures, timed_out
from nodeagent.node.locate import (
    LinksByDevice,
    absence,
    device_of,
    failed_reloads,
    ifindex_of,
    ifindex_on,
    is_bound,
    is_hung,
    link_of,
    links_by_device,
)
from nodeagent.node.node import Node
from nodeagent.node.observe import numvfs
from nodeagent.node.takings import Takings
from nodeagent.plan.actions import BindPf
from nodeagent.record.gaps import Moment
from nodeagent.state.eswitch import EswitchMode
from nodeagent.state.model import NO_DRIVER, DeviceHandle, NodeState, Target

log = logging.getLogger(__name__)


@contextmanager
def watching(node: Node) -> Iterator[tuple[Watch, ...]]:
    """The watches of a wait for devices. Enter it before acting, so that no event is missed."""
    with ExitStack() as held:
        health = held.enter_context(HealthWatch())
        with node.devlink() as devlink:
            health.in_fatal_error.update(devlink.in_fatal_error())
        watches: list[Watch] = [held.enter_context(LinkWatch()), health]
        if udev.is_running(node.udev_run):
            watches.append(held.enter_context(UdevWatch()))
        else:
            log.info("udevd is not running: interfaces count as settled once they exist")
        watches += node.stops
        yield tuple(watches)


def finished_by_udev(watches: Iterable[Watch]) -> set[int]:
    """The ifindexes that udev has broadcast; draining the watch adds to the set."""
    return next((watch.finished for watch in watches if isinstance(watch, UdevWatch)), set())


def in_fatal_error(watches: Iterable[Watch]) -> set[DeviceHandle]:
    """The devices whose firmware has had a fatal error, and whose driver has not recovered.

    Nothing of them appears until then. Draining the watch changes the set.
    """
    return next((each.in_fatal_error for each in watches if isinstance(each, HealthWatch)), set())


def is_of(node: Node, target: Target, broken: Collection[DeviceHandle]) -> bool:
    """Whether it belongs to a PF that is in `broken`, or is of a function that is."""
    return bool(broken) and (target.pf in broken or device_of(node, target) in broken)


def note_settled(node: Node, targets: Iterable[Target], watches: Iterable[Watch]) -> None:
    """Note when udev finished with the interfaces of settled VFs, unless that is noted already.

    udev writes an interface to its database before it broadcasts the event: a wait can end before
    the event arrives. The present time is noted then.
    """
    watch = next((watch for watch in watches if isinstance(watch, UdevWatch)), None)
    if watch is None:
        return
    watch.drain()
    for target in targets:
        if isinstance(target.port, int) and not node.vf_times.has(target, Moment.SETTLED):
            index = ifindex_of(node, target)
            at = None if index is None else watch.finished_at.get(index)
            if index is not None and (at is not None or unsettled(node, target) is None):
                node.vf_times.note(target, Moment.SETTLED, at)


def wait_for_pfs(node: Node, state: NodeState) -> None:
    """Wait until every PF of `state` is bound and its netdev settled; WaitTimeout names it.

    A PF without its driver is probed once more at once: firmware refused the first probe, or did
    not answer, and the kernel does not repeat one. A PF that fails again is not waited for: the
    restore tries it a last time, and says what failed. Nor is one that is not on the bus: a driver
    neither removes a PCI device nor adds it.
    """
    targets = [Target(pf.handle) for pf in state.pfs if pf.netdev is not None]
    with watching(node) as watches:
        absent = {target for target in targets if not node.sysfs.exists(*target.pf)}
        for target in sorted(absent):
            log.warning("%s: %s", target, absence(target.pf))
        lost = bind_pfs(node, state) | absent
        probe_again(node)
        wait_settled(node, targets, watches, "PFs", node.settings.pf_timeout, lost=lost)


def bind_pfs(node: Node, state: NodeState) -> set[Target]:
    """Probe each PF that is there and has no driver, if the driver is loaded.

    Returns those that have none afterwards.
    """
    unbound = [
        BindPf(pf.handle, state.driver)
        for pf in state.pfs
        if node.sysfs.exists(*pf.handle)
        and node.sysfs.driver(*pf.handle) == NO_DRIVER
        and node.sysfs.has_driver(pf.handle.bus, state.driver)
    ]
    if unbound:
        names = ", ".join(str(action.pf) for action in unbound)
        log.warning("the driver is loaded but not bound to %s: probing once more", names)
    failures = write_devices(Attempt(node), unbound, watches=node.stops)
    for _, text in failures:
        log.warning("%s", text)
    return {target for target, _ in failures}


def wait_settled(
    node: Node,
    targets: Iterable[Target],
    watches: tuple[Watch, ...],
    what: str,
    timeout: float,
    *,
    takings: Takings | None = None,
    lost: Collection[Target] = (),
) -> None:
    """Wait until each target is bound, has its netdev, and udev has finished with that.

    `takings`: do not wait for VFs that are taken meanwhile. `lost`: targets whose failure is known;
    the wait for one ends as soon as it has no driver. The `driver` link exists until the end of a
    failing probe (really_probe(), drivers/base/dd.c). What another program removes meanwhile is not
    waited for either, nor what belongs to a PF, a VF or a subfunction in a fatal error: the next
    comparison finds that.
    """
    finished, broken = finished_by_udev(watches), in_fatal_error(watches)

    def missing(target: Target) -> str | None:
        if target in lost and not is_bound(node, target):
            return None
        why = unsettled(node, target, finished)
        if why is None or is_of(node, target, broken) or is_removed(node, target):
            return None
        is_taken = takings is not None and takings.is_taken(node, target, watches)
        return None if is_taken else why

    wait_until_clear(
        outstanding(targets, missing), *watches, what=what, timeout=timeout, progress=True
    )


def is_removed(node: Node, target: Target) -> bool:
    """Whether it is a VF that its PF no longer has, or a port of a PF that has lost its driver.

    Or a port of an eswitch that is in legacy mode, which has none.
    """
    pf, port = target
    if port is None or (isinstance(port, int) and device_of(node, target) is not None):
        return False
    if not node.sysfs.exists(*pf) or node.sysfs.driver(*pf) == NO_DRIVER:
        return True
    if not isinstance(port, int):
        with node.devlink() as devlink:
            return devlink.eswitch(pf).eswitch_mode is EswitchMode.LEGACY
    count = numvfs(node, pf)
    return count is not None and count <= port


def unsettled(node: Node, target: Target, finished: Collection[int] = ()) -> str | None:
    """Why a PF or VF is not settled yet; None if it is.

    `finished`: ifindexes that udev has broadcast, also for interfaces that it could not rename and
    did not write to its database.
    """
    device = device_of(node, target)
    if device is None or not node.sysfs.exists(*device):
        why = " (no such function)" if target.port is not None else f": {absence(target.pf)}"
        return f"{target}{why}"
    where = str(target)
    if isinstance(target[1], int):
        where += f" ({device[1]})"
    driver = node.sysfs.driver(*device)
    if driver == NO_DRIVER:
        return f"{where}: bound to no driver"
    if driver in PASSED_THROUGH:
        # a virtual machine or a process has it: it gets no interface, which the plan reports
        return None
    index = ifindex_on(node, device, target)
    if index is None:
        return f"{where}: no network interface"
    if index in finished or udev.is_initialized(index, node.udev_run):
        return None
    if udev.has_given_up(index, node.udev_run) or not udev.is_running(node.udev_run):
        return None
    return f"{where}: udev has not finished with its interface"


def outstanding(
    targets: Iterable[Target], reason: Callable[[Target], str | None]
) -> Callable[[], Iterator[str]]:
    """An argument for `wait_until_clear` that begins where the last look stopped.

    While something is missing a look costs one check. When nothing seems to be missing, all targets
    are checked once more, because one may have disappeared.
    """
    waiting = list(targets)
    start = 0

    def look() -> Iterator[str]:
        nonlocal start
        is_first = True
        for position in chain(range(start, len(waiting)), range(start)):
            missing = reason(waiting[position])
            if missing is not None:
                if is_first:
                    start, is_first = position, False
                yield missing

    return look


def await_functions(
    node: Node, counts: Mapping[DeviceHandle, int], watches: tuple[Watch, ...]
) -> Failures:
    """Wait until each PF has as many functions as VFs were created (some drivers are late).

    Not for a PF that is gone, or whose write hangs: its failure is known.
    """
    created = {
        pf: count
        for pf, count in counts.items()
        if node.sysfs.has_functions(pf.bus)
        and node.sysfs.exists(pf.bus, pf.name)
        and not is_hung(node, Target(pf))
    }
    targets = [Target(pf, index) for pf, count in created.items() for index in range(count)]

    def missing(target: Target) -> str | None:
        # another program may have set another number, which the next comparison finds
        if device_of(node, target) is not None or numvfs(node, target[0]) != created[target[0]]:
            return None
        return f"{target}: has not appeared"

    return await_each(node, targets, missing, watches, "VFs to appear")


def await_each(
    node: Node,
    targets: Sequence[Target],
    missing: Callable[[Target], str | None],
    watches: Iterable[Watch],
    what: str,
) -> Failures:
    """Wait until `missing` returns None for each target: at most VF_TIMEOUT from one to the next.

    A message for each that is missing then. What belongs to a function in a fatal error is not
    waited for.
    """
    timeout = node.settings.vf_timeout
    broken = in_fatal_error(watches)

    def awaited(target: Target) -> str | None:
        why = missing(target)
        return None if is_of(node, target, broken) else why

    try:
        wait_until_clear(
            outstanding(targets, awaited), *watches, what=what, timeout=timeout, progress=True
        )
    except WaitTimeout as late:
        return timed_out(late, targets, awaited)
    return []


def await_netdevs(
    attempt: Attempt, targets: Sequence[Target], watches: tuple[Watch, ...], lost: set[Target]
) -> Failures:
    """Wait until all are settled, except for lost ones, and not twice for the same reason.

    A target that was missing the last time and exists now, but is not settled, is waited for again.
    `lost`: targets whose failure is known. One whose driver failed to make its interface stays
    bound, and is not waited for in later plans either.
    """
    node, given_up = attempt.node, attempt.given_up
    for target in targets:
        if target in given_up and unsettled(node, target) != given_up[target]:
            del given_up[target]
        if target in lost and lacks_interface(node, target) and (why := unsettled(node, target)):
            given_up[target] = why
    devices = links_by_device(node) if lost else {}
    awaited = [
        target
        for target in targets
        if target not in given_up and not is_lost(node, target, lost, devices)
    ]
    timeout = node.settings.vf_timeout
    try:
        wait_settled(
            node,
            awaited,
            watches,
            "network interfaces",
            timeout,
            takings=attempt.takings,
            # nobody but a restore binds PFs, which is done by now
            lost=lost | {target for target in awaited if target.port is None},
        )
        bound = (each for each in awaited if node.vf_times.has(each, Moment.BOUND))
        note_settled(node, bound, watches)
    except WaitTimeout as late:
        awaited = [target for target in awaited if not attempt.takings.has(target)]
        reasons = {target: unsettled(node, target) for target in awaited}
        given_up.update((target, why) for target, why in reasons.items() if why is not None)
        return timed_out(late, awaited, reasons.__getitem__)
    return []


def is_lost(node: Node, target: Target, lost: set[Target], devices: LinksByDevice) -> bool:
    """Whether its failure is known (it is in `lost`) and waiting is of no use.

    A representor does not appear if its PF's VFs could not be created or its eswitch's mode not be
    set. A bind that has not returned was waited for already, and a devlink reload that has failed
    leaves no interface.
    """
    if isinstance(target[1], str):
        return (target[0], None) in lost and link_of(node, target, devices) is None
    if target not in lost:
        return False
    device = device_of(node, target)
    if device is None or is_hung(node, target) or not is_bound(node, target):
        return True
    return device in failed_reloads(node)


def lacks_interface(node: Node, target: Target) -> bool:
    """Whether it is bound to a driver that could not make its interface."""
    device = device_of(node, target)
    return device is not None and node.sysfs.interface_without_driver(*device) is not None


def lacks_pf(node: Node, target: Target, lost: set[Target]) -> bool:
    """Whether its PF, on which an action has failed (it is in `lost`), lacks what it depends on.

    That is the PF's driver, and for a VF its function.
    """
    pf = Target(target.pf)
    if pf not in lost:
        return False
    if not is_bound(node, pf):
        return True
    is_function = isinstance(target.port, int) and node.sysfs.has_functions(target.pf.bus)
    return is_function and device_of(node, target) is None
