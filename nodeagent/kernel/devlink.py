"""devlink: a PF's eswitch, its rates and port functions, parameters and health reporters.

The numbers are those of uapi/linux/devlink.h.

pyroute2 does not support them, so the messages are encoded here: a generic netlink header and flat
attributes. A device without a devlink instance (igb) is not in the list of devices; a kernel
without devlink lacks the generic netlink family.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple

from nodeagent.errors import KernelError, reason
from nodeagent.kernel.genl import HEADER, Genl, encoded
from nodeagent.kernel.netlink import (
    NLA_F_NESTED,
    NLM_F_ACK,
    NLM_F_DUMP,
    attributes,
    mac_bytes,
    text,
    text_bytes,
    understood,
)
from nodeagent.state.addresses import Mac
from nodeagent.state.attributes import given
from nodeagent.state.eswitch import EncapMode, EswitchAttributes, EswitchMode, InlineMode
from nodeagent.state.model import DeviceHandle, Param, Subfunction
from nodeagent.state.rates import Rate

CMD_GET: Final = 1
CMD_PORT_GET: Final = 5
CMD_PORT_SET: Final = 6
CMD_PORT_NEW: Final = 7
CMD_ESWITCH_GET: Final = 29
CMD_ESWITCH_SET: Final = 30
CMD_RELOAD: Final = 37
CMD_PARAM_GET: Final = 38
CMD_PARAM_SET: Final = 39
CMD_REPORTER_GET: Final = 52
CMD_REPORTER_SET: Final = 53
CMD_REPORTER_RECOVER: Final = 54
SO_ATTACH_FILTER: Final = 26
_RECOVER: Final = (
    (0x30, 0, 0, 16),  # load a byte: the command of struct genlmsghdr
    (0x15, 0, 1, CMD_REPORTER_RECOVER),  # if it is another, leave an instruction out
    (0x06, 0, 0, 0xFFFFFFFF),  # keep the message
    (0x06, 0, 0, 0),  # drop it
)
"""struct sock_filter, four times: code, jt, jf, k (linux/filter.h)."""
CMD_RATE_GET: Final = 74
CMD_RATE_SET: Final = 75
CMD_RATE_NEW: Final = 76
BUS_NAME: Final = 1
DEV_NAME: Final = 2
PORT_INDEX: Final = 3
PORT_FLAVOUR: Final = 77
PARAM: Final = 80
PARAM_NAME: Final = 81
PARAM_TYPE: Final = 83
PARAM_VALUES_LIST: Final = 84
PARAM_VALUE: Final = 85
PARAM_VALUE_DATA: Final = 86
PARAM_VALUE_CMODE: Final = 87
REPORTER: Final = 114
REPORTER_NAME: Final = 115
REPORTER_STATE: Final = 116
REPORTER_ERR_COUNT: Final = 117
FATAL: Final = "fw_fatal"
"""The reporter of an error from which a driver recovers by making all anew."""
PORT_PF_NUMBER: Final = 127
PORT_VF_NUMBER: Final = 128
RELOAD_FAILED: Final = 136
PORT_FUNCTION: Final = 145
PORT_EXTERNAL: Final = 149
PORT_CONTROLLER: Final = 150
DEV_STATS: Final = 156
RELOAD_STATS: Final = 157
RELOAD_STATS_ENTRY: Final = 158
RELOAD_STATS_VALUE: Final = 160
RELOAD_ACTION_INFO: Final = 162
RELOAD_ACTION_STATS: Final = 163
PORT_SF_NUMBER: Final = 164
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

REPORTER_CODEC: Final = (
    # devlink(8)'s word, its number, the format of its value
    ("auto_recover", 121, "=?"),
    ("grace_period", 120, "=Q"),
    ("auto_dump", 141, "=?"),
)

# enum devlink_port_flavour: a port of the NIC itself, and a VF's, as the function has it
OWN_PORTS: Final = {0, 5}
FUNCTION_CAPS: Final = 4
"""DEVLINK_PORT_FN_ATTR_CAPS, a struct nla_bitfield32."""
MAX_IO_EQS: Final = 6
CAPS: Final = ("roce", "migratable", "ipsec_crypto", "ipsec_packet")
"""Bits of it (enum devlink_port_fn_attr_cap)."""
FLAVOUR_SF: Final = 7
# within PORT_FUNCTION, too
FUNCTION_HW_ADDR: Final = 1
FUNCTION_STATE: Final = 2
MAC_BYTES: Final = 6

# DEVLINK_PARAM_TYPE_*, which are the NLA_* types of the kernel
NLA_FORMATS: Final = {1: "=B", 2: "=H", 3: "=I", 4: "=Q"}
NLA_STRING: Final = 5
NLA_FLAG: Final = 6


class Cmode(IntEnum):
    """When the value of a parameter takes effect (enum devlink_param_cmode)."""

    RUNTIME = 0
    DRIVERINIT = 1
    """With `devlink dev reload`."""


_CMODES: Final = frozenset(map(int, Cmode))


class Instance(NamedTuple):
    """A device's devlink instance, which its driver makes when it is bound.

    `reloads`: how often it has been reloaded since; None before Linux 5.10.
    `failed`: the last reload has failed, and the device has no interface.
    """

    reloads: int | None = None
    failed: bool = False


@dataclass(frozen=True)
class FatalErrors:
    """Those of a device's firmware since its driver began, by its health reporter.

    `recovered`: whether the driver has recovered from the last one.
    """

    count: int
    recovered: bool


class Port(NamedTuple):
    """A devlink port: its number (DEVLINK_ATTR_PORT_INDEX), None for the device itself."""

    device: DeviceHandle
    number: int | None = None


class Ports(NamedTuple):
    """What there is to be known of ports.

    `own`: those through which a function sends itself. `functions`: by PF and index of a VF, its
    port of the eswitch and what that sets of the VF, by devlink(8)'s word. `subfunctions`: by PF,
    sorted.
    """

    own: frozenset[Port]
    functions: Mapping[tuple[DeviceHandle, int], tuple[Port, Mapping[str, bool | int]]]
    subfunctions: Mapping[DeviceHandle, tuple[Subfunction, ...]]


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
        found: dict[Cmode, dict[DeviceHandle, list[Param]]] = {mode: {} for mode in Cmode}
        if self.family is not None:
            for body in self.dump(self.message(CMD_PARAM_GET, NLM_F_DUMP), "devlink parameters"):
                message = dict(attributes(body, HEADER))
                if params := _params(message.get(PARAM, b"")):
                    device = _device(message)
                    for mode, param in params:
                        found[mode].setdefault(device, []).append(param)
        return {
            mode: {
                device: tuple(sorted(params, key=lambda each: each.name))
                for device, params in devices.items()
            }
            for mode, devices in found.items()
        }

    def set_param(self, device: DeviceHandle, param: Param) -> None:
        """Set a parameter's runtime value. OSError when refused."""
        self._do(CMD_PARAM_SET, *_setting(device, param, Cmode.RUNTIME))

    @understood("a devlink parameter")
    def driverinit(self, device: DeviceHandle, name: str) -> Param | None:
        """The value that a driver will start with; None where it has no such parameter."""
        which = (PARAM_NAME, text_bytes(name))
        try:
            (body,) = self.ask(self.message(CMD_PARAM_GET, 0, *_handle(device), which))
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.EOPNOTSUPP}:
                return None
            raise KernelError(
                f"cannot read {name} of {device}: {reason(error)}", errno=error.errno
            ) from error
        found = dict(attributes(body, HEADER)).get(PARAM, b"")
        return dict(_params(found)).get(Cmode.DRIVERINIT)

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
        found: dict[DeviceHandle, list[Rate]] = {}
        for message in self._dump(CMD_RATE_GET, "devlink rates"):
            if (rate := _rate(message)) is not None:
                found.setdefault(_device(message), []).append(rate)
        return {device: tuple(sorted(r, key=lambda r: r.key)) for device, r in found.items()}

    def add_rate_node(self, device: DeviceHandle, name: str) -> None:
        """Add a rate node. OSError when refused."""
        self._do(CMD_RATE_NEW, *_handle(device), (RATE_NODE_NAME, text_bytes(name)))

    def set_rate(self, device: DeviceHandle, rate: Rate, changes: Mapping[str, Any]) -> None:
        """Set these values of a rate object, by name; a parent of None is none. OSError."""
        which = (RATE_NODE_NAME, text_bytes(rate.name))
        if not rate.is_node:
            which = (PORT_INDEX, struct.pack("=I", int(rate.name)))
        values = [
            (kind, struct.pack(form, changes[name]))
            for name, kind, form in RATE_CODEC
            if name in changes
        ]
        if "parent" in changes:
            values.append((RATE_PARENT_NODE_NAME, text_bytes(changes["parent"] or "")))
        self._do(CMD_RATE_SET, *_handle(device), which, *values)

    @understood("devlink ports")
    def ports(self) -> Ports:
        """All ports: one request, for which mlx5 asks its firmware about each.

        VFs of another controller (a DPU's host) are not ours.
        """
        own, functions = set(), {}
        found: dict[DeviceHandle, list[Subfunction]] = {}
        for message in self._dump(CMD_PORT_GET, "devlink ports"):
            port, flavour = _port(message), _number(message, PORT_FLAVOUR)
            if flavour in OWN_PORTS:
                own.add(port)
            if flavour == FLAVOUR_SF:
                found.setdefault(port.device, []).append(_subfunction(message))
            if PORT_VF_NUMBER in message and not _number(message, PORT_CONTROLLER):
                function = _function(dict(attributes(message.get(PORT_FUNCTION, b""))))
                functions[port.device, _number(message, PORT_VF_NUMBER)] = port, function
        subfunctions = {
            device: tuple(sorted(each, key=lambda each: each.port))
            for device, each in found.items()
        }
        return Ports(frozenset(own), functions, subfunctions)

    def set_function(self, port: Port, changes: Mapping[str, Any]) -> None:
        """Set these values of the function behind a port, by devlink(8)'s words. OSError."""
        function = encoded(*_of_function(changes))
        self._do(CMD_PORT_SET, *_place(port), (PORT_FUNCTION | NLA_F_NESTED, function))

    @understood("devlink health reporters")
    def reporters(self) -> dict[Port, dict[str, dict[str, bool | int]]]:
        """By port or device and by name, what may be set of each reporter: one request."""
        found: dict[Port, dict[str, dict[str, bool | int]]] = {}
        for message in self._dump(CMD_REPORTER_GET, "devlink health reporters"):
            name, values = _reporter(message.get(REPORTER, b""))
            if name and values:
                found.setdefault(_port(message), {})[name] = dict(values)
        return found

    @understood("devlink health reporters")
    def in_fatal_error(self) -> frozenset[DeviceHandle]:
        """The devices whose firmware has had a fatal error, and whose driver has not recovered.

        Until it has, mlx5 answers commands itself, as if firmware had carried out those that modify
        or remove (mlx5_internal_err_ret_value(), core/cmd.c), and then makes all anew.
        """
        errors = self.fatal_errors().items()
        return frozenset(device for device, had in errors if not had.recovered)

    @understood("devlink health reporters")
    def fatal_errors(self) -> dict[DeviceHandle, FatalErrors]:
        """The fatal errors of each device's firmware: one request.

        A function of mlx5 has nine reporters: the messages of others are not decoded.
        """
        found = {}
        what = "devlink health reporters"
        for message in self._dump(CMD_REPORTER_GET, what, containing=FATAL.encode()):
            if (had := _fatal_errors(message)) is not None:
                found[_device(message)] = had
        return found

    def recover(self, device: DeviceHandle) -> None:
        """Recover from a fatal error; it waits for the driver's own attempt. OSError if it fails.

        mlx5 tries once by itself. A device that is healthy by then is left alone.
        """
        self._do(CMD_REPORTER_RECOVER, *_handle(device), (REPORTER_NAME, FATAL.encode() + b"\0"))

    def set_reporter(self, port: Port, name: str, word: str, value: bool | int) -> None:
        """Set something of a health reporter, by devlink(8)'s word. OSError when refused."""
        ((kind, form),) = ((kind, form) for each, kind, form in REPORTER_CODEC if each == word)
        which = (REPORTER_NAME, text_bytes(name))
        self._do(CMD_REPORTER_SET, *_place(port), which, (kind, struct.pack(form, value)))

    def _dump(
        self, command: int, what: str, *, containing: bytes = b""
    ) -> Iterator[dict[int, bytes]]:
        """The messages of a dump with these bytes; none if the kernel does not know the command."""
        if self.family is None:
            return
        try:
            bodies = self.dump(self.message(command, NLM_F_DUMP), what)
        except KernelError as error:
            if error.errno == errno.EOPNOTSUPP:
                return
            raise
        yield from (dict(attributes(body, HEADER)) for body in bodies if containing in body)

    @understood("subfunctions")
    def makes_subfunctions(self, device: DeviceHandle) -> bool:
        """Whether its driver can. It is asked for a port without flavour, which nothing makes.

        Without the operation the kernel says EOPNOTSUPP before it looks at the flavour
        (devlink_nl_port_new_doit(), net/devlink/port.c).
        """
        try:
            self._do(CMD_PORT_NEW, *_handle(device))
        except OSError as error:
            return error.errno == errno.EINVAL
        return False

    def add_subfunction(self, device: DeviceHandle, wanted: Subfunction) -> None:
        """Make the port of a subfunction, which is not active. OSError when refused."""
        controller, pf, number = wanted.numbers
        parts = [
            (PORT_FLAVOUR, struct.pack("=H", FLAVOUR_SF)),
            (PORT_PF_NUMBER, struct.pack("=H", pf)),
            (PORT_SF_NUMBER, struct.pack("=I", number)),
        ]
        if controller is not None:
            parts.append((PORT_CONTROLLER, struct.pack("=I", controller)))
        self._do(CMD_PORT_NEW, *_handle(device), *parts)

    def _do(self, command: int, *parts: tuple[int, bytes]) -> None:
        (error,) = self.send([self.message(command, NLM_F_ACK, *parts)])
        if error is not None:
            raise error


