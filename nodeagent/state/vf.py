"""What a PF holds for a VF and is written through the PF: `ip link … vf N …`, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodeagent.state.addresses import Guid, Mac
from nodeagent.state.attributes import Attributes, attribute, one_of, within

LINK_STATES: Final = ("auto", "enable", "disable")
VLAN_PROTOCOLS: Final = ("802.1Q", "802.1ad")
U32: Final = 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class VfAttributes(Attributes):
    """A VF as its PF has it; the order is that in which ip(8) and the kernel take them.

    Rates are in Mbit/s, 0 for unlimited. A GUID that is zero has not been set and is None here.

    A new VF has what rtnl_fill_vfinfo() presets and every driver starts from. spoofchk (on with
    igb, off with netdevsim) and query_rss are the driver's choice. Where a driver starts from
    something else, the next look at the node finds the difference.
    """

    admin_mac: Mac | None = attribute("MAC", "mac", fresh=Mac("00:00:00:00:00:00"))
    node_guid: Guid | None = attribute("node GUID", "node_guid")
    port_guid: Guid | None = attribute("port GUID", "port_guid")
    vlan: int | None = attribute("VLAN", "vlan", fresh=0, check=within(0, 4095))
    qos: int | None = attribute("VLAN", "qos", fresh=0, check=within(0, 7))
    vlan_proto: str | None = attribute(
        "VLAN", "proto", beside="vlan", fresh="802.1Q", check=one_of(VLAN_PROTOCOLS)
    )
    # igb takes a rate only with carrier
    min_tx_rate: int | None = attribute(
        "rate", "min_tx_rate", fresh=0, check=within(0, U32), is_late=True
    )
    max_tx_rate: int | None = attribute(
        "rate", "max_tx_rate", fresh=0, check=within(0, U32), is_late=True
    )
    spoofchk: bool | None = attribute("spoofchk", "spoofchk")
    link_state: str | None = attribute(
        "link state", "state", fresh="auto", check=one_of(LINK_STATES)
    )
    query_rss: bool | None = attribute("query_rss", "query_rss")
    trust: bool | None = attribute("trust", "trust", fresh=False)
