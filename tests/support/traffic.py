"""Traffic between pods, by processes of its own: echoes that are counted, streams that are checked.

    python3 traffic.py ping RESULT PID:ADDRESS ...   until SIGTERM: an echo each INTERVAL, by each
    python3 traffic.py announced RESULT              until SIGTERM: who says what address it has
    python3 traffic.py receive PORT                  one stream; answers its SHA-256
    python3 traffic.py send ADDRESS PORT             until SIGTERM; 0 if the answer is right

Standard library only: the node that it runs in is an emulated one.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import random
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

INTERVAL = 0.05
BLOCK = 4096
PACE = 0.02
"""Seconds between two blocks of a stream."""

ETH_P_ALL = 3
ETH_P_ARP, ETH_P_IPV6 = b"\x08\x06", b"\x86\xdd"
ICMPV6, ADVERTISEMENT, ALL_NODES = 58, b"\x88", ip_address("ff02::1").packed

_stopped = False


def _stop(_number: int, _frame: object) -> None:
    global _stopped  # noqa: PLW0603  a signal handler's word
    _stopped = True


@dataclass
class Echoes:
    """One who asks: how many echoes were sent and came back, and when."""

    asked: socket.socket
    address: str
    sent: int = 0
    came: int = 0
    last: float = 0.0
    gaps: list[float] = field(default_factory=list)

    def send(self) -> None:
        self.sent += 1
        head = struct.pack("!BBHHH", 8, 0, 0, 7, self.sent & 0xFFFF)
        with suppress(OSError):  # no route while there is no interface
            self.asked.sendto(_summed(head), (self.address, 0))

    def receive(self) -> None:
        with suppress(OSError):
            while True:
                data, source = self.asked.recvfrom(256)
                # a raw socket gets all that comes into the namespace
                if data[20] == 0 and source[0] == self.address:  # an echo's reply
                    now = time.monotonic()
                    if self.last:
                        self.gaps.append(now - self.last)
                    self.last = now
                    self.came += 1


def ping(result: str, *whom: str) -> int:
    """Write what was sent and came, the longest gap and the last, in seconds, when told to end."""
    all_of_them = [Echoes(_raw_socket(int(pid)), address) for pid, _, address in
                   (each.partition(":") for each in whom)]  # fmt: skip
    with selectors.DefaultSelector() as selector:
        for each in all_of_them:
            selector.register(each.asked, selectors.EVENT_READ, each)
        _say("pinging")
        due = time.monotonic()
        while not _stopped:
            for key, _ in selector.select(max(0.0, due - time.monotonic())):
                key.data.receive()
            if time.monotonic() >= due:
                due = max(due + INTERVAL, time.monotonic())
                for each in all_of_them:
                    each.send()
    now = time.monotonic()
    told = {
        spec: {
            "sent": each.sent,
            "came": each.came,
            "gap": max(each.gaps, default=0.0),
            "silent": now - each.last,
        }
        for spec, each in zip(whom, all_of_them, strict=True)
    }
    Path(result).write_text(json.dumps(told))
    return 0


def announced(result: str) -> int:
    """Write which MACs announced which addresses, as "MAC ADDRESS": gratuitous ARP (RFC 826, sender
    and target are one), and neighbour advertisements to all nodes (RFC 4861).

    A packet socket that is bound to no interface gets what comes to those that come later, too.
    """
    found = set()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as heard:
        heard.settimeout(INTERVAL)
        _say("listening")
        while not _stopped:
            with suppress(TimeoutError, OSError):  # or an interface has gone
                if (told := _announcement(heard.recv(2048))) is not None:
                    found.add(told)
    Path(result).write_text(json.dumps(sorted(found)))
    return 0


def _announcement(frame: bytes) -> str | None:
    kind = frame[12:14]
    if kind == ETH_P_ARP and frame[28:32] == frame[38:42]:
        return f"{frame[22:28].hex(':')} {ip_address(frame[28:32])}"
    is_icmp = kind == ETH_P_IPV6 and frame[20] == ICMPV6
    if is_icmp and frame[54:55] == ADVERTISEMENT and frame[38:54] == ALL_NODES:
        return f"{frame[6:12].hex(':')} {ip_address(frame[62:78])}"
    return None


def receive(port: str) -> int:
    """Take in one stream, and answer with what its checksum is."""
    with socket.create_server(("", int(port)), backlog=1) as server:
        _say("listening")
        stream, _ = server.accept()
    digest = hashlib.sha256()
    with stream:
        while data := stream.recv(1 << 16):
            digest.update(data)
        stream.sendall(digest.digest())
    return 0


def send(address: str, port: str) -> int:
    """Send until told to end; say how much, and whether the other end got just that."""
    numbers = random.Random(port)  # noqa: S311  the same each time is what is wanted
    digest, count = hashlib.sha256(), 0
    with socket.create_connection((address, int(port)), timeout=60) as stream:
        stream.settimeout(None)
        _say("connected")
        while not _stopped:
            block = numbers.randbytes(BLOCK)
            digest.update(block)
            stream.sendall(block)
            count += len(block)
            time.sleep(PACE)
        stream.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: stream.recv(64), b""))
    _say(str(count))
    return 0 if answer == digest.digest() else 1


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def _raw_socket(pid: int) -> socket.socket:
    """An ICMP socket in a process's network namespace."""
    own, there = (os.open(f"/proc/{each}/ns/net", os.O_RDONLY) for each in ("self", pid))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.setns(there, 0) == 0
    made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    assert libc.setns(own, 0) == 0
    for fd in (own, there):
        os.close(fd)
    made.setblocking(False)
    return made


def _summed(head: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(head) // 2}H", head))
    total = (total >> 16) + (total & 0xFFFF)
    return head[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[4:]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    signal.siginterrupt(signal.SIGTERM, False)
    verbs: tuple[Callable[..., int], ...] = (ping, announced, receive, send)
    sys.exit({verb.__name__: verb for verb in verbs}[sys.argv[1]](*sys.argv[2:]))
