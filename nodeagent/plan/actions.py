"""What can be done to a node, one frozen dataclass an action, and the order in which it is done.

An action is an *ensure*: whoever performs it looks first and leaves alone what is already so. That
is how one plan serves a VF whose netdev does not exist yet when the plan is made.

The order of the stages, and the kernel's reason for each, is the table `STAGES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodeagent.state.eswitch import EswitchAttributes
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import DeviceHandle, Param, Port, Setting, Sysctl
from nodeagent.state.namespaces import Namespace
from nodeagent.state.stack import Stacked
from nodeagent.state.vf import VfAttributes

STAGES: Final = (
    # name, why it stands where it stands
    ("bind PFs", "a PF without its driver has no sriov_numvfs to write (ENOENT)"),
    ("remove VFs", "numvfs goes from N to M only through 0 (EBUSY, drivers/pci/iov.c)"),
    ("take links down", "before Linux 6.2 a link that is up cannot be renamed (EBUSY)"),
    ("free names", "two netdevs that swap names need a third name in between (EEXIST)"),
    ("set parameters", "flow_steering_mode and such decide how the eswitch is made"),
    (
        "set PF ethtool",
        "before the PF is up: rings, channels and pause restart an interface, carrier and all",
    ),
    ("set PF sysctls", "before the PF is up: they decide which addresses it gets by itself"),
    (
        "prepare PFs",
        "a VF's MTU may not exceed its PF's; an igb VF gets no MAC while its PF is down",
    ),
    ("hold probing", "a VF that is probed before its MAC is set makes one up"),
    ("create VFs", "virtfnN links appear one by one while the write is still blocking"),
    ("unbind VFs", "an admin MAC reaches a VF's netdev only when the VF is bound again"),
    ("set VFs", "what the PF holds is in place before the VF's driver looks at it"),
    ("set eswitch", "after legacy's attributes are set, before VFs are bound (representors)"),
    ("allow probing", "a bind returns ENODEV while sriov_drivers_autoprobe is 0"),
    ("bind VFs", "each VF is probed once, and comes up right"),
    ("move VFs", "each VF goes into its pod as soon as it is settled, and waits for no other"),
    ("set up in pods", "what is inside a namespace goes with the interface, and comes after it"),
    ("put autoprobe back", "writing it probes nothing: it holds for the next VFs only"),
    (
        "set ethtool",
        "of VFs and representors, which are there by now, if possible before they go up",
    ),
    ("set sysctls", "of VFs and representors, before they go up; after udev has named them"),
    ("set VF netdevs", "MAC, MTU and name first, then up; after udev has finished with them"),
    ("set representors", "they exist once the eswitch is in switchdev mode"),
    ("name RDMA devices", "mlx5_ib makes its device after the function is bound; udev names it"),
    ("move RDMA devices", "after its interface, and by the name that it has there"),
    (
        "set VFs late",
        "igb takes a rate only with carrier; a VF keeps its own MAC only if it had it",
    ),
    ("finish PFs", "a PF goes down, or to a smaller MTU, only when its VFs are done"),
    ("add children", "a VLAN or MACVLAN names its parent by ifindex, and is up only if that is"),
    ("join masters", "a bond takes a port that is down, a VRF takes it down: IPv6 addresses go"),
    ("add addresses", "an IPv6 address goes when its link goes down (addrconf_ifdown())"),
    ("add neighbours", "a permanent neighbour goes when its link goes down (neigh_flush_dev())"),
    ("add routes", "a route needs its source address, its gateway's subnet, and links that are up"),
    ("add qdiscs", "a child of another hangs on its handle; they may come any time, so last"),
)


@dataclass(frozen=True)
class BindPf:
    """Ensure that a PF is bound to the driver (drivers_probe), and wait until it is."""

    pf: DeviceHandle
    driver: str


@dataclass(frozen=True)
class SetAutoprobe:
    """Ensure the value of `sriov_drivers_autoprobe`."""

    pf: DeviceHandle
    on: bool


@dataclass(frozen=True)
class CreateVfs:
    """Ensure `sriov_numvfs`; 0 removes all VFs. Done when every function is there."""

    pf: DeviceHandle
    count: int


@dataclass(frozen=True)
class SetVf(VfAttributes):
    """Ensure attributes of a VF that its PF holds. None: leave alone.

    VLAN, QoS and protocol are one message to the kernel, so are both rates: they are given
    together or not at all.
    """

    pf: DeviceHandle
    index: int


@dataclass(frozen=True)
class SetParam:
    """Ensure the runtime value of a devlink parameter."""

    pf: DeviceHandle
    param: Param


@dataclass(frozen=True)
class SetEswitch(EswitchAttributes):
    """Ensure the eswitch's mode and, in switchdev, how it parses. None: leave alone.

    Some drivers (ice) change the mode only while there are no VFs: whoever performs this removes
    unbound VFs, sets the mode and creates them again where the first order is refused.
    """

    pf: DeviceHandle


@dataclass(frozen=True)
class OverrideDriver:
    """Ensure a VF's `driver_override`; "" clears it."""

    pf: DeviceHandle
    index: int
    address: str
    driver: str


