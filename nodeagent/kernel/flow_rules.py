"""n-tuple rules in the words of `ethtool -N`: struct ethtool_rx_flow_spec (uapi/linux/ethtool.h).

A mask in the struct has a one for each bit that must match; ethtool(8)'s word `m` takes the
opposite. A rule for which there are no words is `raw` and the struct's bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum, auto
from ipaddress import ip_address
from typing import Final, NamedTuple

SPEC: Final = struct.Struct("=I52s20s52s20s4xQI4x")
"""Flow type, values, further values, masks, further masks, ring cookie, location."""
_TYPES: Final = {
    **dict(enumerate(("tcp4", "udp4", "sctp4"), start=1)),
    **dict(enumerate(("tcp6", "udp6", "sctp6"), start=5)),
    **dict(enumerate(("ah4", "esp4", "ah6", "esp6", "ip4", "ip6"), start=9)),
    18: "ether",
}
_NUMBERS: Final = {name: number for number, name in _TYPES.items()}
_EXT, _MAC_EXT = 0x80000000, 0x40000000
FLOW_RSS: Final = 0x20000000
_EXT_AT: Final = 52
_ACTIONS: Final = {(1 << 64) - 1: "-1", (1 << 64) - 2: "-2"}
"""Drop, wake."""


class _Form(Enum):
    NUMBER = auto()
    ADDRESS = auto()
    MAC = auto()


class _Field(NamedTuple):
    word: str
    at: int
    size: int
    form: _Form = _Form.NUMBER

    def shown(self, raw: bytes) -> str:
        if self.form is _Form.NUMBER:
            return hex(int.from_bytes(raw)) if self.size > 2 else str(int.from_bytes(raw))
        return str(ip_address(raw)) if self.form is _Form.ADDRESS else raw.hex(":")

    def parsed(self, text: str) -> bytes:
        """ValueError or OverflowError for what is no such value."""
        if self.form is _Form.NUMBER:
            return int(text, 0).to_bytes(self.size)
        raw = (
            ip_address(text).packed
            if self.form is _Form.ADDRESS
            else bytes.fromhex(text.replace(":", ""))
        )
        if len(raw) != self.size:
            raise ValueError(f"{text!r} has not {self.size} bytes")
        return raw


_IP4: Final = (_Field("src-ip", 0, 4, _Form.ADDRESS), _Field("dst-ip", 4, 4, _Form.ADDRESS))
_IP6: Final = (_Field("src-ip", 0, 16, _Form.ADDRESS), _Field("dst-ip", 16, 16, _Form.ADDRESS))
_FURTHER: Final = (
    _Field("dst-mac", _EXT_AT + 2, 6, _Form.MAC),
    _Field("vlan-etype", _EXT_AT + 8, 2),
    _Field("vlan", _EXT_AT + 10, 2),
    _Field("user-def", _EXT_AT + 12, 8),
)


def _fields(name: str) -> tuple[_Field, ...]:
    """The members that rules of a type have, with their places in values and further values."""
    if name == "ether":
        macs = (_Field("dst", 0, 6, _Form.MAC), _Field("src", 6, 6, _Form.MAC))
        return (*macs, _Field("proto", 12, 2), *_FURTHER)
    is_v4 = name.endswith("4")
    own: tuple[_Field, ...]
    addresses, at = (_IP4, 8) if is_v4 else (_IP6, 32)
    tos = _Field("tos" if is_v4 else "tclass", at + 4, 1)
    if name[:-1] in {"tcp", "udp", "sctp"}:
        own = (_Field("src-port", at, 2), _Field("dst-port", at + 2, 2), tos)
    elif name[:-1] in {"ah", "esp"}:
        own = (_Field("spi", at, 4), tos)
    else:
        own = (_Field("l4data", at, 4), tos, _Field("l4proto", at + (6 if is_v4 else 5), 1))
    return (*addresses, *own, *_FURTHER)


def words(spec: bytes) -> str:
    """`flow-type tcp4 dst-port 80 action 2 loc 1023`."""
    kind, values, more, masks, more_masks, cookie, place = SPEC.unpack(spec)
    name = _TYPES.get(kind & ~(_EXT | _MAC_EXT), "")
    if name:
        match = _matches(name, values + more, masks + more_masks)
        action = _ACTIONS.get(cookie, str(cookie))
        text = " ".join((f"flow-type {name}", *match, f"action {action} loc {place}"))
        if spec_of(text) == spec:
            return text
    return f"raw {spec.hex()} loc {place}"


def spec_of(text: str) -> bytes:
    """The struct of a rule. ValueError, OverflowError, KeyError or struct.error for other texts."""
    first, second, *left = text.split()
    if first == "raw":
        SPEC.unpack(bytes.fromhex(second))
        return bytes.fromhex(second)
    if first != "flow-type" or second not in _NUMBERS:
        raise ValueError(f"{first} {second} is no flow type")
    kind, cookie, place = _NUMBERS[second], 0, 0
    fields = {field.word: field for field in _fields(second)}
    values, masks = bytearray(72), bytearray(72)
    if second == "ip4":
        values[13] = 1  # ETH_RX_NFC_IP4
    while left:
        word, value, *left = left
        if word == "action":
            cookie = int(value) % (1 << 64)
        elif word == "loc":
            place = int(value)
        else:
            field = fields[word]
            at = slice(field.at, field.at + field.size)
            values[at], masks[at] = field.parsed(value), b"\xff" * field.size
            if left[:1] == ["m"]:
                masks[at] = _inverted(field.parsed(left[1]))
                left = left[2:]
            if field in _FURTHER:
                kind |= _MAC_EXT if word == "dst-mac" else _EXT
    parts = (bytes(each) for each in (values[:52], values[52:], masks[:52], masks[52:]))
    return SPEC.pack(kind, *parts, cookie, place)


def empty(place: int) -> bytes:
    """The struct of a rule of which only the location counts."""
    return SPEC.pack(0, b"", b"", b"", b"", 0, place)


def is_of_context(spec: bytes) -> bool:
    """Whether the rule is for an RSS context, which has a number of its own."""
    return bool(SPEC.unpack(spec)[0] & FLOW_RSS)


def place_of(text: str) -> int:
    """The location of a rule."""
    return int(text.rpartition(" ")[2])


def _matches(name: str, values: bytes, masks: bytes) -> Iterator[str]:
    for field in _fields(name):
        at = slice(field.at, field.at + field.size)
        if any(masks[at]):
            yield f"{field.word} {field.shown(values[at])}"
            if masks[at] != b"\xff" * field.size:
                yield f"m {field.shown(_inverted(masks[at]))}"


def _inverted(raw: bytes) -> bytes:
    return bytes(0xFF ^ byte for byte in raw)
