"""The mounts of this mount namespace (proc_pid_mountinfo(5)), and mount(2).

Not mount(8), which an image may lack, and whose exit status says less than errno.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent import hostpath
from nodeagent.errors import KernelError, reason
from nodeagent.trace import point

# include/uapi/linux/mount.h
BIND: Final = 0x1000
RECURSIVE: Final = 0x4000
UNBINDABLE: Final = 1 << 17
PRIVATE: Final = 1 << 18
_DETACH: Final = 2  # MNT_DETACH
_NO_FOLLOW: Final = 8  # UMOUNT_NOFOLLOW

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A mount: its place, and whether mounts below it propagate to its peers (also the host)."""

    at: str
    is_shared: bool


def mounts(proc: Path = Path("/proc")) -> tuple[Mount, ...]:
    """All mounts of this process's namespace, in the order in which they were made.

    The fields of a line are: id, parent, device, root, where, options, optional fields up to "-".
    """
    lines = (proc / "self/mountinfo").read_text(errors="surrogateescape").splitlines()
    return tuple(_mount(line.split(" ")) for line in lines)


def on(path: Path, proc: Path = Path("/proc")) -> tuple[Mount, ...]:
    """The mounts at exactly that path, each on top of the one before."""
    return tuple(mount for mount in mounts(proc) if mount.at == str(path))


def bind(source: Path, target: Path) -> None:
    """Mount a directory, with all mounts below it, at another place as well.

    No link is followed in either path.
    """
    failed = f"mount {source} at {target}"
    try:
        with hostpath.directory_path(source) as origin, hostpath.directory_path(target) as place:
            _mount_call(str(origin), place, BIND | RECURSIVE, failed)
    except OSError as error:
        raise KernelError(f"cannot {failed}: {reason(error)}", errno=error.errno) from error


def propagate(target: Path, flags: int) -> None:
    """Change the propagation of a mount: UNBINDABLE, PRIVATE, with RECURSIVE."""
    _mount_call("none", target, flags, f"change the propagation of {target}")


def unmount(target: Path) -> None:
    """Unmount the topmost mount there with all mounts below it, even while it is in use."""
    point("unmount", target)
    try:
        with hostpath.directory_path(target.parent) as parent:
            if _libc().umount2(os.fsencode(parent / target.name), _DETACH | _NO_FOLLOW):
                raise _refused(f"unmount {target}")
    except OSError as error:
        raise KernelError(f"cannot unmount {target}: {reason(error)}", errno=error.errno) from error


def _mount(fields: list[str]) -> Mount:
    optional = fields[6 : fields.index("-")]
    return Mount(unescaped(fields[4]), any(field.startswith("shared:") for field in optional))


def unescaped(path: str) -> str:
    r"""A path of mountinfo, in which spaces and other characters are octal (`\040`)."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), path)


def _mount_call(source: str, target: Path, flags: int, what: str) -> None:
    point("mount", target)
    if _libc().mount(os.fsencode(source), os.fsencode(target), None, ctypes.c_ulong(flags), None):
        raise _refused(what)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _refused(operation: str) -> KernelError:
    number = ctypes.get_errno()
    hint = "it needs a privileged pod" if number == 1 else None
    return KernelError(f"cannot {operation}: {os.strerror(number)}", hint=hint, errno=number)
