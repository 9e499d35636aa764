"""VFs whose firmware does not begin, because it has refused to enable them when they were made.

mlx5_core has firmware enable each VF (ENABLE_HCA) when VFs are made, and goes on with the next one
where that is refused (mlx5_device_enable_sriov(), core/sriov.c): the write to `sriov_numvfs`
succeeds. The probe of such a VF waits for its firmware for 120 s (FW_PRE_INIT_TIMEOUT, core/fw.c)
and ends in ETIMEDOUT, as does each later one: nothing but numvfs through 0 has the VF enabled. That
takes all VFs of the PF, so it is done once, and only where this attempt has made them itself.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import replace
from typing import Final

from nodeagent.errors import KernelError
from nodeagent.kernel.sysfs import PASSED_THROUGH
from nodeagent.node.attempt import Attempt
from nodeagent.state.model import DeviceHandle, NodeState, Pf

log = logging.getLogger(__name__)

SILENT_SECONDS: Final = 100.0
"""A probe that times out after longer than that has waited for firmware to begin: a command that is
not answered ends it after 60 s, and another bind may do."""


def is_silent(error: KernelError, seconds: float) -> bool:
    """Whether a bind that failed after `seconds` says that the VF's firmware has not begun."""
    return error.errno == errno.ETIMEDOUT and seconds >= SILENT_SECONDS


def refusal(pf: DeviceHandle, function: str) -> KernelError:
    """Why such a VF has no driver, and what mends it."""
    return KernelError(
        f"the firmware of {function} has not begun: it refused to enable the VF when it was made "
        f"(dmesg: failed to enable VF), and only numvfs through 0 asks it again: `echo 0 >/sys/bus/"
        f"{pf.bus}/devices/{pf.name}/sriov_numvfs` removes all VFs of {pf}, and the next start "
        "makes them",
        errno=errno.ETIMEDOUT,
    )


def planned_for(attempt: Attempt, want: NodeState, have: NodeState) -> tuple[NodeState, NodeState]:
    """What to plan from, where VFs are silent: `want` and `have`, or without these VFs.

    A VF that is not in `have` has all VFs of its PF made again; one that is not in `want` is left
    as it is, because another bind would wait as long, in vain.
    """
    if not attempt.silent:
        return want, have
    again = {pf.handle for pf in have.pfs if _may_be_made_again(attempt, pf)}
    for pf in sorted(again):
        log.warning(
            "%s: its firmware has not enabled VF %s, which this restore has made: all VFs of this "
            "PF are removed and made again",
            pf,
            ", ".join(
                str(index) for handle, index in sorted(attempt.silent, key=str) if handle == pf
            ),
        )
    return (
        replace(
            want, pfs=tuple(pf if pf.handle in again else _heard(attempt, pf) for pf in want.pfs)
        ),
        replace(
            have, pfs=tuple(_heard(attempt, pf) if pf.handle in again else pf for pf in have.pfs)
        ),
    )


def _may_be_made_again(attempt: Attempt, pf: Pf) -> bool:
    """Once; not where another has one by now, or a virtual machine may, for which removal waits."""
    return (
        any(handle == pf.handle for handle, _ in attempt.silent)
        and attempt.made.get(pf.handle) == 1
        and not any(handle == pf.handle for handle, _ in attempt.takings.found)
        and not any(vf.driver in PASSED_THROUGH for vf in pf.vfs)
    )


def _heard(attempt: Attempt, pf: Pf) -> Pf:
    """Without the silent VFs."""
    return replace(
        pf, vfs=tuple(vf for vf in pf.vfs if (pf.handle, vf.index) not in attempt.silent)
    )
