"""The names under which the Network Operator asks for a driver container's image.

It makes them of its policy and the node: REPOSITORY/IMAGE:VERSION-OSNAMEOSVER-ARCH, and with the
kernel after the version for a precompiled driver.
"""

from __future__ import annotations

import platform
import re

from emulator.host import LabError

IMAGE = "nodeagent-doca"
"""`spec.ofedDriver.image` of manifests/network-operator."""
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
LONGEST = 128
"""Characters of a tag."""

_VERSION = re.compile(r"(?:doca\d+(?:\.\d+)+-)?\d+(?:\.\d+)+-\d+(?:\.\d+)+-\d+")
_SYSTEM = re.compile(r"(?:ubuntu|rhel|rhcos|sles|ol)\d+(?:\.\d+)*")
_KERNEL = re.compile(r"[0-9][A-Za-z0-9_.-]*")


def tag_for(version: str, system: str, *, arch: str | None = None, kernel: str = "") -> str:
    """IMAGE and its tag; LabError names the part that is not as the operator has it."""
    arch = arch or ARCHITECTURES.get(platform.machine(), "")
    _expect(version, _VERSION, "--tag-for", "ofedDriver.version, such as 25.10-1.2.8.0-0")
    _expect(
        system, _SYSTEM, "--os", "ID and VERSION_ID of os-release, such as ubuntu24.04, rhel9.4"
    )
    if arch not in ARCHITECTURES.values():
        raise LabError(
            f"--arch is {arch!r}", hint="amd64 and arm64 are what NVIDIA has drivers for"
        )
    if kernel:
        _expect(kernel, _KERNEL, "--kernel", "what uname -r says; a tag cannot hold a +")
    tag = "-".join(filter(None, (version, kernel, system, arch)))
    if len(tag) > LONGEST:
        raise LabError(f"the tag {tag} has {len(tag)} characters", hint=f"{LONGEST} are allowed")
    return f"{IMAGE}:{tag}"


def _expect(value: str, pattern: re.Pattern[str], option: str, hint: str) -> None:
    if pattern.fullmatch(value) is None:
        raise LabError(f"{option} is {value!r}", hint=hint)
