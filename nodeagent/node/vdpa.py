"""Make vDPA devices of functions, and give each to its driver."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

from nodeagent.errors import KernelError, reason
from nodeagent.kernel import users
from nodeagent.kernel.events import DeviceWatch, Watch
from nodeagent.kernel.vdpa import VdpaEdge
from nodeagent.node import retry
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.locate import device_of
from nodeagent.node.node import Node
from nodeagent.node.settle import await_each
from nodeagent.plan.actions import SetVdpa
from nodeagent.plan.vdpa import must_remake
from nodeagent.state.model import NO_DRIVER, DeviceHandle, Target, Vdpa


def set_vdpa(node: Node, actions: Sequence[SetVdpa], watches: tuple[Watch, ...]) -> Failures:
    """Make what is missing, and give each to its driver."""
    failures: Failures = []
    with DeviceWatch() as events:
        failures += _await_managers(node, actions, (events, *watches))
    lost = {target for target, _ in failures}
    with node.vdpa() as edge:
        for each in actions:
            device = device_of(node, target_of(each))
            if device is None or target_of(each) in lost:
                continue
            try:
                _ensure(node, edge, device, each.vdpa)
            except (KernelError, OSError) as error:
                title = f"{target_of(each)}: vDPA device {each.vdpa.name}"
                failures.append((target_of(each), f"{title}: {reason(error)}"))
    return failures


def _ensure(node: Node, edge: VdpaEdge, device: DeviceHandle, wanted: Vdpa) -> None:
    offered = edge.managers()[device]
    if wanted.features is not None and offered is not None:
        wanted = dataclasses.replace(wanted, features=wanted.features & offered)
    found = edge.devices().get(device, ())
    now = next((each for each in found if each.name == wanted.name), None)
    if now is not None:
        now = dataclasses.replace(now, driver=node.sysfs.driver("vdpa", now.name))
    if now is not None and now != wanted:
        _require_closed(node, device)
    if now is not None and must_remake(wanted, now):
        edge.delete(wanted.name)
        now = None
    if now is None:
        retry.call(partial(edge.add, device, wanted))
    bound = node.sysfs.driver("vdpa", wanted.name)
    if bound == wanted.driver:
        return
    if bound != NO_DRIVER:
        node.sysfs.unbind("vdpa", wanted.name, bound)
    if wanted.driver != NO_DRIVER:
        node.sysfs.bind("vdpa", wanted.name, wanted.driver)


def _require_closed(node: Node, device: DeviceHandle) -> None:
    """To remove an open one, or to take it from its driver, would wait for its users."""
    files = users.files_of_function(node.sysfs.device(*device))
    if holders := [u for u in users.of_passed_through(proc=node.proc) if files & {*u.holds}]:
        raise KernelError(f"is in use: {', '.join(map(str, holders))}")


def _await_managers(node: Node, actions: Sequence[SetVdpa], watches: tuple[Watch, ...]) -> Failures:
    """mlx5_vdpa registers a function when it is bound to its auxiliary device, an event."""
    with node.vdpa() as edge:

        def why(target: Target) -> str | None:
            device = device_of(node, target)
            if device is not None and device in edge.managers():
                return None
            return f"{target}: no driver makes vDPA devices of it: is mlx5_vdpa loaded?"

        targets = sorted({target_of(each) for each in actions}, key=str)
        return await_each(node, targets, why, watches, "vDPA management devices")
