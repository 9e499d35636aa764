"""ethtool over netlink: the settings that a driver offers for its interfaces.

Six kinds are read, each with one dump for all interfaces of the namespace, whatever the number of
VFs (uapi/linux/ethtool_netlink.h, Documentation/networking/ethtool-netlink.rst): private flags,
channels, rings, coalescing, pause and features. A setting is a pair of a key, which is the kind and
ethtool(8)'s word ("rings.rx", "features.rx-gro"), and its value. What ethtool(8) sets with ioctls
is in `nodeagent.kernel.receive`, and what is set in sysfs in `nodeagent.kernel.queues`.

Facts of the kernel that shape this module (net/ethtool, Linux 6.12):

- A dump leaves out an interface whose driver returns EOPNOTSUPP, and ends with an error if a driver
  returns any other error (ethnl_default_dumpit()). The interfaces are then read one by one, so that
  one driver does not hide the others.
- Of the features, those of `hw_features` without NETIF_F_NEVER_CHANGE can be set, and `wanted` is
  what an administrator has set. `active` depends on it, on other features and on the carrier.
- With adaptive coalescing the driver changes usecs and frames itself (i40e reports the present
  values); with pause autonegotiation rx and tx are what was negotiated (igb). Both are left out.
- A request for features that the driver does not enable is not refused: they are read again.
- A coalescing value that is not zero is reported even if it cannot be set.
"""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent.errors import KernelError, reason
from nodeagent.kernel import queues, receive
from nodeagent.kernel.genl import HEADER, Attribute, Genl, encoded
from nodeagent.kernel.netlink import (
    NLA_F_NESTED,
    NLM_F_ACK,
    NLM_F_DUMP,
    attributes,
    text,
    text_bytes,
    understood,
)
from nodeagent.state.ethtool import EthtoolKind, Setting, Value

log = logging.getLogger(__name__)

Settings = tuple[Setting, ...]
"""Pairs of key and value, sorted by key."""

STRSET_GET: Final = 1
ETH_SS_FEATURES: Final = 4
COMPACT_BITSETS: Final = 1
OMIT_REPLY: Final = 2
# the attributes of a request's header, of a bitset and of one of its bits
DEV_INDEX, DEV_FLAGS = 1, 3
BITSET_SIZE, BITSET_BITS, BITSET_VALUE, BITSET_MASK = 2, 3, 4, 5
BIT_NAME, BIT_VALUE = 2, 3
FEATURES_HW, FEATURES_WANTED, FEATURES_NOCHANGE = 2, 3, 5
PRIVFLAGS_FLAGS: Final = 2

U32: Final = "=I"
FLAG: Final = "=?"

Words = Mapping[int, tuple[str, str]]
"""An attribute's ethtool(8) word and its format; FLAG for what is on or off."""

RINGS: Final[Words] = {
    6: ("rx", U32),
    7: ("rx-mini", U32),
    8: ("rx-jumbo", U32),
    9: ("tx", U32),
    10: ("rx-buf-len", U32),
    12: ("cqe-size", U32),
    13: ("tx-push", FLAG),
    14: ("rx-push", FLAG),
    15: ("tx-push-buf-len", U32),
}
"""Without tcp-data-split: the report does not show whether it was set to `auto`."""

CHANNELS: Final[Words] = {6: ("rx", U32), 7: ("tx", U32), 9: ("combined", U32)}
"""Without `other`, the driver's own vectors, which cannot be set (igb, i40e: EINVAL)."""

