"""RHEL: copy the driver's modules to the host's tree, as SELinux requires.

SELinux lets a module be loaded only from a file of type modules_object_t; the files of a container
have another type. The modules are therefore copied to the host and labelled there, and the
container's directory becomes a link. OpenShift nodes load modules from the container.
"""

from __future__ import annotations

import logging
import os
from errno import ENODATA, ENOTSUP
from pathlib import Path
from typing import Final

from nodeagent import durable
from nodeagent.driver import copies, distribution, other_modules, packages
from nodeagent.errors import StorageError
from nodeagent.kernel import modules
from nodeagent.kernel.events import StopSignal
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

MODULES_DIRECTORY: Final = Path("extra/mlnx-ofa_kernel")
"""The directory of the packages' modules, below lib/modules/<kernel>."""

_XATTR = "security.selinux"
_TYPE = "modules_object_t"
_LABEL = f"system_u:object_r:{_TYPE}:s0"


def unlink(settings: Settings, release: str) -> None:
    """Remove the link before an installation, so that it writes to the container, not the host."""
    tree = _own(settings, release)
    if tree.is_symlink():
        durable.remove(tree)


def share(settings: Settings, release: str, stop: StopSignal | None) -> bool:
    """Copy the modules to the host, label and index them, and link to them. False if not needed.

    The copy is atomic: it is labelled before it is renamed.
    """
    host = distribution.of_host(settings.driver_root)
    own, hosts = _own(settings, release), _hosts(settings, release)
    if (
        host.family != distribution.Family.REDHAT
        or host.is_openshift
        or not other_modules.has_host_tree(settings)
    ):
        return False
    if not own.is_dir() or own.is_symlink():
        return False
    copies.tree(own, hosts, stop, prepare=label)
    packages.index(release, settings.driver_root, "-b", str(other_modules.HOST_ROOT))
    copies.remove(own)
    durable.link(own, other_modules.HOST_ROOT / "lib/modules" / release / MODULES_DIRECTORY)
    log.info("the modules are in the host's tree, %s", hosts)
    return True


def label(tree: Path) -> None:
    """Set the SELinux type of a tree, as chcon -R -t does; user and level stay.

    Does nothing if the file system has no labels and SELinux is not enabled.
    """
    for path in (tree, *tree.rglob("*")):
        try:
            before = os.getxattr(path, _XATTR, follow_symlinks=False)
        except OSError as error:
            if error.errno not in {ENODATA, ENOTSUP}:
                raise _refused(path.relative_to(tree), error) from error
            before = b""
        parts = before.rstrip(b"\0").decode(errors="replace").split(":", 3)
        wanted = ":".join((*parts[:2], _TYPE, parts[3])) if len(parts) == 4 else _LABEL
        try:
            os.setxattr(path, _XATTR, wanted.encode() + b"\0", follow_symlinks=False)
        except OSError as error:
            if error.errno == ENOTSUP and not Path("/sys/fs/selinux/enforce").exists():
                log.debug("%s has no labels", path)
                return
            raise _refused(path.relative_to(tree), error) from error


def _refused(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot label {path} in the host's copy of the modules as {_TYPE}: {error.strerror}",
        hint="SELinux would not let the host load it; run the pod privileged and with SELinux "
        "level s0, on a file system with labels",
    )


def _own(settings: Settings, release: str) -> Path:
    return modules.tree(settings.driver_root, release) / MODULES_DIRECTORY


def _hosts(settings: Settings, release: str) -> Path:
    return modules.tree(other_modules.host(settings.driver_root), release) / MODULES_DIRECTORY
