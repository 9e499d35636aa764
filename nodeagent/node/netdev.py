"""A netdev as a value, from the reports of rtnetlink, ethtool and sysctls."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from nodeagent.kernel.rtnl import Link
from nodeagent.kernel.sysctls import SysctlTables
from nodeagent.state.attributes import given
from nodeagent.state.ethtool import Setting
from nodeagent.state.model import ManagerName, Netdev


def netdev_of(
    link: Link,
    ethtool: Mapping[int, tuple[Setting, ...]],
    sysctls: SysctlTables,
    managers: Mapping[int, ManagerName] = MappingProxyType({}),
) -> Netdev:
    """`ethtool` settings and the names of network managers are by ifindex."""
    return Netdev(
        **given(link),
        ethtool=ethtool.get(link.index),
        manager=managers.get(link.index),
        sysctls=sysctls.of(link.index, link.af_spec, link.mtu or 0),
    )
