"""Read and set what is tuned of functions beside their interfaces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nodeagent.errors import KernelError, reason
from nodeagent.kernel import sysfs
from nodeagent.kernel.devlink import Devlink, Port, Ports
from nodeagent.node import retry
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.node import Node
from nodeagent.state.files import CLOCK, INTERFACE, RDMA, VF, writes
from nodeagent.state.model import DeviceHandle
from nodeagent.state.tuning import Kind, Tuned, Value, kind

if TYPE_CHECKING:
    from nodeagent.plan.actions import SetTuning


class Found(NamedTuple):
    """By name, a value and where it is set: a devlink port, a file, or the function itself."""

    value: Value
    port: Port
    path: Path = Path()


def read(
    node: Node, devlink: Devlink, ports: Ports, pfs: Collection[DeviceHandle]
) -> dict[DeviceHandle, tuple[Tuned, ...]]:
    """What these PFs and their VFs have, by function, sorted by name."""
    return {
        device: tuple((name, found[name].value) for name in sorted(found))
        for device, found in _read(node, devlink, ports, pfs).items()
    }


def _read(
    node: Node, devlink: Devlink, ports: Ports, pfs: Collection[DeviceHandle]
) -> dict[DeviceHandle, dict[str, Found]]:
    """One request, and some reads of each VF's PCI configuration where its count can be set."""
    found: dict[DeviceHandle, dict[str, Found]] = defaultdict(dict)
    for port, reporters in devlink.reporters().items():
        of = Kind.REPORTER if port.number is None else Kind.PORT_REPORTER
        if of is Kind.PORT_REPORTER and port not in ports.own:
            continue  # a representor's
        device = port.device
        if device.bus == "auxiliary":
            if of is Kind.REPORTER:
                continue  # a subfunction's: the device is the subfunction, and its PF is below
            device = node.sysfs.function_below(*device) or device
        for name, each in reporters.items():
            found[device] |= {f"{of}.{name}.{w}": Found(v, port) for w, v in each.items()}
    for pf in pfs:
        functions = node.sysfs.functions(*pf)
        shares = bool(functions) and node.sysfs.shares_msix(*pf)
        for index, function in functions.items():
            own = found[pf.with_name(function)]
            port, values = ports.functions.get((pf, index), (Port(pf), {}))
            own |= {f"{Kind.FUNCTION}.{word}": Found(v, port) for word, v in values.items()}
            count = node.sysfs.msix_vectors(pf.bus, function) if shares else None
            if count is not None:
                own[Kind.MSIX] = Found(count, port)
            own |= _files(node, pf, VF, index)
        found[pf] |= _files(node, pf, CLOCK)
        for function in (pf.name, *functions.values()):
            device = pf.with_name(function)
            found[device] |= _files(node, device, INTERFACE) | _files(node, device, RDMA)
    return found


def lost(node: Node, pfs: Collection[DeviceHandle]) -> Iterator[str]:
    """What DOCA-OFED has been told of these PFs and does not tell."""
    for pf in pfs:
        for group in node.sysfs.rate_groups(*pf):
            yield f"{pf} rates of VF group {group} (sriov/groups/{group}), which are write-only"
        for path, _ in node.sysfs.files(*pf, RDMA).values():
            with suppress(OSError):  # its device is gone
                if "\n" in path.read_text().strip():
                    yield f"{pf} traffic classes by address, in {path}"


def _files(
    node: Node, device: DeviceHandle, place: str, index: int | None = None
) -> dict[str, Found]:
    found = node.sysfs.files(*device, place, index)
    return {f"{Kind.FILE}.{name}": Found(v, Port(device), p) for name, (p, v) in found.items()}


def set_tuning(node: Node, actions: Sequence[SetTuning]) -> Failures:
    """Set what differs. What a function does not have is left out.

    VFs share a pool of MSI-X vectors: those that give some back come first.
    """
    failures: Failures = []
    changes = []
    with node.devlink() as devlink:
        known = _read(node, devlink, devlink.ports(), {action.pf for action in actions})
        for action in actions:
            now = known.get(action.pf.with_name(action.address), {})
            for name, value in action.values:
                if name in now and now[name].value != value:
                    changes.append((action, now[name], name, value))
        for action, is_now, name, value in sorted(changes, key=_growth):
            try:
                retry.call(partial(_set, node, devlink, action, is_now, (name, value)))
            except (KernelError, OSError) as error:
                target = target_of(action)
                text = f"{target}: cannot set {name} to {value}: {reason(error)}"
                failures.append((target, text))
    return failures


def _growth(change: tuple[SetTuning, Found, str, Value]) -> int:
    _, now, name, value = change
    return int(value) - int(now.value) if kind(name) is Kind.MSIX else 0


def _set(node: Node, devlink: Devlink, action: SetTuning, now: Found, tuned: Tuned) -> None:
    name, value = tuned
    words, _, word = name.partition(".")[2].rpartition(".")
    match kind(name):
        case Kind.MSIX:
            node.sysfs.set_msix_vectors(action.pf.bus, action.address, int(value))
        case Kind.FUNCTION:
            devlink.set_function(now.port, {word: int(value)})
        case Kind.REPORTER | Kind.PORT_REPORTER:
            devlink.set_reporter(now.port, words, word, int(value))
        case Kind.FILE:
            for text in writes(name.partition(".")[2], str(value), str(now.value)):
                sysfs.write(now.path, text)
