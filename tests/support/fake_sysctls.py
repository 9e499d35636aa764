"""Sysctls of a fake node's interfaces, as the link dump carries them and as files take them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from nodeagent.kernel import sysctls
from nodeagent.kernel.netlink import attribute, nested

ORDER = {"ipv4": sysctls.V4.split(), "ipv6": sysctls.V6.split()}
DEFAULTS = {"ipv4.rp_filter": 0, "ipv6.accept_ra": 1}


def af_spec(values: Mapping[str, int], *, ready: bool = True) -> bytes:
    """IFLA_AF_SPEC of an interface with these values and `DEFAULTS`; `ready`: IF_READY."""
    every = {**DEFAULTS, "ipv6.mtu": 0x7FFFFFFF, **values}
    arrays = {
        family: b"".join(struct.pack("=i", every.get(f"{family}.{name}", 0)) for name in names)
        for family, names in ORDER.items()
    }
    fourth = nested(socket.AF_INET, attribute(1, arrays["ipv4"]))
    flags = attribute(1, struct.pack("=I", 0x80000000 if ready else 0))
    return fourth + nested(socket.AF_INET6, flags + attribute(2, arrays["ipv6"]))


def values_of(spec: bytes) -> dict[str, int]:
    """The values in an `af_spec` that are not the defaults."""
    return dict(sysctls.decoded(spec, DEFAULTS, 1280))


def write_defaults(proc: Path) -> None:
    """conf/default below `proc`."""
    for key, value in DEFAULTS.items():
        family, _, name = key.partition(".")
        path = proc / "sys" / "net" / family / "conf" / "default" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
