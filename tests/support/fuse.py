"""A file system without locks: FUSE, served by a thread of the test (linux/fuse.h, no libfuse).

It has one directory and, in it, what is created there: empty plain files that are open, have a mode
and an owner, and that is all. A server that asks for flock(2) requests (FUSE_FLOCK_LOCKS) and then
answers them with an error is how a real one (a network file system in user space) has no locks.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = 1  # FUSE_ROOT_ID
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, STATFS, RELEASE, FSYNC = 1, 2, 3, 4, 14, 17, 18, 20
FLUSH, INIT, OPENDIR, RELEASEDIR, FSYNCDIR, SETLK, SETLKW = 25, 26, 27, 29, 30, 32, 33
CREATE, INTERRUPT, BATCH_FORGET = 35, 36, 42
SILENT = {FORGET, INTERRUPT, BATCH_FORGET}
FLOCK_LOCKS = 1 << 10
FATTR_MODE = 1
MNT_DETACH = 2


class Lockless:
    """The server's side: answers by number of request, files by number of inode."""

    def __init__(self, device: int, refusal: int) -> None:
        self.device = device
        self.refusal = refusal
        self.asked: list[int] = []
        self.modes = {ROOT: stat.S_IFDIR | 0o755}
        self.names: dict[bytes, int] = {}

    def serve(self) -> None:
        with suppress(OSError):  # ENODEV: unmounted
            while True:
                request = os.read(self.device, 1 << 18)
                _, kind, unique, inode = struct.unpack_from("<IIQQ", request)
                self.asked.append(kind)
                if kind not in SILENT:
                    answer = self._answer(kind, inode, request[40:])
                    failed, said = (answer, b"") if isinstance(answer, int) else (0, answer)
                    os.write(
                        self.device, struct.pack("<IiQ", 16 + len(said), -failed, unique) + said
                    )

    def _answer(self, kind: int, inode: int, said: bytes) -> bytes | int:
        """What follows the header of an answer, or an errno."""
        if kind == INIT:
            facts = struct.pack("<IIIIHHIIHHII", 7, 31, 0, FLOCK_LOCKS, 0, 0, 4096, 1, 0, 0, 0, 0)
            return facts.ljust(64, b"\0")
        if kind == LOOKUP:
            known = self.names.get(said.rstrip(b"\0"))
            return errno.ENOENT if known is None else self._entry(known)
        if kind == CREATE:
            _, mode = struct.unpack_from("<II", said)
            number = self.names[said[16:].rstrip(b"\0")] = len(self.modes) + 1
            self.modes[number] = mode
            return self._entry(number) + bytes(16)
        if kind == SETATTR:
            (valid,), (mode,) = struct.unpack_from("<I", said), struct.unpack_from("<I", said, 68)
            if valid & FATTR_MODE:
                self.modes[inode] = mode
        if kind in {GETATTR, SETATTR}:
            return bytes(16) + self._attributes(inode)
        if kind in {OPEN, OPENDIR}:
            return bytes(16)
        if kind in {SETLK, SETLKW}:
            return self.refusal
        return b"" if kind in {RELEASE, RELEASEDIR, FLUSH, FSYNC, FSYNCDIR} else errno.ENOSYS

    def _entry(self, inode: int) -> bytes:
        return struct.pack("<QQQQII", inode, 0, 0, 0, 0, 0) + self._attributes(inode)

    def _attributes(self, inode: int) -> bytes:
        numbers = (inode, 0, 0, 0, 0, 0)
        return struct.pack("<6Q10I", *numbers, 0, 0, 0, self.modes[inode], 1, 0, 0, 0, 4096, 0)


@contextmanager
def without_locks(place: Path, refusal: int) -> Iterator[Lockless]:
    """Mount one that answers flock(2) with `refusal`, an errno."""
    place.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    data = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"lockless", os.fsencode(place), b"fuse.lockless", 0, data):
        raise OSError(ctypes.get_errno(), "mount(2) of fuse", str(place))
    server = Lockless(device, refusal)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        libc.umount2(os.fsencode(place), MNT_DETACH)
        thread.join(10)
        os.close(device)
