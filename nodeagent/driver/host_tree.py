"""RHEL: the driver's modules in the host's tree, because SELinux asks what a module file is.

A module is loaded only from a file of type modules_object_t; what is in a container's layers has
another. So the tree is copied to the host's, labelled there, and what the container has of it
becomes a link. OpenShift's nodes take modules from the container, and no host tree is written.
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
from nodeagent.kernel.events import StopSignal
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

MODULES_DIRECTORY: Final = Path("extra/mlnx-ofa_kernel")
"""Where the packages put their modules, below lib/modules/<kernel>."""

_XATTR = "security.selinux"
_TYPE = "modules_object_t"
_LABEL = f"system_u:object_r:{_TYPE}:s0"


def unlink(settings: Settings, release: str) -> None:
    """Before packages are installed: what they write is to be the container's, not the host's."""
    tree = _own(settings, release)
    if tree.is_symlink():
        durable.remove(tree)


def share(settings: Settings, release: str, stop: StopSignal | None) -> bool:
    """Copy the tree to the host, label it, index it, and link to it. False where none is needed.

    Whole or not there at every moment: the copy is labelled before it has its name.
    """
    host = distribution.of_host(settings.driver_root)
    own, hosts = _own(settings, release), _hosts(settings, release)
    if host.family != "redhat" or host.is_openshift or not other_modules.has_host_tree(settings):
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
    """Give a tree the SELinux type of modules, what chcon -R -t does; user and level stay.

    Where neither the file system has labels nor SELinux is there to ask for them, nothing is done.
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
        hint="SELinux would not let the host load it; the pod needs the SELinux level s0, "
        "privileged, and a file system with labels",
    )


def _own(settings: Settings, release: str) -> Path:
    return packages.module_tree(settings.driver_root, release) / MODULES_DIRECTORY


def _hosts(settings: Settings, release: str) -> Path:
    host = settings.driver_root / other_modules.HOST_ROOT.relative_to("/")
    return packages.module_tree(host, release) / MODULES_DIRECTORY
