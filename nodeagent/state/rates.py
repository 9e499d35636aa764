"""Rate objects of a PF's eswitch, as devlink-rate(8) shows and sets them: leafs and nodes."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nodeagent.state.checks import U32, U64, check_fields, within

VALUES: Final = ("tx_share", "tx_max", "tx_priority", "tx_weight", "parent")
"""The values of a rate object, in the order in which the kernel sets those of a message."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A leaf is a port of the eswitch; a node is a group of leafs that share its rate.

    `name` follows the PF's handle in devlink(8): a leaf's port index, which is the same for a VF
    after a reload (mlx5: its vport), or the name of a node. `parent` is the node that it belongs
    to. `tx_share` and `tx_max` are in bytes per second, 0 for none and for unlimited.
    """

    name: str
    is_node: bool = False
    tx_share: int = 0
    tx_max: int = 0
    tx_priority: int = 0
    tx_weight: int = 0
    parent: str | None = None

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise ValueError(f"{self.name!r} is not the name of a rate object")
        if not self.is_node and not (self.name.isascii() and self.name.isdigit()):
            raise ValueError(f"{self.name!r} is not the index of a port")
        check_fields(self, within(0, U64), "tx_share", "tx_max")
        check_fields(self, within(0, U32), "tx_priority", "tx_weight")

    @property
    def key(self) -> tuple[bool, str]:
        """What identifies it among the rate objects of its PF."""
        return self.is_node, self.name

    def __str__(self) -> str:
        """`rate of port 1`, `rate node gold`."""
        return f"rate node {self.name}" if self.is_node else f"rate of port {self.name}"

    @property
    def is_fresh(self) -> bool:
        """Whether it is a leaf without any setting."""
        return not self.is_node and not self.changes(None)

    def changes(self, now: Rate | None) -> Mapping[str, Any]:
        """The values to set, by name; `now` is None for a new one."""
        before = now or Rate(name=self.name, is_node=self.is_node)
        values = ((name, getattr(self, name), getattr(before, name)) for name in VALUES)
        return {name: want for name, want, was in values if want != was}

    def words(self) -> str:
        """Its settings as arguments of devlink(8); "none" if there are none."""
        return " ".join(_words(self.changes(None))) or "none"


def vf_of(bus: str, rate: Rate) -> int | None:
    """The index of the VF whose port the leaf is; None for a node or another port.

    mlx5's port index has the vport in its lower 16 bits, which is 1 for VF 0
    (mlx5_esw_vport_to_devlink_port_index(), eswitch.h); netdevsim's VF 0 has port 128
    (NSIM_DEV_VF_PORT_INDEX_BASE, netdevsim.h).
    """
    if rate.is_node:
        return None
    index = int(rate.name) - 128 if bus == "netdevsim" else (int(rate.name) & 0xFFFF) - 1
    return index if index >= 0 else None


def commands(pf: str, rates: Iterable[Rate], now: Iterable[Rate]) -> Iterator[str]:
    """The commands of devlink(8), in this order; `now` are the present rate objects."""
    known = {each.key: each for each in now}
    return (_command(pf, each, known.get(each.key)) for each in rates)


def _command(pf: str, rate: Rate, now: Rate | None) -> str:
    """The command of devlink(8) that adds a node, or sets what differs from `now`."""
    verb = "add" if rate.is_node and now is None else "set"
    words = " ".join(("", *_words(rate.changes(now))))
    return f"devlink port function rate {verb} {shlex.quote(f'{pf}/{rate.name}')}{words}"


def _words(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if name == "parent":
            yield "noparent" if value is None else f"parent {shlex.quote(value)}"
        else:
            # without a unit it is in bits per second
            yield f"{name} {value}{'bps' if name in {'tx_share', 'tx_max'} else ''}"


def reset(rates: tuple[Rate, ...] | None) -> tuple[Rate, ...] | None:
    """The rate objects after a change of the eswitch's mode: leafs without settings, no nodes."""
    if rates is None:
        return None
    return tuple(Rate(name=each.name) for each in rates if not each.is_node)
