"""The kernel's headers: there, installed, or not to be had. Package managers are real scripts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.driver import headers
from nodeagent.driver.distribution import Family
from nodeagent.errors import UnavailableError
from nodeagent.settings import Settings
from tests.support.host import CHROOT

RELEASE = "5.14.0-570.73.1.el9_6.aarch64"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A driver's root; its package managers write down what they were asked, and bring it."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "bin").mkdir()
    manager = f"""#!/bin/sh
echo "${{0##*/}} $*" >> {tmp_path}/calls
case "$*" in *update) exit 0 ;; esac
test ! -e {tmp_path}/broken || {{ echo reading; echo "No match for argument" >&2; exit 1; }}
test -e {tmp_path}/empty || mkdir -p {tmp_path}/lib/modules/{RELEASE}/build
"""
    for name, text in {
        **dict.fromkeys(("apt-get", "dnf", "zypper"), manager),
        "chroot": CHROOT,
    }.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return replace(Settings(), driver_root=tmp_path)


def release_file(settings: Settings, text: str) -> None:
    (settings.driver_root / "etc/os-release").write_text(text)


@pytest.mark.parametrize(
    ("family", "release", "package"),
    [
        ("ubuntu", "6.8.0-45-generic", "linux-headers-6.8.0-45-generic"),
        ("sles", "6.4.0-150600.21-default", "kernel-default-devel=6.4.0-150600.21"),
        ("redhat", RELEASE, f"kernel-devel-{RELEASE}"),
        ("redhat", f"{RELEASE}+64k", f"kernel-64k-devel-{RELEASE}"),
        ("redhat", f"{RELEASE}+rt", f"kernel-rt-devel-{RELEASE}"),
        ("", "6.1.0", "the headers of 6.1.0"),
    ],
)
def test_package(family: str, release: str, package: str) -> None:
    assert headers.package_of(Family(family), release) == package


def test_headers_that_are_there(settings: Settings) -> None:
    """The link is absolute in the driver's root, as in every image."""
    (settings.driver_root / "usr/src/kernels/x").mkdir(parents=True)
    modules = settings.driver_root / "lib/modules" / RELEASE
    modules.mkdir(parents=True)
    (modules / "build").symlink_to("/usr/src/kernels/x")
    headers.ensure(settings, RELEASE, None)
    assert not (settings.driver_root / "calls").exists()


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("ID=rhel\n", [f"dnf -q -y install --allowerasing kernel-devel-{RELEASE}"]),
        (
            "ID=ubuntu\n",
            [
                "apt-get -yq update",
                f"apt-get -yq install --no-install-recommends linux-headers-{RELEASE}",
            ],
        ),
        (
            "ID=sles\n",
            [
                f"zypper --non-interactive install --no-recommends kernel-default-devel={RELEASE}",
            ],
        ),
    ],
)
def test_missing_headers_are_installed(settings: Settings, text: str, calls: list[str]) -> None:
    release_file(settings, text)
    headers.ensure(settings, RELEASE, None)
    assert (settings.driver_root / "calls").read_text().splitlines() == calls


@pytest.mark.parametrize(
    ("text", "fault", "why"),
    [
        ("ID=rhel\n", "broken", "exited with status 1: reading | No match for argument"),
        ("ID=rhel\n", "empty", "the package does not contain them"),
        ("ID=arch\n", "none", "nodeagent does not know their package for this distribution"),
    ],
)
def test_no_headers_to_be_had(settings: Settings, text: str, fault: str, why: str) -> None:
    release_file(settings, text)
    (settings.driver_root / fault).touch()
    with pytest.raises(UnavailableError, match="the headers of the running kernel") as caught:
        headers.ensure(settings, RELEASE, None)
    assert why in caught.value.message
    assert "DTK_OCP_DRIVER_BUILD" in (caught.value.hint or "")
