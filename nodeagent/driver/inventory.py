"""Built packages, kept on the node: <inventory>/<uname -r>/<version>/.

Beside that directory are <version>.checksum, with a line of sha256sum(1) for each package, and
<version>.buildconfig, with the settings of the build. They are written after the packages and
removed before those change, so that incomplete packages are never taken for complete ones.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nodeagent import durable, hostpath
from nodeagent.driver import copies
from nodeagent.errors import ConfigError, DataError, reason
from nodeagent.kernel.events import StopSignal

log = logging.getLogger(__name__)

_SUFFIXES = (".rpm", ".deb")


def fingerprint(release: str, version: str, arguments: Sequence[str]) -> str:
    """The settings of a build, as text: kernel, version, and the arguments of install.pl."""
    return f"KERNEL={release}\nVERSION={version}\nARGUMENTS={' '.join(arguments)}\n"


@dataclass(frozen=True)
class Inventory:
    """The packages of one kernel (`uname -r`) and one version below `root`."""

    root: Path
    release: str
    version: str

    @property
    def directory(self) -> Path:
        """The directory of the packages."""
        return self.root / self.release / self.version

    @property
    def checksum(self) -> Path:
        """The file of checksums."""
        return self.root / self.release / f"{self.version}.checksum"

    @property
    def buildconfig(self) -> Path:
        """The file with the fingerprint of the build."""
        return self.root / self.release / f"{self.version}.buildconfig"

    def require(self) -> None:
        """ConfigError unless the inventory is a directory: it must be mounted into the pod."""
        try:
            with hostpath.directory(self.root):
                return
        except OSError as error:
            raise ConfigError(
                f"NVIDIA_NIC_DRIVERS_INVENTORY_PATH is {self.root}, which is not a directory: "
                f"{reason(error)}",
                hint="mount a directory of the host there, or unset it to build at each start",
            ) from error

    def packages(self, built_with: str) -> tuple[Path, ...]:
        """The packages, if they can be installed without a build; else () and a log line."""
        why = self._why_not(built_with)
        if why is not None:
            log.info("a build is needed: %s", why)
            return ()
        found = self._found()
        log.info("no build is needed: %d packages in %s", len(found), self.directory)
        return found

    def store(
        self, packages: Sequence[Path], built_with: str, stop: StopSignal | None = None
    ) -> tuple[Path, ...]:
        """Copy newly built packages here, atomically; return the copies."""
        for stale in (self.checksum, self.buildconfig):
            durable.remove(stale)
        copies.files(packages, self.directory, stop)
        found = self._found()
        durable.replace(self.checksum, _checksums(found).encode(), 0o644)
        durable.replace(self.buildconfig, built_with.encode(), 0o644)
        log.info("kept %d packages in %s", len(found), self.directory)
        return found

    def forget(self) -> None:
        """Mark the packages as incomplete, so that the next start builds them again."""
        durable.remove(self.checksum)

    def clean_up(self) -> None:
        """Remove the packages of other kernels and other versions.

        A directory of packages is recognised by its checksum file, or by having only packages in
        it. Other files stay.
        """
        if not self.root.is_dir():
            return
        for kernel in _directories(self.root):
            for name in sorted(_versions(kernel)):
                if (kernel.name, name) != (self.release, self.version):
                    log.info("removing the packages of %s for %s", name, kernel.name)
                    durable.remove(kernel / f"{name}.checksum")
                    durable.remove(kernel / f"{name}.buildconfig")
                    copies.remove(kernel / name)
                copies.sweep(kernel / name)
            durable.remove_directory(kernel)

    def _found(self) -> tuple[Path, ...]:
        return tuple(sorted(path for path in self.directory.iterdir() if path.suffix in _SUFFIXES))

    def _why_not(self, built_with: str) -> str | None:
        """The reason for a build, to follow "a build is needed: "; None if there is none."""
        if not self.directory.is_dir():
            return f"there is no {self.directory}"
        if not self._found():
            return f"{self.directory} has no packages"
        config, sums = _text(self.buildconfig), _text(self.checksum)
        if sums is None:
            return f"there is no {self.checksum}"
        if config is None:
            return f"there is no {self.buildconfig}"
        if config != built_with:
            return f"{self.directory} was built with {_changed(config, built_with)}"
        try:
            now = _checksums(self._found())
        except (DataError, OSError) as error:
            return f"a package is not safe to install: {error}"
        if now != sums:
            differing = {*sums.splitlines()} ^ {*now.splitlines()}
            names = sorted({line.split("  ", 1)[-1] for line in differing})
            return f"the checksum of {', '.join(names)} in {self.directory} does not match"
        return None


def _directories(root: Path) -> list[Path]:
    return [each for each in sorted(root.iterdir()) if each.is_dir() and not each.is_symlink()]


def _versions(kernel: Path) -> set[str]:
    """The versions that have packages, or files of nodeagent, in the directory of a kernel."""

    suffixes = (".checksum", ".buildconfig")
    ours = {path.stem for path in kernel.iterdir() if path.suffix in suffixes}
    for each in _directories(kernel):
        if each.name.startswith(".") and each.name.endswith(".tmp"):
            ours.add(each.name[1:].rsplit(".", 2)[0])
        else:
            files = [*each.iterdir()]
            if files and all(path.suffix in _SUFFIXES for path in files):
                ours.add(each.name)
    return ours


def _checksums(packages: Iterable[Path]) -> str:
    lines = []
    for package in packages:
        with os.fdopen(durable.open_own(package, copies.MAX_FILE_BYTES), "rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {package.name}\n")
    return "".join(lines)


def _changed(before: str, now: str) -> str:
    gone = [line for line in before.splitlines() if line not in now.splitlines()]
    return "other settings" + (f" ({'; '.join(gone)})" if gone else "")


def _text(path: Path) -> str | None:
    try:
        content = durable.read_own(path)
    except DataError:
        return None
    return None if content is None else content.decode(errors="replace")
