"""devlink: the eswitch of a PF, its rates, the driver's runtime parameters (uapi/linux/devlink.h).

pyroute2 does not support them, so the messages are encoded here: a generic netlink header and flat
attributes. A device without a devlink instance (igb) is not in the list of devices; a kernel
without devlink lacks the generic netlink family.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Final

from nodeagent.errors import KernelError, reason
from nodeagent.kernel.genl import HEADER, Genl, text
from nodeagent.kernel.netlink import NLM_F_ACK, NLM_F_DUMP, attributes, understood
from nodeagent.state.attributes import given
from nodeagent.state.eswitch import EncapMode, EswitchAttributes, EswitchMode, InlineMode
from nodeagent.state.model import DeviceHandle, Param
from nodeagent.state.rates import Rate

CMD_GET: Final = 1
CMD_ESWITCH_GET: Final = 29
CMD_ESWITCH_SET: Final = 30
CMD_PARAM_GET: Final = 38
CMD_PARAM_SET: Final = 39
CMD_RATE_GET: Final = 74
CMD_RATE_SET: Final = 75
CMD_RATE_NEW: Final = 76
BUS_NAME: Final = 1
DEV_NAME: Final = 2
PORT_INDEX: Final = 3
PARAM: Final = 80
PARAM_NAME: Final = 81
PARAM_TYPE: Final = 83
PARAM_VALUES_LIST: Final = 84
PARAM_VALUE: Final = 85
PARAM_VALUE_DATA: Final = 86
PARAM_VALUE_CMODE: Final = 87
CMODE_RUNTIME: Final = 0
RATE_NODE_NAME: Final = 168
RATE_PARENT_NODE_NAME: Final = 169

ESWITCH_CODEC: Final[tuple[tuple[str, int, str, type[StrEnum]], ...]] = (
    # attribute of EswitchAttributes, its number, the format of its value, its values in order
    ("eswitch_mode", 25, "=H", EswitchMode),
    ("inline_mode", 26, "=B", InlineMode),
    ("encap_mode", 62, "=B", EncapMode),
)

RATE_CODEC: Final = (
    # field of Rate, its number, the format of its value
    ("tx_share", 166, "=Q"),
    ("tx_max", 167, "=Q"),
    ("tx_priority", 177, "=I"),
    ("tx_weight", 178, "=I"),
)

# DEVLINK_PARAM_TYPE_*, which are the NLA_* types of the kernel
NLA_FORMATS: Final = {1: "=B", 2: "=H", 3: "=I", 4: "=Q"}
NLA_STRING: Final = 5
NLA_FLAG: Final = 6

_NO_ESWITCH: Final = {errno.EOPNOTSUPP, errno.ENODEV, errno.EPERM, errno.EINVAL}


class Devlink(Genl):
    """A generic netlink socket of the devlink family."""

    def __init__(self) -> None:
        super().__init__("devlink")

    @understood("devlink devices")
    def devices(self) -> tuple[DeviceHandle, ...]:
        """Every device that has a devlink instance: one request."""
        if self.family is None:
            return ()
        bodies = self.dump(self.message(CMD_GET, NLM_F_DUMP), "devlink devices")
        return tuple(_device(dict(attributes(body, HEADER))) for body in bodies)

    @understood("an eswitch")
    def eswitch(self, device: DeviceHandle) -> EswitchAttributes:
        """The eswitch of one device; all None if its driver has none, or does not manage it.

        mlx5 returns EOPNOTSUPP for a port that is not Ethernet; for a PF that is not the eswitch's
        manager (a DPU's host) EOPNOTSUPP, in older kernels EPERM (mlx5_eswitch_check()), and EINVAL
        for an eswitch that is not set up (esw_mode_to_devlink()). ENODEV is a device without
        devlink. Anything else is a KernelError, because the eswitch may exist.
        """
        try:
            (body,) = self.ask(self.message(CMD_ESWITCH_GET, 0, *_handle(device)))
        except OSError as error:
            if error.errno in _NO_ESWITCH:
                return EswitchAttributes()
            raise KernelError(
                f"cannot read the eswitch of {device}: {reason(error)}",
                errno=error.errno,
            ) from error
        found = dict(attributes(body, HEADER))
        modes: dict[str, Any] = {
            name: _member(values, found.get(kind)) for name, kind, _, values in ESWITCH_CODEC
        }
        return EswitchAttributes(**modes)

    def set_eswitch(self, device: DeviceHandle, wanted: EswitchAttributes) -> None:
        """Set what is not None. Blocks while representors are created or removed. OSError."""
        changes = given(wanted)
        values = (
            (kind, struct.pack(form, list(values).index(changes[name])))
            for name, kind, form, values in ESWITCH_CODEC
            if name in changes
        )
        self._do(CMD_ESWITCH_SET, *_handle(device), *values)

    @understood("devlink parameters")
    def params(self) -> dict[DeviceHandle, tuple[Param, ...]]:
        """The runtime parameters of all devices, sorted by name: one request."""
        if self.family is None:
            return {}
        found: dict[DeviceHandle, list[Param]] = {}
        for body in self.dump(self.message(CMD_PARAM_GET, NLM_F_DUMP), "devlink parameters"):
            message = dict(attributes(body, HEADER))
            param = _param(dict(attributes(message.get(PARAM, b""))))
            if param is not None:
                found.setdefault(_device(message), []).append(param)
        return {device: tuple(sorted(p, key=lambda p: p.name)) for device, p in found.items()}

    def set_param(self, device: DeviceHandle, param: Param) -> None:
        """Set a parameter's runtime value. OSError when refused."""
        self._do(
            CMD_PARAM_SET,
            *_handle(device),
            (PARAM_NAME, param.name.encode() + b"\0"),
            (PARAM_TYPE, struct.pack("=B", param.kind)),
            (PARAM_VALUE_CMODE, struct.pack("=B", CMODE_RUNTIME)),
            *_data(param),
        )

    @understood("devlink rates")
    def rates(self) -> dict[DeviceHandle, tuple[Rate, ...]]:
        """The rate objects of all devices, sorted: one request. None before Linux 5.14."""
        if self.family is None:
            return {}
        found: dict[DeviceHandle, list[Rate]] = {}
        try:
            bodies = self.dump(self.message(CMD_RATE_GET, NLM_F_DUMP), "devlink rates")
        except KernelError as error:
            if error.errno == errno.EOPNOTSUPP:
                return {}
            raise
        for body in bodies:
            message = dict(attributes(body, HEADER))
            if (rate := _rate(message)) is not None:
                found.setdefault(_device(message), []).append(rate)
        return {device: tuple(sorted(r, key=lambda r: r.key)) for device, r in found.items()}

    def add_rate_node(self, device: DeviceHandle, name: str) -> None:
        """Add a rate node. OSError when refused."""
        self._do(CMD_RATE_NEW, *_handle(device), (RATE_NODE_NAME, name.encode() + b"\0"))

    def set_rate(self, device: DeviceHandle, rate: Rate, changes: Mapping[str, Any]) -> None:
        """Set these values of a rate object, by name; a parent of None is none. OSError."""
        which = (RATE_NODE_NAME, rate.name.encode() + b"\0")
        if not rate.is_node:
            which = (PORT_INDEX, struct.pack("=I", int(rate.name)))
        values = [
            (kind, struct.pack(form, changes[name]))
            for name, kind, form in RATE_CODEC
            if name in changes
        ]
        if "parent" in changes:
            values.append((RATE_PARENT_NODE_NAME, (changes["parent"] or "").encode() + b"\0"))
        self._do(CMD_RATE_SET, *_handle(device), which, *values)

    def _do(self, command: int, *parts: tuple[int, bytes]) -> None:
        (error,) = self.send([self.message(command, NLM_F_ACK, *parts)])
        if error is not None:
            raise error


def _handle(device: DeviceHandle) -> tuple[tuple[int, bytes], tuple[int, bytes]]:
    return (BUS_NAME, device.bus.encode() + b"\0"), (DEV_NAME, device.name.encode() + b"\0")


def _device(message: dict[int, bytes]) -> DeviceHandle:
    return DeviceHandle.reported(text(message[BUS_NAME]), text(message[DEV_NAME]))


def _member(values: type[StrEnum], payload: bytes | None) -> StrEnum | None:
    """The member with that number; None when it is not there or from a newer kernel."""
    if payload is None:
        return None
    number = int.from_bytes(payload, sys.byteorder)
    return list(values)[number] if number < len(values) else None


def _rate(message: dict[int, bytes]) -> Rate | None:
    """A rate object; None for one whose name is not printable, and could not be sent back."""
    node, parent = message.get(RATE_NODE_NAME), message.get(RATE_PARENT_NODE_NAME)
    if node is None and PORT_INDEX not in message:
        return None
    name = str(int.from_bytes(message[PORT_INDEX], sys.byteorder)) if node is None else text(node)
    if not name or not name.isprintable():
        return None
    values = {
        field: struct.unpack_from(form, message[kind])[0]
        for field, kind, form in RATE_CODEC
        if kind in message
    }
    is_in = None if parent is None else text(parent) or None
    return Rate(name=name, is_node=node is not None, parent=is_in, **values)


def _param(message: dict[int, bytes]) -> Param | None:
    """A parameter of which the driver reports a runtime value, else None."""
    if PARAM_NAME not in message or PARAM_TYPE not in message:
        return None
    kind = message[PARAM_TYPE][0]
    for nested in _values(message.get(PARAM_VALUES_LIST, b"")):
        if nested.get(PARAM_VALUE_CMODE, b"\xff")[0] == CMODE_RUNTIME:
            value = _value(kind, nested.get(PARAM_VALUE_DATA))
            return None if value is None else Param(text(message[PARAM_NAME]), kind, value)
    return None


def _values(payload: bytes) -> Iterator[dict[int, bytes]]:
    for kind, value in attributes(payload):
        if kind == PARAM_VALUE:
            yield dict(attributes(value))


def _value(kind: int, payload: bytes | None) -> bool | int | str | None:
    if kind == NLA_FLAG:
        return payload is not None
    if payload is None:
        return None
    if kind == NLA_STRING:
        return text(payload)
    form = NLA_FORMATS.get(kind)
    return None if form is None else int(struct.unpack_from(form, payload)[0])


def _data(param: Param) -> list[tuple[int, bytes]]:
    """The value as an attribute. A flag that is off has none."""
    if param.kind == NLA_FLAG:
        return [(PARAM_VALUE_DATA, b"")] if param.value else []
    if param.kind == NLA_STRING:
        return [(PARAM_VALUE_DATA, str(param.value).encode() + b"\0")]
    return [(PARAM_VALUE_DATA, struct.pack(NLA_FORMATS[param.kind], param.value))]
