"""Send ICMP echo requests until stdin ends, as a process of its own.

    python -m nodeagent.kernel.echo ADDRESS@PATH ...   PATH of a network namespace, or nothing

It also ends when its parent is killed, which closes stdin. At the end it prints a JSON list on
stdout: for each argument the numbers of requests and of lost ones, and the longest time without an
answer, in seconds, with the Unix time of its beginning. It imports the standard library only, to
start quickly.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

INTERVAL: Final = 0.1
ANSWER_TIMEOUT: Final = 1.0
"""Seconds for answers to the last requests."""
CLONE_NEWNET: Final = 0x40000000
REQUEST, REPLY = {4: 8, 6: 128}, {4: 0, 6: 129}


@dataclass
class Echo:
    """One target. Times are of CLOCK_MONOTONIC; `since` is the last answer's, or the start's."""

    asked: socket.socket
    address: str
    version: int
    since: float
    sent: int = 0
    unanswered: set[int] = field(default_factory=set)
    gap: float = 0.0
    gap_since: float = 0.0

    def send(self) -> None:
        """Send a request. Without an interface it counts as lost."""
        number = self.sent & 0xFFFF
        self.sent += 1
        self.unanswered.add(number)
        head = struct.pack("!BBHHH", REQUEST[self.version], 0, 0, _own_id(), number)
        with suppress(OSError):
            self.asked.sendto(_summed(head) if self.version == 4 else head, (self.address, 0))

    def receive(self, now: float) -> None:
        """Read answers. A raw socket also receives those to other processes."""
        with suppress(OSError):
            while True:
                data, source = self.asked.recvfrom(2048)
                start = (data[0] & 0xF) * 4 if self.version == 4 else 0
                kind, _, _, ident, number = struct.unpack_from("!BBHHH", data, start)
                is_ours = kind == REPLY[self.version] and ident == _own_id()
                if is_ours and source[0] == self.address and number in self.unanswered:
                    self.unanswered.discard(number)
                    self.note(now)
                    self.since = now

    def note(self, now: float) -> None:
        """Note that there was no answer until `now`."""
        if now - self.since > self.gap:
            self.gap, self.gap_since = now - self.since, self.since

    def result(self) -> dict[str, float]:
        """The result for the parent."""
        at = time.time() - time.monotonic() + self.gap_since
        lost = len(self.unanswered)
        return {"sent": self.sent, "lost": lost, "gap": round(self.gap, 3), "gap_at": round(at, 3)}


def main(arguments: list[str]) -> int:
    """Echo to each argument until stdin ends."""
    echoes = [_echo(*each.partition("@")[::2]) for each in arguments]
    with selectors.DefaultSelector() as selector:
        for each in echoes:
            selector.register(each.asked, selectors.EVENT_READ, each)
        selector.register(sys.stdin, selectors.EVENT_READ, None)
        sys.stdout.write("\n")
        sys.stdout.flush()
        due, end = time.monotonic(), float("inf")
        while (now := time.monotonic()) < end and (end == float("inf") or _missing(echoes)):
            if now >= due and end == float("inf"):
                due = max(due + INTERVAL, now)
                for each in echoes:
                    each.send()
            for key, _ in selector.select(max(0.0, min(due, end) - time.monotonic())):
                if key.data is not None:
                    key.data.receive(time.monotonic())
                else:
                    selector.unregister(sys.stdin)
                    end = due = time.monotonic() + ANSWER_TIMEOUT
    for each in echoes:
        # without an answer to the last request the gap lasts to the end
        if each.unanswered and max(each.unanswered) == (each.sent - 1) & 0xFFFF:
            each.note(time.monotonic())
    sys.stdout.write(json.dumps([each.result() for each in echoes]))
    return 0


def _missing(echoes: list[Echo]) -> bool:
    """Whether an answer to a last request is missing."""
    return any((each.sent - 1) & 0xFFFF in each.unanswered for each in echoes)


def _echo(address: str, path: str) -> Echo:
    """A socket in the namespace at `path`. This process returns to its own namespace."""
    parsed = ip_address(address)
    if path:
        own, there = (os.open(each, _TO_READ) for each in (_OWN, path))
        _setns(there)
    asked = _socket(parsed.version)
    if path:
        _setns(own)
        os.close(own)
        os.close(there)
    return Echo(asked, str(parsed), parsed.version, time.monotonic())


_OWN: Final = "/proc/self/ns/net"
_TO_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""O_NONBLOCK: open(2) must not block if the path is a FIFO by now."""


def _socket(version: int) -> socket.socket:
    if version == 4:
        asked = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    else:
        asked = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    asked.setblocking(False)
    return asked


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _own_id() -> int:
    return os.getpid() & 0xFFFF


def _summed(head: bytes) -> bytes:
    """With the Internet checksum (RFC 1071); the kernel makes that of ICMPv6."""
    total = sum(struct.unpack(f"!{len(head) // 2}H", head))
    total = (total >> 16) + (total & 0xFFFF)
    return head[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[4:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