COALESCE: Final[Words] = {
    2: ("rx-usecs", U32),
    3: ("rx-frames", U32),
    4: ("rx-usecs-irq", U32),
    5: ("rx-frames-irq", U32),
    6: ("tx-usecs", U32),
    7: ("tx-frames", U32),
    8: ("tx-usecs-irq", U32),
    9: ("tx-frames-irq", U32),
    10: ("stats-block-usecs", U32),
    11: ("adaptive-rx", FLAG),
    12: ("adaptive-tx", FLAG),
    13: ("pkt-rate-low", U32),
    14: ("rx-usecs-low", U32),
    15: ("rx-frame-low", U32),
    16: ("tx-usecs-low", U32),
    17: ("tx-frame-low", U32),
    18: ("pkt-rate-high", U32),
    19: ("rx-usecs-high", U32),
    20: ("rx-frame-high", U32),
    21: ("tx-usecs-high", U32),
    22: ("tx-frame-high", U32),
    23: ("sample-interval", U32),
    24: ("cqe-mode-tx", FLAG),
    25: ("cqe-mode-rx", FLAG),
    26: ("tx-aggr-max-bytes", U32),
    27: ("tx-aggr-max-frames", U32),
    28: ("tx-aggr-time-usecs", U32),
}
PAUSE: Final[Words] = {2: ("autoneg", FLAG), 3: ("rx", FLAG), 4: ("tx", FLAG)}

AUTOMATIC: Final = {
    "coalesce.adaptive-rx": ("coalesce.rx-usecs", "coalesce.rx-frames"),
    "coalesce.adaptive-tx": ("coalesce.tx-usecs", "coalesce.tx-frames"),
    "pause.autoneg": ("pause.rx", "pause.tx"),
}
"""While the first is on, the driver or the link partner sets the others."""


@dataclass(frozen=True)
class Kind:
    """One kind of settings: the commands that get and set it, and its plain attributes."""

    name: EthtoolKind
    get: int
    set: int
    words: Words


KINDS: Final = (
    Kind(EthtoolKind.PRIVFLAGS, 13, 14, {}),
    Kind(EthtoolKind.CHANNELS, 17, 18, CHANNELS),
    Kind(EthtoolKind.RINGS, 15, 16, RINGS),
    Kind(EthtoolKind.COALESCE, 19, 20, COALESCE),
    Kind(EthtoolKind.PAUSE, 21, 22, PAUSE),
    Kind(EthtoolKind.FEATURES, 11, 12, {}),
)
"""Those that netlink sets; `nodeagent.kernel.receive` sets the others."""
BY_NAME: Final = {kind.name: kind for kind in KINDS}


@dataclass(frozen=True)
class Change:
    """What to set on the interface `index`: keys of one kind, with their values."""

    index: int
    kind: EthtoolKind
    values: Settings


