"""The inventory: what is reused, why not, and what is cleaned up."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nodeagent.driver import copies
from nodeagent.driver.inventory import Inventory, fingerprint
from nodeagent.errors import ConfigError

RELEASE = "5.14.0-570.73.1.el9_6.aarch64+64k"
VERSION = "25.07-0.9.7.0"
BUILT_WITH = fingerprint(RELEASE, VERSION, ["--build-only", "--kernel-only"])


@pytest.fixture
def packages(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "built" / f"{name}.rpm" for name in ("mlnx-ofa_kernel", "ofed-scripts")]
    for path in found:
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name)
    return found


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    (tmp_path / "inventory").mkdir()
    return Inventory(tmp_path / "inventory", RELEASE, VERSION)


@pytest.fixture
def stored(inventory: Inventory, packages: list[Path]) -> Inventory:
    inventory.store(packages, BUILT_WITH)
    return inventory


def test_layout(stored: Inventory, tmp_path: Path) -> None:
    directory = tmp_path / "inventory" / RELEASE
    assert sorted(str(path.relative_to(directory)) for path in directory.rglob("*")) == [
        VERSION,
        f"{VERSION}.buildconfig",
        f"{VERSION}.checksum",
        f"{VERSION}/mlnx-ofa_kernel.rpm",
        f"{VERSION}/ofed-scripts.rpm",
    ]
    digest = hashlib.sha256(b"mlnx-ofa_kernel.rpm").hexdigest()
    assert stored.checksum.read_text().splitlines()[0] == f"{digest}  mlnx-ofa_kernel.rpm"


def test_what_was_stored_is_reused(stored: Inventory) -> None:
    found = stored.packages(BUILT_WITH)
    assert [path.name for path in found] == ["mlnx-ofa_kernel.rpm", "ofed-scripts.rpm"]


def no_checksum(stored: Inventory) -> None:
    stored.checksum.unlink()


def no_buildconfig(stored: Inventory) -> None:
    stored.buildconfig.unlink()


def package_changed(stored: Inventory) -> None:
    (stored.directory / "ofed-scripts.rpm").write_text("x")


def package_gone(stored: Inventory) -> None:
    (stored.directory / "ofed-scripts.rpm").unlink()


def package_added(stored: Inventory) -> None:
    (stored.directory / "another.rpm").touch()


def no_packages(stored: Inventory) -> None:
    for path in stored.directory.iterdir():
        path.unlink()


def checksum_is_a_link(stored: Inventory) -> None:
    moved = stored.checksum.rename(stored.checksum.with_name("moved"))
    stored.checksum.symlink_to(moved)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (no_checksum, f"there is no .*{VERSION}.checksum"),
        (no_buildconfig, f"there is no .*{VERSION}.buildconfig"),
        (package_changed, "the checksum of ofed-scripts.rpm"),
        (package_gone, "the checksum of ofed-scripts.rpm"),
        (package_added, "the checksum of another.rpm"),
        (no_packages, "has no packages"),
        (checksum_is_a_link, "there is no"),
    ],
)
def test_a_build_is_needed(
    stored: Inventory,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Inventory], None],
    why: str,
) -> None:
    caplog.set_level(logging.INFO)
    change(stored)
    assert stored.packages(BUILT_WITH) == ()
    assert re.search(f"^a build is needed: .*{why}", caplog.messages[-1])


@pytest.mark.parametrize(
    "now",
    [
        fingerprint("5.14.0-1.el9.x86_64", VERSION, ["--build-only", "--kernel-only"]),
        fingerprint(RELEASE, "25.10-1.2.8.0", ["--build-only", "--kernel-only"]),
        fingerprint(RELEASE, VERSION, ["--build-only", "--kernel-only", "--with-more"]),
    ],
)
def test_a_build_is_needed_when_kernel_version_or_flags_differ(stored: Inventory, now: str) -> None:
    assert stored.packages(now) == ()


def test_a_store_that_is_killed_leaves_nothing_that_looks_good(
    stored: Inventory, packages: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any point: the checksum goes before the packages change, and comes after."""

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(copies, "files", killed)
    with pytest.raises(KeyboardInterrupt):
        stored.store(packages, BUILT_WITH)
    assert stored.packages(BUILT_WITH) == ()


def test_forgotten_packages_are_built_anew(stored: Inventory) -> None:
    stored.forget()
    assert stored.packages(BUILT_WITH) == ()


def test_clean_up_removes_other_kernels_and_versions_and_nothing_else(
    stored: Inventory, packages: list[Path]
) -> None:
    other_kernel = Inventory(stored.root, "5.14.0-1.el9.x86_64", VERSION)
    other_version = Inventory(stored.root, RELEASE, "24.10-0.7.0.0")
    for old in (other_kernel, other_version):
        old.store(packages, BUILT_WITH)
    without_checksum = stored.root / "5.14.0-2.el9.x86_64/23.10-0.5.5.0"
    without_checksum.mkdir(parents=True)
    (without_checksum / "a.deb").touch()
    (other_version.directory.parent / ".24.04-0.6.6.0.0123abcd.tmp").mkdir()
    notes = stored.root / RELEASE / "notes"
    notes.mkdir()
    (notes / "a.rpm").touch()
    (notes / "readme").touch()
    (stored.root / "lost+found").mkdir()
    (stored.root / "lost+found/file").touch()
    (stored.root / "a file").touch()
    stored.clean_up()
    assert sorted(path.name for path in stored.root.iterdir()) == sorted(
        [RELEASE, "a file", "lost+found"]
    )
    assert sorted(path.name for path in (stored.root / RELEASE).iterdir()) == [
        VERSION,
        f"{VERSION}.buildconfig",
        f"{VERSION}.checksum",
        "notes",
    ]
    assert stored.packages(BUILT_WITH)


def test_the_inventory_must_be_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which is not a directory"):
        Inventory(tmp_path / "missing", RELEASE, VERSION).require()
    Inventory(tmp_path / "missing", RELEASE, VERSION).clean_up()
