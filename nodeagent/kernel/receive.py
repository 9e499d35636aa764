"""How an interface spreads what it receives over its queues: `ethtool -X` and `ethtool -N`.

ethtool's netlink cannot set these before Linux 6.17, so that they are read and set with ioctls
(uapi/linux/ethtool.h, net/ethtool/ioctl.c), on a socket of the interface's network namespace:

- `rss.table`, the indirection table, in the words of `ethtool -X`; `default` for one that the
  driver made, of all queues alike: of queue i % queues, or in blocks (igb).
- `rss.hkey`, the hash key; `default`, with its length, for the one that this boot gives to all
  (netdev_rss_key_fill()), and `rss.hfunc`, the hash function.
- `rx-flow-hash.udp4` and others: the header fields that are hashed, as ethtool(8)'s letters.
- `ntuple.rules`: all rules, each with its location, in ethtool(8)'s words, with `; ` between them.

What a driver does not offer is not among the settings.
"""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import Final

from nodeagent.kernel import flow_rules

_SIOCGIFNAME: Final = 0x8910
_SIOCETHTOOL: Final = 0x8946
_GRXFH, _SRXFH, _GRXRINGS = 0x29, 0x2A, 0x2D
_GRXCLSRLCNT, _GRXCLSRULE, _GRXCLSRLALL, _SRXCLSRLDEL, _SRXCLSRLINS = range(0x2E, 0x33)
GRSSH, _SRSSH = 0x46, 0x47
RXFH: Final = struct.Struct("=IIIIBB6x")
"""struct ethtool_rxfh: command, context, sizes of table and key, hash function, transformation."""
_NO_CHANGE: Final = 0xFFFFFFFF
_RXNFC: Final = struct.Struct("=IIQ168sI4x")
"""struct ethtool_rxnfc: command, flow type, data, rule, number of rules."""
_HASH_FUNCTIONS: Final = {1: "toeplitz", 2: "xor", 4: "crc32"}
_FLOWS: Final = {"tcp4": 1, "udp4": 2, "sctp4": 3, "tcp6": 5, "udp6": 6, "sctp6": 7}
_LETTERS: Final = {"m": 1, "v": 2, "t": 3, "s": 4, "d": 5, "f": 6, "n": 7, "r": 31}
"""The bits of the fields: RXH_L2DA and so on."""
_ALL_FIELDS: Final = sum(1 << bit for bit in _LETTERS.values())
_RSS_KEY: Final = Path("/proc/sys/net/core/netdev_rss_key")


class Interface:
    """Asks the driver of the interface `index`, in the network namespace of the socket."""

    def __init__(self, asked: socket.socket, index: int) -> None:
        self._socket = asked
        self._index = index

    @cached_property
    def name(self) -> str:
        """Its present name. OSError if it is gone."""
        request = struct.pack("16si20x", b"", self._index)
        answer: bytes = fcntl.ioctl(self._socket, _SIOCGIFNAME, request)
        return answer[:16].partition(b"\0")[0].decode()

    def ask(self, body: bytes, kind: int = _SIOCETHTOOL) -> bytes:
        """`body` as the kernel has changed it. OSError if it refuses, or the interface is gone."""
        answer = array.array("B", body)
        request = struct.pack("16sP16x", self.name.encode(), answer.buffer_info()[0])
        fcntl.ioctl(self._socket, kind, request)
        return answer.tobytes()


def read(on: Interface) -> Iterator[tuple[str, str]]:
    """The settings of an interface; none for one that is gone."""
    yield from _rss(on)
    for flow, number in _FLOWS.items():
        found = _nfc(on, _GRXFH, number)
        if found and found[2] and not found[2] & ~_ALL_FIELDS:
            yield f"rx-flow-hash.{flow}", _letters(found[2])
    if (rules := _rules(on)) is not None:
        yield "ntuple.rules", "; ".join(rules)


def write(on: Interface, values: Mapping[str, object]) -> None:
    """Set what is given, by key. OSError if it is refused, or no such setting."""
    wanted = {key: str(value) for key, value in values.items()}
    try:
        if any(key.startswith("rss.") for key in wanted):
            _set_rss(on, wanted)
        for flow, number in _FLOWS.items():
            if (letters := wanted.get(f"rx-flow-hash.{flow}")) is not None:
                data = sum(1 << _LETTERS[letter] for letter in letters)
                on.ask(_RXNFC.pack(_SRXFH, number, data, b"", 0))
        if (rules := wanted.get("ntuple.rules")) is not None:
            _set_rules(on, rules.split("; ") if rules else [])
    except (ValueError, KeyError, ArithmeticError, struct.error) as error:
        raise OSError(errno.EINVAL, f"no such setting: {error}") from error


