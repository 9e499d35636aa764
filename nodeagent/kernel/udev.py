"""udev's state in /run/udev: whether it runs, and the devices that it has finished with."""

from __future__ import annotations

import socket
from pathlib import Path

from nodeagent import hostpath

_RUN = Path("/run/udev")


def is_running(run: Path = _RUN) -> bool:
    """Whether a process listens on udev's control socket.

    A killed udevd leaves the socket's file. systemd listens in udevd's place and starts it when
    necessary, which counts as running. The connection sends nothing to udevd.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as control:
        try:
            control.connect(str(run / "control"))
        except (BlockingIOError, PermissionError):
            return True  # its queue is full, or it is only for root: it has a listener
        except OSError:
            return False
    return True


def is_initialized(ifindex: int, run: Path = _RUN) -> bool:
    """Whether udev has run its rules for a network device, including a rename.

    Its database entry n<ifindex> then has a line I:<microseconds since boot>, which udevd writes
    after the rename (systemd, src/udev/udev-event.c and sd-device's device-private.c).
    """
    return any(line.startswith("I:") for line in _entry(f"n{ifindex}", run))


def is_done(device: str, run: Path = _RUN) -> bool:
    """Whether udev has finished with a device, by its database ID (`+infiniband:mlx5_0`).

    A device for which the rules set nothing gets no entry (device_update_db()): it is finished if
    udev has nothing left to do, or does not run.
    """
    if any(line.startswith("I:") for line in _entry(device, run)):
        return True
    return not (run / "queue").exists() or not is_running(run)


def has_given_up(ifindex: int, run: Path = _RUN) -> bool:
    """Whether udev has begun with a network device and ended without finishing it.

    If the new name is taken, udevd (systemd 252) leaves the database entry from before the rename
    (ID_RENAMING=1, no I: line), and continues with the next event. If there is no further event
    (/run/udev/queue is gone), the device stays so.
    """
    began = (run / "data" / f"n{ifindex}").exists()
    return began and not (run / "queue").exists() and not is_initialized(ifindex, run)


def property_of(ifindex: int, name: str, run: Path = _RUN) -> str:
    """A property of a network device in udev's database (`E:NAME=value`), "" for none."""
    found = [line for line in _entry(f"n{ifindex}", run) if line.startswith(f"E:{name}=")]
    return found[-1].partition("=")[2] if found else ""


def _entry(device: str, run: Path) -> list[str]:
    """The lines of a device's entry in udev's database; none if it has no entry."""
    try:
        return hostpath.read_text(run / "data" / device).splitlines()
    except OSError:  # also for something that is not a file
        return []
