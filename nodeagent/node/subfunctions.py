"""Make the ports of subfunctions, and have their drivers start with what they started with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from nodeagent.errors import AgentError, reason
from nodeagent.kernel.devlink import Devlink, Port
from nodeagent.kernel.events import DeviceWatch, Watch
from nodeagent.node import retry
from nodeagent.node.attempt import Attempt
from nodeagent.node.devices import reload_with
from nodeagent.node.failures import Failures
from nodeagent.node.locate import device_of
from nodeagent.node.node import Node
from nodeagent.node.settle import await_each
from nodeagent.plan.actions import AddSubfunction, StartSubfunction
from nodeagent.plan.subfunctions import changes
from nodeagent.state.model import DeviceHandle, Subfunction, Target

Ports = dict[tuple[DeviceHandle, str], Subfunction]


def add_subfunctions(node: Node, actions: Sequence[AddSubfunction]) -> Failures:
    """Make what is missing, in the order of their ports, so that each has its index again."""
    failures: Failures = []
    actions = sorted(actions, key=lambda each: (each.pf, each.subfunction.index))
    with node.devlink() as devlink:
        there = _ports(devlink)
        refused = {}
        for each in actions:
            if (each.pf, each.subfunction.port) not in there:
                try:
                    retry.call(partial(devlink.add_subfunction, each.pf, each.subfunction))
                except OSError as error:
                    refused[each] = error
        # another program (mlnx-sf) may have made one first
        there = _ports(devlink)
        for each in actions:
            now = there.get((each.pf, each.subfunction.port))
            if now is None:
                why = reason(refused[each]) if each in refused else "it is gone again"
                failures.append(_failure(each, f"cannot add it: {why}"))
            else:
                failures += _set(devlink, each, now.index, changes(each.subfunction, now))
    return failures


def start_subfunctions(
    attempt: Attempt, actions: Sequence[StartSubfunction], watches: tuple[Watch, ...]
) -> Failures:
    """Make them active, or not; wait for their drivers, and reload those with other parameters."""
    node = attempt.node
    failures: Failures = []
    with DeviceWatch() as events, node.devlink() as devlink:
        there = _ports(devlink)
        started = []
        for each in actions:
            now = there.get((each.pf, each.subfunction.port))
            if now is None:
                continue  # why it could not be added is known
            wanted = (
                {"active": each.subfunction.active} if now.active != each.subfunction.active else {}
            )
            failed = _set(devlink, each, now.index, wanted)
            failures += failed
            if not failed and each.subfunction.active and each.subfunction.is_local:
                started.append(each)
        failures += _await_drivers(node, devlink, started, (events, *watches))
        for each in started:
            device = device_of(node, _own(each))
            if device is None or device not in devlink.instances():
                continue
            try:
                reload_with(node, device, each.subfunction.driverinit or ())
            except AgentError as error:
                failures.append(_failure(each, error.message))
    return failures


def _await_drivers(
    node: Node, devlink: Devlink, started: Sequence[StartSubfunction], watches: tuple[Watch, ...]
) -> Failures:
    """Wait until the driver of each has its devlink instance, which it registers at last."""

    def why(target: Target) -> str | None:
        device = device_of(node, target)
        if device is not None and device in devlink.instances():
            return None
        return f"{target}: its driver has not started"

    late = await_each(node, [_own(each) for each in started], why, watches, "subfunctions")
    return [(Target(target.pf), text) for target, text in late]


def _ports(devlink: Devlink) -> Ports:
    found = devlink.ports().subfunctions.items()
    return {(device, port.port): port for device, ports in found for port in ports}


def _own(action: StartSubfunction) -> Target:
    return Target(action.pf, action.subfunction.own_port)


def _set(
    devlink: Devlink,
    action: AddSubfunction | StartSubfunction,
    index: int,
    wanted: Mapping[str, Any],
) -> Failures:
    """Set each by itself: a kernel or a driver may refuse one of them."""
    failures: Failures = []
    for name, value in wanted.items():
        try:
            retry.call(partial(devlink.set_function, Port(action.pf, index), {name: value}))
        except OSError as error:
            failures.append(_failure(action, f"cannot set {name} {value}: {reason(error)}"))
    return failures


def _failure(action: AddSubfunction | StartSubfunction, text: str) -> tuple[Target, str]:
    """Of its PF: neither its representor nor its interface is waited for then."""
    return Target(action.pf), f"{action.pf} subfunction {action.subfunction.port}: {text}"