@dataclass(frozen=True)
class UnbindVf:
    """Ensure that a VF has no driver. `driver` is the one it is taken from."""

    pf: DeviceHandle
    index: int
    address: str
    driver: str


@dataclass(frozen=True)
class BindVf:
    """Ensure that a VF is bound to `driver`; `override`: that its driver_override chooses it."""

    pf: DeviceHandle
    index: int
    address: str
    driver: str
    override: bool = False


@dataclass(frozen=True)
class SetLink(LinkAttributes):
    """Ensure attributes of a netdev: a PF's, a VF's or a representor's. None: leave alone."""

    pf: DeviceHandle
    index: Port


@dataclass(frozen=True)
class AddStacked:
    """Ensure one thing that stands on a netdev: a child, a port, an address, a neighbour, a route.

    `pf` and `index` say whose netdev that is (of a multipath route, the first), `netdev` what it is
    called: where another one has that name, nothing is put on it. None where names are given in the
    same moment, as in pods.
    """

    pf: DeviceHandle
    index: Port
    thing: Stacked
    netdev: str | None = None


@dataclass(frozen=True)
class SetEthtool:
    """Ensure ethtool settings of a netdev: a PF's, a VF's or a representor's. What differs only."""

    pf: DeviceHandle
    index: Port
    values: tuple[Setting, ...]


@dataclass(frozen=True)
class SetSysctls:
    """Ensure per-interface sysctls of a PF's, a VF's or a representor's netdev: what differs."""

    pf: DeviceHandle
    index: Port
    values: tuple[Sysctl, ...]


@dataclass(frozen=True)
class SetRdma:
    """Ensure the name of a function's RDMA device; `now`: the one it has, if it is there."""

    pf: DeviceHandle
    index: int | None
    address: str
    name: str
    now: str | None


@dataclass(frozen=True)
class MoveVf:
    """Ensure that a VF's interface is in a network namespace, there under `name`; in one message.

    `address` is the VF's PCI address; `carrier`: it had that there, and somebody is to be told when
    it has it again. A namespace that is not the one of before is not entered.
    """

    pf: DeviceHandle
    index: int
    address: str
    namespace: Namespace
    name: str
    carrier: bool = False


@dataclass(frozen=True)
class MoveRdma:
    """Ensure that a VF's RDMA device, called `name`, is in a network namespace (exclusive mode)."""

    pf: DeviceHandle
    index: int
    namespace: Namespace
    name: str


@dataclass(frozen=True)
class InPod:
    """Ensure something in the network namespace that a VF's interface is in, there as `name`."""

    pf: DeviceHandle
    index: int
    namespace: Namespace
    name: str
    action: SetLink | SetEthtool | SetSysctls | AddStacked


Action = (
    BindPf
    | SetAutoprobe
    | CreateVfs
    | SetParam
    | SetEswitch
    | SetVf
    | OverrideDriver
    | UnbindVf
    | BindVf
    | SetLink
    | AddStacked
    | SetEthtool
    | SetSysctls
    | SetRdma
    | MoveVf
    | MoveRdma
    | InPod
)


@dataclass(frozen=True)
class Stage:
    """Actions that may be performed in any order, after all those of the stages before."""

    name: str
    actions: tuple[Action, ...]
