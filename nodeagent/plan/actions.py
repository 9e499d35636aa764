"""The actions on a node, one frozen dataclass each.

Actions are idempotent: the performer reads the present value, and changes only what differs. So a
plan can contain actions on netdevs that do not exist yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from nodeagent.plan.stages import AnyStage
from nodeagent.state.dcb import Dcb
from nodeagent.state.eswitch import EswitchAttributes
from nodeagent.state.ethtool import Setting
from nodeagent.state.lag import Lag
from nodeagent.state.link import LinkAttributes
from nodeagent.state.model import DeviceHandle, Param, Port, Subfunction, Vdpa
from nodeagent.state.namespaces import Namespace
from nodeagent.state.rates import Rate
from nodeagent.state.roce import RocePort
from nodeagent.state.stack import Membership, Stacked
from nodeagent.state.sysctls import Sysctl
from nodeagent.state.tuning import Tuned
from nodeagent.state.vf import VfAttributes


@dataclass(frozen=True)
class BindPf:
    """Ensure that a PF is bound to the driver (drivers_probe), and wait until it is."""

    pf: DeviceHandle
    driver: str


@dataclass(frozen=True)
class UnbindPf:
    """Ensure that a PF is not bound to the driver. Its VFs go with it. No part of a plan."""

    pf: DeviceHandle
    driver: str


@dataclass(frozen=True)
class SetAutoprobe:
    """Ensure the value of `sriov_drivers_autoprobe`."""

    pf: DeviceHandle
    on: bool


@dataclass(frozen=True)
class CreateVfs:
    """Ensure `sriov_numvfs`; 0 removes all VFs. Done once all functions exist."""

    pf: DeviceHandle
    count: int


@dataclass(frozen=True)
class SetVf(VfAttributes):
    """Ensure attributes of a VF that its PF holds. None: leave alone.

    VLAN, QoS and protocol are one message to the kernel, as are both rates: they are set together
    or not at all.
    """

    pf: DeviceHandle
    index: int


@dataclass(frozen=True)
class SetParam:
    """Ensure the runtime value of a devlink parameter."""

    pf: DeviceHandle
    param: Param


@dataclass(frozen=True)
class SetDriverinit:
    """Ensure parameters that the driver of a PF or a VF starts with, by a reload of its instance.

    `address` is the function's name on its bus. `has_netdev`: the PF has an interface then, which
    what follows needs.
    """

    pf: DeviceHandle
    index: int | None
    address: str
    params: tuple[Param, ...]
    has_netdev: bool = False


@dataclass(frozen=True)
class SetEswitch(EswitchAttributes):
    """Ensure the eswitch's mode and, in switchdev, how it parses. None: leave alone.

    Some drivers (ice) change the mode only while there are no VFs: where the first order is
    refused, the performer removes the unbound VFs, sets the mode and creates them again.
    """

    pf: DeviceHandle


@dataclass(frozen=True)
class SetDcb:
    """Ensure the DCB of a PF's port. None in it: leave alone."""

    pf: DeviceHandle
    dcb: Dcb


@dataclass(frozen=True)
class SetRates:
    """Ensure rate objects of an eswitch; `now` has the present values of those that exist."""

    pf: DeviceHandle
    rates: tuple[Rate, ...]
    now: tuple[Rate, ...] = ()


@dataclass(frozen=True)
class SetTuning:
    """Ensure what is tuned of a PF or a VF; `address` is the function's name on its bus."""

    pf: DeviceHandle
    index: int | None
    address: str
    values: tuple[Tuned, ...]


@dataclass(frozen=True)
class AddSubfunction:
    """Ensure the port of a subfunction, and what its driver looks at when it starts.

    `now`: as it is, if it is there.
    """

    pf: DeviceHandle
    subfunction: Subfunction
    now: Subfunction | None = None


@dataclass(frozen=True)
class StartSubfunction:
    """Ensure a subfunction's state and what its driver starts with; done once that has started."""

    pf: DeviceHandle
    subfunction: Subfunction
    now: Subfunction | None = None


@dataclass(frozen=True)
class SetVdpa:
    """Ensure a vDPA device of a VF or a subfunction, and its driver. `now`: as it is, if it exists.

    `address` is the VF's PCI address.
    """

    pf: DeviceHandle
    index: Port
    address: str | None
    vdpa: Vdpa
    now: Vdpa | None = None


@dataclass(frozen=True)
class OverrideDriver:
    """Ensure a VF's `driver_override`; "" clears it."""

    pf: DeviceHandle
    index: int
    address: str
    driver: str


@dataclass(frozen=True)
class UnbindVf:
    """Ensure that a VF has no driver. `driver` is its present one; None: any."""

    pf: DeviceHandle
    index: int
    address: str
    driver: str | None


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
    """Ensure one object on a netdev: a child, a port, an address, a neighbour, a route.

    `pf` and `index` identify the netdev (the first one of a multipath route), `netdev` its name:
    nothing is added if another netdev has it. None if names are set as well, as in pods.
    `anew`: an address that exists, but failed DAD, is removed first (`Address.failed`).
    """

    pf: DeviceHandle
    index: Port
    thing: Stacked
    netdev: str | None = None
    anew: bool = False


@dataclass(frozen=True)
class AwaitLag:
    """Ensure that a PF's card has this LAG, once the PF has joined its bond.

    `port` is the PF's membership in that bond, which it leaves and joins again if there is no LAG
    in time; None if `esw_multiport` makes the LAG. `manager` is the network manager of the bond.
    """

    pf: DeviceHandle
    lag: Lag
    port: Membership | None
    manager: str | None = None


@dataclass(frozen=True)
class SetEthtool:
    """Ensure ethtool settings of a netdev: a PF's, a VF's or a representor's. Only differences."""

    pf: DeviceHandle
    index: Port
    values: tuple[Setting, ...]


@dataclass(frozen=True)
class SetSysctls:
    """Ensure per-interface sysctls of a PF's, a VF's or a representor's netdev: differences."""

    pf: DeviceHandle
    index: Port
    values: tuple[Sysctl, ...]


@dataclass(frozen=True)
class SetRdma:
    """Ensure the name of a function's RDMA device; `now`: its present name, if it exists."""

    pf: DeviceHandle
    index: int | None
    address: str
    name: str
    now: str | None


@dataclass(frozen=True)
class MoveVf:
    """Ensure that a VF's interface is in a network namespace, there under `name`; in one message.

    `address` is the VF's PCI address. `carrier`: it had carrier there, so that its addresses are
    announced once it has carrier again. Another namespace with the same inode is not entered.
    """

    pf: DeviceHandle
    index: int
    address: str
    namespace: Namespace
    name: str
    carrier: bool = False


@dataclass(frozen=True)
class SetRoce:
    """Ensure the defaults for RoCE of a function's RDMA device, called `name`: of these ports."""

    pf: DeviceHandle
    index: int | None
    name: str
    ports: tuple[RocePort, ...]


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
    | SetDriverinit
    | SetEswitch
    | SetDcb
    | SetRates
    | SetTuning
    | AddSubfunction
    | StartSubfunction
    | SetVdpa
    | SetVf
    | OverrideDriver
    | UnbindVf
    | BindVf
    | SetLink
    | AddStacked
    | AwaitLag
    | SetEthtool
    | SetSysctls
    | SetRdma
    | SetRoce
    | MoveVf
    | MoveRdma
    | InPod
)


@dataclass(frozen=True)
class Stage:
    """Actions that may be performed in any order, after the stages before are done."""

    name: AnyStage
    actions: tuple[Action, ...]
