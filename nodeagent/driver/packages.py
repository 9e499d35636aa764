"""The driver's packages: find those that install.pl built, check, install and index them.

RPMs are installed with rpm(8), debs with dpkg(1), both in DRIVER_ROOT and without a check of
dependencies: the packages are from one build, and the image has to contain what else they need.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodeagent import durable, hostpath
from nodeagent.driver import copies
from nodeagent.errors import DataError, NoInputError, UnavailableError
from nodeagent.kernel import modules, process
from nodeagent.kernel.events import StopSignal
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

_CHECK_TIMEOUT = 300.0  # seconds; each package is read once
_INSTALL_TIMEOUT = 900.0  # seconds; scriptlets may rebuild an initramfs
_DEPMOD_TIMEOUT = 300.0  # seconds; it reads every module of the kernel

STAGE: Final = Path("var/tmp/nodeagent-packages")
"""A directory below DRIVER_ROOT for packages that are not in an inventory."""


@dataclass(frozen=True)
class Kind:
    """A package format: the output directory of install.pl, and the commands of its tool."""

    suffix: str
    place: str
    check: tuple[str, ...]
    listing: tuple[str, ...]
    installed: Callable[[str], str]


_RPM = Kind(
    ".rpm",
    "RPMS",
    # digests of header and payload; a missing key is no reason to refuse what was just built
    ("rpm", "-K", "--nosignature"),
    ("rpm", "-qp", "--nosignature", "-l"),
    str,
)
_DEB = Kind(
    ".deb",
    "DEBS",
    ("dpkg-deb", "-c"),  # reads the whole archive
    ("dpkg-deb", "-c"),
    # drwxr-xr-x root/root 0 2026-01-01 00:00 ./lib/modules
    lambda line: line.split(maxsplit=5)[-1].removeprefix("."),
)


def built(sources: Path) -> tuple[Path, ...]:
    """The packages that install.pl built below `sources`, sorted by name.

    <sources>/RPMS/<distribution>/<architecture>/*.rpm, or DEBS and .deb. DataError if two
    distributions have a package of the same name, and if a package is not a regular file or is
    reached through a link.
    """
    machine = os.uname().machine
    found: dict[str, Path] = {}
    for kind in (_RPM, _DEB):
        for path in sorted(sources.glob(f"{kind.place}/*/{machine}/*{kind.suffix}")):
            if not hostpath.is_file(path):
                raise DataError(
                    f"{path} is not a regular file, or is reached through a symbolic link",
                    hint="find out what created it, and move it away",
                )
            if path.name in found:
                raise DataError(
                    f"there are two packages {path.name}: {found[path.name]} and {path}",
                    hint="remove the packages of the other distribution",
                )
            found[path.name] = path
    return tuple(found[name] for name in sorted(found))


def kind_of(packages: Sequence[Path]) -> Kind:
    """The format of the packages. NoInputError if there are none, DataError for both formats."""
    kinds = [kind for kind in (_RPM, _DEB) if any(p.suffix == kind.suffix for p in packages)]
    if not kinds:
        raise NoInputError("there are no packages of the driver to install")
    if len(kinds) > 1:
        raise DataError(
            "there are both RPMs and debs of the driver",
            hint="remove those that do not fit this node's distribution",
        )
    return kinds[0]


@contextmanager
def staged(packages: Sequence[Path], root: Path, stop: StopSignal | None) -> Iterator[list[Path]]:
    """Copies of the packages below `root`, in a directory of nodeagent; removed after the block."""
    place = root / STAGE
    copies.files(packages, place, stop)
    try:
        yield [place / each.name for each in packages]
    finally:
        copies.remove(place)


def check(packages: Sequence[Path], root: Path) -> None:
    """DataError if packages are damaged, such as by an incomplete copy. Paths are below `root`."""
    argv = kind_of(packages).check
    broken = {}
    for package in packages:
        done = _look([*argv, _within(package, root)], root)
        if done.returncode:
            broken[package.name] = _words(done)
    if broken:
        raise DataError(
            f"cannot install damaged or incomplete packages: "
            f"{'; '.join(f'{name} ({said})' for name, said in broken.items())}",
            hint="the next start builds them again if they are still damaged; check whether a "
            "file system is full",
        )


def check_copies(packages: Sequence[Path], root: Path) -> None:
    """The same for packages outside `root`, by means of copies."""
    if root == Path("/"):
        check(packages, root)
        return
    with staged(packages, root, None) as copied:
        check(copied, root)


def brings(module: str, release: str, packages: Sequence[Path], root: Path) -> frozenset[str]:
    """The files of `module` for the kernel `release` in the packages, as paths below lib/modules.

    `6.1.0/extra/mlx5_core.ko`, compressed ones included. DataError if there are none: the old
    driver would stay in place.
    """
    kind = kind_of(packages)
    found = set()
    for package in packages:
        done = _look([*kind.listing, _within(package, root)], root)
        for line in done.output.splitlines():
            path = kind.installed(line.strip())
            below = path.partition("lib/modules/")[2]
            if below and Path(below).name.partition(".")[0].replace("-", "_") == module:
                found.add(below)
    ours = frozenset(path for path in found if path.startswith(f"{release}/"))
    if not ours:
        kernels = sorted({path.partition("/")[0] for path in found})
        but = f", but for {', '.join(kernels)}" if kernels else ""
        raise DataError(
            f"none of the {len(packages)} packages has the module {module} for {release}{but}: "
            + ", ".join(package.name for package in packages),
            hint="build them for the kernel that this node runs"
            if kernels
            else "check that the build was complete, and that DRIVER_MODULE is the right driver",
        )
    return ours


def install(packages: Sequence[Path], root: Path, stop: StopSignal | None) -> None:
    """Install the packages, also over installed ones. Paths are below `root`.

    Installed packages are installed again, which repairs an installation that was killed. After a
    stop signal the package manager may finish. UnavailableError with its last messages.
    """
    names = [_within(package, root) for package in packages]
    if kind_of(packages) is _DEB:
        options = ["--force-depends", "--force-confnew", "--force-downgrade"]
        argv = ["dpkg", *options, "-i", *names]
    elif _another_version(names, root):
        argv = ["rpm", "-Uvh", "--oldpackage", "--replacepkgs", "--nodeps", *names]
    else:
        argv = ["rpm", "-ivh", "--replacepkgs", "--nodeps", *names]
    log.info("installing %d packages", len(names))
    done = process.run(
        process.in_root(root, argv),
        timeout=_INSTALL_TIMEOUT,
        stop=stop,
        stop_grace=_INSTALL_TIMEOUT,
        on_line=process.to_log(log, "install"),
    )
    if done.returncode:
        raise UnavailableError(
            f"cannot install the driver's packages: {argv[0]} exited with status "
            f"{done.returncode}: {_words(done)}",
            hint="see the log for its whole output; the loaded driver was not touched",
        )


def index(release: str, root: Path, *tree: str) -> None:
    """Run depmod(8) for a kernel; `tree` is -b and the directory of the modules, if given."""
    argv = process.in_root(root, ["depmod", *tree, release])
    done = process.run(argv, timeout=_DEPMOD_TIMEOUT)
    if done.returncode:
        raise UnavailableError(
            f"cannot index the modules of {release}: depmod exited with status "
            f"{done.returncode}: {_words(done)}"
        )


def prepare_tree(release: str, root: Path) -> None:
    """Create /lib/modules/<release>/ and two files without which depmod prints warnings.

    StorageError.
    """
    directory = modules.tree(root, release)
    durable.make_directory(directory, 0o755)
    for name in ("modules.order", "modules.builtin"):
        if not durable.exists(directory / name):
            durable.create(directory / name, b"", 0o644)


def require_installed(module: str, brought: frozenset[str], settings: Settings) -> None:
    """UnavailableError unless modprobe would load a file from the packages."""
    name = modules.installed(module, settings.driver_root).filename
    if name.partition("lib/modules/")[2] not in brought:
        raise UnavailableError(
            f"the packages are installed, but modprobe would load {name}, which is in none of "
            f"them; they have {', '.join(sorted(brought))}",
            hint="check the order of directories, `search` in /etc/depmod.d",
        )


def _another_version(names: Sequence[str], root: Path) -> bool:
    """Whether another version of one of the packages is installed, to be replaced."""
    label = "%{NAME} %{VERSION}-%{RELEASE}\\n"
    query = ["rpm", "-qp", "--nosignature", "--qf", label, *names]
    ours = dict(
        line.split(maxsplit=1) for line in _look(query, root).output.splitlines() if " " in line
    )
    there = _look(["rpm", "-q", "--qf", label, *ours], root).output
    installed = [line.split() for line in there.splitlines()]
    return any(len(each) == 2 and ours.get(each[0], each[1]) != each[1] for each in installed)


def _within(path: Path, root: Path) -> str:
    """The path of a file for a command whose root directory is `root`."""
    return str(path) if root == Path("/") else f"/{path.relative_to(root)}"


def _look(argv: Sequence[str], root: Path) -> process.Finished:
    return process.run(process.in_root(root, argv), timeout=_CHECK_TIMEOUT, only_looks=True)


def _words(done: process.Finished) -> str:
    lines = [*filter(None, map(str.strip, (done.errors or done.output).splitlines()))]
    return " | ".join(lines[-5:]) or f"{done.argv[0]} exited {done.returncode}"
