"""The actions of a plan that block: VFs are created, bound and unbound, and the eswitch is set.

Each action reads the present value first. The actions of a stage run in parallel
(nodeagent.kernel.parallel).
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from typing import Final

from nodeagent.errors import AgentError, KernelError, reason
from nodeagent.kernel import parallel
from nodeagent.kernel.devlink import Cmode, Devlink
from nodeagent.kernel.events import Watch
from nodeagent.node import retry, silent
from nodeagent.node.attempt import Attempt
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.locate import absence, device_of, failed_reloads, is_hung
from nodeagent.node.node import Node
from nodeagent.plan.actions import (
    BindPf,
    BindVf,
    CreateVfs,
    OverrideDriver,
    SetAutoprobe,
    SetDriverinit,
    SetEswitch,
    SetParam,
    UnbindPf,
    UnbindVf,
)
from nodeagent.record.gaps import Moment
from nodeagent.state.attributes import changed, given
from nodeagent.state.drivers import Trait, has
from nodeagent.state.eswitch import EswitchAttributes
from nodeagent.state.model import NO_DRIVER, DeviceHandle, Param, Target

log = logging.getLogger(__name__)

MAX_THREADS: Final = 16
"""Parallel writes, however few processors there are: a probe waits for the NIC's firmware. The
kernel probes VFs in parallel if their driver allows it."""

DeviceAction = (
    BindPf
    | UnbindPf
    | SetAutoprobe
    | CreateVfs
    | SetParam
    | SetDriverinit
    | SetEswitch
    | OverrideDriver
    | UnbindVf
    | BindVf
)


def write_devices(
    attempt: Attempt,
    actions: Sequence[DeviceAction],
    meanwhile: Callable[[], None] = lambda: None,
    watches: tuple[Watch, ...] = (),
    *,
    urgent: Collection[Target] = (),
) -> Failures:
    """Perform the writes of a stage; call `meanwhile` at each event until they have returned.

    Those on `urgent` VFs begin first. A write that has not returned after VF_TIMEOUT is a failure.
    """
    node = attempt.node
    # VFs of different PFs in turn: those of one PF share a mailbox or command queue
    actions = sorted(
        _necessary(node, actions),
        key=lambda each: (target_of(each) not in urgent, target_of(each)[1] or 0),
    )
    ends = [threading.Event() for _ in actions]
    jobs = [_ending(_job(attempt, a), ended) for a, ended in zip(actions, ends, strict=True)]
    results = parallel.run_all(
        jobs,
        timeout=node.settings.vf_timeout,
        threads=MAX_THREADS,
        name=lambda number: str(target_of(actions[number])),
        meanwhile=meanwhile,
        watches=watches,
    )
    return _failed(node, actions, results, ends)


def _necessary(node: Node, actions: Sequence[DeviceAction]) -> Sequence[DeviceAction]:
    """Without reloads of devices that have started with what is wanted: two requests for all.

    A VF that has just been bound is planned without its parameters, and has mostly the wanted ones.
    """
    if not any(isinstance(action, SetDriverinit) for action in actions):
        return actions
    try:
        with node.devlink() as devlink:
            instances, params = devlink.instances(), devlink.params()[Cmode.DRIVERINIT]
    except KernelError as error:
        log.debug("asking each device by itself: %s", error.message)
        return actions
    right = {device for device, instance in instances.items() if not instance.failed}
    return [
        action
        for action in actions
        if not isinstance(action, SetDriverinit)
        or (device := device_of(node, target_of(action))) not in right
        or _differ(action.params, params.get(device, ()))
    ]


def _differ(wanted: Iterable[Param], have: Iterable[Param]) -> bool:
    """Whether the driver has one of the wanted parameters with another value."""
    known = {param.name: param for param in have}
    return any(known.get(each.name, each) != each for each in wanted)


def _ending(job: parallel.Job, ended: threading.Event) -> parallel.Job:
    def run() -> None:
        try:
            job()
        finally:
            ended.set()

    return run


def _failed(
    node: Node,
    actions: Sequence[DeviceAction],
    results: Sequence[AgentError | None],
    ends: Sequence[threading.Event],
) -> Failures:
    """A line for each write that failed. Devices of writes that hang are added to `hung_calls`."""
    failures: Failures = []
    for action, result, ended in zip(actions, results, ends, strict=True):
        if result is None:
            continue
        target = target_of(action)
        text = f"{target}: {result.message}"
        failures.append((target, text))
        if isinstance(result, parallel.Stuck) and (device := device_of(node, target)) is not None:
            node.hung_calls.add(device, ended, text)
    return failures


def _job(attempt: Attempt, action: DeviceAction) -> Callable[[], None]:
    """The write for `action`, to be called in a thread."""
    node = attempt.node
    if is_hung(node, target_of(action)):
        return _not_tried
    match action:
        case BindPf():
            return lambda: _bind_pf(node, action)
        case UnbindPf():
            return lambda: _unbind_pf(node, action)
        case SetAutoprobe():
            return lambda: _set_autoprobe(node, action)
        case CreateVfs():
            return lambda: _create_vfs(attempt, action)
        case SetParam():
            return lambda: _set_param(node, action)
        case SetDriverinit():
            return lambda: _set_driverinit(node, action)
        case SetEswitch():
            return lambda: _set_eswitch(node, action)
        case OverrideDriver():
            return lambda: _override_driver(attempt, action)
        case UnbindVf():
            return lambda: _unbind_vf(attempt, action)
        case BindVf():
            return lambda: _bind_vf(attempt, action)


def _not_tried() -> None:
    raise KernelError("not tried: an earlier call is still blocked in the kernel")


def _bind_pf(node: Node, action: BindPf) -> None:
    bus, name = action.pf.bus, action.pf.name
    if not node.sysfs.exists(bus, name):
        raise KernelError(absence(action.pf))
    if action.pf in node.silent_pfs:
        raise silent.refusal_of_pf(action.driver)
    began = time.monotonic()
    if node.sysfs.driver(bus, name) == NO_DRIVER:
        # an unbind removes the driver's link first and holds the device's lock to its end; until
        # then drivers_probe does nothing (bus_rescan_devices_helper(), drivers/base/bus.c)
        node.sysfs.numvfs(bus, name)
        node.sysfs.probe(bus, name)
    now = node.sysfs.driver(bus, name)
    if now == NO_DRIVER and not node.sysfs.exists(bus, name):
        raise KernelError(absence(action.pf))
    if now == NO_DRIVER and time.monotonic() - began >= silent.SILENT_SECONDS:
        node.silent_pfs.add(action.pf)
        raise silent.refusal_of_pf(action.driver)
    if now == NO_DRIVER:
        raise KernelError(f"the probe by {action.driver} failed; dmesg says why")
    if now != action.driver:
        raise KernelError(f"is bound to {now}, not to {action.driver}")


def _unbind_pf(node: Node, action: UnbindPf) -> None:
    if node.sysfs.driver(*action.pf) == action.driver:
        node.sysfs.unbind(*action.pf, action.driver)


def _set_autoprobe(node: Node, action: SetAutoprobe) -> None:
    bus, name = action.pf.bus, action.pf.name
    if node.sysfs.autoprobe(bus, name) != action.on:
        node.sysfs.set_autoprobe(bus, name, action.on)


def _create_vfs(attempt: Attempt, action: CreateVfs) -> None:
    node = attempt.node
    bus, name = action.pf.bus, action.pf.name
    if node.sysfs.numvfs(bus, name) != action.count:
        try:
            node.sysfs.set_numvfs(bus, name, action.count)
        except KernelError as error:
            total = node.sysfs.totalvfs(bus, name)
            if error.errno != errno.ERANGE or total is None:
                raise
            raise KernelError(
                f"cannot have {action.count} VFs: sriov_totalvfs is {total} by now; "
                f"`mlxconfig -d {name} set NUM_OF_VFS={action.count}` and a reset of the card "
                "(mlxfwreset) change that",
                errno=error.errno,
            ) from error
        attempt.conflicts.note_made(str(action.pf), "numvfs", action.count)
        if action.count:
            attempt.note_vfs_made(action.pf)
    now = node.sysfs.numvfs(bus, name)
    if now != action.count:
        raise KernelError(f"the kernel took numvfs {action.count} and reports {now}")


def _set_param(node: Node, action: SetParam) -> None:
    param = action.param
    with node.devlink() as devlink:
        try:
            retry.call(lambda: devlink.set_param(action.pf, param))
        except OSError as error:
            # esw_multiport is one for the ports of a card: a second one finds it set (EINVAL)
            if param in devlink.params()[Cmode.RUNTIME].get(action.pf, ()):
                return
            raise _refused(f"cannot set the devlink parameter {param.name}", error) from error


def _set_driverinit(node: Node, action: SetDriverinit) -> None:
    device = action.pf
    if action.index is not None:
        device = action.pf.with_name(_function(node, action.pf, action.index))
    reload_with(node, device, action.params)


def reload_with(node: Node, device: DeviceHandle, wanted: Iterable[Param]) -> None:
    """Set parameters that differ, and reload the device; what its driver lacks is left out.

    Raises KernelError: which could not be set.
    """
    with node.devlink() as devlink:
        asked = ((each, devlink.driverinit(device, each.name)) for each in wanted)
        changes = [(want, now) for want, now in asked if now is not None and now != want]
        params, before = [want for want, _ in changes], [now for _, now in changes]
        if not params and device not in failed_reloads(node):
            return
        try:
            retry.call(lambda: devlink.reload(device, params, before))
        except OSError as error:
            names = ", ".join(each.name for each in params)
            raise _refused(f"cannot reload {device} with other {names}", error) from error


def _set_eswitch(node: Node, action: SetEswitch) -> None:
    """Set what differs. A mode that is refused is set again while there are no VFs (ice).

    Not for drivers where that does not help and would lose what legacy mode holds for VFs (mlx5).
    """
    driver = node.settings.driver_module
    busy = retry.BUSY_ERRORS | ({errno.EINVAL} if has(driver, Trait.EINVAL_IS_BUSY) else set())
    with node.devlink() as devlink:
        now = devlink.eswitch(action.pf)
        wanted = changed(EswitchAttributes, action, now)
        if not given(wanted):
            return
        try:
            retry.call(lambda: devlink.set_eswitch(action.pf, wanted), busy)
        except OSError as error:
            keeps_vfs = has(driver, Trait.MODE_UNDER_UNBOUND_VFS)
            if keeps_vfs or wanted.eswitch_mode is None or not _all_unbound(node, action.pf):
                raise _refused("cannot set the eswitch", error) from error
            _set_eswitch_without_vfs(node, devlink, action.pf, wanted)


def _set_eswitch_without_vfs(
    node: Node, devlink: Devlink, pf: DeviceHandle, wanted: EswitchAttributes
) -> None:
    count = node.sysfs.numvfs(*pf) or 0
    log.info("%s: the eswitch's mode is refused while there are VFs: removing them to set it", pf)
    node.sysfs.set_numvfs(*pf, 0)
    try:
        devlink.set_eswitch(pf, wanted)
    except OSError as error:
        raise _refused("cannot set the eswitch, with VFs or without", error) from error
    finally:
        node.sysfs.set_numvfs(*pf, count)


def _all_unbound(node: Node, pf: DeviceHandle) -> bool:
    """Whether there are VFs, as devices, and none of them is bound."""
    functions = node.sysfs.functions(*pf).values()
    bound = (node.sysfs.driver(pf.bus, function) != NO_DRIVER for function in functions)
    return bool(functions) and not any(bound)


def _refused(what: str, error: OSError) -> KernelError:
    return KernelError(f"{what}: {reason(error)}", errno=error.errno)


def _override_driver(attempt: Attempt, action: OverrideDriver) -> None:
    node = attempt.node
    function = _function(node, action.pf, action.index)
    if node.sysfs.driver_override(action.pf.bus, function) != action.driver:
        node.sysfs.set_driver_override(action.pf.bus, function, action.driver)
        attempt.conflicts.note_sent(str(target_of(action)), "driver_override", action.driver)


def _unbind_vf(attempt: Attempt, action: UnbindVf) -> None:
    node = attempt.node
    if attempt.takings.has_left(node, action):
        raise KernelError("its interface is in another namespace by now: left alone")
    function = _function(node, action.pf, action.index)
    now = node.sysfs.driver(action.pf.bus, function)
    if now != NO_DRIVER and action.driver in {None, now}:
        node.vf_times.note(target_of(action), Moment.GONE)
        node.sysfs.unbind(action.pf.bus, function, now)
    elif now != NO_DRIVER:
        raise KernelError(f"is bound to {now} by now, not to {action.driver}: left alone")


def _bind_vf(attempt: Attempt, action: BindVf) -> None:
    node = attempt.node
    bus, function = action.pf.bus, _function(node, action.pf, action.index)
    now = node.sysfs.driver(bus, function)
    began = time.monotonic()
    try:
        if now == NO_DRIVER and action.override:
            node.sysfs.probe(bus, function)
        elif now == NO_DRIVER:
            node.sysfs.bind(bus, function, action.driver)
    except KernelError as error:
        if silent.is_silent(error, time.monotonic() - began):
            attempt.silent.add(target_of(action))
            raise silent.refusal(action.pf, function) from error
        raise
    now = node.sysfs.driver(bus, function)
    if now != action.driver:
        raise KernelError(f"the bind of {function} to {action.driver} left it bound to {now}")
    node.vf_times.note(target_of(action), Moment.BOUND)
    attempt.conflicts.note_made(str(target_of(action)), "driver", now)
    _make_interface(node, bus, function)


def _make_interface(node: Node, bus: str, function: str) -> None:
    """Probe once more what is to be a bound function's interface, if the first probe has failed."""
    device = node.sysfs.interface_without_driver(bus, function)
    if device is None:
        return
    with suppress(KernelError):
        node.sysfs.probe("auxiliary", device)
    if node.sysfs.interface_without_driver(bus, function) == device:
        raise KernelError(
            f"{function} is bound, and its driver fails to make its interface: the probe of "
            f"{device} failed twice; dmesg says why"
        )


def _function(node: Node, pf: DeviceHandle, index: int) -> str:
    """The VF's device, checked by its physfn link."""
    function = node.sysfs.function(pf.bus, pf.name, index)
    if function is None:
        raise KernelError("has no function that points back to its PF")
    return function
