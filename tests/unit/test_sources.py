"""install.pl's arguments by distribution, running it here, and what it needs."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.driver import distribution, sources
from nodeagent.errors import NoInputError, UnavailableError, WaitTimeout
from nodeagent.settings import Settings

RELEASE = "6.1.0"
RHEL = 'ID="rhel"\nID_LIKE="fedora"\nPRETTY_NAME="Red Hat Enterprise Linux 9.4 (Plow)"\n'
UBUNTU = 'ID=ubuntu\nID_LIKE=debian\nPRETTY_NAME="Ubuntu 24.04"\n'
SLES = 'ID="sles"\nID_LIKE="suse"\n'


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A driver's root with sources, headers and an os-release."""
    (tmp_path / "src").mkdir()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(RHEL)
    (tmp_path / "lib/modules" / RELEASE / "build").mkdir(parents=True)
    return replace(Settings(), driver_root=tmp_path, nic_driver_path=Path("/src"))


def install_pl(settings: Settings, text: str) -> None:
    path = settings.driver_root / "src/install.pl"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("text", "family", "openshift"),
    [
        (RHEL, "redhat", False),
        ('ID="rhcos"\nID_LIKE="rhel fedora"\n', "redhat", True),
        ('ID="rhel"\nVARIANT_ID=coreos\nOPENSHIFT_VERSION="4.19"\n', "redhat", True),
        ("ID=rocky\nID_LIKE='rhel centos fedora'\n", "redhat", False),
        (UBUNTU, "ubuntu", False),
        ("ID=debian\n", "ubuntu", False),
        (SLES, "sles", False),
        ("ID=arch\n", "", False),
        ("", "", False),
        ('# ID=rhel\nnonsense\nID="unclosed\n', "", False),
    ],
)
def test_distribution(tmp_path: Path, text: str, family: str, openshift: bool) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(text)
    found = distribution.of_root(tmp_path)
    assert (found.family, found.is_openshift) == (family, openshift)


def test_the_hosts_distribution_comes_through_its_mount(tmp_path: Path) -> None:
    for place, text in (("etc", UBUNTU), ("host/etc", RHEL)):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "os-release").write_text(text)
    assert distribution.of_root(tmp_path).name == "Ubuntu 24.04"
    assert distribution.of_host(tmp_path).family == "redhat"
    (tmp_path / "host/etc/os-release").unlink()
    assert distribution.of_host(tmp_path).family == "ubuntu"
    assert distribution.of_root(tmp_path / "missing").name == "unknown"


NFS = ["--without-mlnx-nfsrdma", "--without-mlnx-nvme"]


def test_arguments_in_the_toolkit(settings: Settings) -> None:
    toolkit = replace(settings, dtk_build=True)
    assert list(sources.arguments(toolkit, RELEASE)) == [*sources.TOOLKIT_ARGUMENTS, *NFS]
    wanted = replace(toolkit, enable_nfsrdma=True, append_build_flags="--a '--b c'")
    assert sources.arguments(wanted, RELEASE)[-2:] == ("--a", "--b c")
    assert "--without-mlnx-nvme" not in sources.arguments(wanted, RELEASE)


@pytest.mark.parametrize(
    ("release_file", "suffix", "more"),
    [(RHEL, "", []), (UBUNTU, "-modules", []), (SLES, "", ["--kernel-sources"]), ("", "", [])],
)
def test_arguments_here(
    settings: Settings, release_file: str, suffix: str, more: list[str]
) -> None:
    (settings.driver_root / "etc/os-release").write_text(release_file)
    given = sources.arguments(replace(settings, append_build_flags="--last"), RELEASE)
    assert given[:5] == ("--without-depcheck", "--kernel", RELEASE, "--kernel-only", "--build-only")
    assert f"--without-srp{suffix}" in given
    assert f"--without-mlnx-nvme{suffix}" in given
    assert [each for each in given if each == "--kernel-sources"] == more
    assert given[-1] == "--last"


def test_the_script_for_the_toolkit_has_the_same_arguments() -> None:
    script = Path(sources.__file__).parent / "toolkit/dtk_nic_driver_build.sh"
    (call,) = [part for part in script.read_text().split("\nrun ") if "--build-only" in part]
    words = shlex.split(call.partition("||")[0].replace("\\\n", " "))
    assert words == ["$sources/install.pl", *sources.TOOLKIT_ARGUMENTS, "$@"]


def test_no_sources(settings: Settings) -> None:
    with pytest.raises(NoInputError, match=r"no install\.pl in .*/src"):
        sources.compile_here(settings, RELEASE, None)


def test_the_build_is_in_the_log(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    chroot(settings, monkeypatch)
    install_pl(settings, 'echo "Build mlnx-tools RPM"; echo; echo "for $3" >&2')
    assert sources.compile_here(settings, RELEASE, None) == settings.driver_root / "src"
    assert "build: Build mlnx-tools RPM" in caplog.messages
    assert f"build: for {RELEASE}" in caplog.messages
    assert "build: " not in caplog.messages


def test_a_build_that_fails(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    chroot(settings, monkeypatch)
    install_pl(settings, "seq 100; echo 'Failed to build mlnx-ofa_kernel'; exit 5")
    with pytest.raises(UnavailableError) as caught:
        sources.compile_here(settings, RELEASE, None)
    lines = caught.value.message.splitlines()
    assert (
        lines[0]
        == "cannot build the driver: install.pl exited with status 5; the end of its output:"
    )
    assert len(lines) == 1 + sources.LAST_LINES
    assert lines[-1] == "  Failed to build mlnx-ofa_kernel"


def test_a_build_that_hangs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    chroot(settings, monkeypatch)
    install_pl(settings, "exec sleep 60")
    with pytest.raises(WaitTimeout, match=r"install\.pl .* to end"):
        sources.compile_here(replace(settings, build_timeout=0.2), RELEASE, None)


def chroot(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """chroot(1) that needs no root: the command by its path outside."""
    path = settings.driver_root / "bin/chroot"
    path.parent.mkdir()
    path.write_text('#!/bin/sh\nroot=$1; command=$2; shift 2; exec "$root$command" "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
