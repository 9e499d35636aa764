"""Lines for the log about what a reload takes from an interface, and that is not restored.

Structures: uapi/linux/ethtool.h, uapi/linux/net_tstamp.h; sysfs: Documentation/ABI/testing/
sysfs-class-net-queues, Documentation/core-api/irq/irq-affinity.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from nodeagent.kernel.receive import GRSSH, RXFH, Interface
from nodeagent.kernel.sysfs import text_of

_SIOCGHWTSTAMP: Final = 0x89B1
_HWTSTAMP: Final = struct.Struct("=iii")
"""struct hwtstamp_config: flags, tx_type, rx_filter."""
_MOST_CONTEXTS: Final = 16
"""MLX5E_MAX_NUM_RSS, with the interface's own, which is 0."""
_PERQUEUE, _GCOALESCE = 0x4B, 0xE
_COALESCE: Final = struct.Struct("=23I")


def of_driver(on: Interface, name: str) -> Iterator[str]:
    """What its driver tells of it."""
    if found := list(filter(lambda number: _has_context(on, number), range(1, _MOST_CONTEXTS))):
        numbers = " ".join(map(str, found))
        yield f"RSS context {numbers} of {name}, with n-tuple rules that name it"
    with suppress(OSError):
        _, transmit, receive = _HWTSTAMP.unpack(on.ask(bytes(_HWTSTAMP.size), _SIOCGHWTSTAMP))
        if transmit or receive:
            yield f"hardware timestamping of {name}"


def of_queues(on: Interface, name: str, interface: Path) -> Iterator[str]:
    """What its queues have each for itself, and how they are polled; `interface` is in sysfs."""
    receivers = sum(1 for _ in interface.glob("queues/rx-*"))
    with suppress(OSError):
        if len(set(_coalescing(on, receivers))) > 1:
            yield f"coalescing of single queues of {name} (ethtool --per-queue)"
    if text_of(interface / "mode") == "connected":
        yield f"IPoIB mode connected of {name}"
    if _is_set(interface / "threaded"):
        yield f"threaded of {name}"


def of_interrupts(device: Path, name: str, proc: Path) -> Iterator[str]:
    """The affinity of its interrupts, where it is not the driver's own; irqbalance sets it anew."""
    numbers = [each.name for each in (device / "msi_irqs").glob("*")]
    moved = sum(_is_moved(proc / "irq" / number) for number in numbers)
    if moved and not any(text_of(each) == "irqbalance" for each in proc.glob("[0-9]*/comm")):
        yield f"smp_affinity of {moved} of {len(numbers)} interrupts of {name}"


def _is_set(file: Path) -> bool:
    """Whether it holds a number or a mask other than zero."""
    return any(character not in "0," for character in text_of(file) or "")


def _is_moved(interrupt: Path) -> bool:
    """Whether a driver has a wish, and the interrupt is elsewhere."""
    wish = interrupt / "affinity_hint"
    return _is_set(wish) and text_of(wish) != text_of(interrupt / "smp_affinity")


def _has_context(on: Interface, number: int) -> bool:
    try:
        on.ask(RXFH.pack(GRSSH, number, 0, 0, 0, 0))
    except OSError:
        return False
    return True


def _coalescing(on: Interface, queues: int) -> Iterator[bytes]:
    mask = ((1 << queues) - 1).to_bytes(512, "little")
    head = struct.pack("=II", _PERQUEUE, _GCOALESCE) + mask
    answer = on.ask(head + bytes(queues * _COALESCE.size))
    for queue in range(queues):
        yield answer[len(head) + queue * _COALESCE.size :][: _COALESCE.size]
