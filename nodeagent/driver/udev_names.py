"""A udev rule that keeps interface names without the port: enp8s0f0, not enp8s0f0np0.

New drivers report a port name, which udev appends to the interface's name. Existing configuration
uses the old names, so with CREATE_IFNAMES_UDEV a rule removes the port name again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from nodeagent import durable
from nodeagent.errors import AgentError
from nodeagent.kernel import process, udev
from nodeagent.kernel.sysfs import Sysfs
from nodeagent.settings import Settings

log = logging.getLogger(__name__)

_PORT = re.compile(r"np[0-3]$")
_RELOAD_TIMEOUT = 10.0  # seconds; udevd answers when it has accepted the request

# The rule must come before 80-net-setup-link.rules, where udev names an interface by
# ID_NET_NAME_PATH or _SLOT. "$$" is udev's "$". A VF's name has its number after the port's. The
# rule is not for `add` alone: the rename makes a `move`, which would write the long name into
# udev's database again.
_RULE = """\
# Written by nodeagent; removed when its pod ends.
# enp8s0f0np0 becomes enp8s0f0, enp8s0f0np1v12 becomes enp8s0f0v12.
SUBSYSTEM=="net", ACTION!="remove", DRIVERS=="{driver}", ENV{{ID_NET_NAME_PATH}}=="?*", \\
  PROGRAM="/bin/sh -c 'echo $env{{ID_NET_NAME_PATH}} | sed -e s/np[0-3]$$// -e s/np[0-3]v/v/'", \\
  ENV{{ID_NET_NAME_PATH}}="$result"
SUBSYSTEM=="net", ACTION!="remove", DRIVERS=="{driver}", ENV{{ID_NET_NAME_SLOT}}=="?*", \\
  PROGRAM="/bin/sh -c 'echo $env{{ID_NET_NAME_SLOT}} | sed -e s/np[0-3]$$// -e s/np[0-3]v/v/'", \\
  ENV{{ID_NET_NAME_SLOT}}="$result"
"""


def ensure(settings: Settings, sysfs: Path = Path("/sys"), run: Path = Path("/run/udev")) -> None:
    """Write the rule if the setting asks for it and no interface of the driver has a port name.

    If there is no interface (an earlier run was killed while no driver was loaded), the file is
    not changed. StorageError if it cannot be written.
    """
    path = settings.udev_rules_file
    if not settings.create_ifnames_udev:
        remove(settings)
        return
    names = [*_names(settings, sysfs, run)]
    if not names:
        log.info("no interface shows whether names had ports: %s stays as it is", path)
    elif any(_PORT.search(name) for name in names):
        remove(settings)
    else:
        durable.make_directory(path.parent, 0o755)
        durable.replace(path, _RULE.format(driver=settings.driver_module).encode(), 0o644)
        log.info("interfaces keep their names without ports: wrote %s", path)
        _reload_rules()


def remove(settings: Settings) -> None:
    """Remove the rule, including one of the driver container, which uses the same file."""
    path = settings.udev_rules_file
    if path.parent.is_dir():
        durable.remove_unfinished(path)
        if durable.remove(path):
            log.info("removed %s", path)
            _reload_rules()


def _names(settings: Settings, sysfs: Path, run: Path) -> Iterator[str]:
    """udev's path-based name of each interface of the PFs (ID_NET_NAME_PATH)."""
    tree = Sysfs(sysfs)
    for bus, device in tree.physical_functions(settings.driver_module):
        for ifindex in tree.interfaces(bus, device):
            if name := udev.property_of(ifindex, "ID_NET_NAME_PATH", run):
                yield name


def _reload_rules() -> None:
    """Let udev read its rules at once, not at the first event after 3 s (systemd,
    manager_reload())."""
    try:
        process.run(["udevadm", "control", "--reload"], timeout=_RELOAD_TIMEOUT)
    except AgentError as error:
        log.debug("udev reads the rules by itself: %s", error.message)