def table_in_words(table: Sequence[int], queues: int) -> str:
    """`default`, `equal 4`, `start 2 equal 2`, `weight 3 1`, or each entry's queue.

    A table with a queue that the interface does not have is the driver's, too: the kernel refuses
    to set one (ethtool_copy_validate_indir()). igb keeps that of two queues without its VFs.
    """
    size = len(table)
    if max(table) >= queues or list(table) in (
        [i % queues for i in range(size)],
        [i * queues // size for i in range(size)],
    ):
        return "default"
    low, count = min(table), len(set(table))
    if list(table) == [low + i % count for i in range(size)]:
        return f"start {low} equal {count}" if low else f"equal {count}"
    if list(table) == sorted(table):
        counts = {queue: len(list(group)) for queue, group in groupby(table)}
        return " ".join(("weight", *(str(counts.get(n, 0)) for n in range(max(table) + 1))))
    return " ".join(("queues", *map(str, table)))


def table_of(words: str, size: int) -> list[int]:
    """The queue of each entry; none for the default. ValueError or ZeroDivisionError for others."""
    kind, *numbers = words.split()
    if kind == "default":
        return []
    if kind == "start":
        return [int(numbers[0]) + i % int(numbers[2]) for i in range(size)]
    if kind == "equal":
        return [i % int(numbers[0]) for i in range(size)]
    queues = list(map(int, numbers))
    if kind == "weight":
        queues = [queue for queue, weight in enumerate(queues) for _ in range(weight)]
    if len(queues) != size:
        raise ValueError(f"a table of {len(queues)} entries for one of {size}")
    return queues


def _rss(on: Interface) -> Iterator[tuple[str, str]]:
    try:
        _, _, size, length, *_ = RXFH.unpack(on.ask(RXFH.pack(GRSSH, *[0] * 5)))
        head = RXFH.pack(GRSSH, 0, size, length, 0, 0)
        answer = on.ask(head + bytes(4 * size + length))
    except OSError:
        return
    function, at = answer[16], RXFH.size + 4 * size
    rings = _nfc(on, _GRXRINGS)
    if size and rings and rings[2]:
        yield "rss.table", _words_of(answer[RXFH.size : at], rings[2])
    if length:
        key = answer[at : at + length]
        yield "rss.hkey", f"default {length}" if _is_default(key) else key.hex(":")
    if function in _HASH_FUNCTIONS:
        yield "rss.hfunc", _HASH_FUNCTIONS[function]


@lru_cache
def _words_of(table: bytes, queues: int) -> str:
    """Cached: hundreds of VFs have the same, and there are some hundred entries."""
    return table_in_words(struct.unpack(f"={len(table) // 4}I", table), queues)


def _set_rss(on: Interface, wanted: Mapping[str, str]) -> None:
    """Table, key and function in one request; what is not given stays as it is."""
    now = RXFH.unpack(on.ask(RXFH.pack(GRSSH, *[0] * 5)))
    table, size = b"", _NO_CHANGE
    if (words := wanted.get("rss.table")) is not None:
        queues = table_of(words, now[2])
        table, size = struct.pack(f"={len(queues)}I", *queues), len(queues)
    key = _key_of(wanted["rss.hkey"]) if "rss.hkey" in wanted else b""
    numbers = {word: number for number, word in _HASH_FUNCTIONS.items()}
    function = numbers[wanted["rss.hfunc"]] if "rss.hfunc" in wanted else 0
    head = RXFH.pack(_SRSSH, 0, size, len(key), function, now[5])
    on.ask(head + table + key)


def _key_of(words: str) -> bytes:
    first, *length = words.split()
    if first == "default":
        return _default_key(int(*length))
    return bytes.fromhex(first.replace(":", ""))


def _default_key(length: int) -> bytes:
    """OSError outside of the first network namespace: only there is the file."""
    return bytes.fromhex(_RSS_KEY.read_text().strip().replace(":", ""))[:length]


def _is_default(key: bytes) -> bool:
    try:
        return _default_key(len(key)) == key
    except OSError:
        return False


def _letters(bits: int) -> str:
    return "".join(letter for letter, bit in _LETTERS.items() if bits >> bit & 1)


def _rules(on: Interface) -> list[str] | None:
    """All but those for RSS contexts; None where the driver has none at all."""
    found = _nfc(on, _GRXCLSRLCNT)
    if found is None:
        return None
    count = found[4]
    request = _RXNFC.pack(_GRXCLSRLALL, 0, 0, b"", count) + bytes(4 * count)
    try:
        answer = on.ask(request) if count else b""
        places = struct.unpack_from(f"={count}I", answer, _RXNFC.size - 4) if count else ()
        specs = [_rule(on, place) for place in sorted(places)]
        return [flow_rules.words(each) for each in specs if not flow_rules.is_of_context(each)]
    except OSError:
        return None  # they are changing


def _rule(on: Interface, place: int) -> bytes:
    answer = on.ask(_RXNFC.pack(_GRXCLSRULE, 0, 0, flow_rules.empty(place), 0))
    return bytes(_RXNFC.unpack(answer)[3])


def _set_rules(on: Interface, wanted: Sequence[str]) -> None:
    """Delete those that are not wanted, and add those that are missing."""
    now = set(_rules(on) or ())
    for text in sorted(now - set(wanted)):
        spec = flow_rules.empty(flow_rules.place_of(text))
        on.ask(_RXNFC.pack(_SRXCLSRLDEL, 0, 0, spec, 0))
    for text in wanted:
        if text not in now:
            on.ask(_RXNFC.pack(_SRXCLSRLINS, 0, 0, flow_rules.spec_of(text), 0))


def _nfc(on: Interface, command: int, flow: int = 0) -> tuple[int, int, int, bytes, int] | None:
    """The answer to a question without data; None if the driver has none."""
    try:
        answer = on.ask(_RXNFC.pack(command, flow, 0, b"", 0))
    except OSError:
        return None
    found: tuple[int, int, int, bytes, int] = _RXNFC.unpack(answer)
    return found
