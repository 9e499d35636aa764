"""Data Center Bridging of a PF's port, as dcb(8) shows and sets it (IEEE 802.1Qaz, 802.1Qbb)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from nodeagent.state.checks import U32, U64, check_sorted, within

CLASSES: Final = 8
"""Priorities, traffic classes and buffers alike (IEEE_8021QAZ_MAX_TCS, DCBX_MAX_BUFFERS)."""

Eight = tuple[int, ...]
"""A value for each priority, traffic class or buffer, 0 to 7."""


class Tsa(StrEnum):
    """How a traffic class is scheduled (transmission selection algorithm, uapi/linux/dcbnl.h)."""

    STRICT = "strict"
    CBS = "cbs"
    ETS = "ets"
    VENDOR = "vendor"


class Selector(StrEnum):
    """The kinds of entries of the application table, in the words of dcb-app(8)."""

    ETHTYPE = "ethtype-prio"
    STREAM_PORT = "stream-port-prio"
    DGRAM_PORT = "dgram-port-prio"
    PORT = "port-prio"
    DSCP = "dscp-prio"
    PCP = "pcp-prio"


@dataclass(frozen=True, kw_only=True)
class Ets:
    """Enhanced transmission selection. Bandwidths are percent, `prio_tc` are traffic classes.

    The fields that begin with `reco` are recommended to the link partner by LLDP.
    """

    willing: bool
    tc_tsa: tuple[Tsa, ...]
    tc_bw: Eight
    pg_bw: Eight
    prio_tc: Eight
    reco_tc_tsa: tuple[Tsa, ...]
    reco_tc_bw: Eight
    reco_prio_tc: Eight

    def __post_init__(self) -> None:
        for name in ("tc_tsa", "reco_tc_tsa"):
            if len(getattr(self, name)) != CLASSES:
                raise ValueError(f"{name} has not {CLASSES} members")
        for name in ("tc_bw", "pg_bw", "prio_tc", "reco_tc_bw", "reco_prio_tc"):
            _check_eight(name, getattr(self, name), 0xFF)

    def words(self) -> str:
        """The arguments of dcb-ets(8): bandwidths add up to 100, and classes without ETS have 0.

        mlx5 reports 100 for those, and ignores values that are set for them.
        """
        return " ".join(
            (
                f"willing {_on(self.willing)} tc-tsa {_by_number(self.tc_tsa)}",
                f"tc-bw {_by_number(_of_ets(self.tc_bw, self.tc_tsa))}",
                f"pg-bw {_by_number(self.pg_bw)} prio-tc {_by_number(self.prio_tc)}",
                f"reco-tc-tsa {_by_number(self.reco_tc_tsa)}",
                f"reco-tc-bw {_by_number(_of_ets(self.reco_tc_bw, self.reco_tc_tsa))}",
                f"reco-prio-tc {_by_number(self.reco_prio_tc)}",
            )
        )


@dataclass(frozen=True, kw_only=True)
class Pfc:
    """Priority flow control: on or off by priority. `delay` is mlx5's cable length in metres."""

    prio_pfc: tuple[bool, ...]
    macsec_bypass: bool
    delay: int

    def __post_init__(self) -> None:
        if len(self.prio_pfc) != CLASSES:
            raise ValueError(f"prio_pfc has not {CLASSES} members")
        within(0, 0xFFFF)("delay", self.delay)

    def words(self) -> str:
        """The arguments of dcb-pfc(8)."""
        prio_pfc = _by_number([_on(each) for each in self.prio_pfc])
        return f"prio-pfc {prio_pfc} macsec-bypass {_on(self.macsec_bypass)} delay {self.delay}"


@dataclass(frozen=True, kw_only=True)
class Buffers:
    """The port's receive buffers: the buffer of each priority, and the size of each in bytes."""

    prio_buffer: Eight
    buffer_size: Eight

    def __post_init__(self) -> None:
        _check_eight("prio_buffer", self.prio_buffer, 0xFF)
        _check_eight("buffer_size", self.buffer_size, U32)

    def words(self) -> str:
        """The arguments of dcb-buffer(8)."""
        prio_buffer, sizes = _by_number(self.prio_buffer), _by_number(self.buffer_size)
        return f"prio-buffer {prio_buffer} buffer-size {sizes}"


@dataclass(frozen=True, order=True)
class App:
    """An entry of the application table: traffic of this protocol gets that priority."""

    selector: Selector
    protocol: int
    priority: int

    def __post_init__(self) -> None:
        within(0, 0xFFFF)("protocol", self.protocol)
        within(0, 0xFF)("priority", self.priority)

    def words(self) -> str:
        """The arguments of dcb-app(8). Ethertype 0 is the default for all other traffic."""
        if self.selector is Selector.ETHTYPE and self.protocol == 0:
            return f"default-prio {self.priority}"
        return f"{self.selector} {self.protocol}:{self.priority}"


@dataclass(frozen=True, kw_only=True)
class Dcb:
    """A port's DCB. A part is None if the driver does not support it.

    `maxrate` is the limit of each traffic class in kbit/s, 0 for none. `app` is sorted; mlx5 trusts
    DSCP instead of PCP exactly while there is an entry by DSCP.
    """

    ets: Ets | None = None
    maxrate: Eight | None = None
    pfc: Pfc | None = None
    buffer: Buffers | None = None
    app: tuple[App, ...] | None = None

    def __post_init__(self) -> None:
        if self.maxrate is not None:
            _check_eight("maxrate", self.maxrate, U64)
        check_sorted("entries of the application table", self.app or ())

    def commands(self, name: str) -> Iterator[str]:
        """The commands of dcb(8) that set all that is known on the interface `name`."""
        if self.ets is not None:
            yield f"dcb ets set dev {name} {self.ets.words()}"
        if self.maxrate is not None:
            yield f"dcb maxrate set dev {name} {words(self.maxrate)}"
        if self.pfc is not None:
            yield f"dcb pfc set dev {name} {self.pfc.words()}"
        if self.buffer is not None:
            yield f"dcb buffer set dev {name} {self.buffer.words()}"
        if self.app is not None:
            yield f"dcb app flush dev {name}"
        if self.app:
            yield f"dcb app add dev {name} {words(self.app)}"


Part = Ets | Pfc | Buffers | tuple[App, ...] | Eight


def words(part: Part) -> str:
    """The arguments of dcb(8) for a part; "none" for an application table without entries.

    Limits of traffic classes and an application table are distinguished by their members.
    """
    if not isinstance(part, tuple):
        return part.words()
    apps = [each for each in part if isinstance(each, App)]
    rates = [f"{each}kbit" for each in part if isinstance(each, int)]
    if rates:
        return f"tc-maxrate {_by_number(rates)}"
    return " ".join(each.words() for each in apps) or "none"


PARTS: Final = ("ets", "maxrate", "pfc", "buffer", "app")
"""The parts in the order in which they are set: mlx5 resizes buffers when PFC changes."""


def _check_eight(name: str, values: Eight, most: int) -> None:
    if len(values) != CLASSES:
        raise ValueError(f"{name} has not {CLASSES} members")
    for value in values:
        within(0, most)(name, value)


def _of_ets(bandwidths: Eight, tsas: tuple[Tsa, ...]) -> Eight:
    return tuple(
        bandwidth if tsa is Tsa.ETS else 0 for bandwidth, tsa in zip(bandwidths, tsas, strict=True)
    )


def _by_number(values: Eight | tuple[Tsa, ...] | list[str]) -> str:
    return " ".join(f"{number}:{value}" for number, value in enumerate(values))


def _on(value: bool) -> str:
    return "on" if value else "off"
