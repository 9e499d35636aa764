"""The running kernel's headers, which the sources are compiled against.

The driver's image cannot have them for every kernel: where they are missing, the distribution's
package manager is asked for them, as the driver container does. It uses the repositories that the
image has, and HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
"""

from __future__ import annotations

import logging
from pathlib import Path

from nodeagent import hostpath
from nodeagent.driver import distribution
from nodeagent.errors import AgentError, Stopped, UnavailableError
from nodeagent.kernel import process
from nodeagent.kernel.events import StopSignal
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

_TIMEOUT = 900.0  # seconds for each command: a mirror may be slow
_LAST_LINES = 5


def ensure(settings: Settings, release: str, stop: StopSignal | None) -> None:
    """Return when /lib/modules/<release>/build leads to headers. UnavailableError says why not."""
    root = settings.driver_root
    if _are_there(root, release):
        return
    node = distribution.of_root(root)
    package = package_of(node.family, release)
    commands = _commands(node.family, package)
    if not commands:
        why = "which package has them is not known for this distribution"
        raise _missing(root, release, node.name, package, why)
    try:
        for argv in commands:
            _run(process.in_root(root, argv), stop)
    except Stopped:
        raise
    except AgentError as error:
        raise _missing(root, release, node.name, package, error.message) from error
    if not _are_there(root, release):
        raise _missing(root, release, node.name, package, "the package did not bring them")


def package_of(family: str, release: str) -> str:
    """The package that has the headers of a kernel, with its version.

    RHEL's variants have packages of their own: `5.14.0-570.el9.aarch64+64k` is kernel-64k-devel.
    """
    match family:
        case "ubuntu":
            return f"linux-headers-{release}"
        case "sles":
            return f"kernel-default-devel={release.removesuffix('-default')}"
        case "redhat":
            version, _, variant = release.partition("+")
            return f"kernel-{variant}{'-' if variant else ''}devel-{version}"
    return f"the headers of {release}"


def _commands(family: str, package: str) -> tuple[tuple[str, ...], ...]:
    match family:
        case "ubuntu":
            install = ("apt-get", "-yq", "install", "--no-install-recommends", package)
            return (("apt-get", "-yq", "update"), install)
        case "sles":
            return (("zypper", "--non-interactive", "install", "--no-recommends", package),)
        case "redhat":
            return (("dnf", "-q", "-y", "install", "--allowerasing", package),)
    return ()


def _run(argv: list[str], stop: StopSignal | None) -> None:
    log.info("running %s", " ".join(argv))
    done = process.run(argv, timeout=_TIMEOUT, stop=stop, on_line=_log_line)
    if done.returncode:
        said = [line for line in f"{done.output}\n{done.errors}".splitlines() if line.strip()]
        raise UnavailableError(
            f"`{' '.join(argv)}` exited {done.returncode}, saying: "
            + " | ".join(said[-_LAST_LINES:])
        )


def _are_there(root: Path, release: str) -> bool:
    """A directory, or a link to one: an absolute link leads into `root`."""
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


def _log_line(line: str) -> None:
    if text := line.strip():
        log.info("headers: %s", text)