class HealthWatch(Genl):
    """The devices in a fatal error, by the kernel's notifications: devlink_recover_notify().

    To ask instead would wait for the lock of the device, which a driver holds while it recovers,
    or while firmware does not answer. `in_fatal_error` begins empty; draining the watch adds and
    removes devices.

    The group has every change of a port or a parameter, too. A filter in the kernel drops those,
    so that they end no wait.
    """

    def __init__(self) -> None:
        super().__init__("devlink")
        self.in_fatal_error: set[DeviceHandle] = set()
        self.join("config")
        keep_recoveries(self._socket)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """The netlink socket."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Read every notification that is queued."""
        while True:
            try:
                for _, _, _, body in self._receive():
                    self._note(body)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    @understood("a devlink health reporter")
    def _note(self, body: bytes | OSError) -> None:
        if isinstance(body, OSError):
            return
        message = dict(attributes(body, HEADER))
        had = _fatal_errors(message)
        if had is not None and had.recovered:
            self.in_fatal_error.discard(_device(message))
        elif had is not None:
            self.in_fatal_error.add(_device(message))


def keep_recoveries(receiver: socket.socket) -> None:
    """Have the kernel drop all messages but those of recoveries (socket(7), SO_ATTACH_FILTER)."""
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *f) for f in _RECOVER))
    fprog = struct.pack("@HP", len(_RECOVER), ctypes.addressof(program))
    receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)


