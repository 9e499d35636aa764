"""Run in a pod's container: what works there, and what no longer does without each of its mounts.

A mount is taken away in a mount namespace of a child of this process: the interpreter starts once.
Arguments: inode of the network namespace that only /run/netns shows, mount points. Prints JSON,
mount point ("" for none) -> the mount points whose purpose is met.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from nodeagent import machine
from nodeagent.kernel import udev
from nodeagent.kernel.netns import Namespaces
from nodeagent.settings import load

TOKEN = "seen-from-both-sides"
"""A file that the test has made on the node, in each folder that is shared."""
_NEWNS, _DETACH, _PRIVATE = 0x20000, 2, 0x4000 | 0x40000
_LIBC = ctypes.CDLL(None, use_errno=True)


def met(inode: int) -> dict[str, Callable[[], object]]:
    """By mount point: what it is there for."""
    settings = load()

    def is_shared(directory: Path) -> Callable[[], bool]:
        return (directory / TOKEN).exists

    return {
        "/run/mellanox/drivers": is_shared(settings.ready_path.parent),
        "/var/lib/nodeagent": is_shared(settings.state_dir),
        "/run/udev": udev.is_running,
        "/run/netns": lambda: any(
            (holder.mount or "").startswith("/run/netns/")  # another process has its own mounts
            for holder in Namespaces().scan().get(inode, ())
        ),
        "/var/lib/cni/sriov": is_shared(settings.cni_data_dir),
        "/host/etc": lambda: machine.machine_id() and settings.blacklist_file.parent.is_dir(),
        "/host/lib/modules": lambda: _is_found("dca"),
        "/mnt/drivers-inventory": is_shared(settings.inventory or Path("/nonexistent")),
        "/mnt/shared-doca-driver-toolkit": is_shared(settings.dtk_shared_dir),
    }


def _is_found(module: str) -> bool:
    argv = ("modprobe", "-n", "-d", "/host", module)
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def _without(mount: str, inode: int) -> list[str]:
    """Asked in a child, which has its own mounts."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        if mount:
            _must(_LIBC.unshare(_NEWNS))
            _must(_LIBC.mount(b"none", b"/", None, _PRIVATE, None))
            _must(_LIBC.umount2(mount.encode(), _DETACH))
            while not _LIBC.umount2(mount.encode(), _DETACH):
                pass  # what was mounted over it on the node came, too
        works = [name for name, is_so in met(inode).items() if is_so()]
        os.write(write_end, json.dumps(works).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as answer:
        told: list[str] = json.loads(answer.read())
    os.waitpid(pid, 0)
    return told


def _must(result: int) -> None:
    if result:
        os.write(2, f"{os.strerror(ctypes.get_errno())}\n".encode())
        os._exit(1)


if __name__ == "__main__":
    seen = int(sys.argv[1])
    told = {mount: _without(mount, seen) for mount in ("", *sys.argv[2:])}
    sys.stdout.write(json.dumps(told))
