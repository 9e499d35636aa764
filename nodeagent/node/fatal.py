"""Functions whose firmware has had a fatal error, and whose driver has not recovered.

mlx5 tries once by itself. Until it has recovered, what it tells of a function is not what was set,
and then all that the PF held for its VFs is gone (mlx5_recover_device(), core/main.c).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from nodeagent.errors import UnavailableError
from nodeagent.node.locate import device_of
from nodeagent.node.node import Node
from nodeagent.state.model import DeviceHandle, NodeState, Pf, Subfunction, Target

log = logging.getLogger(__name__)

HINT: Final = (
    "`nodeagent restore` has the driver recover, and restores the last snapshot; without one, use "
    "`devlink health recover` and set up its VFs again: they have lost what the PF held for them. "
    "If the error comes back (dmesg), the card may need a reset"
)


def check_pfs(node: Node) -> None:
    """UnavailableError if the driver of a PF has not recovered from a fatal error."""
    _warn(_errors(node))


@contextmanager
def without_fatal_error(node: Node) -> Iterator[None]:
    """UnavailableError if the driver of a PF has not recovered, or has an error during the block.

    mlx5 counts an error only when it begins to recover; by then it has answered commands itself for
    as long as firmware took to stop, a minute at most (mlx5_error_sw_reset(), core/health.c).
    """
    before = _errors(node)
    _warn(before)
    yield
    now = _errors(node)
    if had := sorted(pf for pf, count in now.items() if count > before.get(pf, 0)):
        raise UnavailableError(
            f"the firmware of {', '.join(map(str, had))} has had a fatal error meanwhile: what its "
            "driver told is not what was set, and all that was set is lost",
            hint=HINT,
        )


def _errors(node: Node) -> dict[DeviceHandle, int]:
    """How many fatal errors each PF has had. UnavailableError if one is not recovered."""
    pfs = set(node.sysfs.physical_functions(node.settings.driver_module))
    with node.devlink() as devlink:
        errors = {pf: had for pf, had in devlink.fatal_errors().items() if pf in pfs}
    if failed := sorted(pf for pf, had in errors.items() if not had.recovered):
        raise UnavailableError("; ".join(_said(pf, pf) for pf in failed), hint=HINT)
    return {pf: had.count for pf, had in errors.items()}


def _warn(errors: Mapping[DeviceHandle, int]) -> None:
    for pf, count in sorted(errors.items()):
        if count:
            log.warning(
                "%s: its firmware has had fatal errors since its driver began (%d). What the PF "
                "held for its VFs before the last one is lost, unless it was set again: `nodeagent "
                "verify` shows what differs from the last snapshot, and `nodeagent restore` "
                "restores that, as long as no reload has replaced it",
                pf,
                count,
            )


def in_fatal_error(node: Node, want: NodeState) -> Iterator[str]:
    """A line for each function whose driver has yet to recover, and loses its state in that.

    A subfunction that never recovers is another one after its port was inactive.
    """
    with node.devlink() as devlink:
        failed = devlink.in_fatal_error()
    for target, _ in want.functions():
        if (device := device_of(node, target)) in failed:
            yield _said(target, device)
    for pf in want.pfs:
        for each in pf.subfunctions or ():
            if (device := _device_of_subfunction(node, pf, each)) in failed:
                yield (
                    f"{_said(Target(pf.handle, each.own_port), device)}; if it never does, make "
                    "its port inactive (`devlink port function set PORT state inactive`)"
                )


def without_failed(node: Node, want: NodeState, failed: Collection[DeviceHandle]) -> NodeState:
    """`want` without the PFs, VFs and subfunctions whose devices are in `failed`.

    What is set of one is lost when its driver recovers.

    Without the LAG of such a PF's card, too. mlx5 would end it to recover, which firmware refuses
    while a VF of another port is bound, and makes none then before the driver is loaded anew.
    """
    if not failed:
        return want
    slots = {pf.handle.slot for pf in want.pfs if pf.handle in failed}
    left = (_without_failed(node, pf, failed) for pf in want.pfs if pf.handle not in failed)
    return want.with_pfs(
        tuple(
            replace(pf, lag=None, rdma=None)
            if pf.lag is not None and pf.handle.slot in slots
            else pf
            for pf in left
        )
    )


def _without_failed(node: Node, pf: Pf, failed: Collection[DeviceHandle]) -> Pf:
    vfs = tuple(vf for vf in pf.vfs if device_of(node, Target(pf.handle, vf.index)) not in failed)
    subfunctions = pf.subfunctions and tuple(
        each for each in pf.subfunctions if _device_of_subfunction(node, pf, each) not in failed
    )
    return replace(pf, vfs=vfs, subfunctions=subfunctions)


def _device_of_subfunction(node: Node, pf: Pf, of: Subfunction) -> DeviceHandle | None:
    """None where it is not active, or another controller's."""
    return device_of(node, Target(pf.handle, of.own_port)) if of.is_local else None


def _said(function: Target | DeviceHandle, device: DeviceHandle) -> str:
    return (
        f"{function}: the firmware has had a fatal error, from which the driver has not recovered "
        f"(`devlink health show {device} reporter fw_fatal`)"
    )
