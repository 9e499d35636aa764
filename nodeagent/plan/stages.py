"""The order in which a node is changed, and the kernel's reason for it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Self

from nodeagent.state.stack import KINDS, StackStage


class StageName(StrEnum):
    """The stages of devices and interfaces, first to last; `reason` is the kernel's for each."""

    reason: str

    def __new__(cls, text: str, reason: str) -> Self:
        """A member of two: its text, by which it is printed, and its reason."""
        member = str.__new__(cls, text)
        member._value_ = text
        member.reason = reason
        return member

    BIND_PFS = "bind PFs", "a PF without its driver has no sriov_numvfs to write (ENOENT)"
    REMOVE_VFS = "remove VFs", "numvfs goes from N to M only through 0 (EBUSY, drivers/pci/iov.c)"
    LEGACY = (
        "set eswitch back",
        "what legacy mode holds for VFs is refused in switchdev mode (EOPNOTSUPP, mlx5): VFs that "
        "are made anew get it first",
    )
    PF_DRIVERINIT = (
        "reload PFs",
        "a driver reads these parameters when it starts, and makes the PF's interface anew",
    )
    LINKS_DOWN = "take links down", "before Linux 6.2 a link that is up cannot be renamed (EBUSY)"
    FREE_NAMES = "free names", "two netdevs that swap names need a third name in between (EEXIST)"
    PARAMETERS = "set parameters", "flow_steering_mode and such decide how the eswitch is made"
    PF_ETHTOOL = (
        "set PF ethtool",
        "before the PF is up: rings, channels and pause restart an interface, carrier and all",
    )
    PF_DCB = (
        "set PF DCB",
        "before the PF is up: mlx5 turns its port off and on when PFC changes",
    )
    PF_SYSCTLS = (
        "set PF sysctls",
        "before the PF is up: they decide which addresses it gets by itself",
    )
    HOLD_PROBING = "hold probing", "a VF that is probed before its MAC is set makes one up"
    CREATE_VFS = (
        "create VFs",
        "virtfnN links appear one by one while the write is still blocking",
    )
    PREPARE_PFS = (
        "prepare PFs",
        "a VF's MTU may not exceed its PF's; an igb VF gets no MAC while its PF is down; after VFs "
        "are made, for which igb closes and opens a PF that is up (igb_sriov_reinit())",
    )
    UNBIND_VFS = (
        "unbind VFs",
        "an admin MAC reaches a VF's netdev only when the VF is bound again",
    )
    VFS = "set VFs", "what the PF holds is in place before the VF's driver looks at it"
    ESWITCH = (
        "set eswitch",
        "after legacy's attributes are set, before VFs are bound (representors)",
    )
    DCB = (
        "set DCB",
        "of PFs in another eswitch mode, where mlx5 begins with its own ETS (mlx5e_ets_init())",
    )
    RATES = (
        "set rates",
        "ports and groups have them in switchdev mode only, and lose them when the mode changes",
    )
    LAG = (
        "make LAG",
        "firmware makes one while no VF is bound (mlx5_activate_lag()), of eswitches in one mode",
    )
    AWAIT_LAG = "await LAG", "the driver makes it after the last port has joined, by itself"
    ALLOW_PROBING = "allow probing", "a bind returns ENODEV while sriov_drivers_autoprobe is 0"
    BIND_VFS = "bind VFs", "each VF is probed once, and comes up right"
    VF_DRIVERINIT = (
        "reload VFs",
        "likewise: a VF's interface is made anew, in the namespace of the host",
    )
    MOVE_VFS = (
        "move VFs",
        "each VF goes into its pod as soon as it is settled, and waits for no other",
    )
    IN_PODS = (
        "set up in pods",
        "what is inside a namespace goes with the interface, and comes after it",
    )
    AUTOPROBE = "put autoprobe back", "writing it probes nothing: it holds for the next VFs only"
    ETHTOOL = (
        "set ethtool",
        "of VFs and representors, which are there by now, if possible before they go up",
    )
    SYSCTLS = (
        "set sysctls",
        "of VFs and representors, before they go up; after udev has named them",
    )
    VF_NETDEVS = (
        "set VF netdevs",
        "MAC, MTU and name first, then up; after udev has finished with them",
    )
    REPRESENTORS = "set representors", "they exist once the eswitch is in switchdev mode"
    RDMA_NAMES = (
        "name RDMA devices",
        "mlx5_ib makes its device after the function is bound; udev names it",
    )
    ROCE = "set RoCE defaults", "by the name that the RDMA device has by then; of every namespace"
    RDMA_MOVES = "move RDMA devices", "after its interface, and by the name that it has there"
    VFS_LATE = (
        "set VFs late",
        "igb takes a rate only with carrier; a VF keeps its own MAC only if it had it",
    )
    FINISH_PFS = "finish PFs", "a PF goes down, or to a smaller MTU, only when its VFs are done"


AnyStage = StageName | StackStage

ORDER: Final[tuple[AnyStage, ...]] = (*StageName, *(kind.stage for kind in KINDS))
"""All stages, first to last: what is stacked on interfaces comes when they are as they shall be."""

AFTER_UDEV = (
    *(StageName.MOVE_VFS, StageName.SYSCTLS, StageName.VF_NETDEVS, StageName.REPRESENTORS),
)
"""Stages whose interfaces have just come: a shell has to wait until udev has named them."""