class Ethtool(Genl):
    """A generic netlink socket of the ethtool family. Decoded messages are cached.

    `sysfs` is that of the socket's network namespace; None if it is not known.
    """

    def __init__(self, sysfs: Path | None = Path("/sys")) -> None:
        super().__init__("ethtool")
        self._sysfs = sysfs
        self._feature_names: tuple[str, ...] = ()
        self._decoded: dict[tuple[str, bytes], Settings] = {}
        self._joined: dict[tuple[Settings, ...], Settings] = {}

    @understood("ethtool settings")
    def settings(self, indexes: Collection[int]) -> dict[int, Settings]:
        """The settings of each of these interfaces: six requests, whatever their number.

        Interfaces without settings, and missing ones, are left out.
        """
        if self.family is None or not indexes:
            return {}
        wanted = set(indexes)
        found: dict[int, list[Settings]] = {}
        for kind in KINDS:
            for body in self._bodies(kind, wanted):
                index, rest = _interface(body)
                if index in wanted:
                    found.setdefault(index, []).append(self._settings(kind, rest))
        for index, parts in found.items():
            parts.append(tuple(receive.read(self.interface(index))))
            if (directory := self.directory(index)) is not None:
                parts.append(tuple(queues.read(directory)))
        return {index: self._join(tuple(parts)) for index, parts in found.items()}

    def change(self, changes: Sequence[Change]) -> list[OSError | None]:
        """Send all changes, in order; for each None or why the kernel refused it."""
        if self.family is None:
            return [OSError(errno.EOPNOTSUPP, "this kernel has no ethtool") for _ in changes]
        by_netlink = [self._set(change) for change in changes if change.kind in BY_NAME]
        sent = iter(self.send(by_netlink))
        return [
            next(sent) if change.kind in BY_NAME else self._set_otherwise(change)
            for change in changes
        ]

    def interface(self, index: int) -> receive.Interface:
        """For what is asked of its driver with ioctls."""
        return receive.Interface(self._socket, index)

    def directory(self, index: int) -> Path | None:
        """What an interface has in sysfs; None if it is gone, or that is not known."""
        try:
            return self._sysfs and Path(f"{self._sysfs}/class/net/{self.interface(index).name}")
        except OSError:
            return None

    def _set_otherwise(self, change: Change) -> OSError | None:
        try:
            if change.kind not in {EthtoolKind.QUEUES, EthtoolKind.NAPI}:
                receive.write(self.interface(change.index), dict(change.values))
            elif (directory := self.directory(change.index)) is not None:
                queues.write(directory, dict(change.values))
        except OSError as error:
            return error
        return None

    def _bodies(self, kind: Kind, wanted: Iterable[int]) -> Iterator[bytes]:
        """One dump; if a driver's error ends it, one request for each of our interfaces."""
        request = self.message(kind.get, NLM_F_DUMP, _header(kind, None))
        try:
            yield from self.dump(request, f"ethtool {kind.name}")
        except KernelError as refused:
            if refused.errno == errno.EOPNOTSUPP:
                return  # an older kernel lacks this kind (5.6 to 5.8)
            log.debug("%s: reading the interfaces one by one", refused.message)
            for index in sorted(wanted):
                yield from self._body(kind, index)

    def _body(self, kind: Kind, index: int) -> list[bytes]:
        try:
            return self.ask(self.message(kind.get, 0, _header(kind, index)))
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.ENODEV}:
                log.warning("cannot read %s of interface %d: %s", kind.name, index, reason(error))
            return []

    def _settings(self, kind: Kind, rest: bytes) -> Settings:
        """The decoded attributes of a reply. Many VFs have the same bytes."""
        key = (kind.name, rest)
        if key not in self._decoded:
            message = dict(attributes(rest))
            if kind.name is EthtoolKind.FEATURES:
                pairs = list(self._features(message))
            elif kind.name is EthtoolKind.PRIVFLAGS:
                pairs = list(_private_flags(message))
            else:
                pairs = list(_plain(kind, message))
            self._decoded[key] = tuple(pairs)
        return self._decoded[key]

    def _join(self, parts: tuple[Settings, ...]) -> Settings:
        if parts not in self._joined:
            self._joined[parts] = tuple(sorted(pair for part in parts for pair in part))
        return self._joined[parts]

    def _features(self, message: Mapping[int, bytes]) -> Iterator[tuple[str, Value]]:
        changeable = _bits(message, FEATURES_HW) & ~_bits(message, FEATURES_NOCHANGE)
        wanted = _bits(message, FEATURES_WANTED)
        for bit, name in enumerate(self._names()):
            if changeable >> bit & 1 and name:
                yield f"features.{name}", bool(wanted >> bit & 1)

    def _names(self) -> tuple[str, ...]:
        """Every feature's name by bit: one request per socket."""
        if not self._feature_names:
            wanted = (1 | NLA_F_NESTED, encoded((1, struct.pack(U32, ETH_SS_FEATURES))))
            parts = ((1 | NLA_F_NESTED, b""), (2 | NLA_F_NESTED, encoded(wanted)))
            (body,) = self.ask(self.message(STRSET_GET, 0, *parts))
            self._feature_names = tuple(_strings(body))
        return self._feature_names

    def _set(self, change: Change) -> bytearray:
        kind = BY_NAME[change.kind]
        values = {key.partition(".")[2]: value for key, value in change.values}
        if kind.name is EthtoolKind.FEATURES:
            bits = {name: 1 << bit for bit, name in enumerate(self._names())}
            parts = [(FEATURES_WANTED | NLA_F_NESTED, _compact_bitset(values, bits))]
        elif kind.name is EthtoolKind.PRIVFLAGS:
            parts = [(PRIVFLAGS_FLAGS | NLA_F_NESTED, _named_bitset(values))]
        else:
            parts = [
                (number, struct.pack(form, values[word]))
                for number, (word, form) in kind.words.items()
                if word in values
            ]
        return self.message(kind.set, NLM_F_ACK, _header(kind, change.index), *parts)


