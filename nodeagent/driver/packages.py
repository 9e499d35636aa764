"""The driver's packages: found where install.pl leaves them, checked, installed, indexed.

rpm(8) for RPMs, dpkg(1) for debs; which of the two is told by what was built. Both run in
DRIVER_ROOT. Neither of them looks at dependencies: the packages are those of one build, and what
the distribution would want beside them is the image's business.
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
"""Below DRIVER_ROOT, where rpm and dpkg can see it: packages that are in no inventory."""


@dataclass(frozen=True)
class Kind:
    """One sort of package: where install.pl leaves it, and what its tool is called with."""

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
    """What install.pl has built below `sources`, sorted by name; () for nothing.

    <sources>/RPMS/<distribution>/<architecture>/*.rpm, or DEBS and .deb. DataError when two
    distributions have a package of one name: only one of them can be this node's; and for one that
    is no plain file, or that a link leads to: rpm(8) and dpkg(1) would read whatever is there.
    """
    machine = os.uname().machine
    found: dict[str, Path] = {}
    for kind in (_RPM, _DEB):
        for path in sorted(sources.glob(f"{kind.place}/*/{machine}/*{kind.suffix}")):
            if not hostpath.is_file(path):
                raise DataError(
                    f"{path} is no plain file, or a link leads there: it is taken for no package",
                    hint="look who made it, and move it away",
                )
            if path.name in found:
                raise DataError(
                    f"there are two packages {path.name}: {found[path.name]} and {path}",
                    hint="remove those that are not of this node's distribution",
                )
            found[path.name] = path
    return tuple(found[name] for name in sorted(found))


def kind_of(packages: Sequence[Path]) -> Kind:
    """Which sort they are; NoInputError for none, DataError for both."""
    kinds = [kind for kind in (_RPM, _DEB) if any(p.suffix == kind.suffix for p in packages)]
    if not kinds:
        raise NoInputError("there are no packages of the driver to install")
    if len(kinds) > 1:
        raise DataError(
            "there are both RPMs and debs of the driver",
            hint="remove those that are not this node's",
        )
    return kinds[0]


@contextmanager
def staged(packages: Sequence[Path], root: Path, stop: StopSignal | None) -> Iterator[list[Path]]:
    """Copies that only we write and that a command in `root` can see; gone after the block."""
    place = root / STAGE
    copies.files(packages, place, stop)
    try:
        yield [place / each.name for each in packages]
    finally:
        copies.remove(place)


def check(packages: Sequence[Path], root: Path) -> None:
    """DataError that names each package whose content is not what it was built with.

    A package that was copied by half fails here, whoever copied it. The paths are below `root`.
    """
    argv = kind_of(packages).check
    broken = {}
    for package in packages:
        done = _look([*argv, _within(package, root)], root)
        if done.returncode:
            broken[package.name] = _words(done)
    if broken:
        raise DataError(
            f"damaged or incomplete packages, nothing was installed: "
            f"{'; '.join(f'{name} ({said})' for name, said in broken.items())}",
            hint="the next start has them built anew if they are still damaged then; is a file "
            "system full?",
        )


def check_copies(packages: Sequence[Path], root: Path) -> None:
    """The same of packages that a command in `root` cannot see, by copies of them."""
    if root == Path("/"):
        check(packages, root)
        return
    with staged(packages, root, None) as copied:
        check(copied, root)


def brings(module: str, release: str, packages: Sequence[Path], root: Path) -> frozenset[str]:
    """The files of that module for the kernel `release`, as paths below lib/modules.

    `6.1.0/extra/mlx5_core.ko`, also compressed ones. DataError when there are none: whatever
    these packages are, installing them would leave the old driver in place.
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
            f"none of the {len(packages)} packages brings the module {module} for {release}{but}: "
            + ", ".join(package.name for package in packages),
            hint="they were built for another kernel than this node runs"
            if kernels
            else "the build was not finished, or DRIVER_MODULE names another driver",
        )
    return ours


def install(packages: Sequence[Path], root: Path, stop: StopSignal | None) -> None:
    """Install the packages over whatever is there. Paths below `root`.

    Again and again if need be: what is installed already is installed anew, so an earlier attempt
    that was killed in the middle is made good. A stop waits for the package manager. Raises
    UnavailableError with the tool's last words.
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
        patience=_INSTALL_TIMEOUT,
        on_line=_log_line,
    )
    if done.returncode:
        raise UnavailableError(
            f"cannot install the driver's packages: {argv[0]} exited {done.returncode}, saying: "
            + _words(done),
            hint="the log has all it said; the loaded driver was not touched",
        )


def index(release: str, root: Path, *tree: str) -> None:
    """Run depmod(8) for a kernel; `tree`: -b and a directory that has the modules."""
    argv = process.in_root(root, ["depmod", *tree, release])
    done = process.run(argv, timeout=_DEPMOD_TIMEOUT)
    if done.returncode:
        raise UnavailableError(
            f"cannot index the modules of {release}: depmod exited {done.returncode}, "
            f"saying: {_words(done)}"
        )


def prepare_tree(release: str, root: Path) -> None:
    """/lib/modules/<release>/ with the two lists that depmod warns about when they are missing.

    StorageError when it cannot be made.
    """
    directory = module_tree(root, release)
    durable.make_directory(directory, 0o755)
    for name in ("modules.order", "modules.builtin"):
        if not durable.exists(directory / name):
            durable.create(directory / name, b"", 0o644)


def module_tree(root: Path, release: str) -> Path:
    """The modules of a kernel below `root`; /lib may be a link to usr/lib (file-hierarchy(7)).

    That link is followed, inside `root`; none below it is.
    """
    return hostpath.resolve_in_root(root, Path("lib")) / "modules" / release


def require_installed(module: str, brought: frozenset[str], settings: Settings) -> None:
    """UnavailableError unless modprobe would load one of the files that the packages brought."""
    name = modules.installed(module, settings.driver_root).filename
    if name.partition("lib/modules/")[2] not in brought:
        raise UnavailableError(
            f"the packages are installed, but modprobe would load {name}, which is in none of "
            f"them; they have {', '.join(sorted(brought))}",
            hint="`search` in /etc/depmod.d says which directory comes first",
        )


def _another_version(names: Sequence[str], root: Path) -> bool:
    """A package of the same name is installed in another version: its files are to be replaced."""
    label = "%{NAME} %{VERSION}-%{RELEASE}\\n"
    query = ["rpm", "-qp", "--nosignature", "--qf", label, *names]
    ours = dict(
        line.split(maxsplit=1) for line in _look(query, root).output.splitlines() if " " in line
    )
    there = _look(["rpm", "-q", "--qf", label, *ours], root).output
    installed = [line.split() for line in there.splitlines()]
    return any(len(each) == 2 and ours.get(each[0], each[1]) != each[1] for each in installed)


def _within(path: Path, root: Path) -> str:
    """A path as a command whose root directory is `root` sees it."""
    return str(path) if root == Path("/") else f"/{path.relative_to(root)}"


def _look(argv: Sequence[str], root: Path) -> process.Finished:
    return process.run(process.in_root(root, argv), timeout=_CHECK_TIMEOUT, only_looks=True)


def _words(done: process.Finished) -> str:
    lines = [*filter(None, map(str.strip, (done.errors or done.output).splitlines()))]
    return " | ".join(lines[-5:]) or f"{done.argv[0]} exited {done.returncode}"


def _log_line(line: str) -> None:
    if text := line.strip():
        log.info("install: %s", text)