def _fatal_errors(message: Mapping[int, bytes]) -> FatalErrors | None:
    """What a message tells of them; None if it is about another health reporter."""
    reporter = dict(attributes(message.get(REPORTER, b"")))
    if text(reporter.get(REPORTER_NAME, b"")) != FATAL:
        return None
    in_error = any(reporter.get(REPORTER_STATE, b""))
    return FatalErrors(_number(reporter, REPORTER_ERR_COUNT), recovered=not in_error)


def _handle(device: DeviceHandle) -> tuple[tuple[int, bytes], tuple[int, bytes]]:
    return (BUS_NAME, text_bytes(device.bus)), (DEV_NAME, text_bytes(device.name))


def _place(port: Port) -> tuple[tuple[int, bytes], ...]:
    number = () if port.number is None else ((PORT_INDEX, struct.pack("=I", port.number)),)
    return (*_handle(port.device), *number)


def _port(message: dict[int, bytes]) -> Port:
    return Port(_device(message), _number(message, PORT_INDEX) if PORT_INDEX in message else None)


def _number(message: Mapping[int, bytes], kind: int) -> int:
    """0 where the message does not have it."""
    return int.from_bytes(message.get(kind, b""), sys.byteorder)


def _function(message: Mapping[int, bytes]) -> dict[str, bool | int]:
    """What may be set of a port function; a driver tells in a bit field of what it knows."""
    found: dict[str, bool | int] = {}
    if FUNCTION_CAPS in message:
        value, selector = struct.unpack_from("=II", message[FUNCTION_CAPS])
        bits = ((word, 1 << at) for at, word in enumerate(CAPS))
        found |= {word: bool(value & bit) for word, bit in bits if selector & bit}
    if MAX_IO_EQS in message:
        found["max_io_eqs"] = _number(message, MAX_IO_EQS)
    return found


