"""What a PF holds for a VF, set through the PF (`ip link … vf N …`): a row for each attribute."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Self

from nodeagent.state.addresses import Guid, Mac
from nodeagent.state.attributes import Attributes, attribute
from nodeagent.state.checks import U32, member_of, within


class LinkState(StrEnum):
    """The link state that a PF gives a VF, in the kernel's order (IFLA_VF_LINK_STATE_*)."""

    AUTO = "auto"
    ENABLE = "enable"
    DISABLE = "disable"


POLICIES: Final = {
    LinkState.AUTO: "Follow",
    LinkState.ENABLE: "Up",
    LinkState.DISABLE: "Down",
}
"""DOCA-OFED's words for them on InfiniBand, where a new VF's is Down."""


class VlanProtocol(StrEnum):
    """The protocol of a VLAN tag, with its EtherType (if_ether.h)."""

    ethertype: int

    def __new__(cls, text: str, ethertype: int) -> Self:
        """A member has ip(8)'s word and the EtherType."""
        member = str.__new__(cls, text)
        member._value_ = text
        member.ethertype = ethertype
        return member

    Q = "802.1Q", 0x8100
    AD = "802.1ad", 0x88A8


VLAN_PROTOCOLS: Final = {each.ethertype: each for each in VlanProtocol}
"""By EtherType."""


@dataclass(frozen=True, kw_only=True)
class VfAttributes(Attributes):
    """A VF's attributes at its PF, in the order in which ip(8) and the kernel set them.

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
    vlan_proto: VlanProtocol | None = attribute(
        "VLAN", "proto", only_with="vlan", fresh=VlanProtocol.Q, check=member_of(VlanProtocol)
    )
    # igb takes a rate only with carrier
    min_tx_rate: int | None = attribute(
        "rate", "min_tx_rate", fresh=0, check=within(0, U32), is_late=True
    )
    max_tx_rate: int | None = attribute(
        "rate", "max_tx_rate", fresh=0, check=within(0, U32), is_late=True
    )
    spoofchk: bool | None = attribute("spoofchk", "spoofchk")
    link_state: LinkState | None = attribute(
        "link state", "state", fresh=LinkState.AUTO, check=member_of(LinkState)
    )
    query_rss: bool | None = attribute("query_rss", "query_rss")
    trust: bool | None = attribute("trust", "trust", fresh=False)
