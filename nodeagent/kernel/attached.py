"""What other subsystems have attached to an interface, and lose with it: nftables, IPsec offload.

The kernel deletes the hook of a chain or flowtable (nf_tables_netdev_event()), and the offloaded
state (xfrm_dev_state_flush()). Formats: uapi/linux/netfilter/nf_tables.h, uapi/linux/xfrm.h. A
socket of a family loads its module: the caller asks only where that is loaded.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

from nodeagent.errors import KernelError
from nodeagent.kernel.netlink import NLM_F_DUMP, Netlink, attributes, request, text, understood

_NETLINK_XFRM, _NETLINK_NETFILTER = 6, 12
_GETSA: Final = 0x12
_SA_BYTES: Final = 224  # struct xfrm_usersa_info
_SA_SPI_AT: Final = 16 + 56 + 16
_OFFLOAD_DEV: Final = 28
_NFTABLES: Final = 10 << 8


class _Kind(NamedTuple):
    """The command that gets all; the attributes of name and hook; in the hook those of one device,
    and of a list of them."""

    get: int
    name: int
    hook: int
    device: int | None
    devices: int


_KINDS: Final = {"chain": _Kind(4, 3, 4, 3, 4), "flowtable": _Kind(23, 2, 3, None, 3)}
_TABLE: Final = 1
_DEVICE_NAME: Final = 1


class NftablesEdge(Netlink):
    """nftables' own socket."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_NETFILTER)

    @understood("nftables")
    def attached(self, ours: Collection[str]) -> tuple[str, ...]:
        """`nftables chain ingress of table filter on enp1s0`; of flowtables likewise."""
        found: list[str] = []
        for kind, numbers in _KINDS.items():
            asked = request(_NFTABLES | numbers.get, NLM_F_DUMP, bytes(4))
            with suppress(KernelError):  # a kernel without flowtables
                for body in self.dump(asked, f"nftables {kind}s"):
                    found += hooked(kind, body, ours)
        return tuple(found)


class XfrmEdge(Netlink):
    """IPsec's own socket."""

    def __init__(self) -> None:
        super().__init__(_NETLINK_XFRM)

    @understood("IPsec states")
    def attached(self, names: Mapping[int, str]) -> tuple[str, ...]:
        """`IPsec state 0x00001000 offloaded to enp1s0`. KernelError if the dump is refused."""
        bodies = self.dump(request(_GETSA, NLM_F_DUMP, b""), "IPsec states")
        return tuple(text for body in bodies if (text := offloaded(body, names)) is not None)


def hooked(kind: str, body: bytes, ours: Collection[str]) -> Iterator[str]:
    """A line for each of our interfaces that a chain or flowtable is hooked to."""
    found = dict(attributes(body, 20))
    numbers = _KINDS[kind]
    devices = []
    for number, value in attributes(found.get(numbers.hook, b"")):
        if number == numbers.devices:
            devices += [text(name) for n, name in attributes(value) if n == _DEVICE_NAME]
        elif number == numbers.device:
            devices.append(text(value))
    what = f"nftables {kind} {text(found[numbers.name])} of table {text(found[_TABLE])}"
    yield from (f"{what} on {device}" for device in sorted({*devices} & {*ours}))


def offloaded(body: bytes, names: Mapping[int, str]) -> str | None:
    """A line for an IPsec state that the driver of one of our interfaces has."""
    found = dict(attributes(body, 16 + _SA_BYTES))
    if _OFFLOAD_DEV not in found:
        return None
    (index,) = struct.unpack_from("=i", found[_OFFLOAD_DEV])
    (spi,) = struct.unpack_from(">I", body, _SA_SPI_AT)
    return f"IPsec state 0x{spi:08x} offloaded to {names[index]}" if index in names else None