def _device(message: dict[int, bytes]) -> DeviceHandle:
    return _reported(message[BUS_NAME], message[DEV_NAME])


@lru_cache(maxsize=1024)
def _reported(bus: bytes, name: bytes) -> DeviceHandle:
    """Cached: each device has some dozen parameters and reporters, and a message for each."""
    return DeviceHandle.reported(text(bus), text(name))


def _member(values: type[StrEnum], payload: bytes | None) -> StrEnum | None:
    """The member with that number; None when it is not there or from a newer kernel."""
    if payload is None:
        return None
    number = int.from_bytes(payload, sys.byteorder)
    return list(values)[number] if number < len(values) else None


@lru_cache
def _reporter(nested: bytes) -> tuple[str, tuple[tuple[str, bool | int], ...]]:
    """Its name, and what may be set of it by devlink(8)'s word: all VFs mostly have the same."""
    found = dict(attributes(nested))
    values = (
        (word, struct.unpack_from(form, found[kind])[0])
        for word, kind, form in REPORTER_CODEC
        if kind in found
    )
    return text(found.get(REPORTER_NAME, b"")), tuple(values)


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


def _subfunction(message: dict[int, bytes]) -> Subfunction:
    """A port of that flavour; its name is as the kernel makes phys_port_name of it."""
    controller = f"c{_number(message, PORT_CONTROLLER)}" if _number(message, PORT_EXTERNAL) else ""
    pf, number = _number(message, PORT_PF_NUMBER), _number(message, PORT_SF_NUMBER)
    nested = dict(attributes(message.get(PORT_FUNCTION, b"")))
    mac, values = nested.get(FUNCTION_HW_ADDR, b""), _function(nested)
    roce, max_io_eqs = values.get("roce"), values.get("max_io_eqs")
    return Subfunction(
        port=f"{controller}pf{pf}sf{number}",
        index=_number(message, PORT_INDEX),
        hw_addr=Mac(mac.hex(":")) if len(mac) == MAC_BYTES else None,
        active=_number(nested, FUNCTION_STATE) == 1,
        roce=None if roce is None else bool(roce),
        max_io_eqs=max_io_eqs,
    )


