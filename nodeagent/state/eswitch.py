"""The attributes of a PF's eswitch (`devlink dev eswitch set …`): a row for each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nodeagent.state.attributes import Attributes, attribute
from nodeagent.state.checks import member_of


class EswitchMode(StrEnum):
    """The modes in the kernel's order (enum devlink_eswitch_mode), as in the other enums."""

    LEGACY = "legacy"
    SWITCHDEV = "switchdev"
    SWITCHDEV_INACTIVE = "switchdev_inactive"
    """With representors, and without traffic until it is `switchdev`. Older kernels have none."""


class InlineMode(StrEnum):
    """How much of a packet mlx5 wants in its descriptor (enum devlink_eswitch_inline_mode)."""

    NONE = "none"
    LINK = "link"
    NETWORK = "network"
    TRANSPORT = "transport"


class EncapMode(StrEnum):
    """Whether the eswitch encapsulates (enum devlink_eswitch_encap_mode)."""

    NONE = "none"
    BASIC = "basic"


@dataclass(frozen=True, kw_only=True)
class EswitchAttributes(Attributes):
    """A PF's eswitch. None: its driver does not report it, or has no devlink."""

    eswitch_mode: EswitchMode | None = attribute(
        "eswitch mode", "mode", fresh=EswitchMode.LEGACY, check=member_of(EswitchMode)
    )
    inline_mode: InlineMode | None = attribute(
        "inline mode", "inline-mode", check=member_of(InlineMode)
    )
    encap_mode: EncapMode | None = attribute("encap mode", "encap-mode", check=member_of(EncapMode))

    @property
    def is_switchdev(self) -> bool:
        """Whether it has representors."""
        return self.eswitch_mode not in {None, EswitchMode.LEGACY}
