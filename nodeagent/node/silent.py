"""VFs whose firmware does not start, because it refused to enable them when they were created.

mlx5_core lets the firmware enable each VF (ENABLE_HCA) when VFs are created, and continues with the
next one if that is refused (mlx5_device_enable_sriov(), core/sriov.c): the write to `sriov_numvfs`
succeeds. The probe of such a VF waits for its firmware for 120 s (FW_PRE_INIT_TIMEOUT, core/fw.c)
and fails with ETIMEDOUT, and so does each later one: only numvfs through 0 enables the VF. That
removes all VFs of the PF, so it is done once, and only if this attempt has created them itself.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import replace
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.kernel.sysfs import PASSED_THROUGH
from nodeagent.node.attempt import Attempt
from nodeagent.plan.actions import Stage, UnbindVf
from nodeagent.plan.plan import plan
from nodeagent.plan.stages import StageName
from nodeagent.state.model import NO_DRIVER, DeviceHandle, NodeState, Pf, Vf

log = logging.getLogger(__name__)

SILENT_SECONDS: Final = 100.0
"""A probe that times out later than that has waited for the firmware to start. After a command that
is not answered it ends after 60 s, and another bind may succeed."""


def is_silent(error: KernelError, seconds: float) -> bool:
    """Whether a bind failed because the VF's firmware does not start. `seconds`: its duration."""
    return error.errno == errno.ETIMEDOUT and seconds >= SILENT_SECONDS


def refusal_of_pf(driver: str) -> KernelError:
    """The error for a PF whose firmware does not: other PFs are not to wait for it once more."""
    return KernelError(
        f"the probe by {driver} failed: the firmware does not start (dmesg says more); the next "
        "start probes it again"
    )


def refusal(pf: DeviceHandle, function: str) -> KernelError:
    """The error for such a VF, with the remedy."""
    return KernelError(
        f"the firmware of {function} does not start: it refused to enable the VF when it was "
        "created (dmesg: failed to enable VF), and tries again only after numvfs was 0: `echo 0 "
        f">/sys/bus/{pf.bus}/devices/{pf.name}/sriov_numvfs` removes all VFs of {pf}, and the next "
        "start creates them",
        errno=errno.ETIMEDOUT,
    )


def planned(attempt: Attempt, want: NodeState, have: NodeState) -> tuple[Stage, ...]:
    """The plan, with VFs that firmware has not enabled made again once, and then left alone."""
    stages = plan(*planned_for(attempt, want, have))
    first = unbound_first(attempt, have)
    return (Stage(StageName.UNBIND_VFS, first), *stages) if first else stages


def planned_for(attempt: Attempt, want: NodeState, have: NodeState) -> tuple[NodeState, NodeState]:
    """`want` and `have` for the plan, in which silent VFs are left out of one of them.

    Without them in `have`, all VFs of the PF are created again. Without them in `want`, they are
    left as they are, because another bind would wait just as long. `unbound_first` comes before.
    """
    if not attempt.silent:
        return want, have
    again = _made_again(attempt, have)
    for pf in sorted(again):
        log.warning(
            "%s: its firmware has not enabled VF %s, which this restore has created: all VFs of "
            "this PF are removed and created again",
            pf,
            ", ".join(
                str(index) for handle, index in sorted(attempt.silent, key=str) if handle == pf
            ),
        )
    wanted = (pf if pf.handle in again else _without_silent(attempt, pf) for pf in want.pfs)
    partners = _partners(have, again)
    found = (
        _without_silent(attempt, pf)
        if pf.handle in again
        else _unbound(pf, have.driver)
        if pf.handle in partners
        else pf
        for pf in have.pfs
    )
    return want.with_pfs(tuple(wanted)), have.with_pfs(tuple(found))


def unbound_first(attempt: Attempt, have: NodeState) -> tuple[UnbindVf, ...]:
    """The bound VFs of the other ports of a LAG, before those of one are made again.

    mlx5 ends the LAG for that (mlx5_lag_disable_change(), core/lag/lag.c). Firmware refuses it
    while a VF is bound, and then makes no LAG until the driver is loaded anew.
    """
    partners = _partners(have, _made_again(attempt, have))
    return tuple(
        UnbindVf(pf.handle, vf.index, vf.address, have.driver)
        for pf in have.pfs
        if pf.handle in partners
        for vf in pf.vfs
        if vf.driver == have.driver and vf.address is not None
    )


def _made_again(attempt: Attempt, have: NodeState) -> set[DeviceHandle]:
    return {pf.handle for pf in have.pfs if _may_be_made_again(attempt, pf)}


def _partners(have: NodeState, again: set[DeviceHandle]) -> set[DeviceHandle]:
    """The other PFs of cards that have a LAG: functions of one PCI slot."""
    lags = {pf.handle for pf in have.pfs if pf.lag is not None and pf.lag.active}
    slots = {pf.slot for pf in again & lags}
    return {pf for pf in lags - again if pf.slot in slots}


def _unbound(pf: Pf, driver: str) -> Pf:
    """With its VFs as they are without their driver."""

    def alone(vf: Vf) -> Vf:
        return replace(vf, driver=NO_DRIVER, netdev=None, inside=None, rdma=None, vdpa=None)

    return replace(pf, vfs=tuple(alone(vf) if vf.driver == driver else vf for vf in pf.vfs))


def _may_be_made_again(attempt: Attempt, pf: Pf) -> bool:
    """Only once, and not if a VF is taken, or a virtual machine may have one."""
    return (
        any(handle == pf.handle for handle, _ in attempt.silent)
        and attempt.made.get(pf.handle) == 1
        and not any(handle == pf.handle for handle, _ in attempt.takings.found)
        and not any(vf.driver in PASSED_THROUGH for vf in pf.vfs)
    )


def _without_silent(attempt: Attempt, pf: Pf) -> Pf:
    """Without the silent VFs."""
    return replace(
        pf, vfs=tuple(vf for vf in pf.vfs if (pf.handle, vf.index) not in attempt.silent)
    )