def _of_function(changes: Mapping[str, Any]) -> Iterator[tuple[int, bytes]]:
    """Attributes within PORT_FUNCTION; the capabilities are one."""
    bits = {word: 1 << at for at, word in enumerate(CAPS) if word in changes}
    if bits:
        wanted = sum(bit for word, bit in bits.items() if changes[word])
        yield FUNCTION_CAPS, struct.pack("=II", wanted, sum(bits.values()))
    for word, value in changes.items():
        match word:
            case "hw_addr":
                yield FUNCTION_HW_ADDR, mac_bytes(value)
            case "active":
                yield FUNCTION_STATE, struct.pack("=B", value)
            case "max_io_eqs":
                yield MAX_IO_EQS, struct.pack("=I", value)


def _instance(message: dict[int, bytes]) -> Instance:
    stats = message.get(DEV_STATS)
    return Instance(
        None if stats is None else _reloads(stats), any(message.get(RELOAD_FAILED, b""))
    )


@lru_cache
def _reloads(stats: bytes) -> int:
    """How often a device was reloaded, by each action: all VFs mostly have the same."""
    return sum(
        int.from_bytes(dict(attributes(entry))[RELOAD_STATS_VALUE], sys.byteorder)
        for each in _nests(stats, RELOAD_STATS)
        for action in _nests(each, RELOAD_ACTION_INFO)
        for of_action in _nests(action, RELOAD_ACTION_STATS)
        for entry in _nests(of_action, RELOAD_STATS_ENTRY)
    )


@lru_cache
def _params(nested: bytes) -> tuple[tuple[Cmode, Param], ...]:
    """A parameter's values in the modes that are ours to set; those of firmware are not.

    All VFs mostly have the same.
    """
    return tuple(_decoded(dict(attributes(nested))))


def _decoded(message: Mapping[int, bytes]) -> Iterator[tuple[Cmode, Param]]:
    if PARAM_NAME not in message or PARAM_TYPE not in message:
        return
    kind = message[PARAM_TYPE][0]
    for nest in _nests(message.get(PARAM_VALUES_LIST, b""), PARAM_VALUE):
        nested = dict(attributes(nest))
        mode = nested.get(PARAM_VALUE_CMODE, b"\xff")[0]
        if mode not in _CMODES:
            continue
        value = _value(kind, nested.get(PARAM_VALUE_DATA))
        if value is not None:
            yield Cmode(mode), Param(text(message[PARAM_NAME]), kind, value)


def _setting(device: DeviceHandle, param: Param, mode: Cmode) -> tuple[tuple[int, bytes], ...]:
    return (
        *_handle(device),
        (PARAM_NAME, text_bytes(param.name)),
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
        return [(PARAM_VALUE_DATA, text_bytes(str(param.value)))]
    return [(PARAM_VALUE_DATA, struct.pack(NLA_FORMATS[param.kind], param.value))]
