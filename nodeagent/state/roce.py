"""The defaults of rdma_cm for new connections over a port of an RDMA device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from nodeagent.state.checks import U32, within


class RoceMode(StrEnum):
    """The preferred type of GID (gid_type_str, drivers/infiniband/core/cache.c)."""

    V1 = "IB/RoCE v1"
    V2 = "RoCE v2"


@dataclass(frozen=True, kw_only=True)
class RocePort:
    """The defaults of a port, 1 or more. `tos` is the IP type of service: the DSCP times 4.

    The kernel gives a fresh device RoCE v2 where it can, and ToS 0 (cma_add_one(),
    drivers/infiniband/core/cma.c).
    """

    port: int
    mode: RoceMode
    tos: int

    def __post_init__(self) -> None:
        within(1, U32)("port", self.port)
        within(0, 0xFF)("tos", self.tos)

    @property
    def is_fresh(self) -> bool:
        """Whether a new device has these defaults."""
        return self == fresh_port(self.port)

    def words(self) -> str:
        """`RoCE v2 tos 106`."""
        return f"{self.mode} tos {self.tos}"


def port_of(ports: Iterable[RocePort], number: int) -> RocePort:
    """The port of that number; with the defaults of a new device if it is not in `ports`."""
    return next((port for port in ports if port.port == number), fresh_port(number))


def fresh_port(number: int) -> RocePort:
    """The defaults of a new device."""
    return RocePort(port=number, mode=RoceMode.V2, tos=0)
