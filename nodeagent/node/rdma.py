"""Name RDMA devices, after udev has finished with them, and move them to pods."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from nodeagent.errors import KernelError, reason
from nodeagent.kernel import udev
from nodeagent.kernel.events import Watch
from nodeagent.kernel.netns import NamespaceGone, entered
from nodeagent.node import retry
from nodeagent.node.attempt import Attempt
from nodeagent.node.failures import Failures, target_of
from nodeagent.node.locate import device_of, is_bound, rdma_names
from nodeagent.node.node import Node
from nodeagent.node.settle import await_each
from nodeagent.plan.actions import MoveRdma, SetRdma, SetRoce
from nodeagent.plan.plan import TEMPORARY_NAME
from nodeagent.state.model import Target
from nodeagent.state.roce import port_of


def name_rdma_devices(
    attempt: Attempt, actions: Sequence[SetRdma], watches: tuple[Watch, ...], lost: set[Target]
) -> Failures:
    """Rename them, by a temporary name if another one of them has the wanted name."""
    node = attempt.node
    wanted = {target_of(action): action.name for action in actions}
    away = node.sysfs.other_rdma_devices()
    awaited = [
        target
        for target in wanted
        if (target not in lost or is_bound(node, target)) and device_of(node, target) not in away
    ]
    awaited = [target for target in awaited if target not in attempt.without_rdma]
    failures = _await_devices(node, awaited, watches)
    names = rdma_names(node, wanted)
    attempt.without_rdma.update(target for target, _ in failures if target not in names)
    try:
        with node.rdma() as rdma:
            indexes = rdma.indexes()
            moves = [
                (target, indexes[now], wanted[target])
                for target, now in names.items()
                if now in indexes and now != wanted[target]
            ]
            taken = {wanted[target] for target, _, _ in moves} & set(names.values())
            aside = [
                (index, f"{TEMPORARY_NAME}{index}")
                for target, index, _ in moves
                if names[target] in taken
            ]
            retry.send(node, aside, rdma.rename)
            results = retry.send(node, [(index, name) for _, index, name in moves], rdma.rename)
    except (KernelError, OSError) as error:
        return [*failures, *((t, f"{t}: cannot name RDMA: {reason(error)}") for t in names)]
    return failures + [
        (target, f"{target}: cannot name its RDMA device {name}: {reason(error)}")
        for (target, _, name), error in zip(moves, results, strict=True)
        if error is not None
    ]


def set_roce(node: Node, actions: Sequence[SetRoce]) -> Failures:
    """Set the defaults of ports that have others. A device that is not there is left out."""
    failures: Failures = []
    for action in actions:
        if (now := node.roce.read(action.name)) is None:
            continue
        for port in action.ports:
            if port == port_of(now, port.port):
                continue
            try:
                node.roce.write(action.name, port)
            except OSError as error:
                target = target_of(action)
                what = f"cannot set port {port.port} of {action.name} to {port.words()}"
                failures.append((target, f"{target}: {what}: {reason(error)}"))
    return failures


def move_rdma_devices(node: Node, actions: Sequence[MoveRdma]) -> Failures:
    """Move them to their former namespaces, each by its name, which it has by now."""
    failures: Failures = []
    for action in actions:
        title = f"{target_of(action)}: RDMA device {action.name}"
        try:
            with node.namespaces.opened(action.namespace) as fd, node.rdma() as rdma:
                index = rdma.indexes().get(action.name)
                refused = None if index is None else rdma.give(index, fd)
                is_lost = index is None and action.name not in _names_in(node, fd)
        except NamespaceGone as gone:
            failures.append((target_of(action), f"{title}: {action.namespace}: {gone.message}"))
        except (KernelError, OSError) as error:
            failures.append((target_of(action), f"{title}: {reason(error)}"))
        else:
            if is_lost:
                failures.append((target_of(action), f"{title} is not here"))
            if refused is not None:
                text = f"cannot be in {action.namespace}: {reason(refused)}"
                failures.append((target_of(action), f"{title} {text}"))
    return failures


def _names_in(node: Node, namespace: int) -> Collection[str]:
    with entered(namespace):
        there = node.rdma()
    with there:
        return there.indexes().keys()


def _await_devices(node: Node, targets: Sequence[Target], watches: tuple[Watch, ...]) -> Failures:
    """mlx5_ib creates its device after the function is bound, and udev may rename it then."""

    def never_comes(target: Target) -> bool:
        return target[1] is None and node.sysfs.has_representors_rdma(target[0].bus, target[0].name)

    def why(target: Target) -> str | None:
        name = rdma_names(node, [target]).get(target)
        if name is None and (never_comes(target) or not is_bound(node, target)):
            return None
        if name is None:
            device = device_of(node, target)
            lacks = () if device is None else node.sysfs.rdma_without_driver(*device)
            return f"{target}: no RDMA device" + "".join(
                f": {each} has no driver (is mlx5_ib loaded?)" for each in lacks
            )
        if udev.is_done(f"+infiniband:{name}", node.udev_run):
            return None
        return f"{target}: udev has not finished with {name}"

    failures = await_each(node, targets, why, watches, "RDMA devices")
    never = list(filter(never_comes, targets))
    names = rdma_names(node, never)
    return failures + [
        (
            target,
            f"{target}: no RDMA device: mlx5_ib was loaded in switchdev mode, and "
            "creates it when the eswitch's mode is set again, as in the next reload",
        )
        for target in never
        if target not in names
    ]
