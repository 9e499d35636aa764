"""The interfaces of the kernel through which the program reads and changes the node.

`observe`, `locate`, `settle` and `perform` have functions that take a Node. Tests pass one with
fakes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from nodeagent.kernel.dcb import Dcbnl
from nodeagent.kernel.devlink import Devlink
from nodeagent.kernel.ethtool import Ethtool
from nodeagent.kernel.events import AddressWatch, StopSignal, Watch
from nodeagent.kernel.netns import Namespaces
from nodeagent.kernel.rdma import Rdma
from nodeagent.kernel.roce import RoceDefaults
from nodeagent.kernel.rtnl import Rtnl
from nodeagent.kernel.stack import StackEdge
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.kernel.vdpa import VdpaEdge
from nodeagent.node.hung_calls import HungCalls
from nodeagent.record.gaps import VfTimes
from nodeagent.settings import Settings
from nodeagent.state.model import DeviceHandle


@dataclass(frozen=True, eq=False)
class Node:
    """This node, seen from one network namespace. A context manager, which closes its sockets.

    `network` is a block in which /proc/sys/net is that of the namespace. `hung_calls` are kept for
    all attempts to restore, because only the kernel can end them. `locked_records` are the VFs
    whose SR-IOV CNI record we have locked. `port_indexes` is a cache of `nodeagent.node.locate`: by
    device, the ifindex of each port. `silent_pfs` are those whose firmware did not start within the
    driver's time, and which are not probed again.
    """

    settings: Settings
    stop: StopSignal | None = None
    sysfs: Sysfs = field(default_factory=Sysfs)
    rtnl: Rtnl = field(default_factory=Rtnl)
    ethtool: Ethtool = field(default_factory=Ethtool)
    devlink: Callable[[], Devlink] = Devlink
    dcb: Callable[[], Dcbnl] = Dcbnl
    stack: Callable[[], StackEdge] = StackEdge
    rdma: Callable[[], Rdma] = Rdma
    vdpa: Callable[[], VdpaEdge] = VdpaEdge
    address_watch: Callable[[], AddressWatch] = AddressWatch
    namespaces: Namespaces = field(default_factory=Namespaces)
    udev_run: Path = Path("/run/udev")
    proc: Path = Path("/proc")
    run: Path = Path("/run")
    network: Callable[[], AbstractContextManager[None]] = nullcontext
    hung_calls: HungCalls = field(default_factory=HungCalls)
    locked_records: set[str] = field(default_factory=set)
    port_indexes: dict[DeviceHandle, dict[str, int]] = field(default_factory=dict)
    vf_times: VfTimes = field(default_factory=VfTimes)
    silent_pfs: set[DeviceHandle] = field(default_factory=set)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.rtnl.close()
        self.ethtool.close()

    @property
    def roce(self) -> RoceDefaults:
        """configfs here, or where the host's init has it."""
        config = "kernel/config/rdma_cm"
        return RoceDefaults((self.sysfs.root / config, self.proc / "1/root/sys" / config))

    @property
    def stops(self) -> tuple[Watch, ...]:
        """The watch that ends a wait when a signal arrives; none if there is no signal handler."""
        return () if self.stop is None else (self.stop,)
