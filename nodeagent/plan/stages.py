"""The order in which a node is changed, and the kernel's reason for it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Self

from nodeagent.state.stack import KINDS, StackStage


class StageName(StrEnum):
    """The stages of devices and interfaces, first to last; `reason` is the kernel's for each."""

    reason: str

    def __new__(cls, text: str, reason: str) -> Self:
        """A member has a text, by which it is printed, and a reason."""
        member = str.__new__(cls, text)
        member._value_ = text
        member.reason = reason
        return member

    BIND_PFS = "bind PFs", "a PF without its driver has no sriov_numvfs to write (ENOENT)"
    REMOVE_VFS = (
        "remove VFs",
        "numvfs changes from N to M only through 0 (EBUSY, drivers/pci/iov.c)",
    )
    LEGACY = (
        "set eswitch back",
        "VF attributes of legacy mode are refused in switchdev mode (EOPNOTSUPP, mlx5): VFs that "
        "are made again get them first",
    )
    PF_DRIVERINIT = (
        "reload PFs",
        "a driver reads these parameters when it starts, and makes the PF's interface again",
    )
    LINKS_DOWN = "take links down", "before Linux 6.2 a link that is up cannot be renamed (EBUSY)"
    FREE_NAMES = "free names", "two netdevs that swap names need a third name in between (EEXIST)"
    PARAMETERS = (
        "set parameters",
        "some, as flow_steering_mode, take effect when the eswitch is made",
    )
    PF_ETHTOOL = (
        "set PF ethtool",
        "before the PF is up: to set rings, channels or pause restarts it, and its carrier is lost",
    )
    PF_DCB = (
        "set PF DCB",
        "before the PF is up: mlx5 turns its port off and on when PFC changes",
    )
    PF_SYSCTLS = (
        "set PF sysctls",
        "before the PF is up: the kernel adds IPv6 addresses by them",
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
    VFS = "set VFs", "the PF has a VF's attributes before the VF's driver reads them"
    ESWITCH = (
        "set eswitch",
        "after legacy's attributes are set, before VFs are bound (representors)",
    )
    DCB = (
        "set DCB",
        "after a change of the eswitch's mode, where mlx5 sets its own ETS (mlx5e_ets_init())",
    )
    SUBFUNCTIONS = (
        "add subfunctions",
        "an eswitch has their ports in switchdev mode only, and their representors come with them",
    )
    RATES = (
        "set rates",
        "ports and groups have them in switchdev mode only, and lose them when the mode changes",
    )
    FUNCTIONS = (
        "tune VFs",
        "before their drivers look: the kernel takes MSI-X counts of unbound VFs only (EBUSY)",
    )
    LAG = (
        "make LAG",
        "firmware makes one while no VF is bound (mlx5_activate_lag()), of eswitches in one mode",
    )
    AWAIT_LAG = "await LAG", "the driver makes it some time after the last port has joined"
    ALLOW_PROBING = "allow probing", "a bind returns ENODEV while sriov_drivers_autoprobe is 0"
    BIND_VFS = "bind VFs", "each VF is probed once, with its attributes set"
    START_SUBFUNCTIONS = (
        "start subfunctions",
        "an active one is probed at once: with its address, and as VFs after a LAG is made",
    )
    VF_DRIVERINIT = (
        "reload VFs",
        "likewise: a VF's interface is made again, in the namespace of the host",
    )
    MOVE_VFS = (
        "move VFs",
        "each VF is moved as soon as it is settled, and waits for no other",
    )
    IN_PODS = (
        "set up in pods",
        "objects in a namespace are lost with the interface, and added after it",
    )
    AUTOPROBE = "put autoprobe back", "writing it probes nothing: it is for VFs created later"
    ETHTOOL = (
        "set ethtool",
        "of VFs and representors, which exist by now, if possible before they are up",
    )
    SYSCTLS = (
        "set sysctls",
        "of VFs and representors, before they are up, and after udev has named them",
    )
    VF_NETDEVS = (
        "set VF netdevs",
        "MAC, MTU and name first, then up; after udev has processed them",
    )
    REPRESENTORS = "set representors", "they exist once the eswitch is in switchdev mode"
    RDMA_NAMES = (
        "name RDMA devices",
        "mlx5_ib makes its device after the function is bound; udev names it",
    )
    ROCE = "set RoCE defaults", "by the RDMA device's name, which is set by now; in all namespaces"
    REPORTERS = (
        "set health reporters",
        "they come with the driver, and with its interface (mlx5e_health_create_reporters())",
    )
    RDMA_MOVES = "move RDMA devices", "after its interface, and by the name that it has there"
    VDPA = (
        "add vDPA devices",
        "of functions that are bound and set up: a device has its function's MTU, as the interface",
    )
    VFS_LATE = (
        "set VFs late",
        "igb takes a rate only with carrier; a VF keeps its own MAC only if it had it",
    )
    FINISH_PFS = "finish PFs", "a PF is set down, or to a smaller MTU, only after its VFs"


AnyStage = StageName | StackStage

ORDER: Final[tuple[AnyStage, ...]] = (*StageName, *(kind.stage for kind in KINDS))
"""All stages, first to last: objects on interfaces are added when the interfaces are set up."""

AFTER_UDEV = (
    *(StageName.MOVE_VFS, StageName.SYSCTLS, StageName.VF_NETDEVS, StageName.REPRESENTORS),
)
"""Stages about new interfaces: a shell script has to wait until udev has named them."""
