"""Rubbish, made cheaply from a seed: a hundred thousand of each in minutes.

Hypothesis draws one seed an example, and prints it when a test fails; what it would draw piece by
piece takes ten times as long.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

WORDS = (
    "mlx5_core",
    "1",
    "true",
    "/run/x",
    "../..",
    "-rf",
    "--help",
    "\n",
    "a\nb",
    "\0",
    "0x7",
    "",
)
_ODD = (0, -1, 1, 2**31, 2**63, 10**40, 0.0, -1.5, 1e308, float("inf"), float("nan"))


def text(rng: random.Random, most: int = 40) -> str:
    """Words that mean something somewhere, digits and slashes, or any characters at all."""
    match rng.randrange(4):
        case 0:
            return rng.choice(WORDS)
        case 1:
            return "".join(rng.choices("01-./:_ax\n ", k=rng.randrange(most)))
        case 2:
            return "".join(map(chr, rng.choices(range(0xD800), k=rng.randrange(most))))
    return "".join(map(chr, rng.choices(range(0x20, 0x7F), k=rng.randrange(most))))


def octets(rng: random.Random, most: int) -> bytes:
    """Any bytes, or those of a text."""
    if rng.randrange(2):
        return rng.randbytes(rng.randrange(most))
    return text(rng, most).encode()


def damaged(rng: random.Random, whole: bytes) -> bytes:
    """Bits turned, a piece cut out, the end cut off, or something else put in."""
    changed = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(max(len(changed), 1))
        match rng.choice(["flip", "cut", "end", "put"]):
            case "flip" if changed:
                changed[at] ^= 1 << rng.randrange(8)
            case "cut":
                del changed[at : at + rng.randint(1, 50)]
            case "end":
                del changed[at:]
            case _:
                changed[at:at] = octets(rng, 10)
    return bytes(changed)


def json_value(rng: random.Random, depth: int = 3) -> object:
    """Anything that JSON can hold, and what Python's parser takes beside it (NaN)."""
    match rng.randrange(8 if depth else 5):
        case 0:
            return None
        case 1:
            return rng.random() < 0.5
        case 2:
            return rng.choice(_ODD)
        case 3 | 4:
            return text(rng, 20)
        case 5 | 6:
            return [json_value(rng, depth - 1) for _ in range(rng.randrange(5))]
    return {text(rng, 12): json_value(rng, depth - 1) for _ in range(rng.randrange(5))}


def changed_json(rng: random.Random, plain: object) -> object:
    """The same with one thing in it, however deep, that is another, missing, or too many."""
    if isinstance(plain, dict) and plain and rng.randrange(8):
        name = rng.choice(sorted(plain))
        match rng.randrange(6):
            case 0:
                return {key: value for key, value in plain.items() if key != name}
            case 1:
                return plain | {text(rng, 12): json_value(rng)}
        return plain | {name: changed_json(rng, plain[name])}
    if isinstance(plain, list) and plain and rng.randrange(8):
        at = rng.randrange(len(plain))
        return [*plain[:at], changed_json(rng, plain[at]), *plain[at + 1 :]]
    return json_value(rng)


def attributes(rng: random.Random, depth: int = 2) -> bytes:
    """Netlink attributes with lengths that are mostly right: the kernel's types, nested ones."""
    stream = b""
    for _ in range(rng.randrange(7)):
        kind = rng.randrange(71) | rng.choice([0, 0x8000])
        inner = attributes(rng, depth - 1) if depth and rng.randrange(2) else None
        payload = rng.randbytes(rng.randrange(25)) if inner is None else inner
        length = 4 + len(payload) + rng.choice([0] * 8 + [-3, 1, 400])
        stream += struct.pack("=HH", max(length, 0), kind) + payload + bytes(-len(payload) % 4)
    return stream


def messages(rng: random.Random, header: int) -> list[bytes]:
    """A netlink header, `header` bytes of the protocol's own, then attributes; or not even that."""
    return list(_messages(rng, header))


def _messages(rng: random.Random, header: int) -> Iterator[bytes]:
    for _ in range(rng.randrange(4)):
        if rng.randrange(4):
            yield rng.randbytes(16 + header) + attributes(rng)
        else:
            yield rng.randbytes(rng.randrange(61))
