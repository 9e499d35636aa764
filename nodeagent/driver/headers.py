"""The headers of the running kernel, for the build of the driver.

An image cannot contain them for every kernel. Missing ones are installed with the distribution's
package manager, as the driver container does, from the repositories of the image, by HTTP_PROXY,
HTTPS_PROXY and NO_PROXY.
"""

from __future__ import annotations

import logging
from pathlib import Path

from nodeagent import hostpath
from nodeagent.driver import distribution
from nodeagent.driver.distribution import Family
from nodeagent.errors import AgentError, Stopped, UnavailableError
from nodeagent.kernel import process
from nodeagent.kernel.events import StopSignal
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

_TIMEOUT = 900.0  # seconds for each command: a mirror may be slow
_LAST_LINES = 5


def ensure(settings: Settings, release: str, stop: StopSignal | None) -> None:
    """Install the headers unless /lib/modules/<release>/build has them. UnavailableError."""
    root = settings.driver_root
    if _are_there(root, release):
        return
    node = distribution.of_root(root)
    package = package_of(node.family, release)
    commands = _commands(node.family, package)
    if not commands:
        why = "nodeagent does not know their package for this distribution"
        raise _missing(root, release, node.name, package, why)
    try:
        for argv in commands:
            _run(process.in_root(root, argv), stop)
    except Stopped:
        raise
    except AgentError as error:
        raise _missing(root, release, node.name, package, error.message) from error
    if not _are_there(root, release):
        raise _missing(root, release, node.name, package, "the package does not contain them")


def package_of(family: Family, release: str) -> str:
    """The package with the headers of a kernel, and its version.

    RHEL's kernel variants have packages of their own: kernel-64k-devel for
    `5.14.0-570.el9.aarch64+64k`.
    """
    match family:
        case Family.UBUNTU:
            return f"linux-headers-{release}"
        case Family.SLES:
            return f"kernel-default-devel={release.removesuffix('-default')}"
        case Family.REDHAT:
            version, _, variant = release.partition("+")
            return f"kernel-{variant}{'-' if variant else ''}devel-{version}"
    return f"the headers of {release}"


def _commands(family: Family, package: str) -> tuple[tuple[str, ...], ...]:
    match family:
        case Family.UBUNTU:
            install = ("apt-get", "-yq", "install", "--no-install-recommends", package)
            return (("apt-get", "-yq", "update"), install)
        case Family.SLES:
            return (("zypper", "--non-interactive", "install", "--no-recommends", package),)
        case Family.REDHAT:
            return (("dnf", "-q", "-y", "install", "--allowerasing", package),)
    return ()


def _run(argv: list[str], stop: StopSignal | None) -> None:
    log.info("running %s", " ".join(argv))
    done = process.run(argv, timeout=_TIMEOUT, stop=stop, on_line=process.to_log(log, "headers"))
    if done.returncode:
        raise UnavailableError(
            f"`{' '.join(argv)}` exited with status {done.returncode}: "
            + " | ".join(done.last_lines(_LAST_LINES))
        )


def _are_there(root: Path, release: str) -> bool:
    """Whether `build` is a directory, or a link to one within `root`."""
    return hostpath.is_directory(
        hostpath.resolve_in_root(root, Path("lib/modules", release, "build"))
    )


def _missing(root: Path, release: str, name: str, package: str, why: str) -> UnavailableError:
    return UnavailableError(
        f"cannot build the driver: there is no {root / 'lib/modules' / release / 'build'}, the "
        f"headers of the running kernel: {why}",
        hint=f"install {package} into the driver's image ({name}), or let the Driver Toolkit "
        "build (DTK_OCP_DRIVER_BUILD), or use precompiled",
    )
