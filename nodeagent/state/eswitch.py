"""What devlink says of a PF's eswitch: `devlink dev eswitch set …`, one row each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nodeagent.state.attributes import Attributes, attribute, one_of

ESWITCH_MODES: Final = ("legacy", "switchdev")
INLINE_MODES: Final = ("none", "link", "network", "transport")
ENCAP_MODES: Final = ("none", "basic")


@dataclass(frozen=True, kw_only=True)
class EswitchAttributes(Attributes):
    """A PF's eswitch. None: its driver does not report it, or has no devlink."""

    eswitch_mode: str | None = attribute(
        "eswitch mode", "mode", fresh="legacy", check=one_of(ESWITCH_MODES)
    )
    inline_mode: str | None = attribute("inline mode", "inline-mode", check=one_of(INLINE_MODES))
    encap_mode: str | None = attribute("encap mode", "encap-mode", check=one_of(ENCAP_MODES))