def in_order(index: int, values: Settings) -> list[Change]:
    """The changes for an interface, one per kind, in the order of EthtoolKind."""
    every = (
        Change(index, kind, tuple(pair for pair in values if pair[0].startswith(f"{kind}.")))
        for kind in EthtoolKind
    )
    return [change for change in every if change.values]


def _header(kind: Kind, index: int | None) -> Attribute:
    """A request's header. Private flags are requested by name, because names differ by driver."""
    flags = OMIT_REPLY if kind.name is EthtoolKind.PRIVFLAGS else OMIT_REPLY | COMPACT_BITSETS
    device = [] if index is None else [(DEV_INDEX, struct.pack(U32, index))]
    return 1 | NLA_F_NESTED, encoded(*device, (DEV_FLAGS, struct.pack(U32, flags)))


def _interface(body: bytes) -> tuple[int, bytes]:
    """The ifindex of a reply, and the attributes after its header."""
    (length,) = struct.unpack_from("=H", body, HEADER)
    header = dict(attributes(body[HEADER + 4 : HEADER + length]))
    (index,) = struct.unpack(U32, header[DEV_INDEX])
    return index, body[HEADER + ((length + 3) & ~3) :]


def _plain(kind: Kind, message: Mapping[int, bytes]) -> Iterator[tuple[str, Value]]:
    found: dict[str, Value] = {
        f"{kind.name}.{word}": struct.unpack(form, message[number])[0]
        for number, (word, form) in kind.words.items()
        if number in message
    }
    moving = {key for first, keys in AUTOMATIC.items() if found.get(first) for key in keys}
    yield from ((key, value) for key, value in found.items() if key not in moving)


def _private_flags(message: Mapping[int, bytes]) -> Iterator[tuple[str, Value]]:
    bitset = dict(attributes(message.get(PRIVFLAGS_FLAGS, b"")))
    for _, nested in attributes(bitset.get(BITSET_BITS, b"")):
        bit = dict(attributes(nested))
        name = text(bit.get(BIT_NAME, b""))
        if name:
            yield f"privflags.{name}", BIT_VALUE in bit


def _bits(message: Mapping[int, bytes], number: int) -> int:
    """A compact bitset's value as a number: 32-bit words in host order, the first the lowest."""
    words = dict(attributes(message.get(number, b""))).get(BITSET_VALUE, b"")
    return sum(word << 32 * n for n, (word,) in enumerate(struct.iter_unpack(U32, words)))


def _compact_bitset(values: Mapping[str, Value], bits: Mapping[str, int]) -> bytes:
    mask = sum(bits[name] for name in values if name in bits)
    value = sum(bits[name] for name, on in values.items() if on and name in bits)
    count = (len(bits) + 31) // 32
    return encoded(
        (BITSET_SIZE, struct.pack(U32, len(bits))),
        (BITSET_VALUE, _words(value, count)),
        (BITSET_MASK, _words(mask, count)),
    )


def _words(number: int, count: int) -> bytes:
    return b"".join(struct.pack(U32, number >> 32 * n & 0xFFFFFFFF) for n in range(count))


def _named_bitset(values: Mapping[str, Value]) -> bytes:
    """Bits by name; other bits are not changed (there is no NOMASK)."""
    return encoded(
        (
            BITSET_BITS | NLA_F_NESTED,
            encoded(
                *(
                    (1 | NLA_F_NESTED, encoded((BIT_NAME, text_bytes(name)), *_on(on)))
                    for name, on in values.items()
                )
            ),
        )
    )


def _on(on: Value) -> list[Attribute]:
    return [(BIT_VALUE, b"")] if on else []


def _strings(body: bytes) -> Iterator[str]:
    """The strings of the one set that a STRSET_GET reply has, by index."""
    message = dict(attributes(body, HEADER))
    (_, one), *_ = attributes(message[2])
    for _, nested in attributes(dict(attributes(one))[3]):
        yield text(dict(attributes(nested))[2])
