"""A netlink socket: numbered requests, complete dumps, batches of changes.

Several requests in one datagram are answered one by one in one round trip (netlink(7),
net/netlink/af_netlink.c).
"""

from __future__ import annotations

import functools
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final, ParamSpec, Self, TypeVar

from nodeagent.errors import KernelError, reason
from nodeagent.trace import point

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST: Final = 0x1
NLM_F_MULTI: Final = 0x2
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_CAPPED: Final = 0x100
NLM_F_ACK_TLVS: Final = 0x200
NLM_F_REPLACE: Final = 0x100
NLM_F_DUMP: Final = 0x300
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800
NLMSGERR_ATTR_MSG: Final = 1
NLA_F_NESTED: Final = 0x8000
SOL_NETLINK: Final = 270
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11
# each acknowledgement needs about 1.3 KiB of the socket's 208 KiB; when it is full they are dropped
BATCH_SIZE: Final = 64
RECEIVE_BYTES: Final = 512 * 1024
DUMP_TRIES: Final = 8
_ATTRIBUTE: Final = struct.Struct("=HH")
"""struct nlattr: length and type."""


class Netlink:
    """A socket of one netlink protocol, for one thread. `requests` counts the messages sent."""

    def __init__(self, protocol: int) -> None:
        self.requests = 0
        self._sequence = 0
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def ask(self, message: bytearray) -> list[bytes]:
        """The answers to one request. OSError if the kernel refuses it."""
        _, bodies = self._asked(message)
        return bodies

    def dump(self, message: bytearray, what: str) -> list[bytes]:
        """Everything of one kind. `message` has NLM_F_DUMP; `what` is for the error.

        The kernel marks a dump during which something changed (NLM_F_DUMP_INTR). It may be
        incomplete, and is requested again. KernelError if that happens every time, or if the kernel
        refuses.
        """
        for _ in range(DUMP_TRIES):
            try:
                interrupted, bodies = self._asked(message)
            except OSError as error:
                raise KernelError(
                    f"cannot list {what}: {reason(error)}", errno=error.errno
                ) from error
            if not interrupted:
                return bodies
        raise KernelError(
            f"cannot list {what}: they changed during each of {DUMP_TRIES} dumps",
            hint="they change all the time: see `ip monitor`",
        )

    def send(self, messages: Sequence[bytearray]) -> list[OSError | None]:
        """Send requests with NLM_F_ACK; for each, in order, None or why the kernel refused it.

        A refusal does not stop the others. The OSError has the driver's own message (extended ack),
        if there is one.
        """
        results: list[OSError | None] = []
        for start in range(0, len(messages), BATCH_SIZE):
            batch = messages[start : start + BATCH_SIZE]
            point("send netlink changes", len(batch))
            first = self._send(batch)
            answers: dict[int, OSError | None] = {}
            while len(answers) < len(batch):
                for sequence, kind, _, body in self._receive():
                    if kind == NLMSG_ERROR and first <= sequence < first + len(batch):
                        answers[sequence] = body if isinstance(body, OSError) else None
            results.extend(answers[first + n] for n in range(len(batch)))
        return results

    def _send(self, messages: Sequence[bytearray]) -> int:
        """Number and send messages in one datagram; the first one's sequence number."""
        first = self._sequence + 1
        datagram = bytearray()
        for message in messages:
            self._sequence += 1
            self.requests += 1
            struct.pack_into("=I", message, 8, self._sequence)
            datagram += message
            datagram += bytes(-len(message) % 4)
        self._socket.send(datagram)
        return first

    def _asked(self, message: bytearray) -> tuple[bool, list[bytes]]:
        """Send one request; whether its dump was interrupted, and the answers."""
        sequence = self._send([message])
        interrupted, bodies = False, []
        while True:
            for number, kind, flags, body in self._receive():
                if number != sequence:
                    continue
                if isinstance(body, OSError):
                    raise body
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if kind not in {NLMSG_DONE, NLMSG_ERROR}:
                    bodies.append(body)
                if kind in {NLMSG_DONE, NLMSG_ERROR} or not flags & NLM_F_MULTI:
                    return interrupted, bodies

    def _receive(self) -> Iterator[tuple[int, int, int, bytes | OSError]]:
        """The messages of one datagram: sequence, type, flags, and the message or the refusal."""
        data = self._socket.recv(RECEIVE_BYTES)
        offset = 0
        while offset + 16 <= len(data):
            length, kind, flags, sequence = struct.unpack_from("=IHHI", data, offset)
            if length < 16:
                break
            message = data[offset : offset + length]
            body = _refusal(message, flags) if kind == NLMSG_ERROR else message
            yield sequence, kind, flags, body
            offset += (length + 3) & ~3


def _refusal(message: bytes, flags: int) -> OSError | bytes:
    """NLMSG_ERROR as an OSError; the message itself if it is an acknowledgement (error 0)."""
    (code,) = struct.unpack_from("=i", message, 16)
    if code == 0:
        return message
    said = os.strerror(-code)
    if flags & NLM_F_ACK_TLVS:
        # struct nlmsgerr: error, then the request's header alone if capped, else all of it
        (request,) = struct.unpack_from("=I", message, 20)
        offset = 20 + (16 if flags & NLM_F_CAPPED else (request + 3) & ~3)
        for kind, value in attributes(message, offset):
            if kind == NLMSGERR_ATTR_MSG:
                said += f" ({text(value)})"
    return OSError(-code, said)


P = ParamSpec("P")
R = TypeVar("R")


def understood(what: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for functions that read the kernel's answers: KernelError for an invalid one.

    A module may send an attribute that is too short or not UTF-8. Then nothing is known about
    `what`, which is not the same as an empty answer.
    """

    def decorate(read: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(read)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return read(*args, **kwargs)
            except (struct.error, LookupError, ValueError, TypeError, AttributeError) as error:
                raise KernelError(
                    f"cannot decode the kernel's answer about {what}: {error!r}",
                    hint="a module that was built for another kernel may be the cause",
                ) from error

        return checked

    return decorate


def request(kind: int, flags: int, body: bytes) -> bytearray:
    """A message of the type `kind` with its header (struct nlmsghdr); `Netlink` numbers it."""
    header = struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | flags, 0, 0)
    return bytearray(header + body)


def attribute(kind: int, payload: bytes) -> bytes:
    """One netlink attribute with its padding."""
    padding = bytes(-len(payload) % 4)
    return struct.pack("=HH", 4 + len(payload), kind) + payload + padding


def nested(kind: int, payload: bytes) -> bytes:
    """One attribute that holds others."""
    return attribute(kind | NLA_F_NESTED, payload)


def attributes(data: bytes, offset: int = 0) -> list[tuple[int, bytes]]:
    """Type and payload of each attribute from `offset` to the end; flag bits are masked off."""
    found, unpack, last = [], _ATTRIBUTE.unpack_from, len(data) - 4
    while offset <= last:
        length, kind = unpack(data, offset)
        if length < 4:
            break
        found.append((kind & 0x3FFF, data[offset + 4 : offset + length]))
        offset += (length + 3) & ~3
    return found


def mac_bytes(mac: str) -> bytes:
    """A link-layer address as the kernel takes it."""
    return bytes.fromhex(mac.replace(":", ""))


def text(value: bytes) -> str:
    """A string with its NUL. Names may have bytes that are no UTF-8 (dev_valid_name())."""
    return value.rstrip(b"\0").decode(errors="backslashreplace")


def text_bytes(value: str) -> bytes:
    """A string with its NUL, as the kernel takes it."""
    return value.encode() + b"\0"
