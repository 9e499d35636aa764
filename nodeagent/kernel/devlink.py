"""devlink: a PF's eswitch and its rates, a driver's parameters (uapi/linux/devlink.h).

pyroute2 does not support them, so the messages are encoded here: a generic netlink header and flat
attributes. A device without a devlink instance (igb) is not in the list of devices; a kernel
without devlink lacks the generic netlink family.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum, StrEnum
from typing import Any, Final, NamedTuple

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
CMD_RELOAD: Final = 37
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
RELOAD_FAILED: Final = 136
DEV_STATS: Final = 156
RELOAD_STATS: Final = 157
RELOAD_STATS_ENTRY: Final = 158
RELOAD_STATS_VALUE: Final = 160
RELOAD_ACTION_INFO: Final = 162
RELOAD_ACTION_STATS: Final = 163
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


class Cmode(IntEnum):
    """When the value of a parameter takes effect (enum devlink_param_cmode)."""

    RUNTIME = 0
    DRIVERINIT = 1
    """With `devlink dev reload`."""


class Instance(NamedTuple):
    """A device's devlink instance, which its driver makes when it is bound.

    `reloads`: how often it has been reloaded since; None before Linux 5.10.
    `failed`: the last reload has failed, and the device has no interface.
    """

    reloads: int | None = None
    failed: bool = False


_NO_ESWITCH: Final = {errno.EOPNOTSUPP, errno.ENODEV, errno.EPERM, errno.EINVAL}


class Devlink(Genl):
    """A generic netlink socket of the devlink family."""

    def __init__(self) -> None:
        super().__init__("devlink")

    @understood("devlink devices")
    def instances(self) -> dict[DeviceHandle, Instance]:
        """Every device that has a devlink instance: one request."""
        if self.family is None:
            return {}
        bodies = self.dump(self.message(CMD_GET, NLM_F_DUMP), "devlink devices")
        messages = [dict(attributes(body, HEADER)) for body in bodies]
        return {_device(message): _instance(message) for message in messages}

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
    def params(self) -> dict[Cmode, dict[DeviceHandle, tuple[Param, ...]]]:
        """The parameters of all devices, sorted by name: one request.

        Of the mode driverinit it is the value that was set last, in effect or not.
        """
        found: dict[Cmode, dict[DeviceHandle, tuple[Param, ...]]] = {mode: {} for mode in Cmode}
        if self.family is None:
            return found
        for body in self.dump(self.message(CMD_PARAM_GET, NLM_F_DUMP), "devlink parameters"):
            message = dict(attributes(body, HEADER))
            for mode, param in _params(dict(attributes(message.get(PARAM, b"")))):
                of_mode, device = found[mode], _device(message)
                params = (*of_mode.get(device, ()), param)
                of_mode[device] = tuple(sorted(params, key=lambda each: each.name))
        return found

    def set_param(self, device: DeviceHandle, param: Param) -> None:
        """Set a parameter's runtime value. OSError when refused."""
        self._do(CMD_PARAM_SET, *_setting(device, param, Cmode.RUNTIME))

    @understood("a devlink parameter")
    def driverinit(self, device: DeviceHandle, name: str) -> Param | None:
        """The value that a driver will start with; None where it has no such parameter."""
        which = (PARAM_NAME, name.encode() + b"\0")
        try:
            (body,) = self.ask(self.message(CMD_PARAM_GET, 0, *_handle(device), which))
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.EOPNOTSUPP}:
                return None
            raise KernelError(
                f"cannot read {name} of {device}: {reason(error)}", errno=error.errno
            ) from error
        found = dict(attributes(body, HEADER)).get(PARAM, b"")
        return dict(_params(dict(attributes(found)))).get(Cmode.DRIVERINIT)

    def reload(
        self, device: DeviceHandle, params: Sequence[Param] = (), before: Sequence[Param] = ()
    ) -> None:
        """Set parameters of the mode driverinit, and reload the driver, which reads them.

        All of it is one datagram, which the kernel carries out within one system call
        (netlink_rcv_skb()): a process that is killed has done all of it or nothing. Blocks until
        the driver has started. If the reload is refused (mlx5: in LAG), the values in effect are
        unchanged; they are `before`, and are set again, so that devlink reports them. OSError is
        the refusal.
        """
        reload = self.message(CMD_RELOAD, NLM_F_ACK, *_handle(device))
        *unset, refused = self.send([*self._driverinits(device, params), reload])
        if refused is not None:
            self.send(self._driverinits(device, before))
        for error in (refused, *unset):
            if error is not None:
                raise error

    def _driverinits(self, device: DeviceHandle, params: Sequence[Param]) -> list[bytearray]:
        set_ = (_setting(device, param, Cmode.DRIVERINIT) for param in params)
        return [self.message(CMD_PARAM_SET, NLM_F_ACK, *parts) for parts in set_]

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


def _instance(message: dict[int, bytes]) -> Instance:
    is_told = DEV_STATS in message
    counts = [
        int.from_bytes(dict(attributes(entry))[RELOAD_STATS_VALUE], sys.byteorder)
        for stats in _nests(message.get(DEV_STATS, b""), RELOAD_STATS)
        for action in _nests(stats, RELOAD_ACTION_INFO)
        for of_action in _nests(action, RELOAD_ACTION_STATS)
        for entry in _nests(of_action, RELOAD_STATS_ENTRY)
    ]
    return Instance(sum(counts) if is_told else None, any(message.get(RELOAD_FAILED, b"")))


def _params(message: dict[int, bytes]) -> Iterator[tuple[Cmode, Param]]:
    """A parameter's values in the modes that are ours to set; those of firmware are not."""
    if PARAM_NAME not in message or PARAM_TYPE not in message:
        return
    kind = message[PARAM_TYPE][0]
    for nest in _nests(message.get(PARAM_VALUES_LIST, b""), PARAM_VALUE):
        nested = dict(attributes(nest))
        mode = nested.get(PARAM_VALUE_CMODE, b"\xff")[0]
        value = _value(kind, nested.get(PARAM_VALUE_DATA))
        if mode in list(Cmode) and value is not None:
            yield Cmode(mode), Param(text(message[PARAM_NAME]), kind, value)


def _setting(device: DeviceHandle, param: Param, mode: Cmode) -> tuple[tuple[int, bytes], ...]:
    return (
        *_handle(device),
        (PARAM_NAME, param.name.encode() + b"\0"),
        (PARAM_TYPE, struct.pack("=B", param.kind)),
        (PARAM_VALUE_CMODE, struct.pack("=B", mode)),
        *_data(param),
    )


def _nests(payload: bytes, kind: int) -> Iterator[bytes]:
    return (value for number, value in attributes(payload) if number == kind)


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
