"""Defaults of rdma_cm for RoCE, in configfs (drivers/infiniband/core/cma_configfs.c).

`rdma_cm/<device>/ports/<port>/default_roce_{mode,tos}` shows and sets values of the device itself.
mkdir(2) makes the directory of a device that exists, and rmdir(2) does not change the values. While
a directory exists rdma_cm cannot be unloaded, so one that is made here is removed at once. One that
another program made is kept; if its device is gone, each access fails with ENODEV.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nodeagent.state.roce import RoceMode, RocePort
from nodeagent.trace import point


@dataclass(frozen=True)
class RoceDefaults:
    """The directories that configfs may be mounted at: in a container, the host's."""

    roots: tuple[Path, ...]

    def exist(self) -> bool:
        """Whether rdma_cm's directory is there: the module is loaded, and configfs mounted."""
        return self._root() is not None

    def read(self, device: str) -> tuple[RocePort, ...] | None:
        """The ports with other defaults than a new device's; None if they cannot be read."""
        root = self._root()
        if root is None:
            return None
        try:
            with _directory(root / device) as ports:
                found = [
                    RocePort(
                        port=int(each.name),
                        mode=RoceMode((each / "default_roce_mode").read_text().strip()),
                        tos=int((each / "default_roce_tos").read_text()),
                    )
                    for each in sorted(ports.iterdir(), key=lambda path: int(path.name))
                ]
                return tuple(port for port in found if not port.is_fresh)
        except (OSError, ValueError):
            return None

    def write(self, device: str, wanted: RocePort) -> None:
        """Set a port's values. OSError if the kernel refuses one, or there is no such directory."""
        root = self._root()
        if root is None:
            raise FileNotFoundError(errno.ENOENT, "rdma_cm is not loaded, or configfs not mounted")
        with _directory(root / device) as ports:
            for name, value in (("mode", str(wanted.mode)), ("tos", str(wanted.tos))):
                path = ports / str(wanted.port) / f"default_roce_{name}"
                point("write configfs", path)
                path.write_text(value)

    def _root(self) -> Path | None:
        return next((root for root in self.roots if root.is_dir()), None)


@contextmanager
def _directory(path: Path) -> Iterator[Path]:
    """The ports of a device."""
    is_ours = True
    try:
        path.mkdir()
    except FileExistsError:
        is_ours = False
    try:
        yield path / "ports"
    finally:
        if is_ours:
            path.rmdir()
